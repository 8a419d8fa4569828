"""Markdown for foreign text, escaped so that it shows as it is."""

import html
import re
from collections.abc import Sequence

_SPECIAL = re.compile(r"([\\`*_{}\[\]#|~$^])")


def escaped(text: object) -> str:
    """Text as one line of Markdown, with markup, HTML and cell ends escaped."""
    line = html.escape(" ".join(str(text).split()), quote=False)
    return _SPECIAL.sub(r"\\\1", line)


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """The lines of a table of Markdown cells."""
    lines = [header, ["---"] * len(header), *rows]
    return [f"| {' | '.join(cells)} |" for cells in lines]


def fenced(text: str, language: str = "") -> list[str]:
    """The lines of a code block, with a fence that does not occur in the text."""
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return [f"{fence}{language}", *text.rstrip("\n").splitlines(), fence]


def percent(value: float | None) -> str:
    """A share as a percentage."""
    return "-" if value is None else f"{value:.2%}"
