"""Pairs of folders, or of endings in one, that hold the same names: one of images, one of masks."""

import itertools
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from finetune.discover.glances import Glances
from finetune.discover.layout import Layout, SplitName, Tree, split_in, unused, with_splits
from finetune.discover.mask_values import spread
from finetune.errors import UserError
from finetune.pictures.opening import opened
from finetune.pictures.references import LOSSY_SUFFIXES, MASK_SUFFIXES

_NUM_LOOKED_AT = 8  # pairs of a layout
_NUM_GLANCED_AT = 3  # files of a folder
_NUM_NAMES = 8  # of a folder, by which others with the same are found
_MATCHING = 0.9  # share of names that images and masks must have in common to be a pair
_MANY_KINDS = 64  # names that begin as another one does: more are a sequence, not kinds of masks
_SEPARATORS = "_-."


class _Key(NamedTuple):
    """A layout: two patterns and two endings."""

    images: str
    masks: str
    image_suffix: str
    mask_suffix: str


@dataclass
class _Evidence:
    """What speaks for a layout, of all its folders together."""

    splits: set[str] = field(default_factory=set)
    matched: int = 0
    expected: int = 0
    """How many could match: images, or masks if those are fewer."""
    all_masks: int = 0
    """Files in the folders of masks."""
    files: list[tuple[Path, Path]] = field(default_factory=list)
    """Images and masks of the names that match."""


class _Folder:
    """A folder's pictures, and what their names begin with."""

    def __init__(self, relative: PurePosixPath, stems: dict[str, Path]) -> None:
        self.relative = relative
        self.stems = stems
        self.starts: dict[str, list[str]] = defaultdict(list)
        self.own_endings: set[tuple[str, str]] = set()
        """Of pairs within the folder."""
        for stem in stems:
            for start in _starts(stem):
                self.starts[start].append(stem)


def pairs(tree: Tree) -> list[Layout]:
    """The layouts of a folder with one picture a mask, or one a class of it.

    Raises:
        UserError: Folders are paired in a way that no recipe can say, or masks are of a kind that
            is not read.
    """
    folders = [_Folder(relative, stems) for relative, stems in tree.folders.items()]
    glances = Glances()
    beside = _beside(tree)
    evidence: dict[_Key, _Evidence] = defaultdict(_Evidence)
    for folder in folders:
        _add_evidence(evidence, folder, folder, beside)
    for images, masks in _candidates(folders, glances):
        _add_evidence(evidence, images, masks, beside)
    evidence = _above_all(tree, evidence)
    accepted = {key: found for key, found in evidence.items() if _is_accepted(key, found, glances)}
    _refuse_scattered(tree, accepted)
    layouts = []
    for group in _grouped(tree, accepted, evidence, glances):
        layout, splits, used = group
        layouts.append(unused(tree, with_splits(layout, splits), used))
    return layouts


def why_none(tree: Tree) -> str:
    """A reason, with a space behind it, why there may be no pairs; "" if none is known."""
    if tree.twins is not None:
        one, other = tree.twins
        return (
            f"{one.name} and {other.name} in {one.parent} differ in their file type only: put the "
            "masks into a folder of their own. "
        )
    by_stem: dict[tuple[str, str], Path] = {}
    for folder, stems in tree.folders.items():
        split = split_in(folder).name
        for stem, file in stems.items():
            other = by_stem.setdefault((split, stem), file)
            suffixes = {other.suffix.lower(), file.suffix.lower()}
            if other is not file and suffixes <= set(LOSSY_SUFFIXES):
                return (
                    f"{other} and {file} have the same name, but neither is a mask: JPEG and WebP "
                    "do not keep the values of pixels. Export masks as PNG. "
                )
    return ""


# --------------------------------------------------------------------------- folders that may match


def _candidates(folders: Sequence[_Folder], glances: Glances) -> Iterator[tuple[_Folder, _Folder]]:
    """Folders of images and others of masks that have names in common."""
    holders: dict[str, list[_Folder]] = defaultdict(list)
    for folder in folders:
        for start in folder.starts:
            holders[start].append(folder)
    for images in folders:
        if not _may_hold(images, glances, masks=False):
            continue
        names = spread(list(images.stems), _NUM_NAMES)
        hits: Counter[_Folder] = Counter()
        for name in names:
            others = {folder: None for base, _ in _bases(name) for folder in holders.get(base, ())}
            hits.update(folder for folder in others if folder is not images)
        likely = [folder for folder, number in hits.items() if 2 * number >= len(names)]
        # Of images, few names may have a mask, or the masks of few names lie in this folder.
        likely = likely or [folder for folder, _ in hits.most_common(4)]
        for masks in _without_crossings(images, likely):
            if _may_hold(masks, glances, masks=True):
                yield images, masks


