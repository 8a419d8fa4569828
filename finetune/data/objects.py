"""Masks kept as objects: polygons in text files, polygons and RLE in COCO's JSON."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NoReturn

import numpy as np

from finetune.data.masks import Size
from finetune.errors import UserError
from finetune.labels.rules import NO_OBJECT, UNCOUNTED

Overlap = Literal["area", "order"]
"""Where objects overlap: `area`, the smallest wins; `order`, the last wins."""
FARTHEST = 1e6
"""Bound of coordinates, in pixels; beyond any image, and what pycocotools has the memory for."""
_CORNERS = 360
"""Corners of an ellipse's polygon."""


@dataclass(frozen=True)
class PolygonFiles:
    """One text file per image, as Ultralytics writes it: lines of `class x1 y1 x2 y2 ...`.

    Coordinates are shares of the image's width and height. An image without a file, or with an
    empty one, has no objects.
    """

    overlap: Overlap = "area"
    num_classes: int | None = None
    """Number of the data set's names. A class beyond it is an error, whatever `Labels` says."""

    def name(self, reference: str) -> str:
        return reference if Path(reference).is_file() else ""

    def files(self, reference: str) -> list[Path]:
        path = Path(reference)
        return [path] if path.is_file() else []

    def size(self, reference: str) -> Size | None:
        return None

    def read(self, reference: str, size: Size) -> np.ndarray:
        """Class ids of the objects, `NO_OBJECT` elsewhere; int32."""
        height, width = size
        path, objects = Path(reference), []
        try:
            lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"{path}: cannot be read ({error}). Replace the file.") from error
        for number, text in enumerate(lines, 1):
            if not text.strip():
                continue
            where = f"{reference}, line {number}"
            value, points = _polygon_line(text, where)
            if self.num_classes is not None and value >= self.num_classes:
                raise UserError(
                    f"{where}: the class is {value}, but `names` in data.yaml has "
                    f"{self.num_classes} (0 to {self.num_classes - 1}). Classes count from 0: "
                    "correct the line or the names."
                )
            scaled = [x * (width, height)[i % 2] for i, x in enumerate(points)]
            objects.append((value, encoded_polygons([scaled], size), where))
        return painted(objects, size, self.overlap)


def _polygon_line(text: str, where: str) -> tuple[int, list[float]]:
    try:
        first, *rest = text.split()
        value, points = int(first), [float(number) for number in rest]
    except ValueError as error:
        raise UserError(
            f"{where}: {text[:60]!r} is not `class x1 y1 x2 y2 ...`, the class a whole number. "
            "Correct the line."
        ) from error
    if value < 0:
        raise UserError(f"{where}: the class is {value}; classes count from 0. Correct the line.")
    if len(points) == 4:
        raise UserError(
            f"{where}: the line holds a box (class, centre, size). Segmentation needs the outline: "
            "class x1 y1 x2 y2 x3 y3 ..."
        )
    if len(points) < 6 or len(points) % 2:
        raise UserError(
            f"{where}: {len(points)} numbers follow the class; a polygon has 3 or more pairs of x "
            "and y. Correct the line, or remove it."
        )
    if not all(-0.01 <= number <= 1.01 for number in points):
        raise UserError(
            f"{where}: a coordinate is not a share of the width or height, from 0 to 1. Correct it."
        )
    return value, points


@dataclass(frozen=True)
class CocoObjects:
    """Objects of a COCO file; the reference is {"size": [h, w], "objects": [...], "where": text}.

    Each object is [category id, is it a crowd, its segmentation, the annotation's id]; the
    segmentation is polygons, or RLE in either form.
    """

    overlap: Overlap = "area"

    def name(self, reference: str) -> str:
        return ""  # the file has the masks of all images

    def files(self, reference: str) -> list[Path]:
        return []  # the reference holds the objects themselves

    def size(self, reference: str) -> Size | None:
        height, width = json.loads(reference)["size"]
        return height, width

    def refuse_size(self, reference: str, size: Size) -> NoReturn:
        """Raises a UserError: the annotation file says another size than the image has."""
        content = json.loads(reference)
        height, width = content["size"]
        raise UserError(
            f"{content['where']}: the file says {width} x {height} pixels (width x height), but "
            f"the image has {size[1]} x {size[0]} after its EXIF rotation. Annotate the image as "
            "it is, or correct its size in the file.",
            kind="size-mismatch",
        )

    def read(self, reference: str, size: Size) -> np.ndarray:
        """Category ids, `UNCOUNTED` in crowds that no object covers, `NO_OBJECT` elsewhere."""
        content = json.loads(reference)
        objects, crowds = [], []
        if tuple(content["size"]) != size:
            self.refuse_size(reference, size)
        for category, is_crowd, segmentation, name in content["objects"]:
            where = f"{content['where']}, annotation {name!r}"
            rle = _encoded(segmentation, size, where)
            if is_crowd:
                crowds.append((UNCOUNTED, rle, where))
            else:
                objects.append((category, rle, where))
        raw = painted(objects, size, self.overlap)
        return np.where(raw == NO_OBJECT, painted(crowds, size, "order"), raw)


