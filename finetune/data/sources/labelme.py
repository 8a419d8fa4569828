"""labelme's form: a JSON file of shapes for each image, beside it or in a folder of its own."""

import json
import re
from pathlib import Path
from typing import Literal

import datasets

from finetune.data.annotations.labelme import ImagesInside, ShapeFiles, json_object, read_shapes
from finetune.data.faults import Faults, each, listed
from finetune.data.objects import Overlap
from finetune.data.samples import as_samples
from finetune.data.sources.folders import existing_folder, existing_root, files_by_key
from finetune.data.text import read_text
from finetune.errors import UserError
from finetune.labels.translation import Labels
from finetune.pictures.references import IMAGE_SUFFIXES


def labelme(
    path: str | Path,
    split: str,
    labels: Labels,
    *,
    images: str = "images/{split}",
    masks: str = "masks/{split}",
    overlap: Overlap = "area",
    without_mask: Literal["error", "skip"] = "error",
    faults: Faults = None,
) -> datasets.Dataset:
    """The images of a folder, and the JSON files of the same names; raw values are class ids.

    An image may be missing if its JSON file holds it (`imageData`).

    Args:
        path: The data set's folder.
        split: Replaces `{split}` in the patterns.
        labels: The classes; their names are those of the shapes.
        images: Folder of the images, relative to `path`.
        masks: Folder of the JSON files, relative to `path`; may be the same.
        overlap: The shape that wins where several overlap.
        without_mask: Whether an image without a JSON file is an error, or left out.
        faults: Takes files without a partner. With None they are an error.

    Raises:
        UserError: A folder is missing or empty, a file has no partner, or a JSON file names the
            image of another.
    """
    images, masks = (pattern.replace("{split}", split) for pattern in (images, masks))
    root = existing_root(Path(path).expanduser(), f"{images} and {masks}")
    image_dir, json_dir = (existing_folder(root, name, split) for name in (images, masks))
    pictures = files_by_key(image_dir, IMAGE_SUFFIXES, "", faults=faults)
    texts = {
        key: file
        for key, file in files_by_key(json_dir, (".json",), "", faults=faults).items()
        if key in pictures or read_shapes(file) is not None
    }
    if not texts:
        raise UserError(f"data.masks: no JSON files of labelme in {json_dir}. Correct the folder.")
    alone = texts.keys() - pictures.keys()
    pictures |= {key: texts[key] for key in alone if json_object(texts[key]).get("imageData")}
    form = ShapeFiles(labels.names, overlap)
    return paired(pictures, texts, labels, form, without_mask, faults)


def paired(
    pictures: dict[str, Path],
    texts: dict[str, Path],
    labels: Labels,
    form: ShapeFiles,
    without_mask: Literal["error", "skip"],
    faults: Faults,
) -> datasets.Dataset:
    """Samples of the images and JSON files with equal keys, which are the ids.

    Raises:
        UserError: A file has no partner, and there is no list for faults.
    """
    if without_mask == "skip":
        pictures = {key: file for key, file in pictures.items() if key in texts}
    for kind, what, files in (
        ("image-without-mask", "images have no JSON file", _others(pictures, texts)),
        ("mask-without-image", "JSON files have no image", _others(texts, pictures)),
    ):
        if files and faults is None:
            raise UserError(
                f"data.path: {len(files)} {what}: {listed(list(map(str, files)))}. Add or remove "
                "files until each has its partner; data.without_mask=skip leaves images without "
                "shapes out."
            )
        if faults is not None:
            faults += each(kind, files)
    keys = sorted(pictures.keys() & texts.keys())
    by_name = {file.name: key for key, file in pictures.items()}
    for key in keys:
        named = _named_image(texts[key])
        if named != pictures[key].name and by_name.get(named, key) != key:
            raise UserError(
                f"{texts[key]}: its imagePath is {named}, which is there, but its name is that of "
                f"{pictures[key].name}. Correct the one that is wrong."
            )
    return as_samples(
        [pictures[key] for key in keys],
        [str(texts[key]) for key in keys],
        keys,
        labels,
        form,
        ImagesInside(),
    )


def _others(files: dict[str, Path], partners: dict[str, Path]) -> list[Path]:
    return [files[key] for key in sorted(files.keys() - partners.keys())]


def _named_image(file: Path) -> str:
    """The file name in `imagePath`, "" if there is none. Parsing `imageData` takes long."""
    found = re.search(r'"imagePath"\s*:\s*("(?:[^"\\]|\\.)*")', read_text(file))
    return re.split(r"[\\/]", json.loads(found[1]))[-1] if found else ""
