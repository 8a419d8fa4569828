"""Supervisely's JSON files, one for each image, as the content of labelme's.

Format: https://docs.supervisely.com/data-organization/00_ann_format_navi (`objects` with
`classTitle`, `geometryType`, and `points` or `bitmap`). As in Supervisely's SDK, the points of a
polygon or rectangle are pixels that belong to it: https://github.com/supervisely/supervisely
(`supervisely/geometry`), which takes fractions of the labelling tool down to their pixel.
"""

from pathlib import Path
from typing import Any

from finetune.data.annotations.labelme import json_object
from finetune.errors import UserError

_UNDRAWN = ("point", "line", "graph", "cuboid", "cuboid_2d")
"""Shapes of classes that cover no pixels."""


def as_labelme(file: Path) -> dict[str, Any]:
    """The content of a file of labelme with the same shapes; {} if it is not Supervisely's.

    Raises:
        UserError: It cannot be read, or is not in the form of its kind.
    """
    content = json_object(file)
    objects, size = content.get("objects"), content.get("size")
    if not isinstance(objects, list) or not isinstance(size, dict):
        return {}
    try:
        shapes = [_shape(row) for row in objects]
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{file}: has an object that is not in Supervisely's form ({error!r}). Export it again."
        ) from error
    sides = {"imageHeight": size.get("height"), "imageWidth": size.get("width")}
    return {"shapes": shapes, "imagePath": file.stem, **sides}


def _shape(row: dict[str, Any]) -> dict[str, Any]:
    bitmap, points = row.get("bitmap") or {}, row.get("points") or {}
    kind = row.get("geometryType") or ("bitmap" if bitmap else "polygon")
    shape = {"label": row["classTitle"], "shape_type": kind}
    if kind in ("bitmap", "alpha_mask"):
        x, y = bitmap["origin"]
        shape["shape_type"] = "mask"
        return {**shape, "points": [[x, y], [x, y]], "mask": bitmap["data"]}
    return {**shape, "points": points.get("exterior"), "holes": points.get("interior") or []}


def class_titles(meta: Path) -> tuple[str, ...] | None:
    """The classes in the `meta.json` of a project that cover pixels; None if it is another file.

    Raises:
        UserError: It cannot be read.
    """
    rows = json_object(meta).get("classes")
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        return None
    return tuple(
        row["title"].strip()
        for row in rows
        if isinstance(row.get("title"), str) and row.get("shape") not in _UNDRAWN
    )
