"""The forms in which predictions and labels go back into annotation tools, by name.

    row = FORMS["coco-polygons"].of_picture(mask, "more/1.jpg", classes)
    for name, lines in FORMS["coco-polygons"].tables.items():
        write_lines(folder / name, lines([row], classes))

A form describes one picture at a time, as an object for JSON that a journal can keep. Its files are
made line by line from these, so that memory does not grow with the number of pictures.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeAlias

import numpy as np

from finetune.data.writers.classes import Classes
from finetune.data.writers.coco import coco_file, coco_polygons, coco_rle
from finetune.data.writers.cvat import cvat_file, cvat_masks
from finetune.data.writers.label_studio import (
    label_studio_config,
    label_studio_file,
    label_studio_task,
)
from finetune.data.writers.labelme import labelme_file, labelme_shapes

Described: TypeAlias = dict[str, Any]
"""One picture in a form."""


@dataclass(frozen=True)
class Form:
    """What one tool reads."""

    of_picture: Callable[[np.ndarray, str, Classes], Described]
    """Takes a mask of class ids (H, W), the image's name in the form, and the classes."""
    tables: Mapping[str, Callable[[Iterable[Described], Classes], Iterator[str]]] = field(
        default_factory=dict
    )
    """File name -> its lines, from all pictures."""
    file: Callable[[Described], str] | None = None
    """The text of the file of one picture, in forms that have one for each."""


FORMS = {
    "coco": Form(coco_rle, {"coco.json": coco_file}),
    "coco-polygons": Form(coco_polygons, {"coco-polygons.json": partial(coco_file, first=1)}),
    "cvat": Form(cvat_masks, {"cvat.xml": cvat_file}),
    "label-studio": Form(
        label_studio_task,
        {"label-studio.json": label_studio_file, "label_config.xml": label_studio_config},
    ),
    "labelme": Form(labelme_shapes, file=labelme_file),
}
