"""Supervisely's projects: data sets, each with a folder `img` and a folder `ann` of JSON files."""

import os
from pathlib import Path
from typing import Literal

import datasets

from finetune.data.annotations.labelme import ShapeFiles
from finetune.data.annotations.supervisely import as_labelme
from finetune.data.faults import Faults
from finetune.data.objects import Overlap
from finetune.data.sources.folders import existing_folder, existing_root, files_by_key
from finetune.data.sources.labelme import paired
from finetune.errors import UserError
from finetune.labels.translation import Labels
from finetune.pictures.references import IMAGE_SUFFIXES


def supervisely(
    path: str | Path,
    split: str,
    labels: Labels,
    *,
    images: str = "{split}",
    overlap: Overlap = "order",
    without_mask: Literal["error", "skip"] = "error",
    faults: Faults = None,
) -> datasets.Dataset:
    """The images `img/NAME` below a folder, and their shapes in `ann/NAME.json`, by class id.

    Args:
        path: The project's folder.
        split: Replaces `{split}` in `images`.
        labels: The classes; their names are those of the shapes.
        images: The folder of a data set, or of several, relative to `path`.
        overlap: The shape that wins where several overlap.
        without_mask: Whether an image without a JSON file is an error, or left out.
        faults: Takes files without a partner. With None they are an error.

    Raises:
        UserError: A folder is missing or empty, or a file has no partner.
    """
    images = images.replace("{split}", split)
    root = existing_root(Path(path).expanduser(), images)
    folder = existing_folder(root, images, split)
    pictures: dict[str, Path] = {}
    texts: dict[str, Path] = {}
    for directory, subfolders, _ in os.walk(folder, followlinks=True):
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        if not {"img", "ann"} <= set(subfolders):
            continue
        here = Path(directory)
        name = here.relative_to(folder).as_posix()
        start = "" if name == "." else f"{name}/"
        own = files_by_key(here / "img", IMAGE_SUFFIXES, "", faults=faults)
        pictures |= {start + key: file for key, file in own.items()}
        # x.jpg.json belongs to x.jpg.
        keys = {file.relative_to(here / "img").as_posix(): key for key, file in own.items()}
        for key, file in files_by_key(here / "ann", (".json",), "", faults=faults).items():
            texts[start + keys.get(key, key)] = file
    if not texts:
        raise UserError(
            f"data.images: no folders img and ann with Supervisely's JSON files below {folder}. "
            "Name the folder of a data set."
        )
    form = ShapeFiles(labels.names, overlap, as_labelme)
    return paired(pictures, texts, labels, form, without_mask, faults)
