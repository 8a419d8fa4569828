"""CVAT's XML for images, version 1.1: the labels, and the shapes of each image.

Format: https://docs.cvat.ai/docs/manual/advanced/xml_format/. A mask's `rle` counts the pixels of
its box row by row, first those outside; what CVAT itself writes and reads is in
https://github.com/cvat-ai/cvat, `cvat/apps/dataset_manager/formats/cvat.py`.
"""

import json
import math
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np

from finetune.data.masks import Size
from finetune.data.objects import FARTHEST, encoded_polygons, painted
from finetune.errors import UserError
from finetune.labels.colors import RGB

_WITHOUT_PIXELS = ("points", "polyline", "cuboid", "skeleton", "tag")


@dataclass(frozen=True)
class CvatImage:
    """An image, and its shapes from the lowest to the topmost."""

    name: str
    size: Size
    subset: str
    """Of a project's export; "" if there is none."""
    shapes: list[dict[str, Any]]


@dataclass
class CvatFile:
    """The content of a file."""

    file: Path
    labels: dict[str, RGB | None] = field(default_factory=dict)
    """The colours of all labels, those of the file's head first."""
    images: list[CvatImage] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)
    """Shapes without pixels, by their kinds."""
    wrong: list[str] = field(default_factory=list)
    """Shapes that cannot be used; messages."""

    @property
    def note(self) -> str:
        """A sentence about the shapes that are left out, or ""."""
        kinds = ", ".join(f"{number} {kind}" for kind, number in self.left_out.items())
        return f"shapes without pixels are left out ({kinds})" if kinds else ""


def read_cvat(file: Path) -> CvatFile | None:
    """Reads a file, image by image; None if it is other XML than CVAT's.

    Raises:
        UserError: It cannot be read, or holds the tracks of a video.
    """
    found = CvatFile(file)
    try:
        events = ElementTree.iterparse(file, events=("start", "end"))
        _, root = next(events)
        if root.tag != "annotations":
            return None
        for event, element in events:
            if event == "start" and element.tag == "track":
                raise UserError(
                    f"{file}: holds the tracks of a video, which say nothing about single frames. "
                    "Export the task as `CVAT for images 1.1` or as `Segmentation mask 1.1`."
                )
            if event == "end" and element.tag == "label" and not element.findtext("parent"):
                name = (element.findtext("name") or "").strip()
                found.labels[name] = _color(element.findtext("color") or "")
            elif event == "end" and element.tag == "image":
                _add_image(found, element)
                root.clear()
    except (ElementTree.ParseError, OSError, ValueError, KeyError) as error:
        raise UserError(f"{file}: cannot be read as CVAT's XML ({error!r}). Replace it.") from error
    return found if found.images or found.labels else None


def _color(text: str) -> RGB | None:
    if not re.fullmatch("#[0-9a-fA-F]{6}", text):
        return None
    red, green, blue = bytes.fromhex(text[1:])
    return red, green, blue


def _add_image(found: CvatFile, element: ElementTree.Element) -> None:
    name = element.attrib["name"]
    size = int(element.attrib["height"]), int(element.attrib["width"])
    shapes: list[tuple[int, dict[str, Any]]] = []
    for number, shape in enumerate(element, 1):
        if shape.tag in _WITHOUT_PIXELS:
            found.left_out[shape.tag] += 1
            continue
        try:
            label, z_order = shape.attrib["label"].strip(), int(shape.get("z_order", 0))
            if not label:
                raise ValueError("has no label. Give it one, or remove it.")
            values = {"label": label, "kind": shape.tag, **_values(shape, size)}
        except (KeyError, ValueError) as error:
            found.wrong.append(f"{found.file}: image {name!r}, shape {number}: {error.args[0]}")
            continue
        found.labels.setdefault(label, None)
        shapes.append((z_order, values))
    shapes.sort(key=lambda shape: shape[0])
    image = CvatImage(name, size, element.get("subset", ""), [values for _, values in shapes])
    found.images.append(image)


def _values(shape: ElementTree.Element, size: Size) -> dict[str, Any]:
    """The numbers of a shape.

    Raises:
        ValueError, KeyError: They are wrong, or missing; the text is for a person.
    """
    if shape.tag == "polygon":
        points = [float(x) for pair in shape.attrib["points"].split(";") for x in pair.split(",")]
        are_near = all(abs(number) < FARTHEST for number in points)  # NaN is not
        if len(points) < 6 or len(points) % 2 or not are_near:
            raise ValueError(
                "its polygon is not 3 or more pairs of x and y, or lies beyond any image. Correct "
                "it."
            )
        return {"points": points}
    if shape.tag == "ellipse":
        numbers = [float(shape.attrib[key]) for key in ("cx", "cy", "rx", "ry")]
        return {"ellipse": [*numbers, float(shape.get("rotation", 0))]}
    if shape.tag == "mask":
        left, top, width, height = box = [
            int(shape.attrib[key]) for key in ("left", "top", "width", "height")
        ]
        counts = list(map(int, shape.attrib["rle"].split(",")))
        if sum(counts) != width * height or min(counts) < 0:
            raise ValueError("the counts of its rle do not add up to its box. Draw it again.")
        if min(left, top) < 0 or left + width > size[1] or top + height > size[0]:
            raise ValueError("its mask is not inside of the image. Draw it again.")
        return {"box": box, "rle": shape.attrib["rle"]}
    raise ValueError(
        f"is a {shape.tag} ({shape.get('label')!r}); a {shape.tag} says nothing about pixels. "
        "Outline the object by a polygon or a mask, or remove it."
    )


@dataclass(frozen=True)
class CvatShapes:
    """Shapes of CVAT; the reference is {"size": [h, w], "shapes": [...], "where": text}.

    The raw value of a shape is the place of its label in `names`.
    """

    names: tuple[str, ...]

    def name(self, reference: str) -> str:
        return ""  # the file has the shapes of all images

    def files(self, reference: str) -> list[Path]:
        return []  # the reference holds the shapes themselves

    def size(self, reference: str) -> Size | None:
        height, width = json.loads(reference)["size"]
        return height, width

    def read(self, reference: str, size: Size) -> np.ndarray:
        """Class ids of the shapes, of which later ones win, `NO_OBJECT` elsewhere; int32."""
        content = json.loads(reference)
        objects = [
            (self.names.index(shape["label"]), _encoded(shape, size), content["where"])
            for shape in content["shapes"]
        ]
        return painted(objects, size, "order")


def _encoded(shape: Mapping[str, Any], size: Size) -> dict[str, Any]:
    """The pixels of a shape as compressed RLE."""
    from pycocotools import mask as coco

    if shape["kind"] == "polygon":
        return encoded_polygons([shape["points"]], size)
    mask = np.zeros(size, np.uint8)
    if shape["kind"] == "mask":
        left, top, width, height = shape["box"]
        counts = np.array(shape["rle"].split(","), int)
        part = np.repeat(np.arange(len(counts)) % 2, counts).reshape(height, width)
        mask[top : top + height, left : left + width] = part
    else:
        x, y, x_radius, y_radius, degrees = shape["ellipse"]
        rows, columns = np.ogrid[: size[0], : size[1]]
        right, down = columns + 0.5 - x, rows + 0.5 - y
        cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
        along, across = right * cos + down * sin, down * cos - right * sin
        mask[(along * y_radius) ** 2 + (across * x_radius) ** 2 <= (x_radius * y_radius) ** 2] = 1
    return coco.encode(np.asfortranarray(mask))
