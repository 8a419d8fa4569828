"""VIA's projects and exports: polygons, boxes, circles and ellipses in one JSON file per split."""

from functools import partial
from pathlib import Path

import datasets

from finetune.data.annotations.via import via_file
from finetune.data.faults import Faults
from finetune.data.objects import Overlap
from finetune.data.sources.coco import coco
from finetune.labels.translation import Labels


def via(
    path: str | Path,
    split: str,
    labels: Labels,
    *,
    images: str = "images/{split}",
    annotations: str = "annotations/{split}.json",
    attribute: str = "",
    overlap: Overlap = "area",
    faults: Faults = None,
) -> datasets.Dataset:
    """The images of a file of VIA; raw values are class ids, and `NO_OBJECT` outside of regions.

    Args:
        path: The data set's folder.
        split: Replaces `{split}` in the patterns.
        labels: The classes; their names are the values of the attribute.
        images: Folder of the images, relative to `path`.
        annotations: The file, relative to `path`.
        attribute: The region attribute that names the class; "" if there is one class.
        overlap: The region that wins where several overlap.
        faults: Takes missing images. With None they are an error.

    Raises:
        UserError: A file is missing, a region has no class, or covers no pixels.
    """
    read = partial(via_file, attribute=attribute, names=labels.names)
    return coco(
        path,
        split,
        labels,
        images=images,
        annotations=annotations,
        overlap=overlap,
        read=read,
        faults=faults,
    )
