"""Supervisely's projects: a meta.json, and data sets with the folders `img` and `ann`."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from finetune.data.annotations.labelme import read_shapes
from finetune.data.annotations.supervisely import as_labelme, class_titles
from finetune.discover.layouts.layout import Layout, Tree, split_in, unused, with_splits


def supervisely_project(tree: Tree) -> Iterator[Layout]:
    """The layout of a project; its data sets are splits if their names are those of splits.

    Raises:
        UserError: A shape is invalid, or of a kind without pixels.
    """
    counts: Counter[str] = Counter()
    images: dict[PurePosixPath, set[str]] = {}
    empty: list[str] = []
    for file in tree.json_files:
        own = PurePosixPath(file.parent.relative_to(tree.root).as_posix()).parent
        pictures = tree.folders.get(own / "img")
        if file.parent.name != "ann" or pictures is None:
            continue
        shapes = read_shapes(file, as_labelme)
        if shapes is None:
            return
        counts.update(shape["label"].strip() for shape in shapes)
        images.setdefault(own, {picture.name for picture in pictures.values()}).discard(file.stem)
        if not shapes:
            empty.append(file.stem)
    if not counts:  # masks may lie beside a project without shapes
        return
    names = [split_in(folder) for folder in sorted(images)]
    patterns = {name.pattern for name in names}
    is_split = len(patterns) == 1 and all(name.name for name in names)
    pattern, splits = (patterns.pop(), [name.name for name in names]) if is_split else (".", [""])
    data = {"source": "supervisely", "path": str(tree.root), "images": pattern}
    data["overlap"] = "order"  # as Supervisely draws them
    assumed = ["where shapes overlap, the later one wins, as in Supervisely (data.overlap)"]
    if empty:
        assumed.append(f"{len(empty)} images, such as {min(empty)}, have no shapes: background")
    if alone := sorted(name for left in images.values() for name in left):
        data["without_mask"] = "skip"
        assumed.append(
            f"{len(alone)} images, such as {alone[0]}, have no JSON file and are left out "
            "(data.without_mask)"
        )
    shown = ", ".join(sorted(map(str, images)))
    line = f"a project of Supervisely with {len(images)} data sets: {shown}"
    layout = Layout(data, (line,), tuple(assumed), classes=_classes(tree.root, counts))
    yield unused(tree, with_splits(layout, splits), map(str, images))


def _classes(root: Path, counts: Counter[str]) -> tuple[str, ...]:
    """The titles in the project's meta.json, in its order, and those of shapes that it lacks."""
    files = [folder / "meta.json" for folder in (root, root.parent)]
    listed = next((found for file in files if file.is_file() and (found := class_titles(file))), ())
    return (*listed, *sorted(counts.keys() - set(listed)))
