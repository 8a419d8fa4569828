"""What a person reads: a table per class, and a report that opens offline."""

from __future__ import annotations

import base64
import html
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from finetune.disk import write_whole
from finetune.errors import UserError
from finetune.run.log import read

# --- Table ------------------------------------------------------------------------------------

LONG_LIST, GROUP_WIDTH = 24, 56  # classes from which on columns are split; characters of a group


def iou_table(
    result: Mapping[str, Any],
    names: Sequence[str],
    pixels: Sequence[int] | None = None,
    *,
    width: int | None = None,
) -> Table:
    """The scores per class as a table for the terminal, the mean at the end.

    Args:
        result: What `MeanIoU.compute` returned.
        names: The classes' names by id.
        pixels: True pixels per class (`confusion.sum(axis=1)`), for the column with their share.
        width: Characters across; the terminal's if None. Long lists are set in up to three
            columns where they fit.
    """
    lines = []
    total = sum(pixels) if pixels is not None else 0
    for label, name in enumerate(names):
        scores = (result["per_category_iou"][label], result["per_category_accuracy"][label])
        share = (
            [_percent(pixels[label] / total if total else math.nan)] if pixels is not None else []
        )
        lines.append([name, *map(_percent, scores), *share])
    mean = ["mean", _percent(result["mean_iou"]), _percent(result["mean_accuracy"])]
    mean += [""] if pixels is not None else []

    fits = (width or Console().width) // GROUP_WIDTH
    groups = max(1, min(3, fits)) if len(lines) > LONG_LIST else 1
    height = math.ceil(len(lines) / groups)
    table = Table(header_style="bold")
    for _ in range(groups):
        table.add_column("class", overflow="ellipsis", no_wrap=True, max_width=26)
        for title in ["IoU", "accuracy", *(["pixels"] if pixels is not None else [])]:
            table.add_column(title, justify="right", no_wrap=True)
    for row in range(height):
        cells: list[str] = []
        for line in lines[row::height]:
            cells += [_escape_markup(line[0]), *line[1:]]
        table.add_row(*cells, end_section=row == height - 1)
    table.add_row(*mean, style="bold")
    return table


def _percent(value: float | None) -> str:
    return "-" if value is None or math.isnan(value) else f"{100 * value:.2f}"


def _escape_markup(text: str) -> str:
    """Class names are text: rich would take [red] in them for markup."""
    return text.replace("[", r"\[")


# --- HTML -------------------------------------------------------------------------------------

STYLE = """
:root { color-scheme: light dark; --ink: #1c1e21; --faint: #6b7078; --paper: #fff; --line: #e2e5e9;
  --curve: #2563eb; --second: #d97706; }
@media (prefers-color-scheme: dark) { :root { --ink: #e8eaed; --faint: #9aa0a8; --paper: #16181b;
  --line: #33373d; --curve: #7aa2ff; --second: #f3b562; } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper);
  max-width: 1080px; margin: 2rem auto; padding: 0 1.25rem; }
h1 { font-size: 1.6rem; margin: 0; } h2 { font-size: 1.1rem; margin: 2.2rem 0 .6rem; }
.summary { color: var(--faint); margin: .2rem 0 0; }
.curves { display: grid; gap: 1.25rem;
  grid-template-columns: repeat(auto-fit, minmax(310px, 1fr)); }
svg { width: 100%; height: auto; } svg text { font-size: 11px; fill: var(--faint); }
svg .title { font-size: 13px; font-weight: 600; fill: var(--ink); }
.grid { stroke: var(--line); } .c0 { stroke: var(--curve); } .c1 { stroke: var(--second); }
polyline { fill: none; stroke-width: 1.6; }
svg .t0 { fill: var(--curve); } svg .t1 { fill: var(--second); }
svg circle.c0 { fill: var(--curve); } svg circle.c1 { fill: var(--second); }
.classes { columns: 300px; column-gap: 2rem; }
.class { display: grid; grid-template-columns: 1fr 90px 3.6em; gap: .6em; align-items: center;
  break-inside: avoid; } .class > :first-child { overflow-wrap: anywhere; }
.class > :last-child { text-align: right; font-variant-numeric: tabular-nums; }
.bar { height: 8px; border-radius: 4px; background: var(--line); }
.bar i { display: block; height: 100%; border-radius: 4px; background: var(--curve); }
img { max-width: 100%; border: 1px solid var(--line); border-radius: 6px; }
pre { border: 1px solid var(--line); border-radius: 6px; padding: .8rem 1rem; overflow-x: auto;
  font-size: 13px; }
"""

