"""The official layouts by name: how the archives of known data sets unpack, and Ultralytics'.

Sources: the archives' own readme files; https://docs.ultralytics.com/datasets/segment for
`data.yaml`.
"""

import re
import warnings
from collections.abc import Mapping
from contextlib import suppress
from itertools import compress
from pathlib import Path
from typing import Any, TypeAlias

import datasets
import yaml

from finetune.data.faults import Fault, each
from finetune.data.files import IMAGE_SUFFIXES
from finetune.data.folders import existing_folder, existing_root, files_by_key, image_folder, listed
from finetune.data.labels import Labels
from finetune.data.masks import Overlap, PolygonFiles
from finetune.data.samples import as_samples
from finetune.errors import UserError

Faults: TypeAlias = list[Fault] | None
"""As `open_split` has them."""


def camvid(
    path: str | Path, split: str, labels: Labels, *, faults: Faults = None
) -> datasets.Dataset:
    """CamVid as in the SegNet tutorial: `{split}/*.png` (or jpg) and `{split}annot/*.png`."""
    return image_folder(path, split, labels, images="{split}", masks="{split}annot", faults=faults)


def ade20k(
    path: str | Path, split: str, labels: Labels, *, faults: Faults = None
) -> datasets.Dataset:
    """ADE20K as in the official zip: `path` is ADEChallengeData2016 or the folder above it.

    `split` is "train" or "val", or the folder's own name, "training" or "validation".
    """
    root = Path(path).expanduser()
    if (root / "ADEChallengeData2016").is_dir():
        root /= "ADEChallengeData2016"
    folder = {"train": "training", "val": "validation"}.get(split, split)
    return image_folder(root, folder, labels, masks="annotations/{split}", faults=faults)


def cityscapes(
    path: str | Path, split: str, labels: Labels, *, faults: Faults = None
) -> datasets.Dataset:
    """Cityscapes: `leftImg8bit/{split}/{city}` and `gtFine/{split}/{city}`.

    The labels say which masks are meant: `*_labelTrainIds.png` with the 19 train ids or, if they
    give 33, the official map's last, a meaning, `*_labelIds.png` with all 34.
    """
    kind = "labelIds" if any(raw == 33 for raw, _ in labels.rules) else "labelTrainIds"
    masks = Path(path).expanduser() / "gtFine" / split
    if not any(masks.rglob(f"*_gtFine_{kind}.png")):
        other = "labelTrainIds" if kind == "labelIds" else "labelIds"
        if any(masks.rglob(f"*_gtFine_{other}.png")):
            preset = "cityscapes" if other == "labelTrainIds" else "cityscapes-label-ids"
            raise UserError(
                f"data.path: {masks} holds *_{other}.png but no *_{kind}.png, which the labels are "
                f"about. Set labels.preset={preset}."
            )
    return image_folder(
        path,
        split,
        labels,
        images="leftImg8bit/{split}",
        masks="gtFine/{split}",
        image_suffix="_leftImg8bit",
        mask_suffix=f"_gtFine_{kind}",
        faults=faults,
    )


def voc(path: str | Path, split: str, labels: Labels, *, faults: Faults = None) -> datasets.Dataset:
    """Pascal VOC: `path` is VOC2012 (or another year), or a folder that leads to one.

    `split` is a list in `ImageSets/Segmentation`: "train", "val" or "trainval".

    Raises:
        UserError: No list of that name; or it names an image that is not there.
    """
    root = existing_root(Path(path).expanduser(), "JPEGImages, SegmentationClass and ImageSets")
    if not (root / "JPEGImages").is_dir():
        found = sorted(root.glob("VOC*")) + sorted(root.glob("VOCdevkit/VOC*"))
        root = next((folder for folder in found if (folder / "JPEGImages").is_dir()), root)
    lists = existing_folder(root, "ImageSets/Segmentation", split)
    file = lists / f"{split}.txt"
    if not file.is_file():
        there = sorted(path.stem for path in lists.glob("*.txt"))
        raise UserError(
            f"data: there is no list {file} for the split {split!r}; there are {listed(there)}."
        )
    ids = sorted({line.strip() for line in file.read_text().splitlines()} - {""})
    images = [root / "JPEGImages" / f"{name}.jpg" for name in ids]
    masks = [root / "SegmentationClass" / f"{name}.png" for name in ids]
    missing = [str(path) for path in (*images, *masks) if not path.is_file()]
    whole = [image.is_file() and mask.is_file() for image, mask in zip(images, masks, strict=True)]
    if faults is not None and any(whole):
        faults += _without_partner(images, masks, f"named in {file}")
        images, masks = list(compress(images, whole)), list(compress(masks, whole))
        ids = list(compress(ids, whole))
    elif missing or not ids:
        what = f"names files that are not there: {listed(missing)}" if missing else "is empty"
        raise UserError(f"data: {file} {what}.")
    return as_samples(images, [str(path) for path in masks], ids, labels)


