"""A `labels:` block becomes rules: which raw mask value means which class, or is ignored.

Every contradiction in the block is a `UserError` that names the field.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np

from finetune.errors import UserError
from finetune.labels.colors import RGB, pack

Kind = Literal["ids", "colors"]
"""What masks hold; colours count as numbers 0xRRGGBB."""

MAX_CLASSES = 65535
"""Class ids beyond 255 are held in uint16, whose last value is the ignore id."""

NO_OBJECT = -1
"""Raw value of pixels that no object covers, in forms that mark objects (`finetune.data.masks`)."""
UNCOUNTED = -2
"""Raw value of pixels that an annotation itself leaves out; always ignored."""
NO_LABEL = (255, 65535)
"""Ids that masks commonly use for pixels without a label. A guess, never a rule."""


def is_outside(name: str) -> bool:
    """Whether a class is that of pixels outside of every object: background, or _background_."""
    return name.strip("_").lower() == "background"


def ignore_index(num_labels: int) -> int:
    """The id of pixels without a label: 255, or 65535 for more than 255 classes."""
    return 255 if num_labels <= 255 else 65535


def build_rules(
    names: tuple[str, ...],
    palette: tuple[RGB, ...] | None,
    *,
    kind: Kind,
    ignore: Sequence[int | str] | None,
    map: Mapping[int | str, int | str | None] | None,
    reduce_zero: bool,
    background: str | None,
) -> dict[int, int]:
    """Raw value -> class id, or `ignore_index`. The arguments are those of `Labels.build`.

    Raises:
        UserError: The block contradicts itself; the message names the field.
    """
    ignored = ignore_index(len(names))
    raw_map = None if map is None else _raw_map(map, kind, names)
    if kind == "colors":
        rules = _color_rules(names, palette, raw_map, reduce_zero, ignored)
    else:
        rules = _id_rules(names, raw_map, reduce_zero, ignored)
    if ignore is None:
        ignore = () if kind == "colors" else (255,)
    for raw in ignore:
        class_id = rules.setdefault(_raw(raw, kind, "labels.ignore"), ignored)
        if class_id != ignored:
            raise UserError(
                f"labels.ignore: raw value {raw} is ignored, but it also means class {class_id} "
                f"({names[class_id]!r}). Take {raw} out of labels.ignore (an empty list ignores "
                "nothing), or give that class another raw value in labels.map."
            )
    if background is not None:
        if background not in names:
            raise UserError(f"labels.background: {background!r} is not one of labels.names.")
        if rules.setdefault(NO_OBJECT, names.index(background)) != names.index(background):
            raise UserError("labels.background: labels.map or labels.ignore has -1 already.")
    rules.setdefault(UNCOUNTED, ignored)
    return rules


def _id_rules(
    names: tuple[str, ...], map: Mapping[int, int | None] | None, reduce_zero: bool, ignored: int
) -> dict[int, int]:
    if map is None and reduce_zero:
        return {0: ignored} | {i + 1: i for i in range(len(names))}
    if map is None:
        return {i: i for i in range(len(names))}
    if reduce_zero:
        raise UserError(
            "labels.reduce_zero and labels.map both say what raw values mean. Keep labels.map and "
            "set labels.reduce_zero to false ({0: null, 1: 0, 2: 1, ...} means the same)."
        )
    return {raw: ignored if c is None else c for raw, c in map.items()}


def _color_rules(
    names: tuple[str, ...],
    palette: tuple[RGB, ...] | None,
    map: Mapping[int, int | None] | None,
    reduce_zero: bool,
    ignored: int,
) -> dict[int, int]:
    if reduce_zero:
        raise UserError(
            "labels.reduce_zero: applies to ids only, but labels.kind is colors. Set it to false."
        )
    if palette is None and not map:
        raise UserError(
            "labels.colors: missing. With labels.kind=colors each class needs the colour that it "
            "has in masks, in labels.colors or in labels.map."
        )
    rules: dict[int, int] = {}
    for i, color in enumerate(palette or ()):
        if (first := rules.setdefault(pack(color), i)) != i:
            raise UserError(
                f"labels.colors: {names[first]!r} and {names[i]!r} have the same colour, "
                f"#{pack(color):06X}. With labels.kind=colors each class needs its own."
            )
    for raw, class_id in (map or {}).items():
        added = ignored if class_id is None else class_id
        if (first := rules.setdefault(raw, added)) != added:
            means = "ignores it" if class_id is None else f"makes it {names[class_id]!r}"
            raise UserError(
                f"labels.map: #{raw:06X} is the colour of {names[first]!r} in labels.colors, but "
                f"labels.map {means}. Take it out of one of them."
            )
    return rules


def _raw_map(
    map: Mapping[int | str, int | str | None], kind: Kind, names: tuple[str, ...]
) -> dict[int, int | None]:
    """labels.map in numbers. "#0A0000" and "#0a0000" are the same colour."""
    numbers: dict[int, int | None] = {}
    for raw, value in map.items():
        number, class_id = _raw(raw, kind, "labels.map"), _class_id(value, raw, names)
        if numbers.setdefault(number, class_id) != class_id:
            raise UserError(f"labels.map: {raw!r} is listed twice, with two classes. Take one out.")
    return numbers


def _raw(value: int | str, kind: Kind, where: str) -> int:
    if kind == "ids":
        if not _is_whole(value):
            raise UserError(
                f"{where}: {value!r} is not a whole number. (Colours need labels.kind=colors.)"
            )
        return int(value)
    digits = value.removeprefix("#") if isinstance(value, str) else ""
    if len(digits) != 6 or not set(digits.lower()) <= set("0123456789abcdef"):
        raise UserError(f'{where}: {value!r} is not a colour; write "#RRGGBB", in quotes.')
    return int(digits, 16)


def _class_id(value: int | str | None, raw: int | str, names: tuple[str, ...]) -> int | None:
    """A class of labels.map, given as id, name or null."""
    if isinstance(value, str):
        if value not in names:
            raise UserError(
                f"labels.map: raw value {raw} is mapped to {value!r}, which is not one of "
                "labels.names. Use null to ignore a value."
            )
        return names.index(value)
    if value is not None and not (_is_whole(value) and 0 <= value < len(names)):
        raise UserError(
            f"labels.map: raw value {raw} is mapped to class {value}, but labels.names has "
            f"{len(names)} classes (0 to {len(names) - 1}). Use null to ignore a value."
        )
    return value


def check_names(names: Sequence[str]) -> tuple[str, ...]:
    """labels.names without spaces around them: two or more, none empty, none twice."""
    found = tuple(str(name).strip() for name in names)
    if not 2 <= len(found) <= MAX_CLASSES:
        raise UserError(
            f"labels.names: {len(found)} given, but 2 to {MAX_CLASSES} are needed. Two-class data "
            f"has two labels (background, thing)."
        )
    for i, name in enumerate(found):
        if not name:
            raise UserError(f"labels.names: the name of class {i} is empty.")
        if (first := found.index(name)) != i:
            raise UserError(
                f"labels.names: {name!r} names class {first} and class {i}. Names must be unique; "
                f"to merge two raw values into one class, map both to it in labels.map."
            )
    return found


def check_colors(colors: Sequence[Sequence[int]], num_labels: int) -> tuple[RGB, ...]:
    """labels.colors: three bytes per class."""
    if len(colors) != num_labels:
        raise UserError(
            f"labels.colors: {len(colors)} colours for {num_labels} classes. Give one per class, "
            f"or leave labels.colors out."
        )
    for i, color in enumerate(colors):
        if len(color) != 3 or not all(_is_whole(c) and 0 <= c <= 255 for c in color):
            raise UserError(
                f"labels.colors: colour {i} is {list(color)}, not three numbers from 0 to 255."
            )
    return tuple((int(r), int(g), int(b)) for r, g, b in colors)


def _is_whole(value: Any) -> bool:
    """Whether it is a whole number. YAML's yes and no are True and False, which are not."""
    return isinstance(value, int | np.integer) and not isinstance(value, bool)
