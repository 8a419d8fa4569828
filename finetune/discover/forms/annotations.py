"""Data sets with annotation files: Ultralytics' data.yaml and COCO's JSON."""

import itertools
import os
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from finetune.data.annotations.coco import CocoFile, objects_file, panoptic_file, parsed
from finetune.data.masks import PanopticMasks
from finetune.data.named_files import as_posix, located, own_names
from finetune.data.sources.panoptic import segments_reference
from finetune.data.sources.ultralytics import holds_object, read_data_yaml
from finetune.data.text import read_text
from finetune.discover.layouts.layout import Categories, Layout, Tree, split_in, unused, with_splits
from finetune.errors import UserError
from finetune.pictures.reading import mask_size

_NUM_TRIED = 20  # images of a COCO file; some may be missing


def ultralytics(root: Path) -> Layout | None:
    """The layout in a data.yaml, or in another YAML file with `train` and `names`.

    Raises:
        UserError: There is a data.yaml, and it is invalid.
    """
    files = [*root.glob("data.yaml"), *sorted(root.glob("*.yaml")), *sorted(root.glob("*.yml"))]
    if not (root / "data.yaml").exists() and _is_label_studio(root):
        files.append(root / "data.yaml")
    for file in dict.fromkeys(files):
        try:
            content = read_data_yaml(file)
        except UserError:
            if file.name == "data.yaml" or _names_a_split(file):
                raise
            continue
        if not isinstance(content.get("train"), str | list):
            continue
        if true := {"True", "False"} & set(content["names"]):
            raise UserError(
                f"{file}: `names` holds {true.pop()}: YAML reads yes, no, on and off as true and "
                "false. Write such a name in quotes."
            )
        splits = [key for key in ("train", "val", "test") if content.get(key)]
        path = root if file.name == "data.yaml" else file
        what = "masks" if content.get("masks_dir") else "polygons"
        found = f"{file.name if file.exists() else 'classes.txt'} in Ultralytics' form, {what}"
        data = {"source": "ultralytics", "path": str(path)}
        return with_splits(Layout(data, (found,)), splits)
    return None


def _is_label_studio(root: Path) -> bool:
    """Whether there are `classes.txt`, images, and text files of objects in `labels/`."""
    if not ((root / "classes.txt").is_file() and (root / "images").is_dir()):
        return False
    texts = itertools.islice((root / "labels").rglob("*.txt"), _NUM_TRIED)
    return any(map(holds_object, texts))


def _names_a_split(file: Path) -> bool:
    """Whether a YAML file describes a data set; recipes and other settings may lie beside it."""
    try:
        content = yaml.safe_load(read_text(file))
    except (UserError, yaml.YAMLError):
        return False
    return isinstance(content, dict) and {"train", "names"} <= set(content)


def coco_files(tree: Tree) -> Iterator[Layout]:
    """Layouts from JSON files with objects or segments, one per split, told by name or folder.

    Raises:
        UserError: A file is invalid, or its images are in no folder.
    """
    groups: dict[tuple[str, str, str], dict[str, CocoFile]] = defaultdict(dict)
    for file in tree.json_files:
        content = _content(file)
        if content is None:
            continue
        relative = PurePosixPath(file.relative_to(tree.root).as_posix())
        split = split_in(relative.with_suffix(""))
        masks = None
        if _has_segments(content):
            found = panoptic_file(file, content)
            masks = _masks_of(tree, found, split.name)
        else:
            found = objects_file(file, content)
        names = [image["file_name"] for image in found.images[:_NUM_TRIED]]
        images = split_pattern(images_of(tree, file, names, split.name, masks), split.name)
        form = "" if masks is None else split_pattern(masks, split.name)
        groups[split.pattern + relative.suffix, images, form][split.name] = found
    for patterns, by_split in groups.items():
        yield _layout(tree, *patterns, by_split)