def _without_crossings(images: _Folder, others: Sequence[_Folder]) -> Iterator[_Folder]:
    """Leaves out Annotations/camel for JPEGImages/bear, where there is Annotations/bear."""
    own = set(images.relative.parts)
    strange = {
        folder: (
            len(folder.relative.parts),
            tuple(p for p in folder.relative.parts if p not in own),
        )
        for folder in others
    }
    known = set(strange.values())
    for folder, (depth, parts) in strange.items():
        fewer = itertools.chain.from_iterable(
            itertools.combinations(parts, number) for number in range(1, len(parts))
        )
        if not any((depth, some) in known for some in fewer):
            yield folder


def _may_hold(folder: _Folder, glances: Glances, *, masks: bool) -> bool:
    """Whether one of a few files is a mask, or one is none."""
    for file in spread(list(folder.stems.values()), _NUM_GLANCED_AT):
        if not masks and file.suffix.lower() in (".jpg", ".jpeg"):
            return True
        if glances(file).is_mask in (masks, None):
            return True
    return False


def _starts(stem: str) -> Iterator[str]:
    """The name, and what stands before each of its separators."""
    yield stem
    for position, character in enumerate(stem):
        if position and character in _SEPARATORS:
            yield stem[:position]


def _bases(stem: str) -> Iterator[tuple[str, str]]:
    """What an image's name may have in common with its mask's, and its own ending."""
    yield stem, ""
    cut = max(stem.rfind(separator) for separator in _SEPARATORS)
    if cut > 0:
        yield stem[:cut], stem[cut:]


# --------------------------------------------------------------------------------- names that match


def _beside(tree: Tree) -> dict[PurePosixPath, set[str]]:
    """The names of the folders that hold pictures at any depth, by the folder they lie in."""
    names: dict[PurePosixPath, set[str]] = defaultdict(set)
    for folder in tree.folders:
        for path in (folder, *folder.parents):
            names[path.parent].add(path.name)
    return names


def _add_evidence(
    evidence: dict[_Key, _Evidence],
    images: _Folder,
    masks: _Folder,
    beside: dict[PurePosixPath, set[str]],
) -> None:
    """Counts the names that match, for each pair of endings."""
    patterns = _patterns(images.relative, masks.relative, beside)
    if patterns is None:
        return
    split, image_pattern, mask_pattern = patterns
    same = images is masks
    matches: dict[tuple[str, str], list[tuple[Path, Path]]] = defaultdict(list)
    for stem, file in images.stems.items():
        for base, own in _bases(stem):
            others = masks.starts.get(base, ())
            for other in others if len(others) <= _MANY_KINDS else ():
                ending = other[len(base) :]
                if ending != own or not (own or same):
                    matches[own, ending].append((file, masks.stems[other]))
    if not same:  # where each folder has its own masks, those of another only have their names
        for both in images.own_endings & masks.own_endings:
            matches.pop(both, None)
    of_masks = Counter(
        ending for other in masks.stems for ending in _endings(other, {e for _, e in matches})
    )
    for own in {own for own, _ in matches}:
        endings = [ending for first, ending in matches if first == own]
        taken = tuple(ending for ending in endings if ending) if same else ()
        of_images = sum(s.endswith(own) and not (taken and s.endswith(taken)) for s in images.stems)
        # A number that ends few names is that of a frame.
        share = 1 if own[1:].isdigit() else 1 / (3 if not same else _NUM_LOOKED_AT)
        if own and (of_images < 2 or of_images < share * len(images.stems)):
            continue
        for ending in endings:
            if same:
                images.own_endings.add((own, ending))
            found = evidence[_Key(image_pattern, mask_pattern, own, ending)]
            found.splits.add(split)
            found.matched += len(matches[own, ending])
            found.expected += min(of_images, of_masks[ending])
            found.all_masks += len(masks.stems)
            found.files += matches[own, ending]


def _endings(stem: str, endings: set[str]) -> Iterator[str]:
    for start in _starts(stem):
        if stem[len(start) :] in endings:
            yield stem[len(start) :]


def _split_names(
    images: PurePosixPath, masks: PurePosixPath, beside: dict[PurePosixPath, set[str]]
) -> tuple[SplitName, SplitName]:
    """The splits in both paths.

    A word in a folder that both share, such as train_station, is none if others lie beside it.
    """
    names = split_in(images), split_in(masks)
    place = names[0].position
    if place >= 0 and names[0].part in masks.parts and not names[0].is_whole:
        above = PurePosixPath(*images.parts[:place])
        if not all(split_in(PurePosixPath(name)).name for name in beside[above]):
            return SplitName.none(images), SplitName.none(masks)
    return names


