"""The files of a folder, the layouts it may have, and the names of splits."""

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any
from unicodedata import normalize

from finetune.discover.values.class_lists import ClassList
from finetune.errors import UserError
from finetune.labels.colors import RGB
from finetune.pictures.references import IMAGE_SUFFIXES, MASK_SUFFIXES, Picture

TRAIN_NAMES = (
    *("train", "training", "train2017", "trainset", "train_set", "trainval", "train_val"),
)
VAL_NAMES = ("val", "validation", "valid", "val2017", "dev", "test", "testing", "test2017")
LIST_SUFFIXES = (".txt", ".lst", ".list", ".csv")
VAL_FRACTION = 0.1

MAX_FILES = 200_000
OVERLAPPING = dict.fromkeys(("trainval", "train_val"), ("val", "validation", "valid"))
"""A split -> those that are probably a part of it."""
_NUM_SHOWN = 3


@dataclass(frozen=True)
class Categories:
    """The classes of one COCO file."""

    file: Path
    names: dict[int, str]
    used: frozenset[int]
    """Categories that have objects."""


@dataclass(frozen=True)
class TableRows:
    """Some rows of a table."""

    pictures: tuple[tuple[Picture, Picture], ...]
    """Image and mask of each."""
    count: int | None
    """Rows of the training split, if known."""
    is_here: bool
    """Whether the table is on this disk."""
    labels: dict[str, Any] | None
    """The block that `finetune pack` wrote beside it."""


@dataclass(frozen=True)
class Layout:
    """How a folder is laid out, as the `data:` section of a recipe, with the reasons."""

    data: dict[str, Any]
    found: tuple[str, ...]
    """Lines about what was seen."""
    assumed: tuple[str, ...] = ()
    """Lines about what was assumed."""
    classes: tuple[str, ...] = ()
    """Their names, where each class has mask files of its own."""
    colors: Mapping[str, RGB] = field(default_factory=dict, repr=False)
    """Their colours, where a file tells them."""
    categories: tuple[Categories, ...] = field(default=(), repr=False)
    """The classes of COCO files, one per split."""
    listed: ClassList | None = field(default=None, repr=False)
    """The list of classes, if it is in a file that has no usual name."""
    table: TableRows | None = field(default=None, repr=False)
    """Rows of a table that `datasets` wrote."""
    known: tuple[tuple[str, dict[str, Any]], ...] = field(default=(), repr=False)
    """Public sets that these folders may be, each with its `labels:` block. The masks decide. Names
    alone are those of the two values of masks."""


@dataclass(frozen=True)
class Tree:
    """The pictures, JSON and XML files, and lists below a folder, found in one walk."""

    root: Path
    folders: dict[PurePosixPath, dict[str, Path]]
    """Folder with pictures, relative to the root -> its pictures by stem."""
    json_files: tuple[Path, ...]
    xml_files: tuple[Path, ...]
    twins: tuple[Path, Path] | None
    """The first two pictures of a folder that differ in their file type only."""
    lists: tuple[Path, ...]
    """Text files that the names of splits are in."""
    is_whole: bool
    """Whether the walk saw every file: there are no more than `MAX_FILES`."""

    def picture(self, relative: str) -> bool:
        """Whether there is such a picture."""
        path = PurePosixPath(relative)
        file = self.folders.get(path.parent, {}).get(normalize("NFC", path.stem))
        return file is not None and (file.name == path.name or (self.root / path).is_file())


def walk(root: Path) -> Tree:
    """Walks a folder as the sources do: follows links, skips hidden files."""
    folders: dict[PurePosixPath, dict[str, Path]] = {}
    annotations: dict[str, list[Path]] = {".json": [], ".xml": []}
    lists: list[Path] = []
    twins: tuple[Path, Path] | None = None
    count, entered = 0, {os.path.realpath(root)}
    for directory, subfolders, names in os.walk(root, followlinks=True):
        subfolders[:] = sorted(
            name
            for name in subfolders
            if not name.startswith(".") and _is_new(os.path.join(directory, name), entered)
        )
        stems: dict[str, Path] = {}
        for name in sorted(names):
            suffix = os.path.splitext(name)[1].lower()
            if name.startswith("."):
                continue
            if suffix in annotations:
                annotations[suffix].append(Path(directory, name))
            elif suffix in LIST_SUFFIXES:
                if split_in(PurePosixPath(os.path.splitext(name)[0])).name:
                    lists.append(Path(directory, name))
            elif suffix in IMAGE_SUFFIXES or suffix in MASK_SUFFIXES:
                path = Path(directory, name)
                first = stems.setdefault(normalize("NFC", path.stem), path)
                twins = twins or ((first, path) if first != path else None)
        if stems:
            folders[PurePosixPath(Path(directory).relative_to(root).as_posix())] = stems
        count += len(names)
        if count > MAX_FILES:
            break
    return Tree(
        root,
        dict(sorted(folders.items())),
        tuple(sorted(annotations[".json"])),
        tuple(sorted(annotations[".xml"])),
        twins=twins,
        lists=tuple(sorted(lists)),
        is_whole=count <= MAX_FILES,
    )


