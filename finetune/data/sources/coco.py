"""COCO's annotation files: objects as polygons or RLE, in one JSON file per split.

Format: https://cocodataset.org/#format-data (`images`, `annotations`, `categories`).
"""

import json
import warnings
from collections import Counter
from collections.abc import Mapping
from itertools import compress
from pathlib import Path
from typing import Any

import datasets

from finetune.data.faults import Fault, Faults, each, listed
from finetune.data.objects import CocoObjects, Overlap, wrong_segmentation
from finetune.data.samples import as_samples
from finetune.data.sources.folders import existing_root
from finetune.errors import UserError
from finetune.labels.translation import Labels

_MAX_SHOWN = 200  # characters of a value


def coco(
    path: str | Path,
    split: str,
    labels: Labels,
    *,
    images: str = "{split}",
    annotations: str = "annotations/{split}.json",
    overlap: Overlap = "area",
    faults: Faults = None,
) -> datasets.Dataset:
    """The images of a COCO file; raw values are category ids, and `NO_OBJECT` outside of objects.

    Crowds do not count. Two things are errors: an object without a segmentation, as programs for
    boxes write them, because its pixels would become background; and a category with the name of
    one class and the id of another.

    Args:
        path: The data set's folder.
        split: Replaces `{split}` in the patterns.
        labels: What category ids mean.
        images: Folder of the images, relative to `path`.
        annotations: The file, relative to `path`.
        overlap: The object that wins where several overlap.
        faults: Takes missing images, and objects without an image or a category. With None they
            are an error.

    Raises:
        UserError: A file is missing, or the annotations are invalid or contradict `labels`.
    """
    root = existing_root(Path(path).expanduser(), annotations)
    file = root / annotations.replace("{split}", split)
    content = read_annotations(file)
    folder = root / images.replace("{split}", split)
    found, strays = _objects_by_image(content, file)
    strays += _wrong_categories(content, file, labels)
    if strays and faults is None:
        raise UserError(strays[0])
    count = len(content["annotations"])
    crowds = sum(bool(row.get("iscrowd")) for row in content["annotations"])
    if crowds > count / 2:
        warnings.warn(
            f"{file}: {crowds} of {count} annotations are crowds (iscrowd 1), whose pixels do not "
            "count. Some programs, such as CVAT, mark every mask as a crowd: if these are objects, "
            "set their iscrowd to 0",
            stacklevel=2,
        )
    if faults is not None:
        faults += [Fault("bad-annotation", (str(file),), stray) for stray in strays]
    rows = sorted(content["images"], key=lambda image: str(image["file_name"]))
    files = [_image_file(folder, root, str(image["file_name"])) for image in rows]
    there = [path.is_file() for path in files]
    missing = [str(path) for path, is_there in zip(files, there, strict=True) if not is_there]
    if faults is not None and any(there):
        faults += each("listed-but-missing", missing, f"named in {file}")
        rows, files = ([*compress(part, there)] for part in (rows, files))
    elif missing:
        raise UserError(
            f"{file}: {len(missing)} of {len(files)} images are missing: {listed(missing)}. "
            "Set data.images to their folder."
        )
    references = []
    for image in rows:
        size, where = [image["height"], image["width"]], f"{file}, image {image['file_name']}"
        reference = {"size": size, "objects": found[image["id"]], "where": where}
        references.append(json.dumps(reference))
    ids = [Path(str(image["file_name"])).with_suffix("").as_posix() for image in rows]
    return as_samples(files, references, ids, labels, CocoObjects(overlap))


