"""Label Studio's tasks with pre-annotations, and the labeling config that their project needs.

The regions are brushes, one per class and image, which are exact. Formats:
https://labelstud.io/guide/predictions and https://labelstud.io/tags/brushlabels
"""

import json
from collections.abc import Iterable, Iterator
from typing import Any
from urllib.parse import quote
from xml.sax.saxutils import quoteattr

import numpy as np

from finetune.data.annotations import brush_rle
from finetune.data.writers.classes import Classes, xml_text

_FROM, _TO = "tag", "image"
"""The names of the two controls; regions name them, and the config defines them."""
_LOCAL = "/data/local-files/?d="
"""The address of files that the server reads itself, with the path below its document root."""


def label_studio_task(mask: np.ndarray, image: str, classes: Classes) -> dict[str, Any]:
    """The task of an image with one prediction. Its own name of the image is a local file."""
    height, width = mask.shape
    result = [
        {
            "id": f"class-{number}",
            "type": "brushlabels",
            "from_name": _FROM,
            "to_name": _TO,
            "original_width": width,
            "original_height": height,
            "image_rotation": 0,
            "value": {
                "format": "rle",
                "rle": brush_rle.encode(mask == number),
                "brushlabels": [classes.names[number]],
            },
        }
        for number in classes.objects_in(mask)
    ]
    prediction = {"model_version": "finetune", "result": result}
    address = _LOCAL + quote(image, errors="surrogateescape")
    return {"data": {"image": address}, "predictions": [prediction]}


def label_studio_file(pictures: Iterable[dict[str, Any]], classes: Classes) -> Iterator[str]:
    """The parts of the file of tasks."""
    yield "["
    for number, picture in enumerate(pictures):
        yield (",\n" if number else "\n") + json.dumps(picture)
    yield "\n]\n"


def label_studio_config(pictures: Iterable[dict[str, Any]], classes: Classes) -> Iterator[str]:
    """The parts of the labeling config, with the labels of all classes."""
    yield f'<View>\n  <Image name="{_TO}" value="$image" zoom="true"/>\n'
    yield f'  <BrushLabels name="{_FROM}" toName="{_TO}">\n'
    for number, name in enumerate(classes.names):
        color = classes.hex_color(number)
        yield f'    <Label value={quoteattr(xml_text(name))} background="{color}"/>\n'
    yield "  </BrushLabels>\n</View>\n"