def _is_new(path: str, entered: set[str]) -> bool:
    """False for a link back to a folder that the walk has seen."""
    if not os.path.islink(path):
        return True
    known = len(entered)
    entered.add(os.path.realpath(path))
    return len(entered) > known


# ---------------------------------------------------------------------------------- names of splits

_NAMES = "|".join(sorted((*TRAIN_NAMES, *VAL_NAMES), key=len, reverse=True))
_THINGS = "annot|annotation|mask|label|image|img|data|set|gt|seg|segmentation|list"
_FORMS = tuple(
    re.compile(form, re.IGNORECASE)
    for form in (
        f"({_NAMES})",
        f"(?:.*[^a-z0-9])?({_NAMES})(?:[^a-z0-9].*)?",
        rf"({_NAMES})(?:{_THINGS})s?",  # trainannot, but not valley
    )
)


@dataclass(frozen=True)
class SplitName:
    """The name of a split in a path."""

    name: str
    """As written in the path; "" if there is none."""
    position: int
    """Position of the part that holds it; -1 if there is none."""
    pattern: str
    """The path with `{split}` in its place."""
    part: str = ""
    """The whole part, as written in the path."""

    @classmethod
    def none(cls, path: PurePosixPath) -> "SplitName":
        """For a path without a split's name."""
        return cls("", -1, "/".join(path.parts) or ".")


def split_in(relative: PurePosixPath) -> SplitName:
    """Finds a split's name: first as a whole part, then as a word, then as the start of a part.

    Among several parts the deepest counts: train_data/images/val is of the split val.
    """
    parts = relative.parts
    for form in _FORMS:
        for position in reversed(range(len(parts))):
            found = form.fullmatch(parts[position])
            if found:
                start, end = found.span(1)
                part = f"{parts[position][:start]}{{split}}{parts[position][end:]}"
                pattern = "/".join([*parts[:position], part, *parts[position + 1 :]])
                return SplitName(found[1], position, pattern, parts[position])
    return SplitName.none(relative)


def with_splits(layout: Layout, splits: Iterable[str]) -> Layout:
    """Chooses the splits for training and evaluation."""
    names = sorted(set(splits))
    lower = {split.lower(): split for split in names}
    train = next((lower[name] for name in TRAIN_NAMES if name in lower), None)
    within = OVERLAPPING.get((train or "").lower(), ())
    val = next((lower[n] for n in VAL_NAMES if n in lower and n not in within), None)
    found = (*layout.found, f"splits: {', '.join(filter(None, names)) or 'none'}")
    if train is not None and val is not None:
        data = {**layout.data, "train_split": train, "val_split": val}
        return replace(layout, data=data, found=found)
    only = train or val or next(iter(names), "train")
    # The two parts need different names.
    data = {**layout.data, "val_fraction": VAL_FRACTION, "val_split": "held_back"}
    if only:
        data["train_split"] = only
    assumed = [
        *layout.assumed,
        f"no validation split: {VAL_FRACTION:.0%} of {only or 'it'} are held back, drawn by "
        "data.split_seed (set data.split_group if frames of one video must stay together)",
    ]
    if left_out := [lower[name] for name in within if name in lower]:
        assumed.append(f"{left_out[0]} is not used: it is probably a part of {train}")
    elif others := [name for name in names if name and name != only]:
        assumed.append(f"{', '.join(others)}: not used, since no name says what a split is for")
    return replace(layout, data=data, found=found, assumed=tuple(assumed))


def refuse_without_training(tree: Tree, layouts: Sequence[Layout]) -> None:
    """Refuses to train on validation pictures while a training split exists.

    Raises:
        UserError: Every layout would, because the training pictures fit no pattern.
    """
    if any(layout.data.get("train_split", "").lower() not in VAL_NAMES for layout in layouts):
        return
    files = {PurePosixPath(f.relative_to(tree.root).as_posix()) for f in tree.json_files}
    for path in (*tree.folders, *sorted(files)):
        name = split_in(path.with_suffix("") if path in files else path).name
        if name.lower() in TRAIN_NAMES:
            raise UserError(
                f"{tree.root / path}: looks like a training split but holds no pairs; found: "
                f"{'; '.join(layouts[0].found)}. Give the training split the same form."
            )


def unused(tree: Tree, layout: Layout, used: Iterable[str]) -> Layout:
    """Adds a line about pictures outside of the folders that a layout reads with all subfolders."""
    roots = {PurePosixPath(folder) for folder in used}
    counts = {
        folder: len(stems)
        for folder, stems in tree.folders.items()
        if not roots & {folder, *folder.parents}
    }
    assumed = list(layout.assumed)
    if counts:
        shown = ", ".join(f"{folder} ({n})" for folder, n in list(counts.items())[:_NUM_SHOWN])
        more = f" and {len(counts) - _NUM_SHOWN} folders more" if len(counts) > _NUM_SHOWN else ""
        assumed.append(f"{sum(counts.values())} pictures are not used: {shown}{more}")
    if not tree.is_whole:
        assumed.append(f"only the first {MAX_FILES} files were looked at")
    return replace(layout, assumed=tuple(assumed))
