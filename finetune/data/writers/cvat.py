"""CVAT's XML for images, version 1.1, with one mask per class and image.

A mask is exact, and CVAT's brush and eraser work on it; a polygon of CVAT has two digits after the
point, and no holes. CVAT finds the images of a task by their names. The format and its sources are
described in `finetune.data.annotations.cvat`.
"""

from collections.abc import Iterable, Iterator
from typing import Any
from xml.sax.saxutils import escape, quoteattr

import numpy as np

from finetune.data.writers.classes import Classes, xml_text


def cvat_masks(mask: np.ndarray, image: str, classes: Classes) -> dict[str, Any]:
    """The masks of an image: class id, left, top, width, height of its box, and its counts."""
    masks = []
    for number in classes.objects_in(mask):
        rows, columns = np.nonzero(mask == number)
        top, left = int(rows.min()), int(columns.min())
        part = mask[top : rows.max() + 1, left : columns.max() + 1] == number
        flat = part.ravel()
        changes = np.flatnonzero(np.diff(flat, prepend=False))  # counts begin with other pixels
        counts = np.diff(changes, prepend=0, append=flat.size)
        masks.append([number, left, top, part.shape[1], part.shape[0], counts.tolist()])
    return {"name": image, "height": mask.shape[0], "width": mask.shape[1], "masks": masks}


def cvat_file(pictures: Iterable[dict[str, Any]], classes: Classes) -> Iterator[str]:
    """The parts of the file."""
    yield '<?xml version="1.0" encoding="utf-8"?>\n<annotations>\n<version>1.1</version>\n'
    yield "<meta><task><mode>annotation</mode><labels>\n"
    for number, name in enumerate(classes.names):
        color = classes.hex_color(number)
        yield f"<label><name>{escape(xml_text(name))}</name><color>{color}</color>"
        yield "<type>mask</type><attributes></attributes></label>\n"
    yield "</labels></task></meta>\n"
    for count, picture in enumerate(pictures):
        name = quoteattr(xml_text(picture["name"]))
        yield f'<image id="{count}" name={name} width="{picture["width"]}"'
        yield f' height="{picture["height"]}">\n'
        for number, left, top, width, height, counts in picture["masks"]:
            label = quoteattr(xml_text(classes.names[number]))
            yield f'<mask label={label} source="auto" occluded="0" rle="'
            yield ", ".join(map(str, counts))
            yield f'" left="{left}" top="{top}" width="{width}" height="{height}" z_order="0"/>\n'
        yield "</image>\n"
    yield "</annotations>\n"
