"""The tables of a folder of predictions, written line by line: there may be a million pictures."""

import csv
import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from finetune.errors import UserError


class Table:
    """A file that is written line by line, aside, and renamed at the end."""

    def __init__(self, folder: Path, names: Sequence[str], name: str):
        self.names = names
        self.path = folder / name
        self.temp = self.path.with_name(f".{name}.new")

    def __enter__(self) -> "Table":
        try:
            # Names of files may hold any bytes.
            options: Any = {"encoding": "utf-8", "errors": "backslashreplace", "newline": ""}
            self.file = open(self.temp, "w", **options)
        except OSError as error:
            raise not_written(self.path, error) from error
        self.begin()
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(OSError):  # what is left in its buffer is not wanted, and the disk is full
            self.file.close()
        self.temp.unlink(missing_ok=True)

    def begin(self) -> None:
        """Writes what comes first."""

    def add(self, row: Mapping[str, Any]) -> None:
        """Writes what a picture adds."""

    def end(self) -> None:
        """Writes what comes last."""

    def take(self, row: Mapping[str, Any]) -> None:
        """`add`, on a disk that may be full."""
        try:
            self.add(row)
        except OSError as error:
            raise not_written(self.path, error) from error

    def finish(self) -> None:
        """Puts the file into place."""
        try:
            self.end()
            self.file.close()
            self.temp.replace(self.path)
        except OSError as error:
            raise not_written(self.path, error) from error


class AreasCsv(Table):
    """A line a class that occurs in a picture."""

    def __init__(self, folder: Path, names: Sequence[str]):
        super().__init__(folder, names, "areas.csv")

    def begin(self) -> None:
        """The head."""
        self.rows = csv.writer(self.file)
        self.rows.writerow(["name", "image", "class_id", "class", "pixels", "share"])

    def add(self, row: Mapping[str, Any]) -> None:
        """A picture's part."""
        total = sum(row["pixels"].values())
        for label, pixels in row["pixels"].items():
            known = self.names[int(label)]
            share = f"{pixels / total:.6f}"
            self.rows.writerow([row["name"], row["image"], label, known, pixels, share])


class AreasJson(Table):
    """{picture: {class: {pixels, share}}}."""

    def __init__(self, folder: Path, names: Sequence[str]):
        super().__init__(folder, names, "areas.json")
        self.separator = "\n"

    def begin(self) -> None:
        """The head."""
        self.file.write("{")

    def add(self, row: Mapping[str, Any]) -> None:
        """A picture's part."""
        total = sum(row["pixels"].values())
        areas = {
            self.names[int(label)]: {"pixels": pixels, "share": round(pixels / total, 6)}
            for label, pixels in row["pixels"].items()
        }
        self.file.write(f"{self.separator}{json.dumps(row['name'])}: {json.dumps(areas)}")
        self.separator = ",\n"

    def end(self) -> None:
        """The foot."""
        self.file.write("\n}\n")


class CocoJson(Table):
    """One annotation a class and picture, numbered from 1 as COCO's are."""

    def __init__(self, folder: Path, names: Sequence[str]):
        super().__init__(folder, names, "coco.json")
        self.images: list[dict[str, Any]] = []
        self.annotations = 0

    def begin(self) -> None:
        """The head."""
        self.file.write('{"annotations": [')

    def add(self, row: Mapping[str, Any]) -> None:
        """A picture's part."""
        if "rle" not in row:  # a video
            return
        height, width = row["size"]
        number = len(self.images) + 1
        image = {"id": number, "file_name": row["image"], "height": height, "width": width}
        self.images.append(image)
        for label, rle in row["rle"].items():
            self.file.write(",\n" if self.annotations else "\n")
            self.annotations += 1
            annotation = {
                "id": self.annotations,
                "image_id": number,
                "category_id": int(label),
                "segmentation": {"size": [height, width], "counts": rle["counts"]},
                "area": row["pixels"][label],
                "bbox": rle["bbox"],
                "iscrowd": 0,
            }
            self.file.write(json.dumps(annotation))

    def end(self) -> None:
        """The foot."""
        categories = [{"id": i, "name": name} for i, name in enumerate(self.names)]
        self.file.write(f'\n], "images": {json.dumps(self.images)}, ')
        self.file.write(f'"categories": {json.dumps(categories)}}}\n')


def not_written(path: Path, error: OSError) -> UserError:
    """What to say when a disk does not take a file."""
    return UserError(
        f"{path}: cannot be written ({error.strerror or error}). What is done stays; make room, "
        "and the same command goes on"
    )
