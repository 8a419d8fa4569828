"""labelme's JSON files, which X-AnyLabeling writes too: the shapes of an image, perhaps the image.

Format: https://github.com/wkentaro/labelme (`shapes` with `label`, `points` and `shape_type`).
"""

import base64
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from finetune.data.masks import Size
from finetune.data.objects import Overlap, encoded_polygons, painted
from finetune.data.text import read_text
from finetune.errors import UserError
from finetune.labels.rules import UNCOUNTED
from finetune.pictures.references import Encoded, Picture

IGNORED = "__ignore__"
"""labelme's label of regions that do not count."""
_OUTLINES = ("polygon", "rectangle", "rotation")


def read_shapes(file: Path) -> list[dict[str, Any]] | None:
    """The shapes of a JSON file, None if it is not labelme's.

    Raises:
        UserError: A shape has no label or no points, or is of a kind without pixels.
    """
    content = json_object(file)
    shapes = content.get("shapes")
    if not isinstance(shapes, list) or "imagePath" not in content:
        return None
    for number, shape in enumerate(shapes, 1):
        where = f"{file}, shape {number}"
        if not isinstance(shape, dict) or not isinstance(shape.get("label"), str):
            raise UserError(f"{where}: has no label. Correct it, or remove it.")
        kind, points = shape.get("shape_type") or "polygon", shape.get("points") or []
        fewest = {"polygon": 3, "rotation": 3}.get(kind, 2)
        if kind not in (*_OUTLINES, "circle", "mask"):
            raise UserError(
                f"{where}: is a {kind} ({shape['label']!r}), which covers no pixels. Draw it as a "
                "polygon, or remove it."
            )
        if not _are_points(points) or len(points) < fewest:
            raise UserError(
                f"{where}: a {kind} needs {fewest} or more points [x, y]. Correct it, or remove it."
            )
    return shapes


def _are_points(points: Any) -> bool:
    return isinstance(points, list) and all(
        isinstance(point, list)
        and len(point) == 2
        and all(isinstance(x, int | float) and np.isfinite(x) for x in point)
        for point in points
    )


def json_object(file: Path) -> dict[str, Any]:
    """The object in a JSON file, {} if it holds something else.

    Raises:
        UserError: It cannot be read.
    """
    try:
        content = json.loads(read_text(file))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{file}: cannot be read as JSON ({error}). Replace it.") from error
    return content if isinstance(content, dict) else {}


@dataclass(frozen=True)
class ShapeFiles:
    """A file of shapes per image; the raw value of a shape is the place of its label in `names`."""

    names: tuple[str, ...]
    overlap: Overlap = "area"

    def name(self, reference: str) -> str:
        return reference

    def files(self, reference: str) -> list[Path]:
        return [Path(reference)]

    def size(self, reference: str) -> Size | None:
        content = json_object(Path(reference))
        height, width = content.get("imageHeight"), content.get("imageWidth")
        return (height, width) if isinstance(height, int) and isinstance(width, int) else None

    def read(self, reference: str, size: Size) -> np.ndarray:
        """Class ids of the shapes, `UNCOUNTED` in ignored ones, `NO_OBJECT` elsewhere; int32."""
        file = Path(reference)
        shapes = read_shapes(file)
        if shapes is None:
            raise UserError(f"{file}: is not a file of labelme: it has no shapes and imagePath.")
        objects = []
        for number, shape in enumerate(shapes, 1):
            where, label = f"{file}, shape {number}", shape["label"].strip()
            if label != IGNORED and label not in self.names:
                raise UserError(
                    f"{where}: the label {label!r} is none of labels.names. Correct it, or add it "
                    "there."
                )
            value = UNCOUNTED if label == IGNORED else self.names.index(label)
            objects.append((value, _encoded(shape, size, where), where))
        return painted(objects, size, self.overlap)


def _encoded(shape: dict[str, Any], size: Size, where: str) -> dict[str, Any]:
    """The pixels of a shape as compressed RLE."""
    from pycocotools import mask as coco

    kind, points = shape.get("shape_type") or "polygon", shape["points"]
    if kind == "rectangle" and len(points) == 2:
        (left, top), (right, bottom) = points
        points = [[left, top], [right, top], [right, bottom], [left, bottom]]
    if kind in _OUTLINES:
        return encoded_polygons([[float(x) for point in points for x in point]], size)
    mask = np.zeros(size, np.uint8)
    (x, y), (to_x, to_y) = points[:2]
    if kind == "circle":  # its middle, and a point on its edge
        rows, columns = np.ogrid[: size[0], : size[1]]
        mask[np.hypot(rows + 0.5 - y, columns + 0.5 - x) <= np.hypot(to_x - x, to_y - y)] = 1
    else:
        _paste(mask, shape, (round(y), round(x)), where)
    return coco.encode(np.asfortranarray(mask))


def _paste(mask: np.ndarray, shape: dict[str, Any], corner: Sequence[int], where: str) -> None:
    """Writes the PNG of a shape of the kind `mask` at its corner (row, column)."""
    try:
        with Image.open(io.BytesIO(base64.b64decode(shape["mask"], validate=True))) as image:
            part = np.array(image) != 0
    except (KeyError, TypeError, ValueError, OSError) as error:
        raise UserError(f"{where}: its mask cannot be read ({error}). Draw it again.") from error
    top, left = corner
    region = mask[max(0, top) : top + part.shape[0], max(0, left) : left + part.shape[1]]
    region[part[max(0, -top) :, max(0, -left) :][: region.shape[0], : region.shape[1]]] = 1


@dataclass(frozen=True)
class ImagesInside:
    """Images in files, or inside of JSON files."""

    def open(self, reference: str) -> Picture:
        path = Path(reference)
        if path.suffix != ".json":
            return path
        try:
            data = base64.b64decode(json_object(path)["imageData"], validate=True)
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"{path}: its imageData cannot be read ({error}).") from error
        return Encoded(reference, data)

    def name(self, reference: str) -> str:
        return reference

    def files(self, reference: str) -> list[Path]:
        return [Path(reference)]
