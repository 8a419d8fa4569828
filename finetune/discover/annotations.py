"""Data sets with annotation files: Ultralytics' data.yaml and COCO's JSON."""

import json
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from finetune.data.sources.coco import read_annotations
from finetune.data.sources.ultralytics import read_data_yaml
from finetune.discover.layout import Categories, Layout, Tree, split_in, unused, with_splits
from finetune.errors import UserError

_NUM_TRIED = 20  # images of a COCO file; some may be missing


def ultralytics(root: Path) -> Layout | None:
    """The layout in a data.yaml, or in another YAML file with `train` and `names`.

    Raises:
        UserError: There is a data.yaml, and it is invalid.
    """
    files = [*root.glob("data.yaml"), *sorted(root.glob("*.yaml")), *sorted(root.glob("*.yml"))]
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
        found = f"{file.name} in Ultralytics' form, {what}"
        data = {"source": "ultralytics", "path": str(path)}
        return with_splits(Layout(data, (found,)), splits)
    return None


def _names_a_split(file: Path) -> bool:
    """Whether a YAML file describes a data set; recipes and other settings may lie beside it."""
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return False
    return isinstance(content, dict) and {"train", "names"} <= set(content)


def coco_files(tree: Tree) -> Iterator[Layout]:
    """Layouts from JSON files with objects, one per split, told apart by name or folder.

    Raises:
        UserError: The images of a file are in no folder.
    """
    groups: dict[tuple[str, str], dict[str, Categories]] = defaultdict(dict)
    for file in tree.json_files:
        content = _content(file)
        if content is None:
            continue
        relative = PurePosixPath(file.relative_to(tree.root).as_posix())
        split = split_in(relative.with_suffix(""))
        images = _images_of(tree, file, content, split.name)
        groups[split.pattern + relative.suffix, images][split.name] = _categories(file, content)
    for (pattern, images), by_split in groups.items():
        names = ", ".join(sorted(filter(None, by_split)))
        found = f"{pattern}{f' with {names}' if names else ''}, in COCO's form"
        data = {"source": "coco", "path": str(tree.root), "annotations": pattern, "images": images}
        categories = tuple(by_split[split] for split in sorted(by_split))
        layout = Layout(data, (found,), categories=categories)
        folders = [images.replace("{split}", split) for split in by_split]
        yield unused(tree, with_splits(layout, by_split), folders)


def _content(file: Path) -> dict[str, Any] | None:
    """The content of a COCO file with segmentations, None for any other file."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    if not isinstance(content, dict) or not {"images", "annotations", "categories"} <= set(content):
        return None
    rows = content["annotations"]
    if not isinstance(rows, list):
        return None
    has_objects = any(isinstance(row, dict) and row.get("segmentation") for row in rows)
    return content if has_objects else None


def _categories(file: Path, content: dict[str, Any]) -> Categories:
    try:
        names = {int(row["id"]): str(row["name"]) for row in content["categories"]}
        used = frozenset(int(row["category_id"]) for row in content["annotations"])
        if len(names) == len(content["categories"]):
            return Categories(file, names, used)
    except (KeyError, TypeError, ValueError):
        pass
    read_annotations(file)  # raises the exact fault
    raise UserError(
        f"{file}: its categories, or those of its objects, cannot be read. Export it again."
    )


def _images_of(tree: Tree, file: Path, content: dict[str, Any], split: str) -> str:
    """Pattern of the folder that holds the file's first images."""
    rows = content["images"]
    first = rows[:_NUM_TRIED] if isinstance(rows, list) else []
    names = [str(image.get("file_name")) for image in first if isinstance(image, dict)]
    if not names:
        read_annotations(file)  # raises the exact fault
        raise UserError(f"{file}: `images` cannot be read. Export it again.")
    for folder in _candidates(tree, file, names, split):
        if any(tree.picture(str(folder / name)) for name in names):
            parts = ["{split}" if part == split else part for part in folder.parts]
            return "/".join(parts) or "."
    raise UserError(
        f"{file}: is in COCO's form, but none of its first {len(names)} images is in a folder "
        f"here; the first is {names[0]!r}. Put the images below {tree.root} under the file's names "
        "for them, or correct `file_name`."
    )


def _candidates(tree: Tree, file: Path, names: list[str], split: str) -> Iterator[PurePosixPath]:
    """Folders that may hold the images: the usual ones, then each with an image of that name."""
    beside = PurePosixPath(file.parent.relative_to(tree.root).as_posix())
    yield from (beside, beside.parent / split)
    yield from map(PurePosixPath, (split, f"images/{split}", "images", ""))
    yield from (beside / "images", beside.parent / "images")
    for name in names:
        parts = PurePosixPath(name).parts
        for folder in tree.folders:
            whole = (folder / parts[-1]).parts if parts else ()
            if whole[-len(parts) :] == parts:
                yield PurePosixPath(*whole[: -len(parts)])
