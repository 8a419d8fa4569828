"""The official layouts of known data sets, as their archives unpack."""

import json
import re
from itertools import compress
from pathlib import Path

import datasets

from finetune.data.faults import Faults, each, listed, without_partner
from finetune.data.masks import FaceParts
from finetune.data.samples import as_samples
from finetune.data.sources.folders import (
    existing_folder,
    existing_root,
    files_by_key,
    image_folder,
)
from finetune.errors import UserError
from finetune.labels.translation import Labels
from finetune.pictures.references import IMAGE_SUFFIXES, MASK_SUFFIXES


def camvid(
    path: str | Path, split: str, labels: Labels, *, faults: Faults = None
) -> datasets.Dataset:
    """CamVid as in the SegNet tutorial: `{split}/*.png` (or jpg) and `{split}annot/*.png`."""
    return image_folder(path, split, labels, images="{split}", masks="{split}annot", faults=faults)


def ade20k(
    path: str | Path, split: str, labels: Labels, *, faults: Faults = None
) -> datasets.Dataset:
    """ADE20K as in the official zip; `path` is ADEChallengeData2016 or the folder above it.

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

    The labels choose the masks: `*_labelIds.png` with all 34 ids if they have a rule for 33, the
    last id of the official map, otherwise `*_labelTrainIds.png` with the 19 train ids.
    """
    kind, other, preset = "labelTrainIds", "labelIds", "cityscapes-label-ids"
    if any(raw == 33 for raw, _ in labels.rules):
        kind, other, preset = "labelIds", "labelTrainIds", "cityscapes"
    masks = Path(path).expanduser() / "gtFine" / split
    there = [any(masks.rglob(f"*_gtFine_{name}.png")) for name in (kind, other)]
    if there == [False, True]:
        raise UserError(
            f"data.path: {masks} holds *_{other}.png but no *_{kind}.png, which the labels need. "
            f"Set labels.preset={preset}."
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
    """Pascal VOC; `path` is VOC2012 (or another year), or a folder above it.

    `split` is a list in `ImageSets/Segmentation`: "train", "val" or "trainval".

    Raises:
        UserError: The list does not exist, or names a missing image.
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
        faults += without_partner(images, masks, f"named in {file}")
        images, masks = ([*compress(part, whole)] for part in (images, masks))
        ids = [*compress(ids, whole)]
    elif missing or not ids:
        what = f"names missing files: {listed(missing)}" if missing else "is empty"
        raise UserError(f"data: {file} {what}. Correct the list, or restore the files.")
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


def celebamask_hq(
    path: str | Path, split: str, labels: Labels, *, faults: Faults = None
) -> datasets.Dataset:
    """CelebAMask-HQ: `CelebA-HQ-img/7.jpg` and `CelebAMask-HQ-mask-anno/0/00007_l_brow.png`.

    There are no splits in its folders, so `split` has no meaning. A part that a face lacks has no
    file. Images have 1024 x 1024 pixels and masks 512 x 512; each pixel of a mask is a square of
    its image. An image without any part is a fault, as is a part without an image or a class.

    Raises:
        UserError: A folder is missing, or a file has no partner or no class.
    """
    root = existing_root(Path(path).expanduser(), "CelebA-HQ-img and CelebAMask-HQ-mask-anno")
    folder = existing_folder(root, "CelebA-HQ-img", split)
    images = files_by_key(folder, IMAGE_SUFFIXES, "", faults=faults)
    folder = existing_folder(root, "CelebAMask-HQ-mask-anno", split)
    parts: dict[str, dict[int, str]] = {}
    strange: list[str] = []
    for file in files_by_key(folder, MASK_SUFFIXES, "", faults=faults).values():
        found = re.fullmatch(r"(\d+)_(.+)", file.stem)
        if found is None or found[2] not in labels.names:
            strange.append(str(file))
        else:
            parts.setdefault(str(int(found[1])), {})[labels.names.index(found[2])] = str(file)
    faces = sorted(str(images[key]) for key in images.keys() - parts.keys())
    rest = sorted(file for key in parts.keys() - images.keys() for file in parts[key].values())
    if faults is not None:
        faults += each("image-without-mask", faces) + each("mask-without-image", rest)
        faults += each("mask-of-no-class", sorted(strange))
    elif faces or rest or strange:
        files = listed([*faces, *rest, *sorted(strange)])
        raise UserError(
            f"data.path: {len(faces)} images have no parts, {len(rest)} parts have no image, and "
            f"{len(strange)} have no class of labels.names: {files}. "
            "Remove these files, or correct labels.names."
        )
    keys = sorted(images.keys() & parts.keys(), key=lambda key: (len(key), key))
    masks = [json.dumps(dict(sorted(parts[key].items()))) for key in keys]
    return as_samples([images[key] for key in keys], masks, keys, labels, FaceParts())
