"""All label translation, in one place: raw mask values to class ids, and class ids to colours.

Everything that needs to know what a pixel means (loader, loss, metric, model config, card) reads
one `Labels`, built once from the recipe's `labels:` block. Nothing else in the package reduces
zeros, maps, merges or ignores.
"""

import colorsys
import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from finetune.errors import UserError

RGB = tuple[int, int, int]

MAX_CLASSES = 65535
"""Class ids beyond 255 are held in uint16, whose last value is the ignore id."""

NO_OBJECT = -1
"""Raw value of pixels that no object covers, in forms that mark objects (`finetune.data.masks`)."""
UNCOUNTED = -2
"""Raw value of pixels that an annotation itself leaves out; always ignored."""

_UNCOVERED = -1
_LOWEST = UNCOUNTED  # raw value of the first entry of a lookup table
_MAX_SHOWN = 5


@dataclass(frozen=True)
class Labels:
    """The classes of a data set and what each raw mask value means. Use `Labels.build`."""

    names: tuple[str, ...]
    colors: tuple[RGB, ...]
    rules: tuple[tuple[int, int], ...]
    """(raw mask value, class id or `ignore_index`), sorted."""
    ignores_unknown: bool = False
    """Whether any other raw value is ignored, and not an error."""
    kind: Literal["ids", "colors"] = "ids"
    """What masks hold; colours count as 0xRRGGBB."""
    tolerance: int = 0
    """How far each channel of a colour may be off."""

    @classmethod
    def build(
        cls,
        names: Sequence[str],
        *,
        colors: Sequence[Sequence[int]] | None = None,
        kind: Literal["ids", "colors"] = "ids",
        ignore: Sequence[int | str] | None = None,
        map: Mapping[int | str, int | str | None] | None = None,
        reduce_zero: bool = False,
        background: str | None = None,
        unknown: Literal["error", "ignore"] = "error",
        tolerance: int = 0,
    ) -> "Labels":
        """Checks a `labels:` block and turns it into rules.

        Raw values are what masks hold: numbers or, if `kind` says so, colours "#RRGGBB", which
        count as the number 0xRRGGBB.

        Args:
            names: One name per class id.
            colors: RGB 0..255 per class. None gives `default_colors`.
            kind: What masks hold. With "colors" a class has the colour that `colors` gives it, and
                those that `map` adds.
            ignore: Raw values that carry no label; None: 255 for ids, no colour.
            map: Raw value -> class id or name; several may share a class (merging), None ignores.
                Of ids, without it raw v is class v.
            reduce_zero: Raw 0 is ignored and raw v is class v - 1, as in ADE20K.
            background: Name of the class of pixels that no object covers, in forms that mark
                objects. Without one they need a rule for -1, or stand in `ignore`.
            unknown: What becomes of raw values without a rule.
            tolerance: Of colours, how far each channel may be off.

        Raises:
            UserError: The block contradicts itself; the message names the field.
        """
        names = tuple(str(name).strip() for name in names)
        _check_names(names)
        ignore_index = _ignore_index(len(names))
        palette = None if colors is None else _check_colors(colors, len(names))
        raw_map = None
        if map is not None:
            raw_map = _raw_map(map, kind, names)
        if kind == "colors":
            rules = _color_rules(names, palette, raw_map, reduce_zero, ignore_index)
        else:
            rules = _class_rules(names, raw_map, reduce_zero, ignore_index)
        for raw in (() if kind == "colors" else (255,)) if ignore is None else ignore:
            class_id = rules.setdefault(_raw(raw, kind, "labels.ignore"), ignore_index)
            if class_id != ignore_index:
                raise UserError(
                    f"labels.ignore: raw value {raw} is ignored, but it also means class "
                    f"{class_id} ({names[class_id]!r}). Take {raw} out of labels.ignore (an empty "
                    f"list ignores nothing), or give that class another raw value in labels.map."
                )
        if background is not None:
            if background not in names:
                raise UserError(f"labels.background: {background!r} is not one of labels.names.")
            if rules.setdefault(NO_OBJECT, names.index(background)) != names.index(background):
                raise UserError("labels.background: labels.map or labels.ignore has -1 already.")
        rules.setdefault(UNCOUNTED, ignore_index)
        if tolerance and kind == "ids":
            raise UserError("labels.tolerance: is about colours; set labels.kind=colors.")
        palette = palette or default_colors(len(names))
        found = tuple(sorted(rules.items()))
        return cls(names, palette, found, unknown == "ignore", kind, tolerance)

    @property
    def num_labels(self) -> int:
        """K, the number of classes; ignored pixels are not one."""
        return len(self.names)

    @property
    def ignore_index(self) -> int:
        """The id of pixels without a label: 255, or 65535 for more than 255 classes."""
        return _ignore_index(self.num_labels)

    @property
    def id2label(self) -> dict[int, str]:
        """Class id -> name, as `config.id2label`."""
        return dict(enumerate(self.names))

    @property
    def label2id(self) -> dict[str, int]:
        """Name -> class id, as `config.label2id`."""
        return {name: i for i, name in enumerate(self.names)}

    @property
    def unreachable(self) -> tuple[str, ...]:
        """Classes that no raw value means."""
        reached = {class_id for _, class_id in self.rules}
        return tuple(name for i, name in enumerate(self.names) if i not in reached)

    def contradiction(self, raw: int, name: str) -> str:
        """What is wrong with the rule for a raw value that the data themselves give a name.

        Names of data and classes may differ, as those of merged classes do. But where a class has
        the name, in whatever case, the value must mean that class.

        Returns:
            A message in the middle of a sentence, "" if the rule may be right.
        """
        same = [i for i, own in enumerate(self.names) if own.casefold() == name.strip().casefold()]
        class_id = dict(self.rules).get(raw, self.ignore_index if self.ignores_unknown else None)
        if not same or class_id is None or class_id in same:
            return ""
        means = "is ignored" if class_id == self.ignore_index else f"means {self.names[class_id]!r}"
        return (
            f"{raw} is {name!r} there, but in labels it {means}, although class {same[0]} is "
            f"{self.names[same[0]]!r}. Set labels.map to {{{raw}: {self.names[same[0]]}, ...}}, or "
            "give the class another name in labels.names if that is meant"
        )

    def encode(self, mask: np.ndarray, where: str) -> np.ndarray:
        """Translates raw mask values to class ids.

        Args:
            mask: (H, W), any integer dtype or bool.
            where: The file, for the message.

        Returns:
            (H, W) uint8 (uint16 for more than 255 classes): 0..K-1 or `ignore_index`.

        Raises:
            UserError: A value that no rule covers, if those are not ignored.
        """
        if mask.dtype.kind not in "iub":
            raise UserError(
                f"{where}: the mask holds {mask.dtype} values; masks must hold whole class ids."
            )
        if mask.dtype.kind == "b":  # Pillow's bool arrays hold bytes of 255: no view, no cast
            mask = np.where(mask, np.uint8(1), np.uint8(0))
        size = 2**24 if self.kind == "colors" else 2**16
        if mask.size and (mask.min() < _LOWEST or mask.max() >= size):  # too many for a table
            values, inverse = np.unique(mask, return_inverse=True)
            known = dict(self.rules)
            table = np.array([known.get(int(v), _UNCOVERED) for v in values], np.int32)
            encoded = table[inverse].reshape(mask.shape)
        else:
            table = _lookup_table(self.rules, size)
            if mask.dtype in (np.uint8, np.uint16):  # no place for a shift, nor need of one
                encoded = table[-_LOWEST:].take(mask) + _UNCOVERED
            else:
                encoded = table.take(mask.astype(np.intp) - _LOWEST) + _UNCOVERED

        if self.ignores_unknown:
            encoded = np.where(encoded == _UNCOVERED, self.ignore_index, encoded)
        elif mask.size and encoded.min() == _UNCOVERED:
            raise UserError(self._uncovered_message(mask[encoded == _UNCOVERED], where))
        return encoded.astype(np.uint8 if self.num_labels <= 255 else np.uint16)

    def colorize(self, mask: np.ndarray) -> np.ndarray:
        """Paints class ids (H, W) as RGB, uint8 (H, W, 3); ignored pixels are black."""
        palette = np.zeros((self.ignore_index + 1, 3), np.uint8)
        palette[: self.num_labels] = self.colors
        return palette[mask]

    def _uncovered_message(self, uncovered: np.ndarray, where: str) -> str:
        """Says which values have no meaning, how many pixels hold each, and what to do."""
        values, counts = np.unique(uncovered, return_counts=True)
        most = np.argsort(-counts, kind="stable")[:_MAX_SHOWN]
        name = "#{:06X}".format if self.kind == "colors" else str
        shown = ", ".join(f"{name(values[i])} ({counts[i]} pixels)" for i in most)
        more = f" and {len(values) - _MAX_SHOWN} more" if len(values) > _MAX_SHOWN else ""
        if values[0] == NO_OBJECT:
            return (
                f"{where}: {counts[0]} pixels belong to no object (-1). Name the class that they "
                f"are in labels.background, or list -1 in labels.ignore."
            )
        if self.kind == "colors":
            return (
                f"{where}: the mask holds colours that are neither a class nor ignored: "
                f"{shown}{more}. Give them a class in labels.map, list them in labels.ignore or, "
                f"if they are classes' colours damaged by compression, set labels.tolerance."
            )
        marks_objects = any(raw == NO_OBJECT for raw, _ in self.rules)
        remedy = "Give these values a class in labels.map, list them in labels.ignore"
        if not marks_objects:  # where 0 may mean that there is none
            remedy += ", or set labels.reduce_zero if 0 means 'no label' and classes count from 1"
        return (
            f"{where}: the mask holds values that are neither a class nor ignored: {shown}{more}. "
            f"There are {self.num_labels} classes (ids 0 to {self.num_labels - 1}). {remedy}."
        )


