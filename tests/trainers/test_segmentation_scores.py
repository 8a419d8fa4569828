"""The table of an evaluation, as a terminal shows it."""

import re
from io import StringIO

import numpy as np
import pytest
from rich.console import Console

from finetune.trainers.segmentation_scores import iou_table


def result_of(scores):
    scores = np.array(scores)
    return {
        "mean_iou": np.nanmean(scores),
        "mean_accuracy": np.nanmean(scores),
        "overall_accuracy": 0.5,
        "per_category_iou": scores,
        "per_category_accuracy": scores,
    }


def printed(table, width):
    console = Console(width=width, record=True, file=StringIO())
    console.print(table)
    return console.export_text()


def test_table():
    text = printed(iou_table(result_of([0.25, np.nan]), ["[red]sky", "sea"], [30, 10]), 80)
    sky, sea, mean = (next(x for x in text.splitlines() if n in x) for n in ("sky", "sea", "mean"))
    assert re.findall(r"[\d.]+", sky) == ["25.00", "25.00", "75.00"]
    assert "[red]sky" in sky
    assert re.findall(r"[\d.]+", sea) == ["25.00"]
    assert sea.count("-") == 2
    assert re.findall(r"[\d.]+", mean) == ["25.00", "25.00"]


@pytest.mark.parametrize(("width", "groups"), [(60, 1), (120, 2), (180, 3)])
def test_a_long_table_uses_the_width_of_the_terminal(width, groups, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(width))
    names = [f"class number {label}" for label in range(150)]
    text = printed(iou_table(result_of([0.5] * 150), names, [1] * 150), width)
    assert all(re.search(rf"{name}\b", text) for name in names)
    assert max(line.count("class number") for line in text.splitlines()) == groups
    assert len(text.splitlines()) < 150 / groups + 8
