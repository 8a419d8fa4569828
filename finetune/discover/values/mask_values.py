"""The values of a data set's masks, from some of them."""

import functools
import itertools
import operator
from collections import Counter
from collections.abc import Iterable, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from finetune.discover.values.damage import Levels, look_at, may_be_ids, painted_colors
from finetune.errors import UserError
from finetune.labels.colors import RGB, pack
from finetune.pictures.opening import opened
from finetune.pictures.reading import read_colors, read_mask
from finetune.pictures.references import Picture
from finetune.pictures.tiffs import nodata_of

NUM_MASKS = (200, 2000)
"""Fewest and most masks to look at."""
NUM_PIXELS = 2**28
"""Pixels to look at, between these limits."""
NUM_LEVELS = 64
"""Masks in which the places of levels are looked at."""
_NUM_OPENED = 8
"""Masks whose headers tell ids from colours."""
_GREY = 8
"""Most levels between the channels of a grey after JPEG."""
MAX_COLORS = 256
"""Most colours of classes; JPEG and smooth resizing make thousands."""
_FEWEST_COLORS = 5  # two that are painted, and some between


@dataclass(frozen=True)
class MaskValues:
    """The values of masks: ids, or colours as 0xRRGGBB."""

    kind: str
    counts: Counter[int]
    palette: tuple[RGB, ...] | None
    """The palette of the first mask that has one."""
    num_masks: int
    bits: bool = False
    """Whether some masks store one bit per pixel, and others 0 and 255 for the same."""
    assumed: tuple[str, ...] = ()
    levels: Levels | None = field(default=None, repr=False)
    """Of the masks with the most values, if all are grey, in ids, colours or palettes, and some
    values may be damage."""
    grey_palette: bool = False
    """Whether `levels` are those of a palette, whose numbers differ from them."""
    num_of_one_bit: int = 0
    """Masks of one bit a pixel; their levels are 0 and 255."""
    either: tuple[Picture, Picture] | None = None
    """One of the masks of 0 and 1, and one of 0 and 255, if no mask holds both 1 and 255."""
    painted: tuple[int, ...] | None = None
    """The colours that people painted, if the others are damage."""
    absent: frozenset[int] = frozenset()
    """Ids that are no class: negative ones, and what a GeoTIFF calls "no data", but not 0."""

    @property
    def total(self) -> int:
        """All pixels that were looked at."""
        return sum(self.counts.values())


@dataclass(frozen=True)
class _Mask:
    """The values of one mask."""

    file: Picture
    kind: str
    values: dict[int, int] = field(repr=False)
    bits: bool = False
    palette: tuple[RGB, ...] | None = None
    """None if each number has the grey of the same value."""
    greys: dict[int, int] | None = field(default=None, repr=False)
    """The level of each value; None if the mask is not grey."""
    nodata: float | None = None


def inspect(files: Sequence[Picture], *, lenient: bool = False) -> MaskValues:
    """Counts the values of some masks, evenly spread over all.

    Args:
        files: The masks.
        lenient: Skip masks that cannot be read, and those of the rarer kind.

    Raises:
        UserError: One cannot be read, or some hold ids and others colours.
    """
    chosen = spread(files, _number_of(files))
    masks = _looked_at(chosen, lenient, as_colors=False)
    if not masks:
        raise UserError(
            f"{chosen[0]} and {len(chosen) - 1} more masks cannot be read. Replace these files."
        )
    assumed: tuple[str, ...] = ()
    ids = [mask for mask in masks if mask.kind == "ids"]
    colors = [mask for mask in masks if mask.kind == "colors"]
    differing = _differing(ids) or _differing_greys(ids)
    if differing or (ids and colors and not lenient and all(mask.palette for mask in ids)):
        one, other = differing or (ids[0].file, colors[0].file)
        masks = colors = _looked_at(chosen, lenient, as_colors=True)
        ids = []
        assumed = (f"palettes differ ({one.name}, {other.name}): colours are used, not numbers",)
        if len({value for mask in masks for value in mask.values}) > MAX_COLORS:
            raise UserError(
                f"{one} and {other} have different palettes, with more than {MAX_COLORS} colours "
                "in all: neither numbers nor colours can be classes. Save all masks alike."
            )
    if ids and colors and not lenient:
        raise UserError(
            f"{ids[0].file} holds ids, but {colors[0].file} holds colours. Save all masks of the "
            "data set in one kind."
        )
    if not colors and (shown := _damaged_palettes(ids)):
        masks = colors = _looked_at(chosen, lenient, as_colors=True)
        ids = []
        assumed = (f"{shown} has a palette of smoothed colours: they are used, not numbers",)
    kind, masks = ("ids", ids) if len(ids) >= len(colors) else ("colors", colors)
    counts: Counter[int] = Counter()
    for mask in masks:
        counts.update(mask.values)
    of_bytes = {value for mask in masks if not mask.bits for value in mask.values}
    bits = any(mask.bits for mask in masks) and 255 in of_bytes and of_bytes <= {0, 255}
    palettes = [mask.palette for mask in masks if mask.palette is not None]
    colorful = (p for p in palettes if any(len(set(color)) > 1 for color in p))
    return MaskValues(
        kind,
        counts,
        next(colorful, None),
        len(chosen),
        bits,
        assumed,
        _levels_of(masks),
        kind == "ids" and bool(palettes),
        sum(mask.bits for mask in masks),
        None if bits or lenient else _either(masks),
        _painted(masks) if kind == "colors" else None,
        frozenset(value for value in counts if value < 0)
        | frozenset(int(v) for v in (m.nodata for m in masks) if v and v > 0 and v in counts),
    )


