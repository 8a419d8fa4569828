"""Data sets of VIA: a JSON file of regions for each split, whose attributes name the classes."""

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from finetune.data.annotations.coco import parsed
from finetune.data.annotations.via import from_via, via_attributes, via_entries
from finetune.discover.forms.annotations import images_of, split_pattern
from finetune.discover.layouts.layout import Layout, Tree, split_in, unused, with_splits
from finetune.errors import UserError

_NUM_TRIED = 20  # images of a file; some may be missing


def via_files(tree: Tree) -> Iterator[Layout]:
    """Layouts from VIA's projects and exports, one for each attribute that may name the classes.

    Raises:
        UserError: No attribute has a value in every region, a region covers no pixels, or the
            images are in no folder.
    """
    groups: dict[tuple[str, str], dict[str, Path]] = defaultdict(dict)
    rows: dict[Path, list[dict[str, Any]]] = {}
    for file in tree.json_files:
        if b'"regions"' not in file.read_bytes().replace(b"\0", b""):  # parsing takes longer
            continue
        try:
            entries = via_entries(parsed(file))
        except UserError:
            continue
        if entries is not None:
            rows[file] = entries
    if not any(row["regions"] for entries in rows.values() for row in entries):
        return  # masks may lie beside a project that marks nothing
    for file, entries in rows.items():
        relative = PurePosixPath(file.relative_to(tree.root).as_posix())
        split = split_in(relative.with_suffix(""))
        names = [row["filename"] for row in entries[:_NUM_TRIED]]
        folder = images_of(tree, file, names, split.name, None)
        key = split.pattern + relative.suffix, split_pattern(folder, split.name)
        groups[key][split.name] = file
    for (pattern, images), files in groups.items():
        entries = [row for file in files.values() for row in rows[file]]
        attributes = via_attributes(entries)
        if not attributes:
            raise UserError(
                f"{min(files.values())}: no attribute has a value in every region, or none but one "
                "of more values, as numbers are. Give each region its class."
            )
        for attribute, classes in attributes.items():
            for file in files.values():  # a region without pixels stops here
                from_via(file, rows[file], attribute, classes)
            data = {"source": "via", "path": str(tree.root), "annotations": pattern}
            data |= {"images": images} | ({"attribute": attribute} if attribute else {})
            yield _layout(tree, data, sorted(files), classes, entries)


def _layout(
    tree: Tree,
    data: dict[str, Any],
    splits: list[str],
    classes: list[str],
    entries: list[dict[str, Any]],
) -> Layout:
    images, line = data["images"], f"{data['annotations']} of VIA, images in {data['images']}"
    assumed = ["regions have no attributes: all are one class (rename it in labels.names)"]
    if attribute := data.get("attribute", ""):
        line += f"; the attribute {attribute} names the classes: {', '.join(classes[:12])}"
        assumed = []
    if empty := [row["filename"] for row in entries if not row["regions"]]:
        assumed.append(f"{len(empty)} images, such as {empty[0]}, have no regions: background")
    layout = Layout(data, (line,), tuple(assumed), classes=tuple(classes))
    return unused(tree, with_splits(layout, splits), [images.replace("{split}", s) for s in splits])
