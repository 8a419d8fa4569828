"""Finds the folders of public data sets as their archives unpack.

`public_table` lists the sets. `known_labels` takes the labels of one only if they fit the masks, so
that a folder which only looks like a set keeps its own classes.
"""

import functools
import itertools
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeAlias

from finetune.data.faults import Fault
from finetune.data.sources.folders import above_star, files_by_key
from finetune.data.text import read_text
from finetune.discover.forms.public_table import SETS, PublicSet
from finetune.discover.layouts.layout import Layout, Tree, unused, walk, with_splits
from finetune.discover.layouts.split_lists import with_lists
from finetune.errors import UserError
from finetune.labels.presets import PRESETS
from finetune.pictures.references import COLOR_MASK_SUFFIXES, IMAGE_SUFFIXES

_NUM_NAMES = 50  # masks whose names are compared with those of a set

_Subfolders: TypeAlias = Callable[[Path], list[str]]


def public_sets(root: Path) -> list[Layout]:
    """The layouts of public sets that the folder may have; [] if it has none.

    The folder of an archive may lie in folders that hold nothing else. Masks are not looked at.
    """
    names: list[str] = []
    while True:
        with os.scandir(root) as entries:
            inner = {e.name: e for e in entries if not e.name.startswith((".", "__MACOSX"))}
        names.append(root.name)
        if found := [*_found(root, " ".join([*names, *inner]))]:
            return found
        if len(inner) != 1 or not next(iter(inner.values())).is_dir():
            return []
        root /= next(iter(inner))


def _found(root: Path, names: str) -> Iterator[Layout]:
    """The layouts of one folder; `names` are those that may tell a set's name."""
    if (known := _celebamask_hq(root)) is not None:
        yield known
        return
    layouts: dict[str, Layout] = {}
    subfolders = functools.cache(_subfolders)
    for own in SETS:
        if own.called and not re.search(own.called, names, re.IGNORECASE):
            continue
        if (layout := _layout(root, own, subfolders)) is not None:
            same = layouts.setdefault(str(layout.data), layout)
            if same is not layout:
                layouts[str(layout.data)] = replace(same, known=(*same.known, *layout.known))
    if layouts:
        yield from _completed(walk(root), layouts.values())


def _layout(root: Path, own: PublicSet, subfolders: _Subfolders) -> Layout | None:
    """The layout of a row, if its folders and the names in them are there."""
    known = own.known
    if own.beside and not (root / own.beside).is_file():
        return None
    if own.config and not (known := _of_config(root / own.config)):
        return None
    splits, skipped, unpaired = [], [], []
    for split in _splits(root, own.masks, subfolders):
        if not _is_named(root, own, split):
            continue
        images, masks = (
            _files(root, pattern.replace("{split}", split), suffix, types)
            for pattern, suffix, types in (
                (own.images, own.image_suffix, IMAGE_SUFFIXES),
                (own.masks, own.mask_suffix, COLOR_MASK_SUFFIXES),
            )
        )
        if not images.keys() & masks.keys():
            continue
        if masks.keys() <= images.keys():
            splits.append(split)
            taken = {*masks.values()} if own.images == own.masks else set()
            skipped += [
                key for key, file in images.items() if key not in masks and file not in taken
            ]
        else:
            unpaired.append(split)
    if not splits:
        return None
    data = {"source": "folder", "path": str(root), "images": own.images, "masks": own.masks}
    suffixes = {"image_suffix": own.image_suffix, "mask_suffix": own.mask_suffix}
    data |= {key: value for key, value in suffixes.items() if value}
    assumed = [f"{split} is not used: masks in it have no image" for split in unpaired]
    if skipped:
        data["without_mask"] = "skip"
        assumed.append(
            f"{len(skipped)} pictures, such as {min(skipped)}, have no mask and are left out "
            "(data.without_mask)"
        )
    found = f"{own.images} and {own.masks}, as in {own.name}"
    named = tuple((own.name, block) for block in known)
    return with_splits(Layout(data, (found,), tuple(assumed), known=named), splits)


def _subfolders(folder: Path) -> list[str]:
    try:
        with os.scandir(folder) as entries:
            return sorted(e.name for e in entries if e.is_dir() and not e.name.startswith("."))
    except OSError:  # no folder
        return []