# Title, and the keys of metrics.jsonl drawn into it with the name of each line.
CURVES: dict[str, dict[str, str]] = {
    "loss": {"train/loss": "train", "eval/loss": "eval"},
    "mean IoU": {"eval/mean_iou": "eval"},
    "learning rate": {"train/lr": "train"},
}


def html_report(run: Path) -> Path:
    """Write `report.html` into a run folder: one file that needs nothing else, and no script.

    It shows the curves and the last scores per class of metrics.jsonl, panel.png if there is one,
    recipe.yaml and environment.json.

    Returns:
        The path of the report.

    Raises:
        UserError: The folder has no metrics.jsonl, or the report cannot be written.
    """
    metrics = run / "metrics.jsonl"
    if not metrics.is_file():
        raise UserError(
            f"{metrics} does not exist: give the folder of a run (`output` of a recipe)"
        )
    rows = read(metrics)
    charts = [_chart(title, _series(rows, keys)) for title, keys in CURVES.items()]
    parts = [
        f"<h1>{html.escape(run.resolve().name)}</h1>",
        f'<p class="summary">{html.escape(_summary(rows))}</p>',
        f'<h2>Curves</h2><div class="curves">{"".join(charts)}</div>',
    ]
    scored = [row for row in rows if row.get("eval/per_class_iou")]
    if scored:
        parts.append(f"<h2>IoU per class at step {scored[-1]['step']}</h2>")
        parts.append(_class_bars(scored[-1]["eval/per_class_iou"]))
    if (run / "panel.png").is_file():
        picture = base64.b64encode((run / "panel.png").read_bytes()).decode()
        parts.append("<h2>Examples</h2>")
        parts.append(f'<img alt="examples" src="data:image/png;base64,{picture}">')
    for title, name in (("Recipe", "recipe.yaml"), ("Environment", "environment.json")):
        if (run / name).is_file():
            text = (run / name).read_text(encoding="utf-8", errors="replace")
            parts.append(f"<h2>{title}</h2><pre>{html.escape(text)}</pre>")
    report = run / "report.html"
    write_whole(report, html_page(run.resolve().name, parts))
    return report


def html_page(title: str, parts: Sequence[str], style: str = "") -> str:
    """One HTML file that needs nothing else, in the house's style.

    Args:
        title: Text, not yet escaped.
        parts: The body, markup.
        style: CSS beside the house's.
    """
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{html.escape(title)}</title><style>{STYLE}{style}</style></head>"
        f"<body>{''.join(parts)}</body></html>\n"
    )


def _summary(rows: Sequence[Mapping[str, Any]]) -> str:
    parts = [f"{rows[-1]['step']} steps"] if rows else ["no steps yet"]
    scores = [(r["eval/mean_iou"], r["step"]) for r in rows if r.get("eval/mean_iou") is not None]
    if scores:
        best, step = max(scores)
        parts.append(f"last mean IoU {scores[-1][0]:.2%}")
        parts.append(f"best {best:.2%} at step {step}")
    seconds = [row["seconds"] for row in rows if row.get("seconds") is not None]
    if seconds:
        minutes = round(seconds[-1] / 60)
        parts.append(
            f"{minutes // 60} h {minutes % 60:02} min" if minutes else f"{seconds[-1]:.0f} s"
        )
    return ", ".join(parts)


