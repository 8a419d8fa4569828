"""Splits without folders of their own: by a list of names, or by a share drawn once."""

import hashlib
import re
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from itertools import takewhile
from pathlib import Path, PurePosixPath

import datasets

from finetune.data.faults import Faults, each, listed
from finetune.data.text import read_text
from finetune.errors import UserError
from finetune.pictures.references import COLOR_MASK_SUFFIXES


class ListedNames:
    """Finds samples by the lines of lists: ids, file names or paths, and columns after them.

    A line may be an id, `image mask` (as in PaddleSeg), or a name with numbers after it (as in
    Oxford-IIIT Pet and VOC). Paths may begin in another folder than here.
    """

    def __init__(self, ids: Sequence[str], images: Sequence[str], masks: Sequence[str]) -> None:
        self._ids = {_plain(name): place for place, name in enumerate(ids)}
        self._lengths = [len(PurePosixPath(name).parts) for name in ids]
        self._images = [PurePosixPath(_plain(path)).with_suffix("").parts for path in images]
        self._masks = masks
        self._by_name: dict[str, list[int]] = defaultdict(list)
        for place, parts in enumerate(self._images):
            self._by_name[parts[-1]].append(place)

    def place(self, line: str) -> int | None:
        """The sample's index, None if there is none.

        Raises:
            UserError: The line names another mask than the sample's.
        """
        for name, mask in _columns(_plain(line)):
            for plain in (name, _SUFFIX.sub("", name)):
                place = self._ids.get(plain, self._by_path(plain))
                if place is not None:
                    self._check_mask(place, mask)
                    return place
        return None

    def _by_path(self, name: str) -> int | None:
        """The one image whose path ends as this one does, from the folder of the images on."""
        parts = [part for part in PurePosixPath(name).parts if part not in ("/", ".", "..")]
        found = []
        for place in self._by_name.get(parts[-1], ()) if parts else ():
            own = self._images[place]
            both = zip(reversed(own), reversed(parts), strict=False)
            common = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], both))
            if common == len(parts) or common > self._lengths[place]:
                found.append(place)
        return found[0] if len(found) == 1 else None

    def _check_mask(self, place: int, mask: str) -> None:
        own = PurePosixPath(_plain(self._masks[place]))
        is_file = own.suffix.lower() in COLOR_MASK_SUFFIXES and _SUFFIX.search(mask)
        if is_file and PurePosixPath(mask).stem != own.stem:
            raise UserError(
                f"data.split_list: a list names the mask {mask}, but names pair its image with "
                f"{own}. Rename the masks, or correct the list."
            )


_SUFFIX = re.compile(
    "(?:" + "|".join(map(re.escape, COLOR_MASK_SUFFIXES)) + ")$", flags=re.IGNORECASE
)
_TWO_FILES = re.compile(rf"(.+?{_SUFFIX.pattern[:-1]})\s+(\S.*)", flags=re.IGNORECASE)


def _plain(name: str) -> str:
    """A name in one Unicode form, with slashes."""
    return unicodedata.normalize("NFC", name.strip()).replace("\\", "/")


def _columns(line: str) -> Iterator[tuple[str, str]]:
    """The readings of a line: the name of an image, and what may be that of its mask."""
    yield line, ""
    for separator in "\t,;":
        first, found, rest = line.partition(separator)
        if found:
            yield first.strip(), rest.split(separator)[0].strip()
    if found_files := _TWO_FILES.fullmatch(line):
        yield found_files[1], found_files[2]
    first, *others = line.split() or [""]
    if others and all(re.fullmatch(r"[-+]?\d+", other) for other in others):
        yield first, ""


def lines_of(file: Path) -> list[str]:
    """The lines of a list, without empty ones and comments.

    Raises:
        UserError: The file cannot be read.
    """
    try:
        lines = read_text(file).splitlines()
    except UserError as error:
        raise UserError(f"data.split_list: {error}") from error
    return [line.strip() for line in lines if line.strip() and not line.startswith("#")]