def default_colors(num_labels: int) -> tuple[RGB, ...]:
    """A fixed palette for any number of classes: distinct, never black, neighbours far apart.

    Hues step by the golden ratio, which keeps any prefix of the sequence spread over the circle;
    three shades alternate, so that hues that come near again (5, 8, 13 steps) differ in lightness.
    """
    shades = ((0.75, 0.95), (0.95, 0.6), (0.4, 1.0))
    colors: dict[RGB, None] = {}  # an ordered set
    step = 0
    while len(colors) < num_labels:
        saturation, value = shades[step % len(shades)]
        rgb = colorsys.hsv_to_rgb(step * 0.618033988749895 % 1, saturation, value)
        colors[tuple(round(255 * channel) for channel in rgb)] = None  # type: ignore[index]
        step += 1
    return tuple(colors)


def _ignore_index(num_labels: int) -> int:
    return 255 if num_labels <= 255 else 65535


@functools.lru_cache(maxsize=8)
def _lookup_table(rules: tuple[tuple[int, int], ...], size: int) -> np.ndarray:
    """Raw values from `_LOWEST` to `size` - 1 to class ids, held as class id - `_UNCOVERED`.

    So that there are zeros where there is no rule: memory of 64 MB for colours, of which the
    system gives only the pages with colours of the set. Kept outside `Labels` so that a pickled
    Labels (spawn workers) stays small.
    """
    table = np.zeros(size - _LOWEST, np.int32)
    for raw, class_id in rules:
        if _LOWEST <= raw < size:
            table[raw - _LOWEST] = class_id - _UNCOVERED
    return table