def _layout(
    tree: Tree, pattern: str, images: str, masks: str, by_split: Mapping[str, CocoFile]
) -> Layout:
    names = ", ".join(sorted(filter(None, by_split)))
    is_ordered = any(own.is_ordered for own in by_split.values())
    form = "Datumaro's form" if is_ordered else f"COCO's {'panoptic form' if masks else 'form'}"
    found = f"{pattern}{f' with {names}' if names else ''}, in {form}"
    source = "coco-panoptic" if masks else "coco"
    data = {"source": source, "path": str(tree.root), "annotations": pattern, "images": images}
    if is_ordered:
        data["overlap"] = "order"  # that of Datumaro's z_order
    if masks:
        data["masks"] = masks
    files = [by_split[split] for split in sorted(by_split)]
    categories = tuple(Categories(own.file, own.names, _used(own)) for own in files)
    assumed = [f"{own.file.name}: {own.stray_note}" for own in files if own.stray_note]
    names_of = {s: [row["file_name"] for row in own.images] for s, own in by_split.items()}
    files_of = {split: own.file for split, own in by_split.items()}
    assumed += by_own_names(tree, images, names_of, files_of)
    layout = Layout(data, (found,), tuple(assumed), categories=categories)
    folders = [part.replace("{split}", s) for s in by_split for part in (images, masks) if part]
    return unused(tree, with_splits(layout, by_split), folders)


def _content(file: Path) -> dict[str, Any] | None:
    """The content of a COCO file with segmentations or segments, None for any other file."""
    try:
        content = parsed(file)
    except UserError:
        if b'"segments_info"' in file.read_bytes():  # its PNGs would be taken for colours
            raise
        return None
    if not isinstance(content, dict) or not isinstance(content.get("annotations"), list):
        return None
    if _has_segments(content):
        return content
    if not {"images", "categories"} <= set(content):
        return None
    rows = content["annotations"]
    has_objects = any(isinstance(row, dict) and row.get("segmentation") for row in rows)
    return content if has_objects else None


def why_no_json(tree: Tree) -> str:
    """A sentence about the first JSON file that is damaged, or that marks boxes; or ""."""
    for file in tree.json_files:
        try:
            content = parsed(file)
        except UserError as error:
            return str(error)
        if isinstance(content, dict) and {"images", "annotations", "categories"} <= set(content):
            return (
                f"{file}: is in COCO's form, but no annotation has a segmentation: boxes say "
                "nothing about pixels."
            )
    return ""


def _has_segments(content: dict[str, Any]) -> bool:
    return any(isinstance(row, dict) and "segments_info" in row for row in content["annotations"])


def _used(content: CocoFile) -> frozenset[int]:
    segments = (s for row in content.annotations for s in row.get("segments_info", [row]))
    return frozenset(segment["category_id"] for segment in segments)


def split_pattern(folder: PurePosixPath, split: str) -> str:
    """The folder with `{split}` in place of the split's name."""
    found = split_in(folder)
    if found.name == split:
        return found.pattern
    return "/".join("{split}" if part == split else part for part in folder.parts) or "."


# ---------------------------------------------------------------------------------- images and PNGs


def images_of(
    tree: Tree, file: Path, names: list[str], split: str, masks: PurePosixPath | None = None
) -> PurePosixPath:
    """The folder that holds the file's first images; not that of its PNGs of segments.

    Images in no usual folder are looked for by their paths, then by their own names. Each may be
    in one folder only, folders of other splits left aside.

    Raises:
        UserError: No folder holds one of them, or several do.
    """
    paths = list(dict.fromkeys([*names, *map(as_posix, names)]))
    for folder in _usual_folders(tree, file, split):
        if folder != masks and any(tree.picture(str(folder / name)) for name in paths):
            return folder
    for same in (_at_path, _with_own_name):
        of_names = [
            {own for own in same(tree, name) if own != masks and not _other_split(own, name, split)}
            for name in names
        ]
        if several := [n for n, folders in enumerate(of_names) if len(folders) > 1]:
            folders = sorted(map(str, of_names[several[0]]))
            raise UserError(
                f"{file}: the image {names[several[0]]!r} may be that of {len(folders)} folders: "
                f"{', '.join(folders)}. Correct `file_name`, or keep one of them below {tree.root}."
            )
        if found := set().union(*of_names):
            return PurePosixPath(os.path.commonpath(found) or ".")
    raise UserError(
        f"{file}: describes objects, but none of its first {len(names)} images is in a folder "
        f"here; the first is {names[0]!r}. Put the images below {tree.root} under the file's names "
        "for them, or correct `file_name`."
    )


