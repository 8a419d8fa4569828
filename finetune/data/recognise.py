"""Looks at a folder as a person would: where its images and masks are, and how both are split.

By names alone, but for a few files of each folder: which of two holds the masks is seen, not said.
"""

import itertools
import json
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from PIL import Image

from finetune.data.files import IMAGE_SUFFIXES, MASK_SUFFIXES, image_size
from finetune.data.layouts import read_data_yaml
from finetune.errors import UserError

TRAIN_NAMES = ("train", "training", "train2017", "trainset", "train_set")
VAL_NAMES = ("val", "validation", "valid", "val2017", "dev", "test", "testing", "test2017")
VAL_FRACTION = 0.1

_MAX_FILES = 200_000
_NUM_LOOKED_AT = 8  # files of a folder
_AGREEING = 0.75  # share of them: some may be damaged, or masks of another kind
_MANY_COLORS = 256
_MATCHING = 0.9  # share of names that two folders must have in common to be a pair


@dataclass(frozen=True)
class Layout:
    """How a folder is laid out, as the `data:` section of a recipe, and why."""

    name: str
    data: dict[str, Any]
    found: tuple[str, ...]
    """What was seen, a line each."""
    assumed: tuple[str, ...] = ()
    """What was not, and was decided."""


def recognise(root: Path) -> list[Layout]:
    """The layouts that a folder may have, the likeliest first; of an official one just that.

    Raises:
        UserError: There is no folder, or nothing in it that is known.
    """
    if not root.is_dir():
        raise UserError(f"{root}: is not a folder. Give the folder that holds images and masks.")
    for official in (_ultralytics, _voc, _cityscapes, _ade20k, _coco_stuff):
        layout = official(root)
        if layout is not None:
            return [layout]
    layouts = [*_coco_files(root)] or [*_pairs(root)]
    if not layouts:
        raise UserError(
            f"{root}: no pairs of images and masks found. Looked for a data.yaml, for COCO's JSON, "
            "for the official folders of ADE20K, Cityscapes, VOC and COCO-Stuff, and for two "
            "folders, or two endings, with the same names in them. Start from recipes/folder.yaml."
        )
    return layouts


# ------------------------------------------------------------------------------ official layouts


def _ultralytics(root: Path) -> Layout | None:
    files = [*root.glob("data.yaml"), *root.glob("*.yaml"), *root.glob("*.yml")]
    for file in dict.fromkeys(files):
        try:
            content = read_data_yaml(file)
        except UserError:
            continue
        if not isinstance(content.get("train"), str | list):
            continue
        splits = [key for key in ("train", "val", "test") if content.get(key)]
        path = root if file.name == "data.yaml" else file
        what = "masks" if content.get("masks_dir") else "polygons"
        return _with_splits(
            Layout(
                "ultralytics",
                {"source": "ultralytics", "path": str(path)},
                (f"{file.name} in Ultralytics' form, {what}",),
            ),
            splits,
        )
    return None


def _voc(root: Path) -> Layout | None:
    for folder in (root, *sorted(root.glob("VOC*")), *sorted(root.glob("VOCdevkit/VOC*"))):
        lists = folder / "ImageSets" / "Segmentation"
        if all((folder / name).is_dir() for name in ("JPEGImages", "SegmentationClass")):
            splits = sorted(file.stem for file in lists.glob("*.txt"))
            if splits:
                found = f"{folder.name}: JPEGImages, SegmentationClass and ImageSets, as VOC has it"
                layout = Layout("voc", {"source": "voc", "path": str(folder)}, (found,))
                return _with_splits(layout, splits)
    return None


def _cityscapes(root: Path) -> Layout | None:
    images, masks = root / "leftImg8bit", root / "gtFine"
    if not (images.is_dir() and masks.is_dir()):
        return None
    found = "leftImg8bit and gtFine, as Cityscapes has it"
    layout = Layout("cityscapes", {"source": "cityscapes", "path": str(root)}, (found,))
    return _with_splits(layout, _common_folders(images, masks))


def _ade20k(root: Path) -> Layout | None:
    inner = root / "ADEChallengeData2016"
    inner = inner if inner.is_dir() else root
    splits = _common_folders(inner / "images", inner / "annotations")
    if not splits or not set(splits) <= {"training", "validation", "testing"}:
        return None
    found = "images and annotations with ADE20K's splits"
    layout = Layout("ade20k", {"source": "ade20k", "path": str(inner)}, (found,))
    return _with_splits(layout, splits)


def _coco_stuff(root: Path) -> Layout | None:
    for masks in ("stuffthingmaps_trainval2017", "stuffthingmaps", "annotations"):
        splits = _common_folders(root / "images", root / masks)
        if splits and set(splits) <= {"train2017", "val2017"}:
            found = f"images and {masks} with COCO-Stuff's splits"
            layout = Layout("coco-stuff", {"source": "coco-stuff", "path": str(root)}, (found,))
            return _with_splits(layout, splits)
    return None


