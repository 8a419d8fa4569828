"""Label translation, all of it: raw mask values to class ids.

Loader, loss, metric, model config and card read one `Labels`, built once from the recipe's
`labels:` block. Nothing else in the package reduces zeros, maps, merges, mends or ignores.

A mask's way: `pictures.reading` -> `data.masks` -> `data.samples.ReadSamples` -> `Labels.encode`
(255 becomes the ignore id, by the rules of `labels.rules.build_rules`) -> `data.cache` ->
`data.loader`, with `augment` (pads with it) -> `trainers.segmentation` -> `losses` ->
`segformer.functional` -> `segformer.operators` (`bands` or `kernels` leave it out).
"""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal

import cv2
import numpy as np

from finetune.errors import UserError
from finetune.labels.colors import RGB, default_colors, is_grey, mended
from finetune.labels.mending import mended_greys, mended_levels
from finetune.labels.rules import (
    NO_OBJECT,
    UNCOUNTED,
    Kind,
    build_rules,
    check_colors,
    check_names,
    ignore_index,
)

_NO_RULE = -1  # the class id of raw values without a rule
_NO_RULE_BYTE = 254  # the same in a table of bytes, where 254 is no class
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
    """Whether raw values without a rule are ignored. Otherwise they are an error."""
    kind: Kind = "ids"
    tolerance: int = 0
    """How far a value, or each channel of a colour, may be off."""

    @classmethod
    def build(
        cls,
        names: Sequence[str],
        *,
        colors: Sequence[Sequence[int]] | None = None,
        kind: Kind = "ids",
        ignore: Sequence[int | str] | None = None,
        map: Mapping[int | str, int | str | None] | None = None,
        reduce_zero: bool = False,
        background: str | None = None,
        unknown: Literal["error", "ignore"] = "error",
        tolerance: int = 0,
    ) -> "Labels":
        """Checks a `labels:` block and turns it into rules.

        Raw values are what masks hold: ids or, with kind="colors", colours "#RRGGBB".

        Args:
            names: One name per class id.
            colors: RGB 0..255 per class. None gives `default_colors`.
            kind: What masks hold. With "colors" a class has its colour of `colors`, and those that
                `map` adds.
            ignore: Raw values without a label. None means 255 for ids, and no colour.
            map: Raw value -> class id or name. Several values may mean one class; None ignores.
                Without a map, id v is class v.
            reduce_zero: Raw 0 is ignored and raw v is class v - 1, as in ADE20K.
            background: Class of the pixels that no object covers, in forms that mark objects.
                Without it, -1 must stand in `map` or `ignore`.
            unknown: What happens to raw values without a rule.
            tolerance: How far an id, or each channel of a colour, may be off, as smooth resizing
                and lossy compression leave them. A pixel gets the class of the nearest one; where
                two are equally near, that of the lower number. See `labels.mending`.

        Raises:
            UserError: The block contradicts itself; the message names the field.
        """
        names = check_names(names)
        palette = None if colors is None else check_colors(colors, len(names))
        rules = build_rules(
            names,
            palette,
            kind=kind,
            ignore=ignore,
            map=map,
            reduce_zero=reduce_zero,
            background=background,
        )
        palette, ordered = palette or default_colors(len(names)), tuple(sorted(rules.items()))
        return cls(names, palette, ordered, unknown == "ignore", kind, tolerance)

    @property
    def num_labels(self) -> int:
        """K, the number of classes; ignored pixels are not one."""
        return len(self.names)

    @property
    def ignore_index(self) -> int:
        """The id of pixels without a label: 255, or 65535 for more than 255 classes."""
        return ignore_index(self.num_labels)

    @property
    def dtype(self) -> np.dtype:
        """Of masks of class ids: uint8, or uint16 for more than 255 classes."""
        return np.dtype(np.uint8 if self.num_labels <= 255 else np.uint16)

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
        """Says why a rule is wrong if the data set itself gives the raw value another name.

        Names of data and classes may differ, as those of merged classes do. But if a class has the
        data's name, in whatever case, the value must mean that class.

        Returns:
            A message for the middle of a sentence, "" if the rule may be right.
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
            (H, W) of `dtype`: 0..K-1 or `ignore_index`.

        Raises:
            UserError: A value has no rule, unless such values are ignored.
        """
        if self.tolerance and mask.dtype.kind in "iu":
            mask = self.mended(mask)
        if mask.dtype == np.uint8 and mask.ndim == 2 and self._byte_table is not None and mask.size:
            encoded = cv2.LUT(np.ascontiguousarray(mask), self._byte_table)  # 4 x as fast as take()
            if not (encoded == _NO_RULE_BYTE).any():
                return encoded
        if mask.dtype.kind not in "iub":
            raise UserError(
                f"{where}: the mask holds {mask.dtype} values; masks must hold whole class ids."
            )
        if mask.dtype.kind == "b":  # Pillow's bool arrays hold bytes of 255: no view, no cast
            mask = np.where(mask, np.uint8(1), np.uint8(0))
        encoded = self._class_ids(mask)
        if self.ignores_unknown:
            encoded = np.where(encoded == _NO_RULE, self.ignore_index, encoded)
        elif mask.size and encoded.min() == _NO_RULE:
            raise UserError(self._no_rule_message(mask[encoded == _NO_RULE], where))
        return encoded.astype(self.dtype)

    def _class_ids(self, mask: np.ndarray) -> np.ndarray:
        size = 2**24 if self.kind == "colors" else 2**16
        low, high = (int(mask.min()), int(mask.max())) if mask.size else (0, 0)
        if low < _LOWEST or high >= size:  # too many for a table
            values, inverse = np.unique(mask, return_inverse=True)
            known = dict(self.rules)
            found = np.array([known.get(int(v), _NO_RULE) for v in values], np.int32)
            return found[inverse].reshape(mask.shape)
        table = _lookup_table(self.rules, size)
        if mask.dtype in (np.uint8, np.uint16):  # never negative: no shift, no copy
            return table[-_LOWEST:].take(mask) + _NO_RULE
        return table.take(mask.astype(np.intp) - _LOWEST) + _NO_RULE

    def mended(self, mask: np.ndarray) -> np.ndarray:
        """Raw values, those within the tolerance replaced by the nearest one with a rule."""
        low, high = (int(mask.min()), int(mask.max())) if mask.size else (0, 0)
        if not self.tolerance or low < 0 or high >= (2**24 if self.kind == "colors" else 2**16):
            return mask
        values = tuple(raw for raw, _ in self.rules if raw >= 0)
        if self.kind == "ids":
            levels = mask.astype(np.uint8 if high < 256 else np.uint16)
            return mended_levels(levels, values, self.tolerance)
        if all(is_grey(value) for value in values):
            return mended_greys(mask, tuple(value & 255 for value in values), self.tolerance)
        return mended(mask, values, self.tolerance)

    @functools.cached_property
    def _byte_table(self) -> np.ndarray | None:
        """Class ids of the 256 bytes as ids. None if every byte is a class or the ignore id."""
        if self.kind == "colors" or self.num_labels > _NO_RULE_BYTE:
            return None
        table = np.full(256, self.ignore_index if self.ignores_unknown else _NO_RULE_BYTE, np.uint8)
        for raw, class_id in self.rules:
            if 0 <= raw < 256:
                table[raw] = class_id
        return table

    def __getstate__(self) -> dict[str, Any]:
        return {field.name: getattr(self, field.name) for field in fields(self)}  # no table

    def _no_rule_message(self, raw: np.ndarray, where: str) -> str:
        values, counts = np.unique(raw, return_counts=True)
        most = np.argsort(-counts, kind="stable")[:_MAX_SHOWN]
        name = "#{:06X}".format if self.kind == "colors" else str
        shown = ", ".join(f"{name(values[i])} ({counts[i]} pixels)" for i in most)
        more = f" and {len(values) - _MAX_SHOWN} more" if len(values) > _MAX_SHOWN else ""
        if values[0] == NO_OBJECT:
            return (
                f"{where}: {counts[0]} pixels belong to no object (-1). Name their class in "
                "labels.background, or list -1 in labels.ignore."
            )
        if self.kind == "colors":
            return (
                f"{where}: the mask holds colours that are neither a class nor ignored: "
                f"{shown}{more}. Give them a class in labels.map, list them in labels.ignore or, "
                "if they are classes' colours damaged by compression, set labels.tolerance."
            )
        remedy = "Give these values a class in labels.map, list them in labels.ignore"
        if NO_OBJECT not in dict(self.rules):  # where objects are marked, 0 may be a class's id
            remedy += ", or set labels.reduce_zero if 0 means 'no label' and classes count from 1"
        return (
            f"{where}: the mask holds values that are neither a class nor ignored: {shown}{more}. "
            f"There are {self.num_labels} classes (ids 0 to {self.num_labels - 1}). {remedy}."
        )


@functools.lru_cache(maxsize=8)
def _lookup_table(rules: tuple[tuple[int, int], ...], size: int) -> np.ndarray:
    """Class ids of the raw values from `_LOWEST` to `size` - 1, less `_NO_RULE`.

    So values without a rule are zeros: a table of colours has 64 MB, but the system allocates only
    the pages that hold a colour of the set.
    """
    table = np.zeros(size - _LOWEST, np.int32)
    for raw, class_id in rules:
        if _LOWEST <= raw < size:
            table[raw - _LOWEST] = class_id - _NO_RULE
    return table
