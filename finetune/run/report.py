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

LOSS = {"train/loss": "train", "eval/loss": "eval"}
LEARNING_RATE = {"train/lr": "train"}
"""Keys of metrics.jsonl for one chart, with the name of each line."""
_PER_CLASS = "eval/per_class_"


def html_report(run: Path) -> Path:
    """Writes `report.html` into a run folder, a self-contained page without scripts.

    It shows the curves of metrics.jsonl and the last scores per class, panel.png if it exists,
    recipe.yaml and environment.json. An evaluation's first key names the score; see `Evaluation`.

    Returns:
        The path of the report.

    Raises:
        UserError: The folder has no metrics.jsonl, or the report cannot be written.
    """
    metrics, panel, report = run / "metrics.jsonl", run / "panel.png", run / "report.html"
    if not metrics.is_file():
        raise UserError(f"{metrics} does not exist: name the folder of a run, a recipe's `output`")
    rows = read(metrics)
    evaluations = [row for row in rows if any(key.startswith("eval/") for key in row)]
    score = next((key for row in evaluations for key in row if key.startswith("eval/")), "")
    charts = {"loss": LOSS} | ({_title(score): {score: "eval"}} if score else {})
    files = {"Recipe": run / "recipe.yaml", "Environment": run / "environment.json"}
    page = render(
        "run/report.html",
        title=run.resolve().name,
        summary=_summary(rows, score),
        charts=[
            _chart(title, rows, keys)
            for title, keys in (charts | {"learning rate": LEARNING_RATE}).items()
        ],
        per_class={
            f"{_title(key.removeprefix(_PER_CLASS))} per class at step {row['step']}": scores
            for row in evaluations[-1:]
            for key, scores in row.items()
            if key.startswith(_PER_CLASS)
        },
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


def _title(key: str) -> str:
    """A metric's name for people: "mean IoU" for eval/mean_iou."""
    words = key.removeprefix("eval/").split("_")
    return " ".join("IoU" if word == "iou" else word for word in words)


def _summary(rows: Sequence[Mapping[str, Any]], score: str) -> str:
    parts = [f"{rows[-1]['step']} steps"] if rows else ["no steps yet"]
    scores = [(row[score], row["step"]) for row in rows if row.get(score) is not None]
    if scores:
        best, step = max(scores)
        parts += [f"last {_title(score)} {scores[-1][0]:.2%}", f"best {best:.2%} at step {step}"]
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
