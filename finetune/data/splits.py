"""Splits without folders of their own: by a list of names, or by a share drawn once."""

import hashlib
import re
from pathlib import Path

import datasets

from finetune.data.faults import Faults, each, listed
from finetune.errors import UserError


def by_list(data: datasets.Dataset, file: Path, faults: Faults = None) -> datasets.Dataset:
    """The samples that a text file names, one id per line, with or without a file type.

    `faults` takes names without a sample; with None they are an error.

    Raises:
        UserError: The file cannot be read, is empty, or names a missing sample.
    """
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"data.split_list: {file} cannot be read ({error}).") from error
    places = {name: index for index, name in enumerate(data.with_format(None)["id"][:])}
    found = {
        line: places.get(line, places.get(re.sub(r"\.[A-Za-z]{2,5}$", "", line)))
        for line in map(str.strip, lines)
        if line
    }
    if missing := [line for line, place in found.items() if place is None]:
        if faults is None:
            raise UserError(
                f"data.split_list: {file} names samples that do not exist: {listed(missing)}. "
                "Correct the list."
            )
        faults += each("listed-but-missing", missing, f"named in {file}")
    if len(missing) == len(found):
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
    members: dict[str, list[int]] = {}
    for index, name in enumerate(data.with_format(None)["id"][:]):
        members.setdefault(_group_of(name, group), []).append(index)
    if len(members) < 2:
        why = (
            f"data.split_group={group!r} puts all into one group" if group else "there is only one"
        )
        raise UserError(f"data.val_fraction: the samples cannot be split: {why}.")
    ordered = sorted(members, key=lambda key: hashlib.sha256(f"{seed}/{key}".encode()).digest())
    chosen: list[int] = []
    for key in ordered[:-1]:
        # Stop at the group that comes nearest to the share.
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
            f"data.split_group: {pattern!r} is not a regular expression ({error})."
        ) from error
    if found is None:
        raise UserError(
            f"data.split_group: {pattern!r} finds nothing in the id {name!r}. Correct the pattern."
        )
    return "\0".join(part or "" for part in found.groups()) or found.group()
