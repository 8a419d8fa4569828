"""The results of a run as a self-contained HTML report."""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune.disk import write_whole
from finetune.errors import UserError
from finetune.run.log import read
from finetune.run.pages import Axes, render, ticks

# Title of a chart, and its keys of metrics.jsonl with the name of each line.
CURVES: dict[str, dict[str, str]] = {
    "loss": {"train/loss": "train", "eval/loss": "eval"},
    "mean IoU": {"eval/mean_iou": "eval"},
    "learning rate": {"train/lr": "train"},
}


def html_report(run: Path) -> Path:
    """Writes `report.html` into a run folder, a self-contained page without scripts.

    It shows the curves and the last scores per class of metrics.jsonl, panel.png if it exists,
    recipe.yaml and environment.json.

    Returns:
        The path of the report.

    Raises:
        UserError: The folder has no metrics.jsonl, or the report cannot be written.
    """
    metrics, panel, report = run / "metrics.jsonl", run / "panel.png", run / "report.html"
    if not metrics.is_file():
        raise UserError(f"{metrics} does not exist: name the folder of a run, a recipe's `output`")
    rows = read(metrics)
    files = {"Recipe": run / "recipe.yaml", "Environment": run / "environment.json"}
    page = render(
        "run/report.html",
        title=run.resolve().name,
        summary=_summary(rows),
        charts=[_chart(title, rows, keys) for title, keys in CURVES.items()],
        scored=next((row for row in reversed(rows) if row.get("eval/per_class_iou")), None),
        percent=percent,
        panel=base64.b64encode(panel.read_bytes()).decode() if panel.is_file() else None,
        texts={
            title: path.read_text(encoding="utf-8", errors="replace")
            for title, path in files.items()
            if path.is_file()
        },
    )
    write_whole(report, page)
    return report


def percent(value: float | None) -> str:
    """A share in per cent, with two digits; "-" for None and NaN."""
    return "-" if value is None or math.isnan(value) else f"{100 * value:.2f}"


def _summary(rows: Sequence[Mapping[str, Any]]) -> str:
    parts = [f"{rows[-1]['step']} steps"] if rows else ["no steps yet"]
    scores = [(r["eval/mean_iou"], r["step"]) for r in rows if r.get("eval/mean_iou") is not None]
    if scores:
        best, step = max(scores)
        parts += [f"last mean IoU {scores[-1][0]:.2%}", f"best {best:.2%} at step {step}"]
    if seconds := [row["seconds"] for row in rows if row.get("seconds") is not None]:
        hours, minutes = divmod(round(seconds[-1] / 60), 60)
        parts.append(f"{hours} h {minutes:02} min" if hours + minutes else f"{seconds[-1]:.0f} s")
    return ", ".join(parts)


Points = list[tuple[int, float]]


@dataclass(frozen=True)
class Chart:
    """Lines over steps."""

    title: str
    axes: Axes
    lines: dict[str, list[Points]]
    """Lines by name, each split into pieces at missing values; empty lines are left out."""


def _chart(title: str, rows: Sequence[Mapping[str, Any]], keys: Mapping[str, str]) -> Chart:
    lines = {name: pieces for key, name in keys.items() if (pieces := _pieces(rows, key))}
    points = [point for pieces in lines.values() for piece in pieces for point in piece]
    last = max([1, *(row["step"] for row in rows if keys.keys() & row.keys())])
    values = [value for _, value in points] or [0.0]
    columns = [tick for tick in ticks(0, last) if tick <= last]
    marks = ticks(min(values), max(values))
    axes = Axes(columns, marks, last, 360, 220, top=30, right=12, bottom=26, left=52)
    return Chart(title, axes, lines)


def _pieces(rows: Sequence[Mapping[str, Any]], key: str) -> list[Points]:
    """The points of a line, split at values that are not finite."""
    pieces: list[Points] = [[]]
    for row in rows:
        if row.get(key) is not None:
            pieces[-1].append((row["step"], row[key]))
        elif key in row:
            pieces.append([])
    return [piece for piece in pieces if piece]
