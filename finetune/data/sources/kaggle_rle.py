"""Kaggle's run lengths: a table of images and `start length start length ...`.

Pixels count from 1, down the columns first; along the rows in tables of some competitions, such as
Sartorius' cells (https://www.kaggle.com/c/sartorius-cell-instance-segmentation), which the shapes
tell. A row is an object, or a class of an image; an empty cell is an image without any.
"""

import csv
import json
import re
import warnings
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import datasets
import numpy as np

from finetune.data.faults import Faults, each, listed
from finetune.data.objects import CocoObjects, Overlap
from finetune.data.samples import as_samples
from finetune.data.sources.folders import existing_folder, existing_root, files_by_key
from finetune.data.text import read_text
from finetune.errors import UserError
from finetune.labels.translation import Labels
from finetune.pictures.reading import image_size
from finetune.pictures.references import IMAGE_SUFFIXES

_IMAGES = ("imageid", "image_id", "image", "img", "id", "filename", "file_name", "image_name")
_CLASSES = ("classid", "class_id", "class", "label", "category", "category_id")
_RUNS = ("encodedpixels", "encoded_pixels", "rle", "rle_mask", "mask", "segmentation", "annotation")
_NOTHING = ("", "-1", "nan", "NaN", "[]")
_NUM_TRIED = 20  # images that tell the direction of runs
ALONG_ROWS = "runs count along rows, not down columns: so read, objects hold together"
_PAIRS = re.compile(r"\d+ \d+(?: \d+ \d+)*")


@dataclass(frozen=True)
class RleTable:
    """The rows of a table, and the names of its classes by number."""

    rows: dict[str, list[tuple[int, str, int]]]
    """Image -> (class, runs, line) of each object."""
    names: dict[int, str]


def kaggle_rle(
    path: str | Path,
    split: str,
    labels: Labels,
    *,
    images: str = "images/{split}",
    annotations: str = "annotations/{split}.json",
    overlap: Overlap = "area",
    faults: Faults = None,
) -> datasets.Dataset:
    """The images that a table names; raw values are its class numbers, `NO_OBJECT` elsewhere.

    Args:
        path: The data set's folder.
        split: Replaces `{split}` in the patterns.
        labels: What class numbers mean.
        images: Folder of the images, relative to `path`.
        annotations: The table, relative to `path`.
        overlap: The object that wins where several overlap.
        faults: Takes images that are missing. With None they are an error.

    Raises:
        UserError: A file is missing, or the table is invalid or contradicts `labels`.
    """
    root = existing_root(Path(path).expanduser(), annotations)
    file = root / annotations.replace("{split}", split)
    table = read_rle_table(file)
    if table is None:
        raise UserError(f"{file}: has no columns of images and run lengths. Correct the file.")
    for number, name in table.names.items():
        if contradiction := labels.contradiction(number, name):
            raise UserError(f"{file}: class {contradiction}.")
    folder = existing_folder(root, images.replace("{split}", split), split)
    there = files_by_key(folder, IMAGE_SUFFIXES, "", faults=faults)
    missing = sorted(name for name in table.rows if key_of(name) not in there)
    if missing and (faults is None or len(missing) == len(table.rows)):
        raise UserError(
            f"{file}: {len(missing)} of {len(table.rows)} images are missing: {listed(missing)}. "
            "Set data.images to their folder."
        )
    if faults is not None:
        faults += each("listed-but-missing", missing, f"named in {file}")
    turned = _as_they_are
    if are_along_rows(table, there, file):
        turned = _down_columns
        warnings.warn(f"{file}: {ALONG_ROWS}", stacklevel=2)
    files, references, ids = [], [], []
    for name in sorted(table.rows.keys() - {*missing}):
        image = there[key_of(name)]
        height, width = image_size(image)
        objects = [
            [number, 0, {"size": [height, width], "counts": turned(counts, height, width)}, line]
            for number, runs, line in table.rows[name]
            if (counts := _counts(runs, height * width, f"{file}, line {line}"))
        ]
        files.append(image)
        ids.append(key_of(name))
        references.append(
            json.dumps({"size": [height, width], "objects": objects, "where": f"{file}, {name}"})
        )
    return as_samples(files, references, ids, labels, CocoObjects(overlap))


def key_of(name: str) -> str:
    """The name of an image without its file type, as `files_by_key` has it."""
    path = PurePosixPath(name.strip().replace("\\", "/"))
    return (path.with_suffix("") if path.suffix.lower() in IMAGE_SUFFIXES else path).as_posix()


