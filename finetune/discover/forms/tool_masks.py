"""Masks that tools export in folders of known data sets, or beside the images by an ending.

- Datumaro, and CVAT through it: https://github.com/openvinotoolkit/datumaro, the exporters in
  `src/datumaro/plugins/data_formats` (camvid.py, cityscapes.py, kitti/exporter.py). Masks of ids
  and of colours lie side by side. Only colours are named by the list: it may lack the background,
  and then ids do not follow its order.
- SuperAnnotate: https://github.com/superannotateai/superannotate-python-sdk (`___fuse.png`).
- segments.ai: https://github.com/segments-ai/segments-ai (`src/segments/export.py`).
"""

from dataclasses import replace
from pathlib import Path, PurePosixPath

from finetune.data.annotations.labelme import json_object
from finetune.data.sources.folders import files_by_key
from finetune.discover.layouts.layout import Layout, split_in, with_splits
from finetune.discover.values.class_lists import ClassList
from finetune.discover.values.mask_values import holds_colors
from finetune.errors import UserError
from finetune.pictures.references import IMAGE_SUFFIXES, MASK_SUFFIXES

_LISTS = ("label_colors.txt", "label_color.txt", "dataset_meta.json")
_DATUMARO = {
    "Cityscapes": ("leftImg8bit/{split}", "gtFine/{split}", "_leftImg8bit", "_gtFine_color"),
    "Cityscapes, older": (
        "imgsFine/leftImg8bit/{split}",
        "gtFine/{split}",
        "_leftImg8bit",
        "_gtFine_color",
    ),
    "KITTI": ("{split}/image_2", "{split}/semantic_rgb", "", ""),
    "CamVid": ("{split}", "{split}annot", "", ""),
}
"""Form -> the patterns of images and masks, and the ends of their names."""
_BESIDE = {
    "___fuse": "SuperAnnotate",
    "_label_ground-truth_semantic": "segments.ai",
    "_label_ground-truth_semantic_colored": "segments.ai",
    "_label_ground-truth": "segments.ai",
}
"""End of the names of masks beside their images -> the tool; the likeliest first."""
_NUM_TRIED = 20  # JSON files


def tool_masks(root: Path) -> Layout | None:
    """The layout of an export with masks of classes, or None."""
    listed = next((name for name in _LISTS if (root / name).is_file()), None)
    for form, (images, masks, *ends) in _DATUMARO.items() if listed else ():
        before, after = masks.split("{split}")
        found = [path for path in root.glob(f"{before}*{after}") if path.is_dir()]
        splits = [p.relative_to(root).as_posix()[len(before) :] for p in found]
        splits = [name.removesuffix(after) for name in splits]
        splits = [s for s in splits if s and (root / images.replace("{split}", s)).is_dir()]
        folders = [root / masks.replace("{split}", split) for split in splits]
        if holds_colors(file for f in folders for file in f.rglob(f"*{ends[1]}.png")):
            line = f"{images} and {masks} with {listed}, as Datumaro and CVAT export {form}"
            return _layout(root, (images, masks, *ends), splits, line)
    return next(filter(None, (_beside(root, end) for end in _BESIDE)), None)


def _beside(root: Path, end: str) -> Layout | None:
    """The layout of masks of this ending beside their images, in the folder or in subfolders."""
    files = {f.parent: f for depth in ("", "*/") for f in root.glob(f"{depth}*{end}.png")}
    files = {folder: file for folder, file in files.items() if _has_image(file, end)}
    if not files:
        return None
    parts = [split_in(PurePosixPath(folder.relative_to(root).as_posix())) for folder in files]
    if len({part.pattern for part in parts}) > 1:
        return None
    form, splits = (parts[0].pattern, parts[0].pattern, "", end), [part.name for part in parts]
    layout = _layout(root, form, splits, f"masks *{end}, as {_BESIDE[end]} exports them")
    # Other pictures in the folder are masks of other kinds, or have no mask yet.
    layout = replace(layout, data={**layout.data, "without_mask": "skip"})
    if _BESIDE[end] != "segments.ai":
        return layout
    listed = _release(root, of_objects=end == "_label_ground-truth")
    note = "0 is what nobody painted: background"
    if end == "_label_ground-truth" and listed is None:
        note = (
            "the numbers in masks *_label_ground-truth are taken for classes; segments.ai numbers "
            "objects there: if an image has several objects of a class, export with "
            "export_format='semantic'"
        )
    return replace(layout, listed=listed, assumed=(*layout.assumed, note))


def _has_image(mask: Path, end: str) -> bool:
    """Whether an image lies beside a mask, with or without its file type in the mask's name."""
    base = mask.stem.removesuffix(end)
    names = (base, *(base + suffix for suffix in IMAGE_SUFFIXES))
    return any((mask.parent / name).is_file() for name in names)


def _release(root: Path, *, of_objects: bool) -> ClassList | None:
    """The categories in a release of segments.ai in the folder, or in the one above.

    Raises:
        UserError: The masks are those of objects, whose numbers are not the categories'.
    """
    for file in (*sorted(root.glob("*.json")), *sorted(root.parent.glob("*.json")))[:_NUM_TRIED]:
        if b'"task_attributes"' not in file.read_bytes():
            continue
        try:
            content = json_object(file)["dataset"]
            rows = content["task_attributes"]["categories"]
            names, values = tuple(r["name"] for r in rows), tuple(int(r["id"]) for r in rows)
            colors = [tuple(map(int, row.get("color") or ()))[:3] for row in rows]
            samples = [s["labels"] for s in content.get("samples", ()) if s.get("labels")]
            labels = [own.get("attributes") or {} for s in samples for own in s.values() if own]
            numbers = [a for own in labels for a in own.get("annotations") or ()]
            differ = any(row["id"] != row["category_id"] for row in numbers)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise UserError(f"{file}: is no release of segments.ai ({error!r}).") from error
        if of_objects and differ:
            raise UserError(
                f"{file}: the masks *_label_ground-truth.png hold numbers of objects, not of "
                "categories. Export them with export_format='semantic' (segments-ai)."
            )
        has_colors = all(len(color) == 3 for color in colors)
        if 0 not in values:
            names, values, colors = ("background", *names), (0, *values), [(0, 0, 0), *colors]
        return ClassList(file, names, values, tuple(colors) if has_colors else None)  # type: ignore[arg-type]
    return None


def _layout(root: Path, form: tuple[str, ...], splits: list[str], line: str) -> Layout:
    keys = ("images", "masks", "image_suffix", "mask_suffix")
    data = {"source": "folder", "path": str(root)}
    data |= {key: value for key, value in zip(keys, form, strict=True) if value}
    layout = with_splits(Layout(data, (line,)), splits)
    if form[0] == form[1]:
        return layout
    alone: list[str] = []
    for split in splits:
        images, masks = (root / part.replace("{split}", split) for part in form[:2])
        there = files_by_key(masks, MASK_SUFFIXES, form[3], faults=[]).keys()
        alone += sorted(files_by_key(images, IMAGE_SUFFIXES, form[2], faults=[]).keys() - there)
    if not alone:
        return layout
    note = (
        f"{len(alone)} images, such as {alone[0]}, have no mask, as frames without annotation, and "
        "are left out (data.without_mask); give them masks of background if they show nothing else"
    )
    data = {**layout.data, "without_mask": "skip"}
    return replace(layout, data=data, assumed=(*layout.assumed, note))
