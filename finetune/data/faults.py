"""What is wrong with single files of a data set, collected; a training would stop at the first.

Whatever opens a data set takes a list of them, or None. With None the first mistake is raised; with
a list each is entered with its files, and what is left without them is opened.
"""

from collections.abc import Iterable
from dataclasses import dataclass

_NUM_NAMED = 5  # names that a message holds before it only counts


@dataclass(frozen=True)
class Fault:
    """One mistake in one place."""

    kind: str
    """What is wrong, in words that stay the same, such as "image-without-mask"."""
    files: tuple[str, ...]
    """Who is concerned, by the names that messages use."""
    what: str = ""
    """More about this place, if there is more to say."""


def each(kind: str, names: Iterable[object], what: str = "") -> list[Fault]:
    """One fault a name, in their order."""
    return [Fault(kind, (str(name),), what) for name in names]


def listed(names: list[str]) -> str:
    """The first few names, and how many more there are."""
    more = f" and {len(names) - _NUM_NAMED} more" if len(names) > _NUM_NAMED else ""
    return ", ".join(names[:_NUM_NAMED]) + more
