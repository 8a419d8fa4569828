"""COCO's JSON, with RLE or with polygons.

Format: https://cocodataset.org/#format-data
"""

import json
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from finetune.data.writers.classes import Classes
from finetune.data.writers.outlines import area_of, outlines


def coco_rle(mask: np.ndarray, image: str, classes: Classes) -> dict[str, Any]:
    """One object per class that occurs, the background too; the category is the class id.

    Pixels of no class belong to no object.
    """
    from pycocotools import mask as coco  # compiled; only some predictions need it

    counts, objects = np.bincount(mask.ravel()), []
    for number in np.flatnonzero(counts[: len(classes.names)]):
        rle = coco.encode(np.asfortranarray(mask == number, np.uint8))
        segmentation = {"size": list(mask.shape), "counts": rle["counts"].decode("ascii")}
        box = [float(value) for value in coco.toBbox(rle)]
        objects.append(_object(int(number), segmentation, int(counts[number]), box))
    return _row(mask, image, objects)


def coco_polygons(mask: np.ndarray, image: str, classes: Classes) -> dict[str, Any]:
    """One object with one polygon per region of a class; categories count from 1.

    The polygons are exact, those of regions with holes too (`finetune.data.writers.outlines`).
    """
    objects = []
    for number in classes.objects_in(mask):
        for outline in outlines(mask == number):
            low, high = outline.min(0), outline.max(0)
            box = [float(value) for value in (*low, *(high - low))]
            polygon = outline.ravel().tolist()
            objects.append(_object(number + 1, [polygon], area_of(outline), box))
    return _row(mask, image, objects)


def _object(category: int, segmentation: Any, area: int, box: list[float]) -> dict[str, Any]:
    return {
        "category_id": category,
        "segmentation": segmentation,
        "area": area,
        "bbox": box,
        "iscrowd": 0,
    }


def _row(mask: np.ndarray, image: str, objects: list[dict[str, Any]]) -> dict[str, Any]:
    height, width = mask.shape
    return {"file_name": image, "height": height, "width": width, "objects": objects}


def coco_file(
    pictures: Iterable[dict[str, Any]], classes: Classes, *, first: int = 0
) -> Iterator[str]:
    """The parts of the file; `first` is the category of class 0. Images and objects from 1 on."""
    images: list[dict[str, Any]] = []
    annotations = 0
    yield '{"annotations": ['
    for picture in pictures:
        number = len(images) + 1
        images.append({"id": number, **picture})
        for one in images[-1].pop("objects"):
            annotations += 1
            annotation = {"id": annotations, "image_id": number, **one}
            yield ("\n" if annotations == 1 else ",\n") + json.dumps(annotation)
    categories = [{"id": first + i, "name": name} for i, name in enumerate(classes.names)]
    yield f'\n], "images": {json.dumps(images)}, "categories": {json.dumps(categories)}}}\n'
