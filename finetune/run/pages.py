"""Self-contained HTML pages from Jinja2 templates, all in the style of `page.html`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

ENVIRONMENT = Environment(
    loader=PackageLoader("finetune", ""),
    autoescape=True,
    trim_blocks=True,
    lstrip_blocks=True,
    undefined=StrictUndefined,
)


def render(template: str, **values: Any) -> str:
    """A self-contained HTML page without scripts, of a template such as "run/report.html".

    The text of its variables is escaped.
    """
    text = ENVIRONMENT.get_template(template).render(values)
    # File names may hold bytes that are no text; they are written as escapes.
    return text.encode("utf-8", "backslashreplace").decode()


@dataclass(frozen=True)
class Axes:
    """The axes of an SVG and the positions of values in it; `grid` of `axes.html` draws them."""

    columns: Sequence[float]
    rows: Sequence[float]
    """Ticks, ascending."""
    end: float
    """The value at the right edge; columns[0] is at the left edge."""
    width: int
    height: int
    top: int
    right: int
    bottom: int
    left: int

    def x(self, value: float) -> float:
        """Pixels from the left."""
        share = (value - self.columns[0]) / (self.end - self.columns[0])
        return round(self.left + share * (self.width - self.left - self.right), 1)

    def y(self, value: float) -> float:
        """Pixels from the top."""
        share = (value - self.rows[0]) / (self.rows[-1] - self.rows[0])
        return round(self.height - self.bottom - share * (self.height - self.top - self.bottom), 1)


def ticks(low: float, high: float) -> list[float]:
    """Three to six round numbers that enclose low and high."""
    span = (high - low) or abs(high) or 1.0
    power = 10.0 ** math.floor(math.log10(span / 4))
    step = next(m * power for m in (1, 2, 5, 10) if span / (m * power) <= 4.5)
    first = math.floor(low / step + 1e-9)
    end = max(math.ceil(high / step - 1e-9), first + 1)
    return [index * step for index in range(first, end + 1)]
