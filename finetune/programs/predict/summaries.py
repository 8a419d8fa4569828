"""The summary tables of a folder of predictions, written line by line for a million pictures."""

import csv
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from finetune.errors import UserError

Rows = Iterable[Mapping[str, Any]]
"""Lines of the journal, one a picture or video."""


def write_table(path: Path, lines: Iterable[str]) -> None:
    """Writes a file line by line, aside, and renames it at the end.

    Raises:
        UserError: The file cannot be written.
    """
    temp = path.with_name(f".{path.name}.new")
    # File names may hold any bytes.
    options: Any = {"encoding": "utf-8", "errors": "backslashreplace", "newline": ""}
    try:
        with open(temp, "w", **options) as file:
            file.writelines(lines)
        temp.replace(path)
    except OSError as error:
        raise not_written(path, error) from error
    finally:
        temp.unlink(missing_ok=True)


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


def coco_json(rows: Rows, names: Sequence[str]) -> Iterator[str]:
    """One annotation for each class of a picture, numbered from 1 as COCO's are."""
    images: list[dict[str, Any]] = []
    annotations = 0
    yield '{"annotations": ['
    for row in rows:
        if "rle" not in row:  # a video
            continue
        height, width = row["size"]
        number = len(images) + 1
        images.append({"id": number, "file_name": row["image"], "height": height, "width": width})
        for label, rle in row["rle"].items():
            annotations += 1
            annotation = {
                "id": annotations,
                "image_id": number,
                "category_id": int(label),
                "segmentation": {"size": [height, width], "counts": rle["counts"]},
                "area": row["pixels"][label],
                "bbox": rle["bbox"],
                "iscrowd": 0,
            }
            yield ("\n" if annotations == 1 else ",\n") + json.dumps(annotation)
    categories = [{"id": i, "name": name} for i, name in enumerate(names)]
    yield f'\n], "images": {json.dumps(images)}, "categories": {json.dumps(categories)}}}\n'


TABLES = {
    "areas": {"areas.csv": areas_csv, "areas.json": areas_json},
    "coco": {"coco.json": coco_json},
}
"""The files of each table that `--write` names."""


def not_written(path: Path, error: OSError) -> UserError:
    """The error for a disk that does not take a file."""
    return UserError(
        f"{path}: cannot be written ({error.strerror or error}). Make room and run the same "
        "command again; finished files are kept"
    )
