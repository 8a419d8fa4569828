"""Evidence that two folders, or two endings of names, hold images and their masks.

Names are compared, and a few files of each folder get a glance.
"""

import itertools
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import NamedTuple
from unicodedata import normalize

from finetune.discover.layouts.glances import Look
from finetune.discover.layouts.layout import SplitName, Tree, split_in
from finetune.discover.values.mask_values import spread
from finetune.pictures.references import JPEG_SUFFIXES

SEPARATORS = "_-."

_NUM_GLANCED_AT = 3  # files of a folder
_NUM_NAMES = 8  # names of a folder that are looked up in the others
_FEWEST = 8  # within one folder, an ending must end one name of so many
_MANY_KINDS = 64  # names with the same start; more are a sequence, not kinds of masks


class Key(NamedTuple):
    """A layout: two patterns and two endings."""

    images: str
    masks: str
    image_suffix: str
    mask_suffix: str


@dataclass
class Evidence:
    """The evidence for a layout, from all its folders."""

    splits: set[str] = field(default_factory=set)
    matched: int = 0
    expected: int = 0
    """Names that could match: the number of images, or of masks if those are fewer."""
    all_masks: int = 0
    """Files in the folders of masks."""
    files: list[tuple[Path, Path]] = field(default_factory=list)
    """Images and masks with matching names."""


class _Folder:
    """A folder's pictures, by name and by the starts of names."""

    def __init__(self, relative: PurePosixPath, stems: dict[str, Path]) -> None:
        self.relative = relative
        self.stems = stems
        self.starts: dict[str, list[str]] = defaultdict(list)
        self.own_endings: set[tuple[str, str]] = set()
        """Endings of pairs within the folder."""
        for stem in stems:
            for start in _starts(stem):
                self.starts[start].append(stem)


def gather(tree: Tree, look: Look) -> dict[Key, Evidence]:
    """The evidence for each layout that matching names suggest."""
    folders = [_Folder(relative, stems) for relative, stems in tree.folders.items()]
    beside: dict[PurePosixPath, set[str]] = defaultdict(set)  # subfolders with pictures, by name
    for relative in tree.folders:
        for path in (relative, *relative.parents):
            beside[path.parent].add(path.name)
    evidence: dict[Key, Evidence] = defaultdict(Evidence)
    for folder in folders:
        _add_evidence(evidence, folder, folder, beside)
    for images, masks in _candidates(folders, look):
        _add_evidence(evidence, images, masks, beside)
    return _above_all(tree, evidence)


# --------------------------------------------------------------------------- folders that may match


def _candidates(folders: Sequence[_Folder], look: Look) -> Iterator[tuple[_Folder, _Folder]]:
    """Folders of images and folders of masks with names in common."""
    holders: dict[str, list[_Folder]] = defaultdict(list)
    for folder in folders:
        for start in folder.starts:
            holders[start].append(folder)
    for images in folders:
        if not _may_hold(images, look, masks=False):
            continue
        names = spread(list(images.stems), _NUM_NAMES)
        hits: Counter[_Folder] = Counter()
        for name in names:
            others = {folder: None for base, _ in _bases(name) for folder in holders.get(base, ())}
            hits.update(folder for folder in others if folder is not images)
        likely = [folder for folder, number in hits.items() if 2 * number >= len(names)]
        # Few images may have a mask, or few of the masks may lie in one folder.
        likely = likely or [folder for folder, _ in hits.most_common(4)]
        for masks in _without_crossings(images, likely):
            if _may_hold(masks, look, masks=True):
                yield images, masks


def _without_crossings(images: _Folder, others: Sequence[_Folder]) -> Iterator[_Folder]:
    """Leaves out Annotations/camel for JPEGImages/bear if there is Annotations/bear."""
    own = set(images.relative.parts)
    paths = {folder: folder.relative.parts for folder in others}
    strange = {folder: tuple(p for p in path if p not in own) for folder, path in paths.items()}
    known = {(len(paths[folder]), parts) for folder, parts in strange.items()}
    for folder, parts in strange.items():
        fewer = (itertools.combinations(parts, number) for number in range(1, len(parts)))
        if not any((len(paths[folder]), some) in known for some in itertools.chain(*fewer)):
            yield folder


