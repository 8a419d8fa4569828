"""labelme's JSON files, which X-AnyLabeling writes too: the shapes of an image, perhaps the image.

Format: https://github.com/wkentaro/labelme (`shapes` with `label`, `points` and `shape_type`).
Files of other tools are read through a function that returns the content of such a file. Its
shapes may also have `holes`, a list that may be empty: then points are pixels of the shape.
"""

import base64
import io
import json
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import cv2
import numpy as np
from PIL import Image

from finetune.data.masks import Size
from finetune.data.objects import FARTHEST, Overlap, encoded_polygons, painted
from finetune.data.text import read_text
from finetune.errors import UserError
from finetune.labels.rules import UNCOUNTED
from finetune.pictures.references import Encoded, Picture

IGNORED = "__ignore__"
"""labelme's label of regions that do not count."""
_OUTLINES = ("polygon", "rectangle", "rotation")


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


Content: TypeAlias = Callable[[Path], dict[str, Any]]
"""Reads a file of a tool as the content of one of labelme's; `json_object` is that of labelme."""


def read_shapes(file: Path, read: Content = json_object) -> list[dict[str, Any]] | None:
    """The shapes of a JSON file, None if it is not of the tool of `read`.

    Raises:
        UserError: A shape has no label or no points, or is of a kind without pixels.
    """
    content = read(file)
    shapes = content.get("shapes")
    if not isinstance(shapes, list) or "imagePath" not in content:
        return None
    for number, shape in enumerate(shapes, 1):
        where = f"{file}, shape {number}"
        label = shape.get("label") if isinstance(shape, dict) else None
        if not isinstance(label, str) or not label.strip():
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
                f"{where}: a {kind} needs {fewest} or more points [x, y], none of them beyond any "
                "image. Correct it, or remove it."
            )
    return shapes


def _are_points(points: Any) -> bool:
    return isinstance(points, list) and all(
        isinstance(point, list)
        and len(point) == 2
        and all(isinstance(x, int | float) and abs(x) < FARTHEST for x in point)  # NaN is not
        for point in points
    )


@dataclass(frozen=True)
class ShapeFiles:
    """A file of shapes per image; the raw value of a shape is the place of its label in `names`."""

    names: tuple[str, ...]
    overlap: Overlap = "area"
    content: Content = json_object

    def name(self, reference: str) -> str:
        return reference

    def files(self, reference: str) -> list[Path]:
        return [Path(reference)]

    def size(self, reference: str) -> Size | None:
        content = self.content(Path(reference))
        sides = [content.get(key) for key in ("imageHeight", "imageWidth")]
        height, width = (int(x) if isinstance(x, int | float) else None for x in sides)
        return None if height is None or width is None else (height, width)

    def read(self, reference: str, size: Size) -> np.ndarray:
        """Class ids of the shapes, `UNCOUNTED` in ignored ones, `NO_OBJECT` elsewhere; int32."""
        file = Path(reference)
        shapes = read_shapes(file, self.content)
        if shapes is None:
            raise UserError(f"{file}: is not a file of shapes, as the others are. Replace it.")
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
    mask = np.zeros(size, np.uint8)
    if "holes" in shape:
        return coco.encode(np.asfortranarray(_filled(kind, points, shape["holes"], size, where)))
    if kind == "rectangle" and len(points) == 2:
        (left, top), (right, bottom) = points
        points = [[left, top], [right, top], [right, bottom], [left, bottom]]
    if kind in _OUTLINES:
        return encoded_polygons([[float(x) for point in points for x in point]], size)
    (x, y), (to_x, to_y) = points[:2]
    if kind == "circle":  # its middle, and a point on its edge
        rows, columns = np.ogrid[: size[0], : size[1]]
        mask[np.hypot(rows + 0.5 - y, columns + 0.5 - x) <= np.hypot(to_x - x, to_y - y)] = 1
    else:
        _paste(mask, shape, (round(y), round(x)), where)
    return coco.encode(np.asfortranarray(mask))


def _filled(kind: str, points: list[list[float]], holes: Any, size: Size, where: str) -> np.ndarray:
    """A shape of whole pixels, those of its points included; uint8 (H, W)."""
    mask = np.zeros(size, np.uint8)
    for hole in holes:
        if not _are_points(hole) or len(hole) < 3:
            raise UserError(f"{where}: a hole needs 3 or more points [x, y]. Correct it.")
    outline, *others = (np.floor(part).astype(np.int32) for part in (points, *holes))
    if kind == "rectangle":
        cv2.rectangle(mask, outline[0].tolist(), outline[1].tolist(), 1, cv2.FILLED)
    else:
        cv2.fillPoly(mask, [outline], 1)
    cv2.fillPoly(mask, others, 0)
    return mask


def _paste(mask: np.ndarray, shape: dict[str, Any], corner: Sequence[int], where: str) -> None:
    """Writes the PNG of a shape of the kind `mask` at its corner (row, column)."""
    try:
        data = base64.b64decode(shape["mask"], validate=True)
        with Image.open(io.BytesIO(zlib.decompress(data) if data[:1] == b"x" else data)) as image:
            part = _inside(image)
    except (KeyError, TypeError, ValueError, OSError, zlib.error) as error:
        raise UserError(f"{where}: its mask cannot be read ({error}). Draw it again.") from error
    top, left = corner
    region = mask[max(0, top) : top + part.shape[0], max(0, left) : left + part.shape[1]]
    region[part[max(0, -top) :, max(0, -left) :][: region.shape[0], : region.shape[1]]] = 1


def _inside(image: Image.Image) -> np.ndarray:
    """The pixels of a mask's PNG, from the half of its highest value or opacity on."""
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    if image.mode in ("LA", "RGBA"):
        image = image.getchannel("A")
    part = np.array(image)
    part = part.max(-1) if part.ndim == 3 else part  # of RGB
    return part > part.max(initial=0) / 2


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