def _patterns(
    images: PurePosixPath, masks: PurePosixPath, beside: dict[PurePosixPath, set[str]]
) -> tuple[str, str, str] | None:
    """The split and the patterns of both folders, or of those above that have the same below.

    None if they are of different splits.
    """
    names = _split_names(images, masks, beside)
    if names[0].name != names[1].name:
        return None
    below = 0
    if images == masks:
        below = len(images.parts) - names[0].position - 1 if names[0].name else 0
    else:
        parts = images.parts, masks.parts
        while (
            below < min(len(parts[i]) - names[i].position - 1 for i in (0, 1))
            and parts[0][-below - 1] == parts[1][-below - 1]
        ):
            tops = [part[: len(part) - below - 1] for part in parts]
            if tops[0][: len(tops[1])] == tops[1] or tops[1][: len(tops[0])] == tops[0]:
                break  # one folder would hold the other
            below += 1
    patterns = [
        "/".join(PurePosixPath(name.pattern).parts[: len(path.parts) - below]) or "."
        for name, path in zip(names, (images, masks), strict=True)
    ]
    return names[0].name, patterns[0], patterns[1]


def _above_all(tree: Tree, evidence: dict[_Key, _Evidence]) -> dict[_Key, _Evidence]:
    """Joins folders that each hold images and masks, if nothing else lies below one above them."""
    alike: dict[tuple[str, str], list[_Key]] = defaultdict(list)
    for key in evidence:
        if key.images == key.masks and "{split}" not in key.images:
            alike[key.image_suffix, key.mask_suffix].append(key)
    joined = dict(evidence)
    for keys in alike.values():
        folders = [PurePosixPath(key.images) for key in keys]
        above = next(
            path
            for path in (*folders[0].parents, PurePosixPath())
            if all(path == folder or path in folder.parents for folder in folders)
        )
        below = {path for path in tree.folders if path == above or above in path.parents}
        if len(keys) < 2 or below != set(folders):
            continue
        whole = _Evidence({""})
        for key in keys:
            own = joined.pop(key)
            whole.matched += own.matched
            whole.expected += own.expected
            whole.all_masks += own.all_masks
            whole.files += own.files
        joined[keys[0]._replace(images=str(above), masks=str(above))] = whole
    return joined


def _is_accepted(key: _Key, found: _Evidence, glances: Glances) -> bool:
    """Whether enough names match, and by majority these are images and masks."""
    if found.matched < _MATCHING * found.expected or 8 * found.matched < found.all_masks:
        return False
    if key.mask_suffix == "" and 3 * found.matched < found.all_masks:
        return False  # the masks' names have endings of their own
    return _is_elected(found.files, glances)


def _is_elected(files: Sequence[tuple[Path, Path]], glances: Glances) -> bool:
    """Whether of most pairs one file is a mask, and the other is none."""
    votes = []
    for image, mask in spread(files, _NUM_LOOKED_AT):
        seen = glances(mask).is_mask, glances(image).is_mask
        if None not in seen:
            votes.append(seen == (True, False))
    return 2 * sum(votes) > len(votes)


# ------------------------------------------------------------------------------------------ layouts


def _refuse_scattered(tree: Tree, accepted: dict[_Key, _Evidence]) -> None:
    """Refuses pairs in folders of their own, such as v1/images and v1/masks, v2/images, ...

    Raises:
        UserError: There are such.
    """
    parts: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for key in accepted:
        images, masks = key.images.split("/"), key.masks.split("/")
        for place in range(min(len(images), len(masks))):
            if images[place] != masks[place]:
                break
            if "{split}" not in images[place] and len(images) > place + 1 < len(masks):
                others = [*images[:place], "*", *images[place + 1 :]]
                others += ["", *masks[:place], "*", *masks[place + 1 :], key[2], key[3]]
                parts[tuple(others)].append(images[place])
    for names in parts.values():
        if len(set(names)) > 1:
            key = next(key for key in accepted if names[0] in key.images.split("/"))
            some = ", ".join(sorted(set(names))[:3])
            raise UserError(
                f"{tree.root}: {len(set(names))} folders ({some}, ...) "
                f"have images and masks of their own ({key.images}, {key.masks}), which no recipe "
                f"can say. Give the folder of one, or move them together: images/{names[0]} and "
                f"masks/{names[0]}, and so on."
            )


