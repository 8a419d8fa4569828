"""Greys that nobody painted: masks after smooth resizing, blurring or lossy compression.

A value that somebody painted stands in the middle of a region somewhere, or is an end of the range
that a thin thing reaches. A value of damage stands between two others, or beside one.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np

from finetune.errors import UserError

REACH = 24
"""How far, in levels, damage moves pixels that are not at an edge."""
CLOSE = 6
"""Levels that no damaged mask tells apart."""
_INNER = 0.2
"""Share of a painted value's pixels that equal their eight neighbours."""
_FEWEST = 1e-3
"""Share of pixels that a thin thing of an end of the range holds at least."""
_JOINED = 0.6
"""Share of a small thing's pixels that are joined; a ramp goes on in one direction at most."""
_DENSE = 64
_MANY = 0.1
"""Levels of at most this span, without great gaps, are ids if damage would be more than this share
of the pixels."""
_UNEXPLAINED = 0.04
"""Share of a thing's ridges, or of regions' middles, from which on a value may be missing."""
_WEAK = 0.02
"""A value that is so much rarer in the middle of regions than the second one may be damage."""
_FEW_LEVELS = 2
"""So few values without a middle are thin classes of a set, unless it is black and white."""
_MOST_PAINTED = 64
"""Among more colours, nearly every other one lies between two of them."""
_BETWEEN = 0.9
"""Share of the colours of damage that lie between two painted ones."""
_STRAYS = 1e-4
"""Share of pixels up to which lone dots of a value are slips."""
_NEIGHBOURS = np.ones((3, 3), np.uint8)
_WINDOW = np.ones((7, 7), np.uint8)
_STEP = 8  # levels between a pixel and the ends of a ramp that it stands on


@dataclass(frozen=True)
class Levels:
    """How often each of the 256 levels occurs in masks, and where; int64 (256,) each."""

    counts: np.ndarray
    """Pixels."""
    inner: np.ndarray
    """Those that equal their eight neighbours."""
    ridge: np.ndarray
    """Those that are not on a ramp, with lower and higher levels near."""
    joined: np.ndarray
    """Those that equal a neighbour beside them and one above or below."""

    def __add__(self, other: "Levels") -> "Levels":
        return Levels(*(a + b for a, b in zip(self._all, other._all, strict=True)))

    @property
    def _all(self) -> tuple[np.ndarray, ...]:
        return self.counts, self.inner, self.ridge, self.joined


@dataclass(frozen=True)
class Damage:
    """What damaged masks were meant to hold."""

    values: tuple[int, ...]
    """The painted values, ascending."""
    num_others: int
    """Levels that nobody painted."""
    share: float
    """Their share of the pixels."""
    tolerance: int
    """Distance from the farthest level to its nearest value, or half of the widest gap."""
    is_clear: bool
    """Whether the values explain the masks; otherwise some may be missing or wrong."""

    @property
    def described(self) -> str:
        """For a person."""
        return (
            f"masks hold {self.num_others} grey levels that nobody painted ({self.share:.2%} of "
            "the pixels, where they are most), as after smooth resizing or JPEG"
        )


def may_be_ids(seen: Sequence[int]) -> bool:
    """Whether levels are few or are ids from 0 on, however thin, and perhaps 255 for no label."""
    ids = seen[:-1] if seen[-1:] == [255] else seen
    return len(seen) < 3 or (len(ids) <= _DENSE and ids[-1] == len(ids) - 1)


def look_at(mask: np.ndarray) -> Levels:
    """Counts the levels of a mask, uint8 (H, W)."""
    mask = _without_repeats(mask)
    inner = cv2.erode(mask, _NEIGHBOURS) == cv2.dilate(mask, _NEIGHBOURS)
    below = cv2.subtract(mask, cv2.erode(mask, _WINDOW)) > _STEP
    above = cv2.subtract(cv2.dilate(mask, _WINDOW), mask) > _STEP
    parts = mask.ravel(), mask[inner], mask[~(below & above)], mask[_joined(mask)]
    return Levels(*(np.bincount(part, minlength=256) for part in parts))


