"""Text of others in Markdown: shown as it is, whatever characters it holds."""

import html
import re
from collections.abc import Sequence

_SPECIAL = re.compile(r"([\\`*_{}\[\]#|~$^])")


def escaped(text: object) -> str:
    """Text as one line of Markdown that shows it: no markup, no HTML, no cell's end."""
    line = html.escape(" ".join(str(text).split()), quote=False)
    return _SPECIAL.sub(r"\\\1", line)


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """The lines of a table; its cells are Markdown already."""
    lines = [header, ["---"] * len(header), *rows]
    return [f"| {' | '.join(cells)} |" for cells in lines]


def fenced(text: str, language: str = "") -> list[str]:
    """The lines of a block of code, which no line of the text can end."""
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return [f"{fence}{language}", *text.rstrip("\n").splitlines(), fence]


def percent(value: float | None) -> str:
    """A share as a person reads it."""
    return "-" if value is None else f"{value:.2%}"