def by_list(
    data: datasets.Dataset,
    file: Path,
    faults: Faults = None,
    left_out: Callable[[str], bool] = lambda name: False,
) -> datasets.Dataset:
    """The samples that a text file names, one per line; `ListedNames` has the forms of lines.

    `faults` takes names without a sample; with None they are an error, but for those that are
    `left_out`.

    Raises:
        UserError: The file cannot be read, is empty, or names a missing sample or another mask.
    """
    rows = data.with_format(None)
    names = ListedNames(rows["id"][:], rows["image"][:], rows["mask"][:])
    found = {line: names.place(line) for line in lines_of(file)}
    if missing := [x for x, place in found.items() if place is None and not left_out(x)]:
        if faults is None:
            raise UserError(
                f"data.split_list: {file} names samples that do not exist, or lack an image or a "
                f"mask: {listed(missing)}. Correct the list."
            )
        faults += each("listed-but-missing", missing, f"named in {file}")
    if all(place is None for place in found.values()):
        raise UserError(f"data.split_list: {file} names no samples. Write one id per line.")
    return data.select(sorted({place for place in found.values() if place is not None}))


def by_fraction(
    data: datasets.Dataset, fraction: float, *, seed: int, group: str | None
) -> tuple[datasets.Dataset, datasets.Dataset]:
    """Cuts a data set in two. The part of a sample depends on the seed and its own name alone.

    So a growing data set keeps its split, except for a few samples at the border, on any machine.

    Args:
        data: The whole set.
        fraction: Share of samples in the second part.
        seed: Another seed gives another cut.
        group: Regular expression, such as one that finds a video's name. Samples stay together if
            it finds the same text in their ids (the text of its groups, if it has any).

    Returns:
        The first part, and the second with the `fraction`; each has one group or more.

    Raises:
        UserError: The expression is invalid, finds nothing in an id, or puts all into one group.
    """
    chosen: list[int] = []
    for members in _drawn_groups(data, seed, group, "val_fraction")[:-1]:
        # Stop at the group that comes nearest to the share.
        missing = fraction * len(data) - len(chosen)
        if chosen and missing < len(members) / 2:
            break
        chosen += members
    return _parts(data, chosen)


def by_fold(
    data: datasets.Dataset, fold: int, folds: int, *, seed: int, group: str | None
) -> tuple[datasets.Dataset, datasets.Dataset]:
    """Cuts a data set in two, where the second part is one of `folds` that cover the whole set.

    Args:
        data: The whole set.
        fold: Number of the fold, from 0.
        folds: Number of folds of nearly equal size, 2 or more.
        seed: As in `by_fraction`.
        group: As in `by_fraction`.

    Returns:
        The other folds, and the fold.

    Raises:
        UserError: As in `by_fraction`; or any of the folds is empty: too few groups.
    """
    groups = _drawn_groups(data, seed, group, "folds")
    parts: list[list[int]] = [[] for _ in range(folds)]
    before = 0
    for members in groups:  # each belongs to the fold in which its middle lies
        parts[int((before + len(members) / 2) * folds / len(data))] += members
        before += len(members)
    if [] in parts:  # before the first fold is trained, and not after hours
        raise UserError(
            f"data.folds: fold {parts.index([])} of {folds} has no samples: there are "
            f"{len(groups)} groups of samples, of unequal sizes. Take fewer folds."
        )
    return _parts(data, parts[fold])


def _drawn_groups(
    data: datasets.Dataset, seed: int, group: str | None, key: str
) -> list[list[int]]:
    """The indices of each group, in random order; `key` of the recipe asked for them."""
    members: dict[str, list[int]] = {}
    for index, name in enumerate(data.with_format(None)["id"][:]):
        members.setdefault(_group_of(name, group), []).append(index)
    if len(members) < 2:
        why = (
            f"data.split_group={group!r} puts all into one group"
            if group
            else "there is only one, so add others"
        )
        raise UserError(f"data.{key}: the samples cannot be split: {why}.")
    ordered = sorted(members, key=lambda name: hashlib.sha256(f"{seed}/{name}".encode()).digest())
    return [members[name] for name in ordered]


def _parts(
    data: datasets.Dataset, chosen: Sequence[int]
) -> tuple[datasets.Dataset, datasets.Dataset]:
    rest = sorted(set(range(len(data))) - set(chosen))
    return data.select(rest), data.select(sorted(chosen))


def _group_of(name: str, pattern: str | None) -> str:
    if pattern is None:
        return name
    try:
        found = re.search(pattern, name)
    except re.error as error:
        raise UserError(
            f"data.split_group: {pattern!r} is not a regular expression ({error})."
        ) from error
    if found is None:
        raise UserError(
            f"data.split_group: {pattern!r} finds nothing in the id {name!r}. Correct the pattern."
        )
    return "\0".join(part or "" for part in found.groups()) or found.group()
