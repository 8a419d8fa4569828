"""COCO's annotation files: objects as polygons or RLE, in one JSON file per split.

Format: https://cocodataset.org/#format-data (`images`, `annotations`, `categories`).
"""

import json
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import datasets

from finetune.data.annotations.coco import CocoFile, objects_file
from finetune.data.faults import Fault, Faults, each, listed
from finetune.data.named_files import located, sample_id
from finetune.data.objects import CocoObjects, Overlap, wrong_segmentation
from finetune.data.samples import as_samples
from finetune.data.sources.folders import existing_root
from finetune.errors import UserError
from finetune.labels.translation import Labels
from finetune.pictures.reading import image_size

ImageRow: TypeAlias = tuple[dict[str, Any], Path, str]
"""A row of `images`, the file, and the sample's id."""


def coco(
    path: str | Path,
    split: str,
    labels: Labels,
    *,
    images: str = "{split}",
    annotations: str = "annotations/{split}.json",
    overlap: Overlap = "area",
    read: Callable[[Path], CocoFile] = objects_file,
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
        read: Reads the file; VIA's differ.
        faults: Takes missing images, and objects without an image or a category. With None they
            are an error.

    Raises:
        UserError: A file is missing, or the annotations are invalid or contradict `labels`.
    """
    root = existing_root(Path(path).expanduser(), annotations)
    file = root / annotations.replace("{split}", split)
    content = read(file)
    folder = root / images.replace("{split}", split)
    there = images_of(content, folder, root, faults)
    found, wrong = _objects_by_image(content)
    used = Counter(row["category_id"] for row in content.annotations if not row["iscrowd"])
    wrong += wrong_categories(content, used, labels)
    if wrong and faults is None:
        raise UserError(wrong[0])
    if content.strays:
        warnings.warn(f"{file}: {content.stray_note}", stacklevel=2)
    count = len(content.annotations)
    crowds = sum(row["iscrowd"] for row in content.annotations)
    if crowds > count / 2:
        warnings.warn(
            f"{file}: {crowds} of {count} annotations are crowds (iscrowd 1, or ignore 1), whose "
            "pixels do not count. Some programs, such as CVAT, mark every mask as a crowd: if "
            "these are objects, set their iscrowd to 0",
            stacklevel=2,
        )
    if faults is not None:
        faults += [Fault("bad-annotation", (str(file),), what) for what in wrong]
    files, references, ids = [], [], []
    for image, path_here, name in there:
        size, where = [image["height"], image["width"]], f"{file}, image {image['file_name']}"
        reference = {"size": size, "objects": found[image["id"]], "where": where}
        files.append(path_here)
        references.append(json.dumps(reference))
        ids.append(name)
    return as_samples(files, references, ids, labels, CocoObjects(overlap))


def images_of(content: CocoFile, folder: Path, root: Path, faults: Faults) -> list[ImageRow]:
    """The images that are there. Rows without a size get that of their file.

    Raises:
        UserError: Images are missing and there is no list for faults, or all are missing.
    """
    rows = sorted(content.images, key=lambda image: image["file_name"])
    files, alone = located([image["file_name"] for image in rows], folder, root, content.file)
    missing = [str(file) for file in files if not file.is_file()]
    if missing and (faults is None or len(missing) == len(files)):
        raise UserError(
            f"{content.file}: {len(missing)} of {len(files)} images are missing: "
            f"{listed(missing)}. Set data.images to their folder."
        )
    if faults is not None:
        faults += each("listed-but-missing", missing, f"named in {content.file}")
    gone = set(missing)
    return [
        (image, file, sample_id(image["file_name"], file, folder, alone))
        for image, file in zip(rows, files, strict=True)
        if str(file) not in gone and _has_size(image, file, faults)
    ]


def _has_size(image: dict[str, Any], file: Path, faults: Faults) -> bool:
    """Gives a row without a size that of its file; False if the file cannot be read."""
    if image["height"] is None:
        try:
            image["height"], image["width"] = image_size(file)
        except UserError as error:
            if faults is None:
                raise
            faults.append(Fault("unreadable-file", (str(file),), str(error)))
            return False
    return True


def _objects_by_image(content: CocoFile) -> tuple[dict[str, list[list[Any]]], list[str]]:
    """Objects in the form of `CocoObjects` by their image's id, and the faults of the others.

    Every fault that would stop a training is found here, without decoding a pixel. Polygons take
    half the time of parsing their JSON; compressed RLE takes 0.1 ms for 400 characters.
    """
    file, known = content.file, content.names
    sizes = {image["id"]: (image["height"], image["width"]) for image in content.images}
    found: dict[str, list[list[Any]]] = {key: [] for key in sizes}
    wrong: list[str] = []
    unoutlined: list[Any] = []
    for annotation in content.annotations:
        owner, category = annotation["image_id"], annotation["category_id"]
        segmentation, name = annotation.get("segmentation"), annotation.get("id")
        if owner not in sizes:
            what = f"belongs to image {owner!r}, which is not among `images`"
        elif category not in known:
            what = f"has category {category!r}, not among `categories`"
        elif not segmentation:
            unoutlined.append(name)
            continue
        elif sizes[owner][0] is None:  # the image is missing, which is its own fault
            continue
        else:
            what = wrong_segmentation(segmentation, sizes[owner])
        if what:
            wrong.append(f"{file}: annotation {name!r} {what}. Correct it, or remove it.")
        else:
            found[owner].append([category, annotation["iscrowd"], segmentation, name])
    if unoutlined:
        # Their pixels would silently be those of the background.
        wrong.append(
            f"{file}: {len(unoutlined)} of {len(content.annotations)} annotations have no "
            f"segmentation: {listed([repr(name) for name in unoutlined])}. Outline these "
            "objects, or remove them. To ignore the pixels of their boxes, give them the box as "
            "polygon and iscrowd 1."
        )
    return found, wrong


def wrong_categories(content: CocoFile, used: Counter[int], labels: Labels) -> list[str]:
    """Categories in use that `labels` contradicts, or has no rule for."""
    rules = dict(labels.rules)
    wrong = []
    for raw, name in content.names.items():
        if not used[raw]:
            continue
        if contradiction := labels.contradiction(raw, name):
            wrong.append(
                f"{content.file}: category {contradiction}. If another split's file numbers its "
                "categories in another way, renumber those of one."
            )
        elif raw not in rules and not labels.ignores_unknown:
            wrong.append(
                f"{content.file}: category {raw} ({name!r}), which {used[raw]} annotations have, "
                f"is neither a class nor ignored. Give {raw} a class in labels.map, or list it in "
                "labels.ignore."
            )
    return wrong