def _objects_by_image(
    content: Mapping[str, Any], file: Path
) -> tuple[dict[int | str, list[list[Any]]], list[str]]:
    """Objects in the form of `CocoObjects` by their image's id, and the faults of the others.

    Every fault that would stop a training is found here, without decoding a pixel. Polygons take
    half the time of parsing their JSON; compressed RLE takes 0.1 ms for 400 characters.
    """
    sizes = {image["id"]: (image["height"], image["width"]) for image in content["images"]}
    known = {category["id"] for category in content["categories"]}
    found: dict[int | str, list[list[Any]]] = {key: [] for key in sizes}
    strays: list[str] = []
    unoutlined: list[Any] = []
    for annotation in content["annotations"]:
        owner, category = annotation["image_id"], annotation["category_id"]
        segmentation, name = annotation.get("segmentation"), annotation.get("id")
        if owner not in sizes:
            what = f"belongs to image {owner!r}, which is not among `images`"
        elif category not in known:
            what = f"has category {category!r}, not among `categories`"
        elif not segmentation:
            unoutlined.append(name)
            continue
        else:
            what = wrong_segmentation(segmentation, sizes[owner])
        if what:
            strays.append(f"{file}: annotation {name!r} {what}. Correct it, or remove it.")
        else:
            crowd = bool(annotation.get("iscrowd"))
            found[owner].append([category, crowd, segmentation, name])
    if unoutlined:
        # Their pixels would silently be those of the background.
        strays.append(
            f"{file}: {len(unoutlined)} of {len(content['annotations'])} annotations have no "
            f"segmentation: {listed([repr(name) for name in unoutlined])}. Outline these "
            "objects, or remove them. To ignore the pixels of their boxes, give them the box as "
            "polygon and iscrowd 1."
        )
    return found, strays


def _wrong_categories(content: Mapping[str, Any], file: Path, labels: Labels) -> list[str]:
    """Categories of the file that `labels` contradicts, or has no rule for."""
    rows = [row for row in content["annotations"] if not row.get("iscrowd")]
    used = Counter(annotation["category_id"] for annotation in rows)
    rules = dict(labels.rules)
    wrong = []
    for category in content["categories"]:
        raw, name = category["id"], category["name"]
        if not used[raw]:
            continue
        if contradiction := labels.contradiction(raw, name):
            wrong.append(
                f"{file}: category {contradiction}. If another split's file numbers its "
                "categories in another way, renumber those of one."
            )
        elif raw not in rules and not labels.ignores_unknown:
            wrong.append(
                f"{file}: category {raw} ({name!r}), which {used[raw]} annotations have, is "
                f"neither a class nor ignored. Give {raw} a class in labels.map, or list it in "
                "labels.ignore."
            )
    return wrong


def read_annotations(file: Path) -> Mapping[str, Any]:
    """Reads a COCO file and checks what every reader relies on.

    Raises:
        UserError: It cannot be read, or a field is missing or wrong; names the field.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        remedy = "Set data.annotations to the JSON file of the split."
        raise UserError(f"{file}: does not exist. {remedy}") from None
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{file}: cannot be read as JSON ({error}).") from error
    if not isinstance(content, dict):
        raise UserError(f"{file}: is not an object with images, annotations and categories.")
    for key, needed in (
        ("images", {"id": int | str, "file_name": str, "height": int, "width": int}),
        ("annotations", {"image_id": int | str, "category_id": int}),
        ("categories", {"id": int, "name": str}),
    ):
        rows = content.get(key)
        if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
            raise UserError(f"{file}: `{key}` must be a list of objects.")
        for field, kind in needed.items():
            wrong = next((row for row in rows if not isinstance(row.get(field), kind)), None)
            if wrong is not None:
                raise UserError(
                    f"{file}: {field} is missing or wrong in a row of `{key}`. Correct "
                    f"{_shortened(wrong)}"
                )
        for field in ("id", "file_name"):
            counts = Counter(row[field] for row in rows if field in needed)
            if twice := [value for value, count in counts.items() if count > 1]:
                raise UserError(
                    f"{file}: {field} {_shortened(twice[0])} stands twice in `{key}`. Give each "
                    "its own, or remove one of them."
                )
    for row in content["annotations"]:
        if row.get("iscrowd") not in (None, 0, 1):
            raise UserError(
                f"{file}: iscrowd of annotation {row.get('id')!r} is {_shortened(row['iscrowd'])}; "
                "it must be 0 or 1."
            )
    if not content["images"]:
        raise UserError(f"{file}: `images` is empty. Set data.annotations to another file.")
    return content


def _shortened(value: Any) -> str:
    """Values may be polygons of thousands of numbers."""
    text = repr(value)
    return text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}..."


def _image_file(folder: Path, root: Path, name: str) -> Path:
    """An image's path: names may start at either folder, and may have backslashes."""
    names = dict.fromkeys((name, name.replace("\\", "/")))
    candidates = [above / own for own in names for above in (folder, root)]
    return next((file for file in candidates if file.is_file()), candidates[0])