def wrong_segmentation(segmentation: Any, size: Size) -> str:
    """The fault of a COCO segmentation (polygons, or RLE in either form) in an image of `size`.

    It is "" if there is none. No pixel is decoded.
    """
    if isinstance(segmentation, Mapping):
        return _wrong_rle(segmentation, size)
    if not isinstance(segmentation, list) or not segmentation:
        return "has no segmentation (a box says nothing about pixels)"
    for polygon in segmentation:
        if isinstance(polygon, list) and len(polygon) in (0, 2, 4):
            return "has points or lines in place of polygons, which need 3 or more points"
        if not isinstance(polygon, list) or len(polygon) < 6 or len(polygon) % 2:
            return "has a polygon that is not 3 or more pairs of x and y"
        is_numeric = set(map(type, polygon)) <= {int, float}
        is_bounded = is_numeric and max(polygon) < FARTHEST and min(polygon) > -FARTHEST
        # A NaN makes both comparisons false, or hides from them and makes the sum NaN.
        if not is_bounded or math.isnan(sum(polygon)):
            return "has a polygon whose coordinates are not numbers, or lie beyond any image"
    return ""


def _wrong_rle(rle: Mapping[str, Any], size: Size) -> str:
    try:
        (height, width), counts = rle["size"], _counts(rle)
        if (height, width) != size:
            return (
                f"has an RLE of {width} x {height} pixels (width x height), but `images` says "
                f"{size[1]} x {size[0]}"
            )
        is_whole = sum(counts) == height * width and min(counts) >= 0
    except (KeyError, TypeError, ValueError, IndexError, OverflowError) as error:
        return f"has an RLE that cannot be read ({error!r})"
    return "" if is_whole else "has an RLE whose counts do not add up to the image"


def _encoded(segmentation: Any, size: Size, where: str) -> dict[str, Any]:
    """COCO's polygons, or RLE in either form, as compressed RLE."""
    from pycocotools import mask as coco  # compiled; only data sets of objects need it

    if what := wrong_segmentation(segmentation, size):
        raise UserError(f"{where} {what}.")
    if isinstance(segmentation, list):
        return encoded_polygons(segmentation, size)
    try:
        return coco.frPyObjects({"size": list(size), "counts": _counts(segmentation)}, *size)
    except (TypeError, ValueError, OverflowError) as error:
        raise UserError(f"{where}: its RLE cannot be read ({error!r}).") from error


def _counts(rle: Mapping[str, Any]) -> list[int]:
    counts = rle["counts"]
    return _runs(counts) if isinstance(counts, str) else counts


def _runs(text: str) -> list[int]:
    """The counts of compressed RLE. pycocotools decodes them without checking their sum.

    A character holds five bits, counted from "0", the lowest first. The sixth bit says that more
    follow; the fifth bit of the last character is the sign. From the fourth count on, a number is
    the difference to the last count but one.
    """
    counts: list[int] = []
    value = shift = 0
    for character in text:
        bits = ord(character) - 48
        if not 0 <= bits < 64:
            raise ValueError(f"{character!r} in its counts")
        value |= (bits & 31) << shift
        shift += 5
        if not bits & 32:
            if bits & 16:
                value -= 1 << shift
            counts.append(value + (counts[-2] if len(counts) > 2 else 0))
            value = shift = 0
    if shift:
        raise ValueError("its counts end in the middle of a number")
    return counts


def encoded_polygons(polygons: list[list[float]], size: Size) -> dict[str, Any]:
    """Polygons of one object, in pixels, as compressed RLE, by COCO's rule for edges."""
    from pycocotools import mask as coco

    return coco.merge(coco.frPyObjects(polygons, *size))


def ellipse(x: float, y: float, wide: float, high: float, turned: float = 0) -> list[float]:
    """The polygon of an ellipse around x and y; `turned` in radians, clockwise."""
    outline = []
    for step in range(_CORNERS):
        angle = 2 * math.pi * step / _CORNERS
        right, down = wide * math.cos(angle), high * math.sin(angle)
        outline.append(x + right * math.cos(turned) - down * math.sin(turned))
        outline.append(y + right * math.sin(turned) + down * math.cos(turned))
    return outline


def painted(
    objects: Sequence[tuple[int, dict[str, Any], str]], size: Size, overlap: Overlap
) -> np.ndarray:
    """Raw values from (value, compressed RLE, where), decoded one at a time to save memory.

    Raises:
        UserError: An RLE cannot be read; names where it stands.
    """
    from pycocotools import mask as coco

    raw = np.full(size, NO_OBJECT, np.int32)
    if overlap == "area":
        objects = sorted(objects, key=lambda item: -int(coco.area(item[1])))
    for value, rle, where in objects:
        try:
            raw[coco.decode(rle).astype(bool)] = value
        except (ValueError, TypeError) as error:
            raise UserError(f"{where}: its RLE cannot be read ({error}).") from error
    return raw