def _splits(root: Path, pattern: str, subfolders: _Subfolders) -> list[str]:
    """The splits for which there is such a folder; [""] without `{split}`."""
    found = [(root, "")]
    for part in Path(pattern).parts:
        deeper = []
        for folder, split in found:
            own = part.replace("{split}", split) if split else part
            if "{split}" not in own and own != "*":
                deeper += [(folder / own, split)] if (folder / own).is_dir() else []
                continue
            form = re.escape(own).replace(r"\{split\}", "(.+)").replace(r"\*", ".+")
            matches = ((name, re.fullmatch(form, name)) for name in subfolders(folder))
            deeper += [
                (folder / name, match[1] if match.groups() else split)
                for name, match in matches
                if match
            ]
        found = deeper
    return sorted({split for _, split in found})


def _is_named(root: Path, own: PublicSet, split: str) -> bool:
    """Whether some masks have the names of a set, before all are listed."""
    above, inner = above_star(own.masks.replace("{split}", split))
    form = re.compile(f"({own.files}){re.escape(own.mask_suffix)}")
    stems = (
        os.path.splitext(name)[0]
        for folder, _, names in os.walk(root / above, followlinks=True)
        if not inner or os.path.basename(folder) == inner[-1]
        for name in names
        if os.path.splitext(name)[1].lower() in COLOR_MASK_SUFFIXES and name[0] != "."
    )
    some = [*itertools.islice((s for s in stems if s.endswith(own.mask_suffix)), _NUM_NAMES)]
    return bool(some) and all(map(form.fullmatch, some))


def _files(root: Path, pattern: str, suffix: str, types: tuple[str, ...]) -> dict[str, Path]:
    """The files of a folder by key, as the source folder finds them."""
    above, inner = above_star(pattern)
    faults: list[Fault] = []  # a fault is found again when the source is opened
    return files_by_key(root / above, types, suffix, None, faults, inner)


def _completed(tree: Tree, layouts: Iterable[Layout]) -> Iterator[Layout]:
    """The layouts with the set's lists of splits, and with a line about what they leave out."""
    for layout in layouts:
        splits = layout.data.get("train_split", ""), layout.data["val_split"]
        folders = {
            above_star(layout.data[key].replace("{split}", split))[0] or "."
            for key in ("images", "masks")
            for split in splits
        }
        listed = layout if "{split}" in layout.data["masks"] else with_lists(tree, layout)
        yield unused(tree, listed, folders)


def _of_config(file: Path) -> tuple[dict[str, Any], ...]:
    """The labels in a `config_*.json` of Mapillary Vistas; () if it has another form.

    The masks hold the places in its list. Labels that are not evaluated are ignored.
    """
    try:
        rows = json.loads(read_text(file))["labels"]
        is_class = [bool(row.get("evaluate", True)) for row in rows]
        key = "readable" if len({row["readable"] for row in rows}) == len(rows) else "name"
        names = [str(row[key]) for row in rows]
        colors = [[int(channel) for channel in row["color"]] for row in rows]
    except (UserError, OSError, ValueError, KeyError, TypeError, AttributeError):
        return ()
    classes = [i for i, own in enumerate(is_class) if own]
    ignored = [i for i, own in enumerate(is_class) if not own]
    labels: dict[str, Any] = {
        "names": [names[i] for i in classes],
        "colors": [colors[i] for i in classes],
        "ignore": [*ignored, *([255] if len(rows) <= 255 else [])],
    }
    if classes != [*range(len(classes))]:
        labels["map"] = {raw: i for i, raw in enumerate(classes)}
    return (labels,)


def _celebamask_hq(root: Path) -> Layout | None:
    """CelebAMask-HQ, if every part has the name of one of its classes."""
    images, masks = root / "CelebA-HQ-img", root / "CelebAMask-HQ-mask-anno"
    if not images.is_dir() or not masks.is_dir():
        return None
    names = PRESETS["celebamask-hq"]["names"]
    parts = [
        re.fullmatch(r"\d+_(.+)", key.rpartition("/")[2])
        for key in _files(root, masks.name, "", COLOR_MASK_SUFFIXES)
    ]
    if not parts or not all(part and part[1] in names for part in parts):
        return None
    found = "CelebA-HQ-img and CelebAMask-HQ-mask-anno, as in CelebAMask-HQ"
    data = {"source": "celebamask-hq", "path": str(root)}
    known = (("CelebAMask-HQ", {"preset": "celebamask-hq"}),)
    return with_splits(Layout(data, (found,), known=known), [""])
