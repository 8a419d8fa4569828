"""Damaged values of masks become the painted ones: after smooth resizing or lossy compression."""

import cv2
import numpy as np

NONE = -1
"""For levels that are too far from every painted value."""
_EXACT = 6
"""How far a level of a painted region may be off."""
_TOGETHER = 5
"""Pixels of a painted region among nine; a line across a ramp has three."""
_WINDOW = np.ones((9, 9), np.uint8)


def mended_levels(mask: np.ndarray, values: tuple[int, ...], tolerance: int) -> np.ndarray:
    """Replaces each level within the tolerance of a painted value by the nearest painted value.

    A ramp between a low and a high value also crosses the values between them. There, a pixel far
    from every region of the middle value gets the nearer end of its ramp, so that no
    thing has a rim of another class.

    Args:
        mask: Levels, uint8 or uint16 (H, W).
        values: The painted ones, ascending. Where two are equally near, the lower one wins.
        tolerance: How far a level may be off.

    Returns:
        The shape and type of `mask`; levels that are too far from every value are unchanged.
    """
    nearest = _nearest_of_all(values, tolerance, np.iinfo(mask.dtype).max + 1)
    places = nearest.take(mask)
    if len(values) > 2 and mask.size and (places != NONE).any():
        _unrimmed(mask, places, nearest, np.array(values))
    return np.where(places == NONE, mask, np.array(values, mask.dtype).take(places, mode="clip"))


def mended_greys(mask: np.ndarray, levels: tuple[int, ...], tolerance: int) -> np.ndarray:
    """The same for colours 0xRRGGBB, int32 (H, W), where all painted ones are grey."""
    channels = np.stack([mask >> 16, mask >> 8 & 255, mask & 255]).astype(np.uint8)
    grey = channels[1]
    nearest = np.array(levels)[_nearest_of_all(levels, 255, 256)].take(grey)
    near = np.abs(channels.astype(np.int16) - nearest).max(0) <= tolerance
    mended = mended_levels(grey, levels, tolerance).astype(np.int32) * 0x010101
    return np.where(near, mended, mask)


def _nearest_of_all(values: tuple[int, ...], tolerance: int, size: int) -> np.ndarray:
    """Level -> place of the nearest value, or `NONE`; int16 (size,)."""
    levels, table = np.arange(size), np.array(values)
    places = np.searchsorted((table[1:] + table[:-1]) / 2, levels)
    return np.where(np.abs(levels - table[places]) <= tolerance, places, NONE).astype(np.int16)


def _unrimmed(
    mask: np.ndarray, places: np.ndarray, nearest: np.ndarray, values: np.ndarray
) -> None:
    """Changes `places` on ramps between values that are not neighbours."""
    low, high = nearest[cv2.erode(mask, _WINDOW)], nearest[cv2.dilate(mask, _WINDOW)]
    on_ramp = (low != NONE) & (low < places) & (places < high)
    for place in np.unique(places[on_ramp]).tolist():
        exact = (np.abs(mask.astype(np.int32) - values[place]) <= _EXACT).astype(np.uint8)
        own = cv2.boxFilter(exact, -1, (3, 3), normalize=False) * exact >= _TOGETHER
        rim = on_ramp & (places == place) & (cv2.dilate(own.astype(np.uint8), _WINDOW) == 0)
        below, above = low[rim], high[rim]
        levels = mask[rim].astype(np.int64)
        places[rim] = np.where(2 * levels > values[below] + values[above], above, below)