def _class_rules(
    names: tuple[str, ...],
    map: Mapping[int, int | None] | None,
    reduce_zero: bool,
    ignore_index: int,
) -> dict[int, int]:
    """Raw value -> class id (or `ignore_index`), before `ignore`."""
    if map is None:
        if reduce_zero:
            return {0: ignore_index} | {i + 1: i for i in range(len(names))}
        return {i: i for i in range(len(names))}
    if reduce_zero:
        raise UserError(
            "labels.reduce_zero and labels.map both say what raw values mean. Keep labels.map and "
            "set labels.reduce_zero to false ({0: null, 1: 0, 2: 1, ...} means the same)."
        )
    return {int(raw): ignore_index if c is None else int(c) for raw, c in map.items()}


def _color_rules(
    names: tuple[str, ...],
    colors: tuple[RGB, ...] | None,
    map: Mapping[int, int | None] | None,
    reduce_zero: bool,
    ignore_index: int,
) -> dict[int, int]:
    """As `_class_rules`, of colours as 0xRRGGBB."""
    if reduce_zero:
        raise UserError("labels.reduce_zero: it is about ids, but labels.kind says colors.")
    if colors is None and not map:
        raise UserError(
            "labels.colors: missing; with labels.kind=colors each class needs the colour that "
            "masks show it in, here or in labels.map."
        )
    rules: dict[int, int] = {}
    for i, (red, green, blue) in enumerate(colors or ()):
        first = rules.setdefault(red << 16 | green << 8 | blue, i)
        if first != i:
            raise UserError(
                f"labels.colors: {names[first]!r} and {names[i]!r} have one colour, "
                f"#{red:02X}{green:02X}{blue:02X}. With labels.kind=colors no two classes can."
            )
    for raw, class_id in (map or {}).items():
        added = ignore_index if class_id is None else class_id
        first = rules.setdefault(raw, added)
        if first != added:
            means = "ignores it" if class_id is None else f"makes it {names[class_id]!r}"
            raise UserError(
                f"labels.map: #{raw:06X} is the colour of {names[first]!r} in labels.colors, but "
                f"labels.map {means}. Take it out of one of them."
            )
    return rules


