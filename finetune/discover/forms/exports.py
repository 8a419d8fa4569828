"""Data sets whose objects stand in files of labelme, of CVAT, or in Kaggle's tables of runs."""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from finetune.data.annotations.cvat import CvatFile, read_cvat
from finetune.data.annotations.labelme import IGNORED, read_shapes
from finetune.data.sources.kaggle_rle import (
    ALONG_ROWS,
    RleTable,
    are_along_rows,
    key_of,
    read_rle_table,
)
from finetune.discover.forms.annotations import images_of, split_pattern
from finetune.discover.layouts.layout import Categories, Layout, Tree, split_in, unused, with_splits
from finetune.errors import UserError

_NUM_TRIED = 20  # files without a hit


def rle_tables(tree: Tree) -> Iterator[Layout]:
    """Layouts from CSV files of run lengths beside the folder of their images.

    Raises:
        UserError: A table is invalid, or its images are in no folder.
    """
    groups: dict[tuple[str, str], dict[str, RleTable]] = defaultdict(dict)
    for file in sorted(tree.root.glob("*.csv"))[:_NUM_TRIED]:
        try:
            table = read_rle_table(file)
        except UserError:
            if not re.search(rb"(?im)^[^\n]*(encodedpixels|rle)", file.read_bytes()[:4096]):
                continue
            raise
        if table is None or not any(table.rows.values()):
            continue
        names = {PurePosixPath(key_of(name)).name for name in table.rows}
        shares = {folder: len(names & stems.keys()) for folder, stems in tree.folders.items()}
        folder = max(shares, key=lambda own: (shares[own], -len(own.parts)), default=None)
        if folder is None or not shares[folder]:
            raise UserError(f"{file}: none of its {len(names)} images is here. Add their folder.")
        split = split_in(PurePosixPath(file.stem))
        images = split_pattern(folder, split.name) if split.name else str(folder)
        groups[split.pattern + ".csv", images][split.name] = table
    for (pattern, images), tables in groups.items():
        yield _of_tables(tree, pattern, images, tables)


def _of_tables(tree: Tree, pattern: str, images: str, tables: Mapping[str, RleTable]) -> Layout:
    data = {"source": "kaggle-rle", "path": str(tree.root)}
    data |= {"annotations": pattern, "images": images}
    categories, assumed = [], []
    for split, table in sorted(tables.items()):
        file = tree.root / pattern.replace("{split}", split)
        used = {number for rows in table.rows.values() for number, _, _ in rows}
        categories.append(Categories(file, table.names, frozenset(used)))
        named = {PurePosixPath(key_of(name)).name for name in table.rows}
        folder = images.replace("{split}", split)
        if are_along_rows(table, tree.folders.get(PurePosixPath(folder), {}), file):
            assumed.append(f"{file.name}: {ALONG_ROWS}")
        if others := _stems(tree, folder) - named:
            assumed.append(
                f"{len(others)} images, such as {min(others)}, are not in {file.name} and are left "
                "out; an image without objects needs a row with an empty cell"
            )
    line = f"{pattern}, a table of run lengths as on Kaggle, images in {images}"
    layout = Layout(data, (line,), tuple(assumed), categories=tuple(categories))
    folders = [images.replace("{split}", split) for split in tables]
    return unused(tree, with_splits(layout, tables), folders)


def cvat_files(tree: Tree) -> Iterator[Layout]:
    """Layouts from CVAT's XML for images, one file per split, or one with subsets.

    Raises:
        UserError: A file holds tracks or cannot be read, or its images are in no folder.
    """
    groups: dict[tuple[str, str], dict[str, CvatFile]] = defaultdict(dict)
    files = (f for f in tree.xml_files[:_NUM_TRIED] if b"<annotations" in f.read_bytes()[:4096])
    contents = [own for own in map(read_cvat, files) if own is not None and own.images]
    if not any(own.wrong or any(row.shapes for row in own.images) for own in contents):
        return  # masks may lie beside a task that marks nothing
    for content in contents:
        file = content.file
        relative = PurePosixPath(file.relative_to(tree.root).as_posix())
        subsets = sorted({row.subset for row in content.images} - {""})
        split = split_in(relative.with_suffix(""))
        first = content.images[:_NUM_TRIED]
        names = [f"{row.subset}/{row.name}" if len(subsets) > 1 else row.name for row in first]
        folder = images_of(tree, file, names, split.name)
        if len(subsets) > 1:
            pattern = str(relative), (folder / "{split}").as_posix()
            groups[pattern] |= dict.fromkeys(subsets, content)
        else:
            images = split_pattern(folder, split.name) if split.name else str(folder)
            groups[split.pattern + relative.suffix, images][split.name] = content
    for (annotations, images), by_split in groups.items():
        yield _of_cvat(tree, annotations, images, by_split)


