"""The summary tables of a folder of predictions, written line by line for a million pictures."""

import csv
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

Rows = Iterable[Mapping[str, Any]]
"""Lines of the journal, one a picture or video."""


def areas_csv(rows: Rows, names: Sequence[str]) -> Iterator[str]:
    """One line for each class that occurs in a picture."""
    line: Any = csv.writer(SimpleNamespace(write=str)).writerow  # returns what it would write
    yield line(["name", "image", "class_id", "class", "pixels", "share"])
    for row in rows:
        total = sum(row["pixels"].values())
        for label, pixels in row["pixels"].items():
            share = f"{pixels / total:.6f}"
            yield line([row["name"], row["image"], label, names[int(label)], pixels, share])


def areas_json(rows: Rows, names: Sequence[str]) -> Iterator[str]:
    """{picture: {class: {pixels, share}}}."""
    yield "{"
    for number, row in enumerate(rows):
        total = sum(row["pixels"].values())
        areas = {
            names[int(label)]: {"pixels": pixels, "share": round(pixels / total, 6)}
            for label, pixels in row["pixels"].items()
        }
        yield f"{',' if number else ''}\n{json.dumps(row['name'])}: {json.dumps(areas)}"
    yield "\n}\n"


TABLES = {"areas.csv": areas_csv, "areas.json": areas_json}
"""The files of `--write areas`."""