def _grouped(
    tree: Tree,
    accepted: dict[_Key, _Evidence],
    evidence: dict[_Key, _Evidence],
    glances: Glances,
) -> Iterator[tuple[Layout, set[str], list[str]]]:
    """Layouts with their splits and the folders that they read; those of one class each as one."""
    left = dict(accepted)
    for keys, pattern in _of_classes(tree, accepted, evidence):
        files = [pair for key in keys for pair in evidence[key].files]
        some = spread(files, 2 * _NUM_LOOKED_AT)
        if not all(glances(mask).is_binary for _, mask in some) or not _is_elected(files, glances):
            continue
        classes = tuple(sorted(keys.values()))
        if len(classes) > 2:  # two may also be a mask and, say, its edges: that is a question
            left = {key: found for key, found in left.items() if key not in keys}
        splits = set().union(*(evidence[key].splits for key in keys))
        layout = _layout(tree, pattern, splits)
        found = f"one file a class: {', '.join(classes[:12])}"
        folders = _folders_of([*keys], splits)
        yield replace(layout, found=(*layout.found, found), classes=classes), splits, folders
    for key, own in left.items():
        _check_suffixes(own.files)
        yield _layout(tree, key, own.splits), own.splits, _folders_of([key], own.splits)


def _of_classes(
    tree: Tree, accepted: dict[_Key, _Evidence], evidence: dict[_Key, _Evidence]
) -> Iterator[tuple[dict[_Key, str], _Key]]:
    """Layouts that differ in one word only, which may be a class, and that word of each."""
    by_ending: dict[_Key, list[_Key]] = defaultdict(list)
    for key, found in evidence.items():
        if key.mask_suffix and found.matched >= _MATCHING * found.expected:
            by_ending[key._replace(mask_suffix="")].append(key)
    for whole, keys in by_ending.items():
        # Rare classes have too few files to be accepted alone.
        matched = sum(evidence[key].matched for key in keys)
        if len(keys) < 2 or 8 * matched < evidence[keys[0]].all_masks:
            continue
        first, last = min(key[3] for key in keys), max(key[3] for key in keys)
        same = [one == other for one, other in zip(first, last, strict=False)]
        common = first[: [*same, False].index(False)]
        common = re.sub(rf"[^{re.escape(_SEPARATORS)}]*$", "", common)
        names = {key: key.mask_suffix[len(common) :] for key in keys}
        if common and all(names.values()) and not any(map(str.isdigit, names.values())):
            yield names, whole._replace(mask_suffix=common + "{class}")
    by_folder: dict[tuple[_Key, int], list[_Key]] = defaultdict(list)
    for key in accepted:
        parts = key.masks.split("/")
        for place, part in enumerate(parts):
            if "{split}" not in part and part != ".":
                masks = "/".join([*parts[:place], "{class}", *parts[place + 1 :]])
                by_folder[key._replace(masks=masks), place].append(key)
    for (pattern, place), keys in by_folder.items():
        names = {key: key.masks.split("/")[place] for key in keys}
        if len(keys) > 1 and _siblings(tree, keys[0], place, accepted) == set(names.values()):
            yield names, pattern


def _siblings(tree: Tree, key: _Key, place: int, accepted: dict[_Key, _Evidence]) -> set[str]:
    """The folders beside one of masks."""
    split = min(accepted[key].splits)
    above = tree.root.joinpath(*key.masks.replace("{split}", split).split("/")[:place])
    return {f.name for f in above.iterdir() if f.is_dir() and not f.name.startswith(".")}


def _layout(tree: Tree, key: _Key, splits: Iterable[str]) -> Layout:
    data = {"source": "folder", "path": str(tree.root), "images": key.images, "masks": key.masks}
    suffixes = {"image_suffix": key.image_suffix, "mask_suffix": key.mask_suffix}
    data |= {name: suffix for name, suffix in suffixes.items() if suffix}
    found = (
        f"images in {key.images}/*{key.image_suffix}, their masks in {key.masks}/*{key.mask_suffix}"
    )
    return Layout("folder", data, (found,))


def _folders_of(keys: Iterable[_Key], splits: Iterable[str]) -> list[str]:
    patterns = {pattern for key in keys for pattern in (key.images, key.masks)}
    return [pattern.replace("{split}", split) for pattern in patterns for split in splits]


def _check_suffixes(files: Sequence[tuple[Path, Path]]) -> None:
    """Refuses masks in files that do not keep ids.

    Raises:
        UserError: Most of them are such.
    """
    bad = [mask for _, mask in files if mask.suffix.lower() not in MASK_SUFFIXES]
    if 2 * len(bad) <= len(files):
        return
    with opened(bad[0]) as mask:
        if mask.mode == "RGB":  # a mask of colours, of which those near a class's are its
            return
    raise UserError(
        f"{bad[0]}: JPEG and WebP do not keep the values of pixels, so that ids in them are "
        f"damaged. Export the masks as PNG ({', '.join(MASK_SUFFIXES)} are read)."
    )
