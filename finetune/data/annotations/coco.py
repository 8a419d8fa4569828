"""COCO's JSON files, for objects and for panoptic PNGs, as tools write them; and Datumaro's.

Formats: https://cocodataset.org/#format-data. Tools also write numbers as text, whole numbers as
floats, a polygon as one flat list or as pairs of x and y, points and lines beside an object's
polygons, and a byte order mark. All of it is read as one form here.
"""

import json
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeGuard

from finetune.data.annotations.datumaro import from_datumaro, is_datumaro
from finetune.data.faults import listed
from finetune.errors import UserError

_MAX_SHOWN = 200  # characters of a value
_FEWEST = 6  # numbers of a polygon


@dataclass(frozen=True)
class CocoFile:
    """The rows of a COCO file. Ids of images are text, those of categories whole numbers."""

    file: Path
    images: list[dict[str, Any]]
    """With id, file_name, and height and width, which are both None where the file lacks them."""
    annotations: list[dict[str, Any]]
    categories: list[dict[str, Any]]
    strays: tuple[str, ...] = ()
    """Annotations with points or lines beside their polygons, which are left out."""
    is_ordered: bool = False
    """Whether later annotations lie over earlier ones, as in Datumaro's files."""

    @property
    def names(self) -> dict[int, str]:
        """The categories' names by id."""
        return {row["id"]: row["name"] for row in self.categories}

    @property
    def stray_note(self) -> str:
        """A line about points and lines that are left out; "" if there are none."""
        if not self.strays:
            return ""
        return (
            f"{len(self.strays)} annotations have points or lines, of fewer than 3 points, beside "
            f"their polygons; these are left out: {listed(list(self.strays))}"
        )


def parsed(file: Path) -> Any:
    """A JSON file's content, in any of Unicode's encodings, with or without a byte order mark.

    That of Datumaro is given in COCO's form.

    Raises:
        UserError: It cannot be read.
    """
    try:
        content = json.loads(file.read_bytes())
    except FileNotFoundError:
        remedy = "Set data.annotations to the JSON file of the split."
        raise UserError(f"{file}: does not exist. {remedy}") from None
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{file}: cannot be read as JSON ({error}).") from error
    return from_datumaro(file, content) if is_datumaro(content) else content


def objects_file(file: Path, content: Any = None) -> CocoFile:
    """Reads a file of objects and checks what every reader relies on.

    Args:
        file: The file.
        content: What `parsed` gave for it, if it was called.

    Raises:
        UserError: It cannot be read, or a field is missing or wrong; names the field.
    """
    fields = {"image_id": _key, "category_id": _number, "iscrowd": _flag, "ignore": _flag}
    found = _checked(file, content, fields)
    for row in found.annotations:
        row["iscrowd"] |= row["ignore"]  # neither counts
    rows, strays = _with_polygons(found)
    return replace(found, annotations=rows, strays=strays)


def panoptic_file(file: Path, content: Any = None) -> CocoFile:
    """Reads the file of panoptic PNGs; each annotation's `segments_info` has whole numbers.

    Raises:
        UserError: As `objects_file`; or a segment is listed twice, or has the id of no label.
    """
    found = _checked(
        file, content, {"image_id": _key, "file_name": _text, "segments_info": _segments}
    )
    for row in found.annotations:
        name, ids = row["file_name"], Counter(segment["id"] for segment in row["segments_info"])
        if twice := [number for number, count in ids.items() if count > 1]:
            raise UserError(f"{file}: segment {twice[0]} of {name} stands twice. Remove one.")
        if 0 in ids:
            raise UserError(
                f"{file}: segment 0 of {name} has a category, but 0 marks pixels without a label. "
                "Number the segments from 1, in the PNG too."
            )
    return found


def _checked(file: Path, content: Any, fields: Mapping[str, Callable[[Any], Any]]) -> CocoFile:
    """The rows, in one form; `fields` are those of the annotations."""
    content = parsed(file) if content is None else content
    if not isinstance(content, dict):
        raise UserError(f"{file}: is not an object with images, annotations and categories.")
    _number_categories(content)
    of_images = {"id": _key, "file_name": _text, "height": _side, "width": _side}
    images = _rows(file, content, "images", of_images)
    annotations = _rows(file, content, "annotations", fields)
    categories = _rows(file, content, "categories", {"id": _number, "name": _name})
    _refuse_twice(file, images, "images", "id")
    _refuse_twice(file, images, "images", "file_name")
    _refuse_twice(file, categories, "categories", "id")
    if "file_name" in fields:
        _refuse_twice(file, annotations, "annotations", "image_id")
        _refuse_twice(file, annotations, "annotations", "file_name")
    if not images:
        raise UserError(f"{file}: `images` is empty. Set data.annotations to another file.")
    for image in images:
        if None in (image["height"], image["width"]):
            image["height"] = image["width"] = None
    is_ordered = content.get("is_ordered") is True
    return CocoFile(file, images, annotations, categories, is_ordered=is_ordered)


def _rows(
    file: Path, content: dict[str, Any], key: str, fields: Mapping[str, Callable[[Any], Any]]
) -> list[dict[str, Any]]:
    rows = content.get(key)
    if not _is_rows(rows):
        raise UserError(f"{file}: `{key}` must be a list of objects.")
    for row in rows:
        for field, read in fields.items():
            try:
                row[field] = read(row.get(field))
            except (TypeError, ValueError, OverflowError, KeyError):
                raise UserError(
                    f"{file}: {field} is missing or wrong in a row of `{key}`. Correct "
                    f"{_shortened(row)}"
                ) from None
    return rows