def spread(items: Sequence[Any], number: int) -> list[Any]:
    """At most `number` of the items, evenly from the first to the last."""
    places = np.linspace(0, len(items) - 1, min(number, len(items))).round().astype(int)
    return [items[place] for place in places]


def holds_colors(files: Iterable[Path]) -> bool:
    """Whether most of some masks hold colours."""
    modes = []
    for file in spread(sorted(files), _NUM_OPENED):
        try:
            with opened(file) as mask:
                modes.append(mask.mode in ("RGB", "RGBA"))
        except UserError:  # reported when the data set is opened
            continue
    return 2 * sum(modes) > len(modes)


def _number_of(files: Sequence[Picture]) -> int:
    """The number of masks to look at; more if they are small."""
    try:
        with opened(files[0]) as mask:
            pixels = mask.width * mask.height
    except UserError:  # reported when its turn comes
        pixels = NUM_PIXELS
    return int(np.clip(NUM_PIXELS // max(1, pixels), *NUM_MASKS))


def _looked_at(files: Sequence[Picture], lenient: bool, *, as_colors: bool) -> list[_Mask]:
    def look(file: Picture) -> _Mask | None:
        try:
            return _mask(file, as_colors)
        except UserError:
            if lenient:
                return None
            raise

    with ThreadPoolExecutor(4) as pool:  # decoders release Python's lock
        return [mask for mask in pool.map(look, files) if mask is not None]


def _mask(file: Picture, as_colors: bool) -> _Mask:
    with opened(file) as image:
        mode = image.mode
        flat = image.getpalette() if mode == "P" else None
    in_colors = as_colors or mode in ("RGB", "RGBA", "RGBX", "LA", "PA")
    raw = read_colors(file) if in_colors else read_mask(file)
    values, numbers = count_values(raw)
    counts = dict(zip(values.tolist(), numbers.tolist(), strict=True))
    if in_colors:
        return _Mask(file, "colors", counts, greys=_greys_of(values, values))
    palette = None
    if flat is not None:
        colors = [(flat[i], flat[i + 1], flat[i + 2]) for i in range(0, len(flat) - 2, 3)]
        if any(color != (i, i, i) for i, color in enumerate(colors)):
            palette = tuple(colors)
    greys: dict[int, int] | None = None
    if mode == "1":
        greys = {value: 255 * value for value in counts}
    elif palette is None and values[0] >= 0 and values[-1] < 256:
        greys = {value: value for value in counts}
    elif palette is not None and values[-1] < len(palette):
        greys = _greys_of(values, np.array([pack(palette[value]) for value in counts]))
    return _Mask(file, "ids", counts, mode == "1", palette, greys, nodata_of(file))


def _greys_of(values: np.ndarray, colors: np.ndarray) -> dict[int, int] | None:
    """The levels of values with these colours 0xRRGGBB; None if one is not nearly grey."""
    channels = np.stack([colors >> 16, colors >> 8 & 255, colors & 255])
    if np.ptp(channels, axis=0).max(initial=0) > _GREY:
        return None
    return dict(zip(values.tolist(), channels[1].tolist(), strict=True))


def _levels_of(masks: Sequence[_Mask]) -> Levels | None:
    seen = {level for mask in masks for level in (mask.greys or {}).values()}
    if may_be_ids(sorted(seen)) or any(mask.greys is None for mask in masks):
        return None
    # Damage makes many values.
    most = sorted(masks, key=lambda mask: -len(mask.values))[:NUM_LEVELS]
    with ThreadPoolExecutor(4) as pool:
        return functools.reduce(operator.add, pool.map(_levels, most))


def _levels(mask: _Mask) -> Levels:
    if mask.kind == "colors":
        return look_at((read_colors(mask.file) >> 8 & 255).astype(np.uint8))
    assert mask.greys is not None
    table = np.zeros(256, np.uint8)
    table[[*mask.greys]] = [*mask.greys.values()]
    raw = read_mask(mask.file)
    return look_at(table[np.where(raw, 1, 0) if raw.dtype.kind == "b" else raw])


def count_values(raw: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The values of a mask, ascending, and the pixels of each; both int64."""
    if raw.dtype.kind == "b":  # Pillow's bool arrays hold bytes of 255: no cast
        raw = np.where(raw, np.uint8(1), np.uint8(0))
    flat = raw.ravel()
    if flat.dtype in (np.uint8, np.uint16):
        counts = np.bincount(flat)
        values = np.flatnonzero(counts)
        return values, counts[values]
    # Sorting takes the time, so only the first value of each run is sorted.
    starts = np.flatnonzero(np.concatenate([[True], flat[1:] != flat[:-1]]))
    lengths = np.diff(np.append(starts, len(flat)))
    values, inverse = np.unique(flat[starts], return_inverse=True)
    counts = np.bincount(inverse, weights=lengths).astype(np.int64)
    return values.astype(np.int64), counts


def _differing(masks: Sequence[_Mask]) -> tuple[Picture, Picture] | None:
    """Two masks whose palettes differ in the colour of a number that both hold."""
    first: dict[int, tuple[RGB, Picture]] = {}
    for mask in masks:
        colors = dict(enumerate(mask.palette or ()))
        for value in mask.values.keys() & colors.keys():
            color, file = first.setdefault(value, (colors[value], mask.file))
            if color != colors[value]:
                return file, mask.file
    return None


def _differing_greys(masks: Sequence[_Mask]) -> tuple[Picture, Picture] | None:
    """A mask with a palette of greys and one without, if the greys are what both mean.

    Some tools store 0 and 255 as a palette of black and white, with the numbers 0 and 1 or, white
    first, 1 and 0.
    """
    stored = [mask for mask in masks if mask.palette]
    plain = [mask for mask in masks if not mask.palette]
    if not stored or not plain or any(mask.greys is None for mask in masks):
        return None
    level_of, own = ({v: g for m in part for v, g in m.greys.items()} for part in (stored, plain))  # type: ignore[union-attr]
    as_numbers = _fit(level_of.keys(), own.keys()) and all(
        level_of.get(value, level) == level for value, level in own.items()
    )
    if as_numbers or not _fit({*level_of.values()}, {*own.values()}):
        return None
    return stored[0].file, plain[0].file


def _fit(one: Set[int], other: Set[int]) -> bool:
    return one <= other or other <= one


def _either(masks: Sequence[_Mask]) -> tuple[Picture, Picture] | None:
    """A mask of 0 and 1 and one of 0 and 255, if all masks are of one of these two kinds."""
    files = {frozenset(mask.values) - {0}: mask.file for mask in masks}
    ones, others = files.get(frozenset({1})), files.get(frozenset({255}))
    only = files.keys() <= {frozenset(), frozenset({1}), frozenset({255})}
    return (ones, others) if only and ones and others else None


def _damaged_palettes(masks: Sequence[_Mask]) -> str:
    """The name of a mask, if all have palettes of colours, and some of these are damage."""
    colorful = masks and all(mask.palette and mask.greys is None for mask in masks)
    return masks[0].file.name if colorful and _painted(masks) else ""


def _painted(masks: Sequence[_Mask]) -> tuple[int, ...] | None:
    """What `painted_colors` finds in the masks with the most values."""
    most = sorted(masks, key=lambda mask: -len(mask.values))[:NUM_LEVELS]
    number = len({value for mask in most for value in mask.values})
    if not _FEWEST_COLORS <= number <= MAX_COLORS or all(mask.greys for mask in most):
        return None
    counts, inner = Counter[int](), Counter[int]()
    for mask in most:  # counted again: those of a palette are numbers in `values`
        colors = read_colors(mask.file)
        center = colors[1:-1, 1:-1]
        same = np.ones(center.shape, bool)
        for y, x in itertools.product(range(3), repeat=2):
            same &= colors[y : y + center.shape[0], x : x + center.shape[1]] == center
        for total, part in ((counts, colors), (inner, center[same])):
            if part.size:
                pairs = (numbers.tolist() for numbers in count_values(part))
                total.update(dict(zip(*pairs, strict=True)))
    found = painted_colors(counts, inner)
    return None if found is None else tuple(found)
