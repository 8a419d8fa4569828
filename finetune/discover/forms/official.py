"""The folders of known data sets, by their names and, where those are everybody's, their files'."""

import re
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from finetune.data.sources.folders import files_by_key
from finetune.discover.forms.tool_masks import tool_masks
from finetune.discover.layouts.layout import Layout, with_splits
from finetune.discover.values.mask_values import holds_colors
from finetune.pictures.references import IMAGE_SUFFIXES, MASK_SUFFIXES

_CAMVID_NAME = re.compile(r"(0001TP|0006R0|0016E5|Seq05VD)_f?\d+")
_TOOLS = {"labelmap.txt": "CVAT exports", "class_names.txt": "labelme2voc writes"}
"""The file beside VOC's folders -> the tool that made them."""
_VOC_IMAGES = ("JPEGImages", "images", "Images", "img", "imgs")


def official(root: Path) -> Layout | None:
    """The layout of a known data set, if the folder has it. Its masks are not checked."""
    known = (tool_masks, _voc, _cityscapes, _ade20k, _coco_stuff, _camvid)
    return next((layout for find in known if (layout := find(root)) is not None), None)


def _layout(source: str, folder: Path, found: str, splits: Iterable[str]) -> Layout:
    return with_splits(Layout({"source": source, "path": str(folder)}, (found,)), splits)


def _voc(root: Path) -> Layout | None:
    """VOC, and what CVAT ("Segmentation mask") and labelme2voc write in its folders."""
    for folder in (root, *sorted(root.glob("VOC*")), *sorted(root.glob("VOCdevkit/VOC*"))):
        lists = folder / "ImageSets" / "Segmentation"
        splits = sorted(f.stem for f in lists.glob("*.txt") if not f.name.startswith("."))
        tools = [own for own in _TOOLS if (folder / own).is_file()]
        tool = tools[0] if tools and (tools[0] == "labelmap.txt" or not splits) else ""
        masks = folder / "SegmentationClass"
        images = next(
            (folder / n for n in _VOC_IMAGES[: None if tool else 1] if (folder / n).is_dir()),
            None,
        )
        if images is None or not masks.is_dir() or not (splits or tool):
            continue
        found = f"{folder.name}: {images.name}, SegmentationClass and "
        found += "ImageSets, as in VOC" if splits else f"{tool}, as {_TOOLS[tool]} them"
        has_colors = holds_colors(masks.rglob("*.png"))
        if not has_colors and not tool:
            return _layout("voc", folder, found, splits)
        found += ", with masks of colours" if has_colors else ""
        layout = _layout("folder", folder, found, splits)
        data = {**layout.data, "images": images.name, "masks": masks.name}
        assumed = [*layout.assumed]
        if "val_fraction" not in data:
            data["split_list"] = "ImageSets/Segmentation/{split}.txt"
        elif splits:
            assumed.append("all pictures are used, also those that ImageSets does not list")
        keys = files_by_key(images, IMAGE_SUFFIXES, "").keys()
        if tool and (alone := keys - files_by_key(masks, MASK_SUFFIXES, "").keys()):
            data["without_mask"] = "skip"
            assumed.append(
                f"{len(alone)} of {len(keys)} images, such as {min(alone)}, have no mask, as "
                "frames without annotation, and are left out (data.without_mask); give them masks "
                "of background if they show nothing else"
            )
        return replace(layout, data=data, assumed=tuple(assumed))
    return None


def _cityscapes(root: Path) -> Layout | None:
    masks = root / "gtFine"
    splits = _common_folders(root / "leftImg8bit", masks)
    kinds = ("labelTrainIds", "labelIds")
    if not splits or not any(any(masks.rglob(f"*_gtFine_{kind}.png")) for kind in kinds):
        return None
    return _layout("cityscapes", root, "leftImg8bit and gtFine, as in Cityscapes", splits)


def _ade20k(root: Path) -> Layout | None:
    inner = root / "ADEChallengeData2016"
    inner = inner if inner.is_dir() else root
    splits = _common_folders(inner / "images", inner / "annotations")
    if not splits or not set(splits) <= {"training", "validation", "testing"}:
        return None
    if _is_panoptic(inner):
        return None
    return _layout("ade20k", inner, "images and annotations with ADE20K's splits", splits)


def _coco_stuff(root: Path) -> Layout | None:
    for masks in ("stuffthingmaps_trainval2017", "stuffthingmaps", "annotations"):
        splits = _common_folders(root / "images", root / masks)
        if splits and set(splits) <= {"train2017", "val2017"}:
            if masks == "annotations" and _is_panoptic(root):
                return None
            found = f"images and {masks} with COCO-Stuff's splits"
            return _layout("coco-stuff", root, found, splits)
    return None


def _is_panoptic(root: Path) -> bool:
    """Whether a JSON file gives segments categories: then the masks are numbers of segments."""
    files = (*root.glob("*.json"), *root.glob("*/*.json"))
    return any(b'"segments_info"' in file.read_bytes() for file in files if file.is_file())


def _camvid(root: Path) -> Layout | None:
    """CamVid as in the SegNet tutorial. Picture names count too: the folders are common ones."""
    splits = [name for name in ("train", "val", "test") if (root / f"{name}annot").is_dir()]
    splits = [name for name in splits if (root / name).is_dir()]
    names = [file.stem for name in splits for file in (root / name).iterdir()]
    names = [name for name in names if not name.startswith(".")]
    if not names or not all(map(_CAMVID_NAME.fullmatch, names)):
        return None
    found = "train, trainannot and so on, with CamVid's picture names"
    return _layout("camvid", root, found, splits)


def _common_folders(one: Path, other: Path) -> list[str]:
    if not (one.is_dir() and other.is_dir()):
        return []
    names = [{folder.name for folder in path.iterdir() if folder.is_dir()} for path in (one, other)]
    return sorted(name for name in names[0] & names[1] if not name.startswith("."))
