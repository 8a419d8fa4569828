"""The `labels:` block of a recipe from the values of masks.

It is one file, because every kind of value ends in the same keys, by the same lists and doubts.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from finetune.discover.labels.guesses import (
    MOSTLY,
    LabelGuess,
    check_background,
    doubts,
    listing,
    unused,
)
from finetune.discover.values.class_lists import ClassList, is_background
from finetune.discover.values.damage import Damage, Levels, find_damage, settled
from finetune.discover.values.mask_values import MAX_COLORS, MaskValues
from finetune.errors import UserError
from finetune.labels.colors import distances, pack, unpack
from finetune.labels.rules import NO_LABEL
from finetune.labels.translation import Labels

RARE = 1e-4
"""Share of pixels below which a colour is damage: one of thousands, or one that a list of classes
lacks."""
DAMAGED = 1e-2
"""Share of pixels that a damaged colour may have at most, among thousands of colours."""
TOLERANCE = 24
_DEEP = 4096
"""From here on, ids are levels of 16 bit, of which 65535 may be one."""


def guess_labels(
    values: MaskValues, listed: ClassList | None, *, two_values: bool = False
) -> LabelGuess:
    """A `labels:` block that covers every value that was seen.

    Args:
        values: The values of the masks.
        listed: A list of classes beside the masks, if there is one.
        two_values: Read masks as two classes if they may be so, but damage hides their values.

    Raises:
        UserError: There are fewer than two classes, too many colours, or the list and the masks
            contradict each other.
    """
    if listed is not None and values.kind == "ids":
        listed = listed.of_ids(set(values.counts) - set(NO_LABEL), values.palette)
    if values.either and not _lists_all(values, listed):
        one, other = values.either
        raise UserError(
            f"{one} holds 0 and 1, {other} holds 0 and 255, and no mask holds all three: 1 and 255 "
            "may mean the same, or 255 no label. Save all masks alike, or start from "
            "recipes/folder.yaml with labels.map: {0: background, 1: thing, 255: thing} or "
            "labels.ignore: [255]."
        )
    seen = None if values.bits or _lists_all(values, listed) else values.levels
    if seen is not None and (damage := find_damage(seen)) is not None:
        guess = _of_damaged(values, seen, damage, listed, two_values)
    elif values.kind == "colors":
        guess = _of_colors(values, listed)
    else:
        found = f"masks hold ids: {listing(sorted(values.counts))} ({values.num_masks} looked at)"
        guess = _of_ids(values, listed, found)
    unread = () if listed is None else listed.unread
    passed = [f"not read as a list of classes: {message}" for message in unread]
    return replace(
        guess,
        assumed=(*values.assumed, *passed, *guess.assumed),
        listed=listed,
        doubts=(*guess.doubts, *doubts(values, Labels.build(**guess.labels))),
    )


def _lists_all(values: MaskValues, listed: ClassList | None) -> bool:
    """Whether a list says what every value means, so that none is damage."""
    if listed is None or listed.colors is not None or values.kind != "ids":
        return False
    raw = range(len(listed.names)) if listed.values is None else listed.values
    return set(values.counts) - set(NO_LABEL) <= {*raw}


def _of_damaged(
    values: MaskValues, levels: Levels, damage: Damage, listed: ClassList | None, two_values: bool
) -> LabelGuess:
    """The painted values are classes, and every other level counts as the nearest one.

    Raises:
        UserError: The painted values cannot be told.
    """
    found = [damage.described]
    if values.num_of_one_bit and values.kind == "ids":
        raise UserError(
            f"the {found[0]}, and {values.num_of_one_bit} masks of one bit, whose 1 would be "
            "one of these levels. Save all masks in one kind."
        )
    damage, doubt = settled(levels, damage, two_values)
    painted = list(damage.values)
    shown = listing(painted)
    names, reasons = [f"class_{value}" for value in painted], unused(values, listed)
    if len(painted) == 2:
        names = ["background", "thing"]
    if listed is not None and listed.colors is None:
        own = list(listed.names)
        if listed.values is not None and set(listed.values) >= {*painted}:
            own = [listed.names[listed.values.index(value)] for value in painted]
        elif len(own) == len(painted) - 1 and not any(map(is_background, own)):
            own = ["background", *own]
        if len(own) == len(painted):
            if listed.values is None:
                check_background(values, listed, own, (painted[0],))
            names, reasons = own, []
            found.append(f"names of classes in {listed.file.name}")
    named = names != ["background", "thing"] and not reasons and listed is not None
    as_colors = values.kind == "colors" or values.grey_palette
    key = "#{0:02X}{0:02X}{0:02X}".format if as_colors else int
    labels = {
        **({"kind": "colors"} if as_colors else {}),
        "names": names,
        "map": {key(value): i for i, value in enumerate(painted)},
        "ignore": [],
        "tolerance": damage.tolerance,
    }
    pairs = ", ".join(f"{value} is {name}" for value, name in zip(painted, names, strict=True))
    assumed = [
        *reasons,
        f"painted values are {shown}, and a pixel between them is of the nearest class's "
        f"(labels.tolerance): {pairs}" + ("" if named else " (rename them in labels.names)"),
    ]
    return LabelGuess(labels, tuple(found), tuple(assumed), known=named, doubts=doubt)


def _of_ids(values: MaskValues, listed: ClassList | None, found: str) -> LabelGuess:
    seen = sorted(values.counts)
    if listed is not None and listed.colors is None:
        guess = _by_list(values, listed, found)
        if guess is not None:
            return guess
    two_values = len(seen) == 2 and seen[0] == 0 and seen[1] in (1, *NO_LABEL)
    if two_values or values.bits:
        return _of_two_values(values, listed, found)
    return _unnamed(values, listed, found)


def _by_list(values: MaskValues, listed: ClassList, found: str) -> LabelGuess | None:
    """Names from a list; None if the masks hold values that it lacks."""
    seen, counted = set(values.counts), set(values.counts) - set(NO_LABEL)
    names, raw = list(listed.names), listed.values
    if raw is None:
        first = 0
        if len(names) in counted and not any(map(is_background, names)):
            # Counted from 0, this value is beyond the last name: the list counts from 1.
            names, first = (["background", *names], 0) if 0 in counted else (names, 1)
        raw = tuple(range(first, first + len(names)))
    slips = {value for value in counted - set(raw) if values.counts[value] < RARE * values.total}
    seen, counted = seen - slips, counted - slips
    # 0 and 255 alone are two classes; neither means "no label".
    fits = seen <= set(raw) or (counted <= set(raw) and counted > {0})
    if not fits or values.bits or len(names) < 2:
        return None
    assumed: list[str] = []
    labels: dict[str, Any] = {"names": names}
    lines = [found, f"names of classes in {listed.file.name}"]
    if listed.values is None:
        check_background(values, listed, names, raw)
        added = "" if names == list(listed.names) else ", whose first class is 1"
        order = ", ".join(f"{v} is {name}" for v, name in list(zip(raw, names, strict=True))[:3])
        more = ", ..." if len(names) > 3 else ""
        assumed.append(f"ids follow the order of {listed.file.name}{added}: {order}{more}")
    assumed += [f"{name} in {listed.file.name} is not a class" for name in listed.dropped]
    if raw != tuple(range(len(raw))):
        labels["map"] = {value: i for i, value in enumerate(raw)}
    if ignored := sorted(seen & set(NO_LABEL) - set(raw)):
        labels["ignore"] = ignored
        assumed.append(f"{ignored[0]} is not a class and is ignored")
    elif 255 in raw:
        labels["ignore"] = []
    if slips:
        labels["ignore"] = [*labels.get("ignore", [255]), *sorted(slips)]
        pixels = sum(values.counts[value] for value in slips)
        assumed.append(
            f"{listing(sorted(slips))}, {pixels} pixels in all, not in {listed.file.name}, is a "
            "slip and is ignored (`finetune doctor FOLDER` names the masks)"
        )
    return LabelGuess(labels, tuple(lines), tuple(assumed), known=not slips)


def _of_two_values(values: MaskValues, listed: ClassList | None, found: str) -> LabelGuess:
    """0 is the background, and 1, 255 or 65535 the thing."""
    seen = sorted(values.counts)
    names, lines, assumed = ["background", "thing"], [found], unused(values, listed)
    if listed is not None and listed.values is None and listed.colors is None:
        own = list(listed.names)
        if len(own) == 1 and not is_background(own[0]):
            own = ["background", *own]
        if len(own) == 2:
            check_background(values, listed, own, (0, 1))
            names, assumed = own, []
            lines.append(f"names of classes in {listed.file.name}")
    named = names != ["background", "thing"]
    rename = "" if named else " (rename them in labels.names)"
    things = " and ".join(str(value) for value in seen[1:])
    assumed.append(f"0 is {names[0]}, {things} {names[1]}{rename}")
    labels: dict[str, Any] = {"names": names}
    if seen == [0, 1]:
        labels["ignore"] = [255]
    else:
        labels |= {"map": {value: int(value > 0) for value in seen}, "ignore": []}
    if values.bits:
        assumed.append("1 in masks of one bit means the same as 255 in the others")
    return LabelGuess(labels, tuple(lines), tuple(assumed), known=named)


def _unnamed(values: MaskValues, listed: ClassList | None, found: str) -> LabelGuess:
    """Each id is a class, except those that often mean "no label"."""
    seen, lines = sorted(values.counts), [found]
    ignored = [value for value in seen if value in NO_LABEL]
    classes = [value for value in seen if value not in ignored]
    sparse = bool(classes) and classes[-1] >= 2 * len(classes) + 8
    assumed = []
    top = seen[-1]
    if top >= _DEEP and len(seen) > 16:
        common = sum(count for _, count in values.counts.most_common(2))
        if common > MOSTLY * values.total:
            raise UserError(
                f"the {found}: {len(seen) - 2} levels of 16 bit beside the two commonest, as after "
                "smooth resizing. Resize the masks again with nearest neighbour, or, if they are "
                "classes, start from recipes/folder.yaml with labels.names and labels.map."
            )
    if sparse and ignored == [top] and (top == 255 or classes[-1] >= _DEEP):
        ignored, classes = [], seen
        assumed.append(
            f"{top} is a class, because ids lie far apart (if it means 'no label', move it from "
            "labels.map to labels.ignore)"
        )
    if len(classes) < 2:
        raise UserError(
            f"the {found}: fewer than two classes. Start from recipes/folder.yaml and set "
            "labels.names and labels.map."
        )
    if ignored:
        assumed.append(f"{ignored[0]} is not a class and is ignored")
    labels: dict[str, Any] = {"ignore": ignored if ignored or top in NO_LABEL else [255]}
    highest = classes[-1]
    if not sparse:  # masks that were not looked at may hold the values between
        classes = list(range(classes[0], highest + 1))
    if classes[0] or sparse:
        labels["map"] = {value: i for i, value in enumerate(classes)}
    labels["names"] = [f"class_{value}" for value in classes]
    reasons = unused(values, listed) or ["no list of them was found"]
    assumed.append(f"names of classes are made up: {reasons[0]} (labels.names)")
    if classes[0] == 0 and not ignored:
        assumed.append("0 is a class (if it means 'no label', put it into labels.ignore)")
    if values.palette and highest < len(values.palette):
        labels["colors"] = [list(values.palette[value]) for value in classes]
        lines.append("colours of classes in the masks' palette")
    return LabelGuess(labels, tuple(lines), tuple(assumed), known=False)


# ------------------------------------------------------------------------------------------ colours


def _of_colors(values: MaskValues, listed: ClassList | None) -> LabelGuess:
    if listed is not None and listed.colors is not None:
        return _by_colors_of(values, listed)
    if all(value >> 16 == value & 255 == value >> 8 & 255 for value in values.counts):
        return _of_grey(values, listed)
    total = sum(values.counts.values())
    found = [f"masks hold {len(values.counts)} colours ({values.num_masks} looked at)"]
    reach = TOLERANCE
    if values.painted is not None:
        table = list(values.painted)
        reach = 255 if len(table) == 2 else TOLERANCE  # between two colours, the nearer one
        assumed = ["each colour inside of regions is a class; names are made up (labels.names)"]
    elif len(values.counts) <= MAX_COLORS:  # damage makes more: each colour is a class
        table = sorted(values.counts)
        assumed = ["each colour is a class; names are made up (labels.names)"]
    else:
        frequent = [v for v, count in values.counts.most_common() if count >= RARE * total]
        table = sorted(_apart(frequent))
        assumed = ["each frequent colour is a class; names are made up (labels.names)"]
    if not 2 <= len(table) <= MAX_COLORS:
        raise UserError(
            f"the masks hold {len(values.counts)} colours, {len(table)} of them frequent and "
            "apart from each other: these cannot be classes. Check that the files are masks."
        )
    if listed is not None:
        assumed.append(
            f"{listed.file.name} lists {len(listed.names)} names without colours, so the "
            f"{len(table)} colours of the masks remain unnamed"
        )
    labels: dict[str, Any] = {"kind": "colors"}
    labels |= _strangers(values.counts, table, reach, found, assumed)
    labels["names"] = [f"color_{value:06X}" for value in table]
    labels["colors"] = [list(unpack(value)) for value in table]
    return LabelGuess(labels, tuple(found), tuple(assumed), known=False)


def _of_grey(values: MaskValues, listed: ClassList | None) -> LabelGuess:
    """Ids in files with three equal channels, or transparency: id v is the colour (v, v, v)."""
    levels = Counter({value & 255: count for value, count in values.counts.items()})
    if len(levels) > 16 and levels[0] + levels[255] > MOSTLY * sum(levels.values()):
        raise UserError(
            f"the masks hold black, white and {len(levels) - 2} greys between them, as after "
            "smooth resizing. Resize them again with nearest neighbour."
        )
    ids = MaskValues("ids", levels, None, values.num_masks)
    shown = listing(sorted(levels))
    found = f"masks hold colours that are all grey: {shown} ({values.num_masks} looked at)"
    guess = _of_ids(ids, listed, found)
    labels = dict(guess.labels)
    raw = labels.pop("map", None) or {value: value for value in range(len(labels["names"]))}
    labels["map"] = {"#" + 3 * f"{value:02X}": i for value, i in raw.items()}
    ignored = [value for value in labels.get("ignore", []) if value <= 255]
    labels["ignore"] = ["#" + 3 * f"{value:02X}" for value in ignored]
    assumed = (*guess.assumed, "the grey level of a pixel is its class id")
    return LabelGuess({"kind": "colors", **labels}, guess.found, assumed, guess.known)


def _by_colors_of(values: MaskValues, listed: ClassList) -> LabelGuess:
    """Classes and colours from a list, which must have every undamaged colour."""
    assert listed.colors is not None
    table = [pack(color) for color in listed.colors]
    found = [f"masks hold {len(values.counts)} colours ({values.num_masks} looked at)"]
    found.append(f"classes and colours in {listed.file.name}")
    assumed: list[str] = []
    total = sum(values.counts.values())
    many = len(values.counts) > MAX_COLORS
    undeclared = {
        value: count / total
        for value, count in values.counts.most_common()
        if value not in set(table)
        and count >= (DAMAGED if many else RARE) * total
        and not (many and _distance(value, table) <= TOLERANCE // 3)
    }
    labels: dict[str, Any] = {"kind": "colors"}
    names, rest = list(listed.names), Counter(values.counts)
    is_black = 0 in undeclared and _distance(0, table) > TOLERANCE
    is_rest = listed.is_partial or undeclared.get(0, 0) > 0.5  # most pixels have a class
    if is_black and is_rest and not any(map(is_background, names)):
        names, table = [*names, "background"], [*table, 0]
        share = undeclared.pop(0)
        assumed.append(
            f"black, {share:.2%} of pixels, is a new class, background: {listed.file.name} lists "
            "the classes that were painted"
        )
    elif is_black:
        labels["ignore"] = ["#000000"]
        del rest[0]
        assumed.append(
            f"black, {undeclared.pop(0):.2%} of pixels, is not a class and is ignored: it is not "
            f"in {listed.file.name}"
        )
    for value, share in undeclared.items():
        raise UserError(
            f"{listed.file}: has no class with the colour #{value:06X} "
            f"({', '.join(map(str, unpack(value)))}), which {share:.2%} of the masks' pixels hold. "
            "Add it to the file, or correct a colour there."
        )
    labels |= _strangers(rest, table, TOLERANCE if many else 0, found, assumed)
    labels["names"] = names
    labels["colors"] = [list(unpack(value)) for value in table]
    return LabelGuess(labels, tuple(found), tuple(assumed))


def _strangers(
    counts: Counter[int], table: Sequence[int], reach: int, found: list[str], assumed: list[str]
) -> dict[str, Any]:
    """Keys for colours of no class: those near a class's colour are its, others are ignored."""
    distances = {v: _distance(v, table) for v in counts.keys() - set(table)}
    if not distances:
        return {}
    labels: dict[str, Any] = {}
    share = sum(counts[v] for v in distances) / sum(counts.values())
    found.append(f"{len(distances)} colours of no class, {share:.2%} of pixels")
    far = [v for v, distance in distances.items() if distance > reach]
    tolerance = max((d for d in distances.values() if d <= reach), default=0)
    if tolerance:
        labels["tolerance"] = tolerance
        assumed.append(f"colours up to {tolerance} per channel off count as the nearest class's")
    if far:
        labels["unknown"] = "ignore"
        shown = listing([f"#{v:06X}" for v in sorted(far, key=lambda v: -counts[v])])
        assumed.append(f"{len(far)} colours are far from every class's and are ignored: {shown}")
    return labels


def _distance(value: int, table: Sequence[int]) -> int:
    """To the nearest colour of the table, in the channel that differs most."""
    return int(distances(np.array([value]), np.array(table, int)).min(initial=255))


def _apart(frequent: Sequence[int]) -> list[int]:
    """The colours that are not within reach of a more frequent one."""
    table: list[int] = []
    for value in frequent:
        if _distance(value, table) > TOLERANCE or len(frequent) <= 64:
            table.append(value)
        if len(table) > MAX_COLORS:
            break
    return table
