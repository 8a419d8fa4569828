"""labelme's JSON, one file an image.

The shapes are polygons, which labelme and X-AnyLabeling show and edit. labelme's shapes of the kind
`mask` cannot be edited point by point, and X-AnyLabeling has none.
Format: https://github.com/wkentaro/labelme (`labelme/label_file.py`, version 5)
"""

import json
from typing import Any

import numpy as np

from finetune.data.writers.classes import Classes
from finetune.data.writers.outlines import outlines

_VERSION = "5.5.0"
"""labelme warns of files of another main version than its own."""


def labelme_shapes(mask: np.ndarray, image: str, classes: Classes) -> dict[str, Any]:
    """The content of a file: one polygon per region of a class.

    Args:
        mask: Class ids (H, W).
        image: The image's path as seen from the folder of the file; labelme opens it by this path.
        classes: The classes.
    """
    shapes = [
        {
            "label": classes.names[number],
            "points": outline.astype(float).tolist(),
            "group_id": None,
            "description": "",
            "shape_type": "polygon",
            "flags": {},
            "mask": None,
        }
        for number in classes.objects_in(mask)
        for outline in outlines(mask == number)
    ]
    return {
        "version": _VERSION,
        "flags": {},
        "shapes": shapes,
        "imagePath": image,
        "imageData": None,
        "imageHeight": mask.shape[0],
        "imageWidth": mask.shape[1],
    }


def labelme_file(picture: dict[str, Any]) -> str:
    """The text of a file."""
    return json.dumps(picture, indent=1) + "\n"
