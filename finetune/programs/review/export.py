"""The doubted regions for annotation tools: each an object of the class that the model predicts."""

import os
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import cv2
import numpy as np

from finetune.data.samples import reader_of
from finetune.data.writers.classes import Classes
from finetune.data.writers.forms import FORMS
from finetune.disk import make_folder, write_whole
from finetune.errors import UserError
from finetune.programs.review.listing import Found, Review


def check_form(form: str) -> None:
    """Raises a UserError unless there is a form of this name."""
    if form not in FORMS:
        raise UserError(f"--export {form}: choose from {', '.join(FORMS)}")


def export(review: Review, folder: Path, form: str, number: int) -> list[Path]:
    """Writes the first regions in a form of `FORMS`; regions of the background are no objects.

    Args:
        review: the list.
        folder: that of the review.
        form: one of `FORMS`.
        number: how many regions.

    Returns:
        The files, or the folder of those with one for each image.

    Raises:
        UserError: a file cannot be written, or its image's name leads out of the folder.
    """
    found: dict[tuple[int, int], list[Found]] = defaultdict(list)
    for one in review.found[:number]:
        found[one.part, one.index].append(one)
    classes, how = Classes(review.labels.names, review.labels.colors), FORMS[form]
    described = []
    for own in found.values():
        path = folder / form / f"{own[0].id}.json"
        is_inside = Path(os.path.normpath(path)).is_relative_to(os.path.normpath(folder / form))
        if how.file is not None and not is_inside:
            raise UserError(
                f"--export {form}: {own[0].id}: this name leads out of {folder / form}; choose a "
                "form with one file for all images, such as coco-polygons"
            )
        name = f"{own[0].id}{PurePosixPath(own[0].image).suffix}"
        if how.file is not None and Path(own[0].image).is_file():  # it leads to the image
            name = os.path.relpath(own[0].image, path.parent)
        described.append(how.of_picture(_proposed(review, own), name, classes))
        if how.file is not None:
            make_folder(path.parent)
            write_whole(path, how.file(described[-1]))
    for name, lines in how.tables.items():
        write_whole(folder / name, "".join(lines(described, classes)))
    return [folder / name for name in how.tables] or [folder / form]


def _proposed(review: Review, regions: Sequence[Found]) -> np.ndarray:
    """The predicted classes of regions of one image (H, W); no class elsewhere."""
    samples, index = review.samples[regions[0].part], regions[0].index
    row = samples.with_format(None)[index]
    size = reader_of(samples).size(row["image"], row["mask"])
    mask = np.full(size, review.labels.ignore_index, np.int32)
    for one in reversed(regions):
        cv2.fillPoly(mask, [np.array(p) for p in one.region.outlines], one.region.predicted)
    return mask.astype(review.labels.dtype)