def _common_folders(one: Path, other: Path) -> list[str]:
    if not (one.is_dir() and other.is_dir()):
        return []
    names = [{folder.name for folder in path.iterdir() if folder.is_dir()} for path in (one, other)]
    return sorted(name for name in names[0] & names[1] if not name.startswith("."))


# ------------------------------------------------------------------------------------- COCO files


def _coco_files(root: Path) -> Iterator[Layout]:
    """JSON files with objects; one a split, whose names or folders tell them apart."""
    files = [file for file in _walk(root, (".json",)) if _is_coco(file)]
    by_pattern: dict[tuple[str, str], list[str]] = defaultdict(list)
    for file in files:
        relative = file.relative_to(root).as_posix()
        split, pattern = _split_in(relative)
        images = _images_of(root, file, split)
        if images is not None:
            by_pattern[pattern, images].append(split)
    for (pattern, images), splits in by_pattern.items():
        found = f"{pattern} with {', '.join(sorted(splits))}, in COCO's form"
        data = {"source": "coco", "path": str(root), "annotations": pattern, "images": images}
        yield _with_splits(Layout("coco", data, (found,)), splits)


def _is_coco(file: Path) -> bool:
    """Whether a JSON file is COCO's, with segmentations; large ones are read whole."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    if not isinstance(content, dict) or not {"images", "annotations", "categories"} <= set(content):
        return False
    rows = content["annotations"]
    return isinstance(rows, list) and any(
        isinstance(row, dict) and row.get("segmentation") for row in rows[:100]
    )


def _images_of(root: Path, file: Path, split: str) -> str | None:
    """Pattern of the folder in which the file's first image lies."""
    content = json.loads(file.read_text(encoding="utf-8"))
    names = [str(image.get("file_name")) for image in content["images"][:1]]
    if not names:
        return None
    relative = file.parent.relative_to(root)
    candidates = [relative, relative.parent / split, Path(split), Path("images") / split]
    candidates += [Path("images"), Path(), relative / "images", relative.parent / "images"]
    for folder in candidates:
        if (root / folder / names[0]).is_file():
            parts = ["{split}" if part == split else part for part in folder.parts]
            return "/".join(parts) or "."
    return None


# ----------------------------------------------------------------------------- two folders of files


@dataclass
class _Folder:
    """A folder's files, by stem."""

    relative: PurePosixPath
    stems: dict[str, Path] = field(default_factory=dict)


def _pairs(root: Path) -> Iterator[Layout]:
    """Folders, or endings in one, that hold the same names: one of images, one of masks."""
    folders: dict[PurePosixPath, _Folder] = {}
    for file in _walk(root, IMAGE_SUFFIXES):
        relative = PurePosixPath(file.relative_to(root).parent.as_posix())
        folders.setdefault(relative, _Folder(relative)).stems[file.stem] = file
    seen: dict[tuple[str, str, str, str], set[str]] = defaultdict(set)
    for one, other in itertools.combinations_with_replacement(folders.values(), 2):
        for images, masks in ((one, other), (other, one)) if one is not other else ((one, one),):
            endings = _endings(images, masks)
            if endings is None or not _are_masks(images, masks, endings):
                continue
            split_of_images, image_pattern = _split_in(str(images.relative))
            split_of_masks, mask_pattern = _split_in(str(masks.relative))
            if split_of_images != split_of_masks:
                continue
            seen[image_pattern, mask_pattern, endings[0], endings[1]].add(split_of_images)
    for (of_images, of_masks, image_suffix, mask_suffix), splits in seen.items():
        data = {"source": "folder", "path": str(root), "images": of_images, "masks": of_masks}
        suffixes = {"image_suffix": image_suffix, "mask_suffix": mask_suffix}
        data |= {key: value for key, value in suffixes.items() if value}
        found = f"images in {of_images}/*{image_suffix}, their masks in {of_masks}/*{mask_suffix}"
        yield _with_splits(Layout("folder", data, (found,)), sorted(splits))


def _endings(images: _Folder, masks: _Folder) -> tuple[str, str] | None:
    """What the names of either end in, beyond what they share; None if they do not match."""
    if images is not masks and len(images.stems.keys() & masks.stems.keys()) >= _MATCHING * max(
        1, min(len(images.stems), len(masks.stems))
    ):
        return "", ""
    counts: Counter[tuple[str, str]] = Counter()
    for stem in itertools.islice(images.stems, 50):
        for cut in {len(stem), stem.rfind("_"), stem.rfind("-"), stem.rfind(".")} - {-1, 0}:
            base, own = stem[:cut], stem[cut:]
            for other in masks.stems:
                if (
                    other != stem
                    and other.startswith(base)
                    and not other[len(base) :][:1].isalnum()
                ):
                    counts[own, other[len(base) :]] += 1
    looked_at = min(50, len(images.stems))
    for endings, count in counts.most_common(3):
        of_images = sum(stem.endswith(endings[0]) for stem in itertools.islice(images.stems, 50))
        if images is masks:
            of_images -= sum(s.endswith(endings[1]) for s in itertools.islice(images.stems, 50))
        if of_images > 0 and count >= _MATCHING * min(of_images, looked_at):
            return endings
    return None