def _may_hold(folder: _Folder, look: Look, *, masks: bool) -> bool:
    """Whether one of a few files is a mask or, with masks=False, an image."""
    return any(
        (not masks and file.suffix.lower() in JPEG_SUFFIXES) or look(file).is_mask in (masks, None)
        for file in spread(list(folder.stems.values()), _NUM_GLANCED_AT)
    )


def _starts(stem: str) -> Iterator[str]:
    """The name, and its part before each separator."""
    yield stem
    for position, character in enumerate(stem):
        if position and character in SEPARATORS:
            yield stem[:position]


def _bases(stem: str) -> Iterator[tuple[str, str]]:
    """The parts of an image's name that its mask may share, each with the image's own ending."""
    yield stem, ""
    cut = max(stem.rfind(separator) for separator in SEPARATORS)
    if cut > 0:
        yield stem[:cut], stem[cut:]


# --------------------------------------------------------------------------------- names that match


def _add_evidence(
    evidence: dict[Key, Evidence],
    images: _Folder,
    masks: _Folder,
    beside: dict[PurePosixPath, set[str]],
) -> None:
    """Counts the matching names for each pair of endings."""
    patterns = _patterns(images.relative, masks.relative, beside)
    if patterns is None:
        return
    split, image_pattern, mask_pattern = patterns
    same = images is masks
    matches: dict[tuple[str, str], list[tuple[Path, Path]]] = defaultdict(list)
    for stem, file in images.stems.items():
        whole = "" if same or stem in masks.stems else normalize("NFC", file.name)
        if whole in masks.stems:  # x.jpg.png, as Supervisely names the mask of x.jpg
            matches["", ""].append((file, masks.stems[whole]))
            continue
        for base, own in _bases(stem):
            others = masks.starts.get(base, ())
            for other in others if len(others) <= _MANY_KINDS else ():
                ending = other[len(base) :]
                if ending != own or not (own or same):
                    matches[own, ending].append((file, masks.stems[other]))
    if not same:  # folders with masks of their own have nothing to do with each other's
        for both in images.own_endings & masks.own_endings:
            matches.pop(both, None)
    known = {ending for _, ending in matches}
    parts = ((other, len(start)) for other in masks.stems for start in _starts(other))
    of_masks = Counter(other[length:] for other, length in parts if other[length:] in known)
    for own in {own for own, _ in matches}:
        endings = [ending for first, ending in matches if first == own]
        taken = tuple(ending for ending in endings if ending) if same else ()
        of_images = sum(s.endswith(own) and not (taken and s.endswith(taken)) for s in images.stems)
        # A number that ends few names is a frame's.
        share = 1 if own[1:].isdigit() else 1 / (3 if not same else _FEWEST)
        if own and (of_images < 2 or of_images < share * len(images.stems)):
            continue
        for ending in endings:
            if same:
                images.own_endings.add((own, ending))
            found = evidence[Key(image_pattern, mask_pattern, own, ending)]
            found.splits.add(split)
            found.matched += len(matches[own, ending])
            found.expected += min(of_images, of_masks[ending])
            found.all_masks += len(masks.stems)
            found.files += matches[own, ending]


def _split_names(
    images: PurePosixPath, masks: PurePosixPath, beside: dict[PurePosixPath, set[str]]
) -> tuple[SplitName, SplitName]:
    """The split names in both paths.

    A word of a folder that both share, such as train_station, is not one if its siblings have none.
    """
    names = split_in(images), split_in(masks)
    place = names[0].position
    if place >= 0 and names[0].part in masks.parts and names[0].part != names[0].name:
        above = PurePosixPath(*images.parts[:place])
        if not all(split_in(PurePosixPath(name)).name for name in beside[above]):
            return SplitName.none(images), SplitName.none(masks)
    return names


def _patterns(
    images: PurePosixPath, masks: PurePosixPath, beside: dict[PurePosixPath, set[str]]
) -> tuple[str, str, str] | None:
    """The split and the patterns of both folders, without the subfolders that both have.

    None if their splits differ.
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


def _above_all(tree: Tree, evidence: dict[Key, Evidence]) -> dict[Key, Evidence]:
    """Joins folders that each hold images and masks, if a folder above holds nothing else."""
    alike: dict[tuple[str, str], list[Key]] = defaultdict(list)
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
        whole = Evidence({""})
        for key in keys:
            own = joined.pop(key)
            whole.matched += own.matched
            whole.expected += own.expected
            whole.all_masks += own.all_masks
            whole.files += own.files
        joined[keys[0]._replace(images=str(above), masks=str(above))] = whole
    return joined
