"""COCO's annotation files: objects of an image as polygons or RLE, in one JSON file a split.

Format: https://cocodataset.org/#format-data (`images`, `annotations`, `categories`).
"""

import json
from collections.abc import Mapping
from itertools import compress
from pathlib import Path
from typing import Any

import datasets

from finetune.data.faults import Fault, each
from finetune.data.folders import existing_root, listed
from finetune.data.labels import Labels
from finetune.data.masks import CocoObjects, Overlap
from finetune.data.samples import as_samples
from finetune.errors import UserError


def coco(
    path: str | Path,
    split: str,
    labels: Labels,
    *,
    images: str = "{split}",
    annotations: str = "annotations/{split}.json",
    overlap: Overlap = "area",
    faults: list[Fault] | None = None,
) -> datasets.Dataset:
    """The images of a COCO file; raw values are category ids, and `NO_OBJECT` where there is none.

    Args:
        path: The data set's folder.
        split: Replaces `{split}` in the patterns.
        labels: What category ids mean.
        images: Folder of the images, relative to `path`.
        annotations: The file, relative to `path`.
        overlap: Who has a pixel that several objects cover.
        faults: Takes images that are not there and objects of no image or category, which are
            otherwise an error.

    Raises:
        UserError: A file is missing, or the annotations are not what they must be.
    """
    root = existing_root(Path(path).expanduser(), annotations)
    file = root / annotations.replace("{split}", split)
    content = read_annotations(file)
    folder = root / images.replace("{split}", split)
    objects: dict[Any, list[list[Any]]] = {image["id"]: [] for image in content["images"]}
    known = {category["id"] for category in content["categories"]}
    for annotation in content["annotations"]:
        owner, category = annotation["image_id"], annotation["category_id"]
        where = f"{file}: annotation {annotation.get('id')!r}"
        stray = ""
        if owner not in objects:
            stray = f"{where} belongs to image {owner!r}, which is not among `images`."
        elif category not in known:
            stray = f"{where} has category {category!r}, not among `categories`."
        if stray:
            if faults is None:
                raise UserError(stray)
            faults.append(Fault("bad-annotation", (str(file),), stray))
            continue
        crowd = bool(annotation.get("iscrowd", 0))
        objects[owner].append([category, crowd, annotation.get("segmentation")])
    rows = sorted(content["images"], key=lambda image: str(image["file_name"]))
    files = [_image_file(folder, root, str(image["file_name"])) for image in rows]
    missing = [str(path) for path in files if not path.is_file()]
    there = [path.is_file() for path in files]
    if faults is not None and any(there):
        faults += each("listed-but-missing", missing, f"named in {file}")
        rows, files = ([*compress(part, there)] for part in (rows, files))
    elif missing:
        raise UserError(
            f"{file}: {len(missing)} of {len(files)} images are not there: {listed(missing)}. "
            "Set data.images to their folder."
        )
    references = [
        json.dumps(
            {
                "size": [image["height"], image["width"]],
                "objects": objects[image["id"]],
                "where": f"{file.name}, image {image['file_name']}",
            }
        )
        for image in rows
    ]
    ids = [Path(str(image["file_name"])).with_suffix("").as_posix() for image in rows]
    return as_samples(files, references, ids, labels, CocoObjects(overlap))


def read_annotations(file: Path) -> Mapping[str, Any]:
    """A COCO file, checked as far as every reader relies on it.

    Raises:
        UserError: It cannot be read, or lacks something; names it.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(
            f"{file}: does not exist. Set data.annotations to the JSON file of the split."
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{file}: cannot be read as JSON ({error}).") from error
    if not isinstance(content, dict):
        raise UserError(f"{file}: holds no object with images, annotations and categories.")
    for key, needed in (
        ("images", {"id": int | str, "file_name": str, "height": int, "width": int}),
        ("annotations", {"image_id": int | str, "category_id": int}),
        ("categories", {"id": int, "name": str}),
    ):
        rows = content.get(key)
        if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
            raise UserError(f"{file}: `{key}` must be a list of objects.")
        for row in rows:
            for field, kind in needed.items():
                if not isinstance(row.get(field), kind):
                    raise UserError(f"{file}: {field} is missing, or wrong, in `{key}`: {row}")
        ids = [row["id"] for row in rows] if "id" in needed else []
        if len(set(ids)) < len(ids):
            raise UserError(f"{file}: ids of `{key}` are not unique.")
    if not content["images"]:
        raise UserError(f"{file}: has no images.")
    return content


def _image_file(folder: Path, root: Path, name: str) -> Path:
    """Some files name images from their folder, some from the data set's."""
    return (
        folder / name if (folder / name).is_file() or not (root / name).is_file() else root / name
    )