def read_rle_table(file: Path) -> RleTable | None:
    """Reads a table; None if it has no columns of images and run lengths.

    A column of both, such as `x.jpg_4` or `x.jpg_Fish`, is an image and its class.

    Raises:
        UserError: A row is not in this form.
    """
    header, *lines = list(csv.reader(read_text(file).splitlines())) or [[]]
    column = {cell.strip().lower(): place for place, cell in enumerate(header)}
    images, runs = (
        next((column[name] for name in names if name in column), None) for names in (_IMAGES, _RUNS)
    )
    both = column.get("imageid_classid", column.get("image_label"))
    if runs is None or (images is None and both is None):
        return None
    classes = next((column[name] for name in _CLASSES if name in column), None)
    found: list[tuple[str, str, str, int]] = []
    for line, row in enumerate(lines, 2):
        if not any(map(str.strip, row)):
            continue
        if len(row) < len(header):
            raise UserError(f"{file}, line {line}: has {len(row)} of {len(header)} cells.")
        name = row[images if both is None else both].strip()  # type: ignore[index]
        name, _, number = (name, "", "") if both is None else name.rpartition("_")
        text = " ".join(row[runs].split())
        if text not in _NOTHING and not _PAIRS.fullmatch(text):
            raise UserError(
                f"{file}, line {line}: {text[:40]!r} is not `start length start length ...`. "
                "Correct it, or leave the cell empty for an image without objects."
            )
        label = number or (row[classes].strip() if classes is not None else "")
        found.append((name, label, "" if text in _NOTHING else text, line))
    labels = {label for _, label, text, _ in found if text or label}
    numbers = _numbers(labels)
    rows: dict[str, list[tuple[int, str, int]]] = defaultdict(list)
    for name, label, text, line in found:
        own = rows[name]
        if text:
            own.append((numbers[label], text, line))
    named = any(not label.isdecimal() for label in labels - {""})
    names = {
        number: label if named else f"class_{label}" if label else "thing"
        for label, number in numbers.items()
    }
    return RleTable(dict(rows), names)


def _numbers(labels: set[str]) -> dict[str, int]:
    """Numbers as they are; words by the alphabet, from 1."""
    if all(label.isdecimal() for label in labels):
        return {label: int(label) for label in sorted(labels, key=int)}
    return {label: place for place, label in enumerate(sorted(labels), 1)}


def _counts(text: str, size: int, where: str) -> list[int]:
    """Runs as COCO's uncompressed RLE: pixels without and with the object, in turns.

    Raises:
        UserError: Runs overlap, or lie outside of the image.
    """
    numbers = [int(number) for number in text.split()]
    counts, end = [], 0
    for start, length in sorted(zip(numbers[::2], numbers[1::2], strict=True)):
        first = start - 1
        if first < end or first + length > size:
            raise UserError(
                f"{where}: the run {start} {length} overlaps another one, or lies outside of the "
                f"image of {size} pixels. Runs count from 1. Correct the line."
            )
        counts += [first - end, length]
        end = first + length
    return [*counts, size - end] if counts else []


def are_along_rows(table: RleTable, images: Mapping[str, Path], file: Path) -> bool:
    """Whether runs count along rows: then pixels of an object have others in the row below.

    Args:
        table: The table.
        images: The images by `key_of` their names; those of others are passed over.
        file: The table's file, for messages.

    Raises:
        UserError: As `kaggle_rle`, about the images that are looked at.
    """
    down = along = 0
    named = [name for name in sorted(table.rows) if table.rows[name] and key_of(name) in images]
    for name in named[:_NUM_TRIED]:
        height, width = image_size(images[key_of(name)])
        for _, runs, line in table.rows[name]:
            pixels = _pixels(_counts(runs, height * width, f"{file}, line {line}"))
            down += _num_beside(pixels, height)
            along += _num_beside(pixels, width)
    return along > 2 * down  # equal in square images


def _num_beside(pixels: np.ndarray, length: int) -> int:
    """How many pixels have one of another run beside them, if a row or column has this length."""
    run = np.cumsum(np.diff(pixels, prepend=-2) > 1)
    at = np.minimum(np.searchsorted(pixels, pixels + length), len(pixels) - 1)
    return int(((pixels[at] == pixels + length) & (run[at] != run)).sum())


def _as_they_are(counts: list[int], height: int, width: int) -> list[int]:
    return counts


def _down_columns(counts: list[int], height: int, width: int) -> list[int]:
    """Counts along rows as those of the same pixels down the columns."""
    pixels = _pixels(counts)
    moved = np.sort(pixels % width * height + pixels // width)
    jumps = np.flatnonzero(np.diff(moved) > 1)
    starts, stops = moved[[0, *jumps + 1]], moved[[*jumps, -1]] + 1
    edges = np.stack([starts, stops], 1).ravel()
    return np.diff(edges, prepend=0, append=height * width).tolist()


def _pixels(counts: list[int]) -> np.ndarray:
    """The places of the pixels in an object, as `counts` count them, from 0."""
    ends = np.cumsum(counts)
    spans = [np.arange(a, b) for a, b in zip(ends[:-1:2], ends[1::2], strict=True)]
    return np.concatenate(spans) if spans else np.zeros(0, np.intp)