def coco_stuff(
    path: str | Path, split: str, labels: Labels, *, faults: Faults = None
) -> datasets.Dataset:
    """COCO-Stuff: `{images,annotations}/{train2017,val2017}`, and `*.png` of `stuffthingmaps`.

    `split` is "train" or "val", or the folder's own name.
    """
    root = Path(path).expanduser()
    folder = {"train": "train2017", "val": "val2017"}.get(split, split)
    masks = "annotations/{split}"
    for candidate in ("stuffthingmaps_trainval2017/{split}", "stuffthingmaps/{split}"):
        if (root / candidate.replace("{split}", folder)).is_dir():
            masks = candidate
    return image_folder(root, folder, labels, masks=masks, faults=faults)


def ultralytics(
    path: str | Path,
    split: str,
    labels: Labels,
    *,
    overlap: Overlap = "area",
    faults: Faults = None,
) -> datasets.Dataset:
    """What a `data.yaml` describes: images, and masks below `masks_dir` or polygons in `labels`.

    Args:
        path: The YAML file, or the folder of a `data.yaml`.
        split: A key of it, such as "train", "val" or "test".
        labels: What class ids mean; with polygons, what `NO_OBJECT` means too.
        overlap: Of polygons.
        faults: As `open_split`.

    Raises:
        UserError: The file is not what it must be, or a folder is missing or empty.
    """
    file = Path(path).expanduser()
    file = file / "data.yaml" if file.is_dir() else file
    content = read_data_yaml(file)
    root = _root_of(file, content)
    folders = content.get(split)
    if not folders:
        keys = [key for key in ("train", "val", "test") if content.get(key)]
        raise UserError(f"{file}: has no {split!r}; there are {listed(keys)}.")
    images: dict[str, Path] = {}
    for folder in folders if isinstance(folders, list) else [folders]:
        directory = _image_folder(root, str(folder))
        if not directory.is_dir():
            raise UserError(
                f"{file}: {split} names {directory}, which is not a folder. Correct it there; it "
                f"counts from {root}."
            )
        for key, image in files_by_key(directory, IMAGE_SUFFIXES, "", None, faults).items():
            images[key if key not in images else f"{folder}/{key}"] = image
    if not images:
        raise UserError(f"{file}: {split} names folders without images.")
    for raw, name in enumerate(content["names"]):
        if contradiction := labels.contradiction(raw, name):
            raise UserError(f"{file}: class {contradiction}.")
    keys = sorted(images)
    files = [images[key] for key in keys]
    masks_dir = content.get("masks_dir")
    if masks_dir is None:
        texts = [_beside_images(image, "labels", ".txt") for image in files]
        _check_texts(texts, file, split, faults)
        form = PolygonFiles(overlap, len(content["names"]))
        return as_samples(files, [str(text) for text in texts], keys, labels, form)
    masks = [_beside_images(image, str(masks_dir), ".png") for image in files]
    missing = [str(mask) for mask in masks if not mask.is_file()]
    whole = [mask.is_file() for mask in masks]
    if faults is not None and any(whole):
        faults += _without_partner(files, masks)
        files, masks = list(compress(files, whole)), list(compress(masks, whole))
        keys = list(compress(keys, whole))
    elif missing:
        raise UserError(
            f"{file}: {len(missing)} of {len(masks)} images have no mask: {listed(missing)}."
        )
    return as_samples(files, [str(mask) for mask in masks], keys, labels)