def _of_cvat(tree: Tree, pattern: str, images: str, by_split: Mapping[str, CvatFile]) -> Layout:
    data = {"source": "cvat", "path": str(tree.root), "annotations": pattern, "images": images}
    files = list({content.file: content for _, content in sorted(by_split.items())}.values())
    colors = {name: color for content in reversed(files) for name, color in content.labels.items()}
    classes = tuple(dict.fromkeys(name for content in files for name in content.labels))
    assumed = ["where shapes overlap, the higher z_order wins, then the later shape, as in CVAT"]
    assumed += [f"{content.file.name}: {content.note}" for content in files if content.note]
    empty = [row.name for content in files for row in content.images if not row.shapes]
    if empty:
        assumed.append(
            f"{len(empty)} images, such as {empty[0]}, have no shapes: all of their pixels are "
            "background; remove them if they are not annotated yet"
        )
    layout = Layout(
        data,
        (f"{pattern}, CVAT's XML for images, images in {images}",),
        tuple(assumed),
        classes=classes,
        colors={name: color for name, color in colors.items() if color is not None},
    )
    folders = [images.replace("{split}", split) for split in by_split]
    return unused(tree, with_splits(layout, by_split), folders)


def labelme_files(tree: Tree) -> Iterator[Layout]:
    """A layout if most JSON files are labelme's: the folders of images and of JSON files.

    Raises:
        UserError: A shape is invalid, or of a kind without pixels.
    """
    shapes: dict[Path, list[dict[str, Any]]] = {}
    for turn, file in enumerate(tree.json_files):
        if turn == _NUM_TRIED and not shapes:
            return
        try:
            found = read_shapes(file)
        except UserError:
            if b'"shapes"' in file.read_bytes():
                raise
            continue
        if found is not None:
            shapes[file] = found
    if not any(shapes.values()):  # masks may lie beside files that mark nothing
        return
    folders = {PurePosixPath(f.parent.relative_to(tree.root).as_posix()) for f in shapes}
    names = [split_in(folder) for folder in sorted(folders)]
    patterns = {name.pattern for name in names}
    masks = patterns.pop() if len(patterns) == 1 else "."
    splits = [name.name for name in names] if "{split}" in masks else [""]
    keys = {key for s in splits for key in _keys_of(tree, masks.replace("{split}", s), shapes)}
    images = _images_beside(tree, masks, splits, keys)
    counts = Counter(shape["label"].strip() for found in shapes.values() for shape in found)
    classes = tuple(sorted(counts.keys() - {IGNORED}))
    data = {"source": "labelme", "path": str(tree.root), "images": images, "masks": masks}
    data["overlap"] = "order"  # as labelme draws them
    pictures = {key for s in splits for key in _keys(tree, images.replace("{split}", s))}
    assumed = ["where shapes overlap, the later one wins, as in labelme (data.overlap)"]
    if alone := pictures - keys:
        data["without_mask"] = "skip"
        assumed.append(
            f"{len(alone)} images, such as {min(alone)}, have no JSON file, as pictures that are "
            "not annotated yet, and are left out (data.without_mask)"
        )
    line = f"{len(shapes)} JSON files of labelme in {masks}, images in {images}"
    layout = Layout(data, (line,), tuple(assumed), classes=classes)
    yield unused(tree, with_splits(layout, splits), [images.replace("{split}", s) for s in splits])


def _stems(tree: Tree, folder: str) -> set[str]:
    """The names of the pictures below a folder."""
    path = PurePosixPath(folder)
    own = (stems for at, stems in tree.folders.items() if path in (at, *at.parents))
    return {stem for stems in own for stem in stems}


def _keys(tree: Tree, folder: str) -> set[str]:
    """The pictures below a folder, by their paths from there without file type."""
    path = PurePosixPath(folder)
    own = ((at, stems) for at, stems in tree.folders.items() if path in (at, *at.parents))
    return {str((at / stem).relative_to(path)) for at, stems in own for stem in stems}


def _keys_of(tree: Tree, folder: str, files: Iterable[Path]) -> Iterator[str]:
    """Files below a folder, by their paths from there without file type."""
    above = tree.root / folder
    own = (file.relative_to(above) for file in files if above in file.parents)
    return (file.with_suffix("").as_posix() for file in own)


def _images_beside(tree: Tree, masks: str, splits: Sequence[str], keys: set[str]) -> str:
    """The folder that holds most images of the JSON files; theirs, if the images are in them."""
    candidates = {masks: -1}
    for folder in tree.folders:
        pattern = split_in(folder).pattern if splits != [""] else "/".join(folder.parts) or "."
        candidates.setdefault(pattern, 0)
    share = {
        pattern: sum(len(_keys(tree, pattern.replace("{split}", s)) & keys) for s in splits)
        for pattern in candidates
    }
    # Among equals the folder of the JSON files, then the deepest.
    return max(share, key=lambda pattern: (share[pattern], pattern == masks, pattern.count("/")))