def _class_bars(scores: Mapping[str, float | None]) -> str:
    lines = []
    for name, score in scores.items():
        bar = f'<i style="width:{100 * (score or 0):.1f}%"></i>'
        lines.append(
            f'<div class="class"><span>{html.escape(name)}</span><span class="bar">{bar}</span>'
            f"<span>{_percent(score)}</span></div>"
        )
    return f'<div class="classes">{"".join(lines)}</div>'


Points = list[tuple[int, float | None]]


def _series(rows: Sequence[Mapping[str, Any]], keys: Mapping[str, str]) -> dict[str, Points]:
    """The points (step, value or None where it was not finite) of each line that has any."""
    series = {name: [(r["step"], r[key]) for r in rows if key in r] for key, name in keys.items()}
    return {name: points for name, points in series.items() if points}


def _chart(title: str, series: Mapping[str, Points]) -> str:
    """One inline SVG: lines over steps, broken where a value is missing."""
    width, height, left, right, top, bottom = 360, 220, 52, 12, 30, 26
    values = [value for points in series.values() for _, value in points if value is not None]
    head = f'<text class="title" x="{left}" y="16">{html.escape(title)}</text>'
    if not values:
        body = f'<text x="{left}" y="{height // 2}">nothing logged yet</text>'
        return f'<svg viewBox="0 0 {width} {height}" role="img">{head}{body}</svg>'
    marks = ticks(min(values), max(values))
    low, high = marks[0], marks[-1]
    last = max(1, *(step for points in series.values() for step, _ in points))

    def x(step: float) -> float:
        return left + step / last * (width - left - right)

    def y(value: float) -> float:
        return height - bottom - (value - low) / (high - low) * (height - top - bottom)

    shapes = [head]
    for tick in marks:
        line = f'x1="{left}" x2="{width - right}" y1="{y(tick):.1f}" y2="{y(tick):.1f}"'
        shapes.append(f'<line class="grid" {line}/>')
        shapes.append(
            f'<text x="{left - 6}" y="{y(tick) + 4:.1f}" text-anchor="end">{tick:.4g}</text>'
        )
    for step in (tick for tick in ticks(0, last) if tick <= last):
        shapes.append(
            f'<text x="{x(step):.1f}" y="{height - 8}" text-anchor="middle">{step:.6g}</text>'
        )
    for index, (name, points) in enumerate(series.items()):
        shapes += [_line(piece, index, x, y) for piece in _pieces(points)]
        if len(series) > 1:
            place = f'x="{width - right - 40 * (len(series) - 1 - index)}" y="16"'
            shapes.append(f'<text class="t{index}" {place} text-anchor="end">{name}</text>')
    return f'<svg viewBox="0 0 {width} {height}" role="img">{"".join(shapes)}</svg>'


def _line(piece: Sequence[tuple[int, float]], index: int, x: Any, y: Any) -> str:
    if len(piece) == 1:
        step, value = piece[0]
        return f'<circle class="c{index}" cx="{x(step):.1f}" cy="{y(value):.1f}" r="2.5"/>'
    corners = " ".join(f"{x(step):.1f},{y(value):.1f}" for step, value in piece)
    return f'<polyline class="c{index}" points="{corners}"/>'


def _pieces(points: Points) -> list[list[tuple[int, float]]]:
    """The runs of points between missing values."""
    pieces: list[list[tuple[int, float]]] = [[]]
    for step, value in points:
        if value is None:
            pieces.append([])
        else:
            pieces[-1].append((step, value))
    return [piece for piece in pieces if piece]


def ticks(low: float, high: float) -> list[float]:
    """Three to six round numbers that enclose low and high."""
    span = (high - low) or abs(high) or 1.0
    power = 10.0 ** math.floor(math.log10(span / 4))
    step = next(m * power for m in (1, 2, 5, 10) if span / (m * power) <= 4.5)
    first = math.floor(low / step + 1e-9)
    end = max(math.ceil(high / step - 1e-9), first + 1)
    return [index * step for index in range(first, end + 1)]