def _usual_folders(tree: Tree, file: Path, split: str) -> Iterator[PurePosixPath]:
    beside = PurePosixPath(file.parent.relative_to(tree.root).as_posix())
    yield from (beside, beside.parent / split)
    yield from map(PurePosixPath, (split, f"images/{split}", "images", ""))
    yield from (beside / "images", beside.parent / "images")


def _other_split(folder: PurePosixPath, name: str, split: str) -> bool:
    """Whether a folder is of another split than the annotation file, or than an image's path."""
    splits = {split, split_in(PurePosixPath(as_posix(name)).parent).name} - {""}
    return bool(splits) and split_in(folder).name not in ("", *splits)


def _at_path(tree: Tree, name: str) -> Iterator[PurePosixPath]:
    """Folders below which a picture is at this path."""
    parts = PurePosixPath(as_posix(name)).parts
    for folder in tree.folders:
        whole = (folder / parts[-1]).parts
        if whole[-len(parts) :] == parts and tree.picture(str(folder / parts[-1])):
            yield PurePosixPath(*whole[: -len(parts)])


def _with_own_name(tree: Tree, name: str) -> Iterator[PurePosixPath]:
    """Folders with a picture of this own name."""
    for folder in tree.folders:
        if any(tree.picture(str(folder / own)) for own in own_names(name)):
            yield folder


def by_own_names(
    tree: Tree, images: str, names_of: Mapping[str, list[str]], files_of: Mapping[str, Path]
) -> list[str]:
    """A line if the images of a split are nowhere at their paths. Checks that names are unique.

    Args:
        tree: The folder.
        images: The pattern of the images' folder.
        names_of: The paths or addresses of images by split.
        files_of: The annotation files by split, for messages.

    Raises:
        UserError: Several files have the name of one image.
    """
    found = False
    for split, names in names_of.items():
        folder = PurePosixPath(images.replace("{split}", split))
        if not any(tree.picture(str(folder / as_posix(name))) for name in names[:_NUM_TRIED]):
            found |= located(names, tree.root / folder, tree.root, files_of[split])[1]
    line = "the folders of the images' paths are not here: images are found by their own names"
    return [line] if found else []


def _masks_of(tree: Tree, content: CocoFile, split: str) -> PurePosixPath:
    """The folder of a panoptic file's PNGs: the one whose colours are the file's segments.

    Images that are PNGs may have the same names, and so may the PNGs of another split.
    """
    rows = content.annotations[:_NUM_TRIED]
    beside = PurePosixPath(content.file.with_suffix("").relative_to(tree.root).as_posix())
    wrong: list[str] = []
    fitting: list[PurePosixPath] = []
    for folder in dict.fromkeys([beside, beside.parent, *tree.folders]):
        if _other_split(folder, "", split):
            continue
        first = next(_pngs_in(tree.root / folder, rows), None)
        if first is None:
            continue
        try:
            file, row = first
            reference = segments_reference(file, row, content.file)
            PanopticMasks().read(reference, mask_size(file, of_ids=False))
        except UserError as error:
            wrong.append(str(error))
            continue
        if folder == beside:
            return folder
        fitting.append(folder)
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        raise UserError(
            f"{content.file}: its PNGs may be those of {len(fitting)} folders: "
            f"{', '.join(map(str, fitting))}. Keep one of them below {tree.root}."
        )
    if wrong:
        raise UserError(wrong[0])
    name = rows[0]["file_name"] if rows else "none"
    raise UserError(
        f"{content.file}: is in COCO's panoptic form, but none of its first {len(rows)} PNGs is in "
        f"a folder here; the first is {name!r}. Unpack them below {tree.root}."
    )


def _pngs_in(folder: Path, rows: Sequence[dict[str, Any]]) -> Iterator[tuple[Path, dict[str, Any]]]:
    """The rows whose PNG is in a folder, by its path or its own name."""
    for row in rows:
        for name in (as_posix(row["file_name"]), *own_names(row["file_name"])):
            if (folder / name).is_file():
                yield folder / name, row
                break