def _raw_map(
    map: Mapping[int | str, int | str | None], kind: str, names: tuple[str, ...]
) -> dict[int, int | None]:
    """labels.map in numbers, of which two ways to write a colour are one."""
    numbers: dict[int, int | None] = {}
    for raw, value in map.items():
        number, class_id = _raw(raw, kind, "labels.map"), _class_id(value, raw, names)
        if numbers.setdefault(number, class_id) != class_id:
            raise UserError(f"labels.map: {raw!r} stands twice, with two classes. Take one out.")
    return numbers


def _raw(value: int | str, kind: str, where: str) -> int:
    """A raw value as a number."""
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
    """A class of labels.map, given by id, by name, or not at all."""
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


def _check_names(names: tuple[str, ...]) -> None:
    if not 2 <= len(names) <= MAX_CLASSES:
        raise UserError(
            f"labels.names: {len(names)} given, but 2 to {MAX_CLASSES} are needed. Two-class data "
            f"has two labels (background, thing)."
        )
    for i, name in enumerate(names):
        if not name:
            raise UserError(f"labels.names: the name of class {i} is empty.")
        if (first := names.index(name)) != i:
            raise UserError(
                f"labels.names: {name!r} names class {first} and class {i}. Names must be unique; "
                f"to merge two raw values into one class, map both to it in labels.map."
            )


def _check_colors(colors: Sequence[Sequence[int]], num_labels: int) -> tuple[RGB, ...]:
    if len(colors) != num_labels:
        raise UserError(
            f"labels.colors: {len(colors)} colours for {num_labels} classes. Give one per class, "
            f"or leave labels.colors out."
        )
    for i, color in enumerate(colors):
        if len(color) != 3 or not all(_is_byte(channel) for channel in color):
            raise UserError(
                f"labels.colors: colour {i} is {list(color)}, not three numbers from 0 to 255."
            )
    return tuple((int(r), int(g), int(b)) for r, g, b in colors)


def _is_byte(value: Any) -> bool:
    return _is_whole(value) and 0 <= value <= 255


def _is_whole(value: Any) -> bool:
    """Whether it is a whole number; True and False, what YAML makes of yes and no, are not."""
    return isinstance(value, int | np.integer) and not isinstance(value, bool)
