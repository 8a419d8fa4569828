"""Faults of single files of a data set, collected where a training would stop at the first.

Functions that open a data set take a list of faults, or None. With None the first fault is raised.
With a list each fault is entered with its files, and the data set opens without these files.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

_NUM_NAMED = 5  # names in a message; the rest is counted


@dataclass(frozen=True)
class Fault:
    """One fault in one place."""

    kind: str
    """What is wrong, as a fixed word, such as "image-without-mask"."""
    files: tuple[str, ...]
    """The files concerned, by their names in messages."""
    what: str = ""
    """Details of this place, if any."""


Faults: TypeAlias = list[Fault] | None


def each(kind: str, names: Iterable[object], what: str = "") -> list[Fault]:
    """One fault per name, in their order."""
    return [Fault(kind, (str(name),), what) for name in names]


def listed(names: list[str]) -> str:
    """The first few names, and the number of the others."""
    more = f" and {len(names) - _NUM_NAMED} more" if len(names) > _NUM_NAMED else ""
    return ", ".join(names[:_NUM_NAMED]) + more


def without_partner(
    images: Sequence[Path], masks: Sequence[Path], what: str = ""
) -> Iterator[Fault]:
    """A fault for each pair with a missing file."""
    for image, mask in zip(images, masks, strict=True):
        match image.is_file(), mask.is_file():
            case True, False:
                yield Fault("image-without-mask", (str(image),), what)
            case False, True:
                yield Fault("mask-without-image", (str(mask),), what)
            case False, False:
                yield Fault("listed-but-missing", (str(image),), what)