def _are_masks(images: _Folder, masks: _Folder, endings: tuple[str, str]) -> bool:
    """Whether the second folder's files look like masks, and the first one's do not."""
    bases = [stem.removesuffix(endings[0]) for stem in images.stems if stem.endswith(endings[0])]
    pairs = [
        (images.stems[base + endings[0]], masks.stems[base + endings[1]])
        for base in bases
        if base + endings[1] in masks.stems
    ]
    spread = pairs[:: max(1, len(pairs) // _NUM_LOOKED_AT)][:_NUM_LOOKED_AT]
    seen = [(looks_like_mask(mask), looks_like_mask(image)) for image, mask in spread]
    whole = [pair for pair in seen if None not in pair]
    return bool(whole) and whole.count((True, False)) >= _AGREEING * len(whole)


def _has_channels(file: Path) -> bool:
    """Whether it is a TIFF that Pillow does not know: of more channels than colours."""
    try:
        image_size(file)
    except UserError:
        return False
    return True


def looks_like_mask(file: Path) -> bool | None:
    """Lossless, and few values: at most 256, and far fewer than a photograph has.

    None if the file cannot be read.
    """
    try:
        with Image.open(file) as image:
            if image.mode in ("P", "1"):
                return file.suffix.lower() in MASK_SUFFIXES
            values = np.array(
                image.convert("RGB") if image.mode not in ("L", "I", "I;16") else image
            )
    except (OSError, ValueError, SyntaxError):
        return False if _has_channels(file) else None
    channels = values.reshape(values.shape[0] * values.shape[1], -1)
    channels = channels[:: max(1, len(channels) // 65536)].astype(np.int64)
    # One number a pixel: rows of channels sort thirty times as slowly.
    flat = channels @ (1 << 8 * np.arange(channels.shape[1]))
    changes = (flat[1:] != flat[:-1]).mean() if len(flat) > 1 else 0
    num_values = len(np.unique(flat))
    return num_values <= _MANY_COLORS and bool(changes < 0.5 or num_values <= 32)


# --------------------------------------------------------------------------------------- the rest


def _walk(root: Path, suffixes: Sequence[str]) -> Iterator[Path]:
    count = 0
    for path in sorted(root.rglob("*")):
        hidden = any(part.startswith(".") for part in path.relative_to(root).parts)
        if path.suffix.lower() in suffixes and not hidden and path.is_file():
            count += 1
            if count > _MAX_FILES:
                return
            yield path


def _split_in(relative: str) -> tuple[str, str]:
    """The name of a split in a path, "" if none, and the path with `{split}` in its place."""
    parts = relative.split("/")
    for position, part in enumerate(parts):
        for name in sorted((*TRAIN_NAMES, *VAL_NAMES), key=len, reverse=True):
            start = part.lower().find(name)
            before, after = part[max(start - 1, 0) : start], part[start + len(name) :][:1]
            whole = not before.isalnum() and (not after.isalnum() or part.lower().startswith(name))
            if start >= 0 and whole:
                pattern = f"{part[:start]}{{split}}{part[start + len(name) :]}"
                found = part[start : start + len(name)]
                return found, "/".join([*parts[:position], pattern, *parts[position + 1 :]])
    return "", relative


def _with_splits(layout: Layout, splits: Sequence[str]) -> Layout:
    """Chooses what to train on and what to evaluate on."""
    lower = {split.lower(): split for split in splits}
    train = next((lower[name] for name in TRAIN_NAMES if name in lower), None)
    val = next((lower[name] for name in VAL_NAMES if name in lower), None)
    found = (*layout.found, f"splits: {', '.join(sorted(splits)) if any(splits) else 'none'}")
    if train is not None and val is not None:
        data = {**layout.data, "train_split": train, "val_split": val}
        return Layout(layout.name, data, found, layout.assumed)
    only = train or val or next(iter(splits), "train")
    # A name of its own: the two parts are told apart by it.
    data = {**layout.data, "val_fraction": VAL_FRACTION, "val_split": "held_back"}
    if only:
        data["train_split"] = only
    assumed = (
        *layout.assumed,
        f"no split to evaluate on: {VAL_FRACTION:.0%} of {only or 'it'} are held back, drawn by "
        "data.split_seed (set data.split_group if frames of one video must stay together)",
    )
    return Layout(layout.name, data, found, assumed)
