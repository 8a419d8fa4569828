"""Splits that are not folders: by a list of names, or by a share drawn once and for all."""

import hashlib
import re
from pathlib import Path

import datasets

from finetune.data.faults import Faults, each, listed
from finetune.errors import UserError


def by_list(data: datasets.Dataset, file: Path, faults: Faults = None) -> datasets.Dataset:
    """The samples that a text file names, an id a line; a file type at its end does not matter.

    Args:
        data: The whole set.
        file: The list.
        faults: Takes names that are not there, which are otherwise an error.

    Raises:
        UserError: The file cannot be read, is empty, or names a sample that is not there.
    """
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"data.split_list: {file} cannot be read ({error}).") from error
    places: dict[str, int] = {}
    for index, name in enumerate(data.with_format(None)["id"][:]):
        places[name] = index
    wanted: list[int] = []
    missing: list[str] = []
    for line in dict.fromkeys(line.strip() for line in lines if line.strip()):
        stem = re.sub(r"\.[A-Za-z]{2,5}$", "", line)
        place = places.get(line, places.get(stem))
        if place is None:
            missing.append(line)
        else:
            wanted.append(place)
    if missing:
        if faults is None:
            raise UserError(
                f"data.split_list: {file} names samples that are not there: {listed(missing)}."
            )
        faults += each("listed-but-missing", missing, f"named in {file}")
    if not wanted:
        raise UserError(f"data.split_list: {file} names no samples.")
    return data.select(sorted(set(wanted)))


def by_fraction(
    data: datasets.Dataset, fraction: float, *, seed: int, group: str | None
) -> tuple[datasets.Dataset, datasets.Dataset]:
    """Cuts a set in two; where a sample goes depends on the seed and on its own name alone.

    So a set that grows keeps its split (but for the few at the border), on any machine.

    Args:
        data: The whole set.
        fraction: Share of the second part, of samples.
        seed: Another cut for each.
        group: Regular expression; samples in whose ids it finds the same text (of its groups, if it
            has any) stay together, such as the frames of a video.

    Returns:
        The rest, and `fraction` of it: at least one group each.

    Raises:
        UserError: The expression is not one, finds nothing in an id, or puts all into one group.
    """
    members: dict[str, list[int]] = {}
    for index, name in enumerate(data.with_format(None)["id"][:]):
        members.setdefault(_group_of(name, group), []).append(index)
    if len(members) < 2:
        why = (
            f"data.split_group={group!r} puts them all into one group"
            if group
            else "there is only one"
        )
        raise UserError(f"data.val_fraction: the samples cannot be split, {why}.")

    def place(key: str) -> bytes:
        return hashlib.sha256(f"{seed}/{key}".encode()).digest()

    ordered = sorted(members, key=place)
    chosen: list[int] = []
    for key in ordered[:-1]:
        # The group that comes nearest to the share is the last one.
        missing = fraction * len(data) - len(chosen)
        if chosen and missing < len(members[key]) / 2:
            break
        chosen += members[key]
    rest = sorted(set(range(len(data))) - set(chosen))
    return data.select(rest), data.select(sorted(chosen))


def _group_of(name: str, pattern: str | None) -> str:
    if pattern is None:
        return name
    try:
        found = re.search(pattern, name)
    except re.error as error:
        raise UserError(
            f"data.split_group: {pattern!r} is no regular expression ({error})."
        ) from error
    if found is None:
        raise UserError(f"data.split_group: {pattern!r} finds nothing in {name!r}.")
    return "\0".join(part or "" for part in found.groups()) or found.group()