def _number_categories(content: dict[str, Any]) -> None:
    """Numbers categories whose ids are words, by their order in the alphabet, from 1."""
    categories, annotations = content.get("categories"), content.get("annotations")
    if not _is_rows(categories) or not _is_rows(annotations):
        return
    ids = [row.get("id") for row in categories]
    words = [key for key in ids if isinstance(key, str)]
    if len(words) < len(ids) or not any(map(_is_word, words)):
        return
    numbers = {key: number for number, key in enumerate(sorted(set(words)), 1)}
    segments = [row.get("segments_info", [row]) for row in annotations]
    owners = [row for rows in segments if _is_rows(rows) for row in rows]
    for rows, field in ((categories, "id"), (owners, "category_id")):
        for row in rows:
            if isinstance(key := row.get(field), str):
                row[field] = numbers.get(key)


def _is_rows(value: Any) -> TypeGuard[list[dict[str, Any]]]:
    return isinstance(value, list) and all(isinstance(row, dict) for row in value)


def _is_word(text: str) -> bool:
    try:
        return _whole(text) < 0
    except (ValueError, OverflowError):
        return True


def _refuse_twice(file: Path, rows: list[dict[str, Any]], key: str, field: str) -> None:
    counts = Counter(row[field] for row in rows)
    if twice := [value for value, count in counts.items() if count > 1]:
        raise UserError(
            f"{file}: {field} {_shortened(twice[0])} stands twice in `{key}`. Give each its own, "
            "or remove one of them."
        )


# --------------------------------------------------------------------------------------- the fields


def _whole(value: Any) -> int:
    """A whole number, which may be a float or text."""
    if type(value) is int:
        return value
    if isinstance(value, str):
        value = float(value)
    if not isinstance(value, float) or not value.is_integer():
        raise ValueError
    return int(value)


def _number(value: Any) -> int:
    """A category's id: raw values below 0 have other meanings, and masks of them are int32."""
    if not 0 <= (number := _whole(value)) < 2**31:
        raise ValueError
    return number


def _key(value: Any) -> str:
    """An image's id, as text: some tools write it as a number in one place and as text in others.

    Text is kept as it is: "007" is not 7.
    """
    return value if isinstance(value, str) else str(_whole(value))


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ValueError
    return value


def _name(value: Any) -> str:
    """A category's name, which may be a number."""
    return str(value) if type(value) is int else _text(value).strip()


def _side(value: Any) -> int | None:
    """A height or width. Tools that did not open the image write none, 0 or -1."""
    number = 0 if value in (None, "") else _whole(value)
    return number if number > 0 else None


def _flag(value: Any) -> bool:
    if value is None or isinstance(value, bool):
        return bool(value)
    if (number := _whole(value)) not in (0, 1):
        raise ValueError
    return bool(number)


def _segments(value: Any) -> list[dict[str, Any]]:
    if not isinstance(value, list):
        raise ValueError
    return [
        {
            "id": _number(row["id"]),
            "category_id": _number(row["category_id"]),
            "iscrowd": _flag(row.get("iscrowd")),
        }
        for row in value
    ]


# ------------------------------------------------------------------------------------- the polygons


def _with_polygons(
    content: CocoFile,
) -> tuple[list[dict[str, Any]], tuple[str, ...]]:
    """Annotations with lists of polygons, and the annotations with strays.

    Three points in lists of their own are a triangle in a file that writes all polygons so, and
    three stray points in any other.
    """
    strays = []
    lists = [row for row in content.annotations if isinstance(row.get("segmentation"), list)]
    unusual = [row for row in lists if not _is_plain(row["segmentation"])]
    for row in unusual:
        row["segmentation"] = _listed_polygons(row["segmentation"])
    in_pairs = len(lists) == len(unusual) and not any(
        isinstance(polygon, list) and len(polygon) >= _FEWEST
        for row in lists
        for polygon in row["segmentation"]
    )
    for row in unusual:
        polygons = row["segmentation"]
        if in_pairs and len(polygons) >= _FEWEST // 2 and _are_pairs(polygons):
            row["segmentation"] = [_flat(polygons)]
            continue
        kept = [polygon for polygon in polygons if not _is_stray(polygon)]
        if kept and len(kept) < len(polygons):
            row["segmentation"] = kept
            strays.append(repr(row.get("id")))
    return content.annotations, tuple(strays)


def _is_plain(segmentation: list[Any]) -> bool:
    """Whether it is what COCO documents, as far as a glance tells; most are."""
    return bool(segmentation) and all(
        type(polygon) is list and len(polygon) >= _FEWEST and type(polygon[0]) is not list
        for polygon in segmentation
    )


def _listed_polygons(segmentation: list[Any]) -> list[Any]:
    """A list of flat polygons, from one flat polygon or from polygons in pairs."""
    if segmentation and all(isinstance(value, int | float) for value in segmentation):
        return [segmentation]
    return [
        _flat(polygon) if isinstance(polygon, list) and _are_pairs(polygon) else polygon
        for polygon in segmentation
    ]


def _are_pairs(points: list[Any]) -> bool:
    return bool(points) and all(isinstance(point, list) and len(point) == 2 for point in points)


def _flat(points: list[list[Any]]) -> list[Any]:
    return [value for point in points for value in point]


def _is_stray(polygon: Any) -> bool:
    """Whether it is nothing, a point or a line."""
    return (
        isinstance(polygon, list)
        and len(polygon) in (0, 2, 4)
        and all(isinstance(value, int | float) for value in polygon)
    )


def _shortened(value: Any) -> str:
    """Values may be polygons of thousands of numbers."""
    text = repr(value)
    return text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}..."