def _joined(mask: np.ndarray) -> np.ndarray:
    found = np.ones(mask.shape, bool)
    for axis in (0, 1):
        same = np.diff(mask.astype(np.int16), axis=axis) == 0
        ends = [(1, 0) if axis == i else (0, 0) for i in (0, 1)]
        found &= np.pad(same, ends) | np.pad(same, [end[::-1] for end in ends])
    return found


def _without_repeats(mask: np.ndarray) -> np.ndarray:
    """Undoes enlarging by nearest neighbour, which turns a grey edge into a region."""
    for axis in (0, 1):
        rows = mask if axis == 0 else mask.T
        starts = np.flatnonzero(np.concatenate([[True], (rows[1:] != rows[:-1]).any(1)]))
        lengths = np.diff(np.append(starts, len(rows)))
        factor = int(lengths[1:-1].min()) if len(lengths) > 4 else 1  # the ends may be cut
        if factor > 1:
            kept = [
                start + np.arange(min(length, max(1, round(length / factor))))
                for start, length in zip(starts.tolist(), lengths.tolist(), strict=True)
            ]
            rows = rows[np.concatenate(kept)]
        mask = rows if axis == 0 else rows.T
    return np.ascontiguousarray(mask)


def find_damage(levels: Levels) -> Damage | None:
    """The values that masks were painted with, or None if the masks hold what was painted.

    Ids next to each other, such as 0, 1 and 2, look the same after smoothing as before, so nothing
    can be said of them.
    """
    counts, inner, ridge = levels.counts, levels.inner, levels.ridge
    seen = np.flatnonzero(counts)
    total = int(counts.sum())
    if may_be_ids(seen.tolist()):
        return None
    painted = {int(v) for v in seen if inner[v] >= max(1, _INNER * counts[v])}
    lone = seen[~np.isin(seen, list(painted))]
    if not len(lone):
        return None
    ends = {
        int(v)
        for v in seen
        if (v >= seen[-1] - REACH or v <= seen[0] + REACH)
        and ridge[v] >= max(_FEWEST * total, counts[v] / 2)
    }
    weight = np.maximum(inner, ridge // 2)
    values: list[int] = []
    for v in sorted(painted | ends, key=lambda v: -weight[v]):
        near = [w for w in values if abs(w - v) <= REACH]
        if v not in painted and near:
            continue  # thin things of one value end at many levels
        if not any(abs(w - v) <= CLOSE or weight[v] < weight[w] / 2 for w in near):
            values.append(v)
    values.sort()
    others = seen[~np.isin(seen, values)]
    binary = len(values) <= 2 and seen[0] <= CLOSE and seen[-1] >= 255 - CLOSE
    # Undamaged sets have thin classes too, but most of their values stand in the middle of regions.
    if 2 * np.isin(others, lone).sum() <= len(others):
        return None
    if (
        not binary
        and 4 * len(painted) > len(seen)
        and (2 * counts[lone].sum() < counts[others].sum() or 2 * len(values) > len(seen))
    ):
        return None
    if len(others) <= _FEW_LEVELS and (
        not binary
        or counts[others].sum() > _MANY * total
        # Dots: damage stands on ramps, but for a pixel here and there.
        or 2 * ridge[others].sum() > counts[others].sum() > _STRAYS * total
    ):
        return None
    span = int(seen[-1] - seen[0])
    if span <= min(_DENSE, 2 * len(seen) + 8) and counts[others].sum() > _MANY * total:
        return None  # ids of regions as small as a pixel, such as classes of patches
    distance = np.abs(others[:, None] - np.array(values)).min(1)
    far = others[(distance > REACH) & np.isin(others, lone)]
    if len(values) == 1 and not len(far):
        return None  # the ids of thin things
    stray = np.setdiff1d(lone, values)
    if levels.joined[stray].sum() > _JOINED * counts[stray].sum():
        return None  # small and thin things beside each other
    gaps = np.diff(values)
    tolerance = max(int(distance.max()), int(gaps.max(initial=0) + 1) // 2)
    return Damage(
        tuple(values),
        len(others),
        float(counts[others].sum() / total),
        min(tolerance, 127),
        len(values) > 1
        and int(gaps.min()) > 2 * CLOSE
        and min(weight[values]) > _WEAK * sorted(weight[values])[-2]
        and _explains(levels, others, distance),
    )


def settled(levels: Levels, damage: Damage, two_values: bool) -> tuple[Damage, tuple[str, ...]]:
    """The damage if it is clear, or read as two values if this is allowed, with a doubt then.

    The two are the lowest and the highest level; none of the values may be between them.

    Raises:
        UserError: The painted values cannot be told.
    """
    if damage.is_clear:
        return damage, ()
    seen = np.flatnonzero(levels.counts)
    low, high = int(seen[0]), int(seen[-1])
    middle = (low + high) // 2
    also = ""
    if high - low > 2 * REACH and not any(low + REACH < v < high - REACH for v in damage.values):
        share = levels.counts[middle + 1 :].sum() / levels.counts.sum()
        reading = (
            f"{low} to {middle} as one class, {middle + 1} to {high}, {share:.2%} of the pixels, "
            "as another"
        )
        if two_values:  # masks that were not looked at may hold higher levels, so 127
            binary = replace(damage, values=(low, high), tolerance=127, is_clear=True)
            return binary, (f"painted values cannot be told; read are {reading}",)
        also = f", or `finetune init --choice 1` to read {reading}"
    raise UserError(
        f"the {damage.described}; painted may be {', '.join(map(str, damage.values))}, but others "
        f"may hide between them. Export the masks again (nearest-neighbour resizing, PNG){also}, "
        "or start from recipes/folder.yaml with labels.names, labels.map={PAINTED VALUE: CLASS, "
        "...} and labels.tolerance."
    )


def _explains(levels: Levels, others: np.ndarray, distance: np.ndarray) -> bool:
    """Whether few ridges, and few middles of regions, have a value far from all painted ones."""
    commonest = int(levels.counts.argmax())
    around = slice(max(0, commonest - REACH), commonest + REACH + 1)
    for part, reach in ((levels.ridge, REACH), (levels.inner, CLOSE)):
        things = part.sum() - part[around].sum()
        if part[others[distance > reach]].sum() > _UNEXPLAINED * max(1, things):
            return False
    return True


def painted_colors(counts: Mapping[int, int], inner: Mapping[int, int]) -> list[int] | None:
    """The painted ones of a set's colours 0xRRGGBB; None if the others are no damage.

    Damage makes many colours, nearly all of them between two painted ones, and none of them stands
    in the middle of a region.

    Args:
        counts: Pixels of each colour.
        inner: Those that equal their eight neighbours, of the same masks.
    """
    painted = sorted(v for v in counts if inner.get(v, 0) >= max(1, _INNER * counts[v]))
    lone = np.array(sorted(counts.keys() - {*painted}), np.int64)
    if len(painted) < 2 or len(lone) <= max(_FEW_LEVELS, len(painted)):
        return None
    if len(painted) > _MOST_PAINTED:
        return None
    points, ends = (_channels(np.array(own)).astype(float) for own in (lone, painted))
    between = np.zeros(len(lone), bool)
    for one, other in itertools.combinations(ends, 2):
        line = other - one
        share = np.clip((points - one) @ line / (line @ line), 0, 1)
        between |= np.abs(one + share[:, None] * line - points).max(1) <= CLOSE
    return painted if between.mean() >= _BETWEEN else None


def _channels(colors: np.ndarray) -> np.ndarray:
    return np.stack([colors >> 16, colors >> 8 & 255, colors & 255], -1)