def _check_texts(texts: list[Path], file: Path, split: str, faults: Faults) -> None:
    """Text files of polygons, of which an image without objects needs none.

    Raises:
        UserError: There are none at all, or some have no image.
    """
    wanted = set(texts)
    there = {
        path
        for folder in {text.parent for text in texts}
        for path in folder.glob("*.txt")
        if path in wanted or _holds_object(path)  # lists of names, and such, stand there too
    }
    if not there & wanted:
        raise UserError(
            f"{file}: there is not one text file of polygons; the first would be {texts[0]}."
        )
    if alone := sorted(map(str, there - wanted)):
        if faults is None:
            raise UserError(
                f"{file}: {len(alone)} text files of polygons have no image: {listed(alone)}. "
                "Rename, add or remove files until each has its partner."
            )
        faults += each("mask-without-image", alone)
    without = [str(text) for text in texts if text not in there]
    if len(without) > len(texts) / 2:
        warnings.warn(
            f"{file}: {len(without)} of {len(texts)} images of {split} have no text file and "
            f"count as without objects; the first would be {without[0]}",
            stacklevel=3,
        )


def _holds_object(file: Path) -> bool:
    """Whether the first line of a text is a class and numbers."""
    with suppress(OSError), file.open("rb") as text:
        return re.match(rb"\s*\d+(\s+-?[\d.]+(e-?\d+)?){4,}\s", text.read(4096) + b"\n") is not None
    return False


def _image_folder(root: Path, folder: str) -> Path:
    """A folder of `data.yaml`; Roboflow writes ../train/images for what is beside the file."""
    inside = root / folder.removeprefix("../")
    return inside if inside.is_dir() and not (root / folder).is_dir() else root / folder


def _without_partner(images: list[Path], masks: list[Path], what: str = "") -> list[Fault]:
    faults = []
    for image, mask in zip(images, masks, strict=True):
        there = image.is_file(), mask.is_file()
        kind = {
            (True, False): "image-without-mask",
            (False, True): "mask-without-image",
            (False, False): "listed-but-missing",
        }
        if not all(there):
            faults.append(
                Fault(kind[there], (str(mask if there == (False, True) else image),), what)
            )
    return faults


def read_data_yaml(file: Path) -> Mapping[str, Any]:
    """A `data.yaml` whose `names` are a list.

    Raises:
        UserError: It cannot be read, or has no names.
    """
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"{file}: cannot be read as YAML ({error}).") from error
    names = content.get("names") if isinstance(content, dict) else None
    if isinstance(names, dict):
        names = _names_in_order(names, file)
    if not isinstance(names, list) or not names:
        raise UserError(f"{file}: must have `names`, a list, or ids from 0 on with their names.")
    for i, name in enumerate(names):
        if isinstance(name, bool) or not isinstance(name, str | int | float):
            raise UserError(
                f"{file}: the name of class {i} in `names` is {name!r}. Put it in quotes: YAML "
                "reads yes, no, on, off and null as something else than words."
            )
    return {**content, "names": [str(name) for name in names]}


def _names_in_order(names: Mapping[Any, Any], file: Path) -> list[Any]:
    """Names by id, whose digits may be in quotes."""
    by_id: dict[int, Any] = {}
    for key, name in names.items():
        is_id = not isinstance(key, bool) and re.fullmatch("[0-9]{1,5}", str(key))
        if not is_id or int(key) in by_id:
            raise UserError(
                f"{file}: the key {key!r} in `names` is not an id of its own; write `0: {name}`, "
                "and so on, or a list."
            )
        by_id[int(key)] = name
    if gaps := sorted(set(range(len(by_id))) - set(by_id)):
        raise UserError(
            f"{file}: `names` has {len(by_id)} names, up to id {max(by_id)}, but none of id "
            f"{', '.join(map(str, gaps[:5]))}. Ids count from 0 without gaps: name those too, or "
            "renumber the classes, in the text files or masks as well."
        )
    return [by_id[i] for i in range(len(by_id))]


def _root_of(file: Path, content: Mapping[str, Any]) -> Path:
    """`path` if it leads somewhere: files that were moved still hold where they were made."""
    root = Path(str(content.get("path") or "."))
    absolute = root if root.is_absolute() else file.parent / root
    return absolute if absolute.is_dir() else file.parent


def _beside_images(image: Path, folder: str, suffix: str) -> Path:
    """The last `images` in a path becomes `folder`, as Ultralytics has it."""
    parts = list(image.parts)
    for position in reversed(range(len(parts) - 1)):
        if parts[position] == "images":
            parts[position] = folder
            break
    return Path(*parts).with_suffix(suffix)
