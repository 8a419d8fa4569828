"""Lists of names that come with a data set and say which sample is in which split.

PaddleSeg's `train.txt`, Oxford-IIIT Pet's `annotations/trainval.txt`, `ImageSets/*/train.txt` and
the like. What fits becomes `data.split_list`; other lists of the same names are named.
"""

from collections import defaultdict
from dataclasses import replace
from pathlib import Path, PurePosixPath

from finetune.data.splits import ListedNames, lines_of
from finetune.discover.layouts.layout import (
    VAL_FRACTION,
    Layout,
    Tree,
    split_in,
    with_splits,
)
from finetune.discover.values.mask_values import spread
from finetune.errors import UserError

_SOURCES = ("folder", "coco", "kaggle-rle", "labelme")
_NUM_GROUPS = 100  # of lists that are read
_NUM_LINES = 50  # of a list that are looked up
_NUM_NAMED = 4


def with_lists(tree: Tree, layout: Layout) -> Layout:
    """A layout whose splits are those of the data set's lists, if it has some that fit."""
    groups = _groups(tree)
    groups.pop(layout.data.get("annotations", ""), None)  # Kaggle's own train.csv
    if not groups or layout.data["source"] not in _SOURCES:
        return layout
    names = _names(tree, layout)
    fitting = {
        pattern: lists
        for pattern, lists in groups.items()
        if all(_fits(file, names) for file in lists.values())
    }
    drawn = "val_fraction" in layout.data
    usable = [pattern for pattern, lists in fitting.items() if drawn and _is_split(lists)]
    # Lists for segmentation first, then those that lie highest.
    usable.sort(key=lambda pattern: ("segment" not in pattern.lower(), pattern.count("/"), pattern))
    if usable:
        layout = _listed(layout, usable[0], fitting[usable[0]])
    unused = [
        file.relative_to(tree.root).as_posix()
        for pattern, lists in fitting.items()
        if pattern not in usable[:1]
        for file in lists.values()
    ]
    if not unused:
        return layout
    more = f" and {len(unused) - _NUM_NAMED} more" if len(unused) > _NUM_NAMED else ""
    why = (
        f"the splits are those of {usable[0]}"
        if usable
        else "the folders hold the splits"
        if not drawn
        else "lists for training and for validation are needed (data.split_list)"
    )
    line = f"lists of names are not used: {', '.join(unused[:_NUM_NAMED])}{more}; {why}"
    return replace(layout, assumed=(*layout.assumed, line))


def _groups(tree: Tree) -> dict[str, dict[str, Path]]:
    """Lists whose names differ in the split only: pattern -> split -> file."""
    groups: dict[str, dict[str, Path]] = defaultdict(dict)
    for file in sorted(tree.lists, key=lambda file: (len(file.parts), file)):
        relative = PurePosixPath(file.relative_to(tree.root).as_posix())
        split = split_in(PurePosixPath(relative.stem))
        pattern = relative.with_name(split.pattern + relative.suffix).as_posix()
        if split.name and (pattern in groups or len(groups) < _NUM_GROUPS):
            groups[pattern][split.name] = file
    return groups


def _is_split(lists: dict[str, Path]) -> bool:
    """Whether there is something to train on and something else to evaluate on."""
    return "val_fraction" not in with_splits(Layout({}, ()), lists).data


def _names(tree: Tree, layout: Layout) -> ListedNames:
    """The names of the pictures in the folders of a layout's images."""
    pattern = layout.data["images"]
    suffix = layout.data.get("image_suffix", "")
    names, images = [], []
    splits = (layout.data.get("train_split", ""), layout.data["val_split"])
    for root in {PurePosixPath(pattern.replace("{split}", split)) for split in splits}:
        for folder, stems in tree.folders.items():
            if root in (folder, *folder.parents):
                below = folder.relative_to(root)
                own = [stem for stem in stems if stem.endswith(suffix)]
                names += [(below / (stem.removesuffix(suffix) or stem)).as_posix() for stem in own]
                images += [str(stems[stem]) for stem in own]
    return ListedNames(names, images, [""] * len(names))


def _fits(file: Path, names: ListedNames) -> bool:
    """Whether most lines of a list name pictures."""
    try:
        lines = lines_of(file)
    except UserError:
        return False
    found = [names.place(line) is not None for line in spread(lines, _NUM_LINES)]
    return 2 * sum(found) > len(found)


def _listed(layout: Layout, pattern: str, lists: dict[str, Path]) -> Layout:
    """The layout, with its splits from lists instead of a share that is drawn."""
    only = layout.data.get("train_split", "")
    kept = {k: v for k, v in layout.data.items() if k not in ("val_fraction", "val_split")}
    for key in {"images", "masks", "annotations"} & kept.keys():
        kept[key] = kept[key].replace("{split}", only)
    found = tuple(line for line in layout.found if not line.startswith("splits: "))
    drawn = f"no validation split: {VAL_FRACTION:.0%}"
    assumed = tuple(line for line in layout.assumed if not line.startswith(drawn))
    chosen = with_splits(replace(layout, data=kept, found=found, assumed=assumed), lists)
    unused = [
        name for name in lists if name not in (chosen.data["train_split"], chosen.data["val_split"])
    ]
    lines = (*chosen.found, f"the splits are lists of names: {pattern}")
    more = (f"lists of {pattern} that are not used: {', '.join(unused)}",) if unused else ()
    data = {**chosen.data, "split_list": pattern}
    return replace(chosen, data=data, found=lines, assumed=(*chosen.assumed, *more))
