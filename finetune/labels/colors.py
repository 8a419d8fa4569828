"""Colours of classes: as numbers 0xRRGGBB, the nearest one of a table, the default palette."""

import colorsys
import functools

import numpy as np

RGB = tuple[int, int, int]

WRONG: RGB = (225, 38, 38)
"""The colour of wrong pixels in pictures of errors."""
_FAR = 80  # from WRONG, in the channel that differs most
_CHUNK = 4096  # colours compared at once: times 256 of a table, 12 MB of distances


def pack(color: RGB) -> int:
    """A colour as 0xRRGGBB."""
    return color[0] << 16 | color[1] << 8 | color[2]


def unpack(value: int) -> RGB:
    """0xRRGGBB as a colour."""
    return value >> 16, value >> 8 & 255, value & 255


def is_grey(value: int) -> bool:
    """Whether a colour 0xRRGGBB has three equal channels."""
    return value % 0x010101 == 0


def distances(values: np.ndarray, table: np.ndarray) -> np.ndarray:
    """(N, M): the largest difference in a channel between N colours and M others, 0xRRGGBB."""
    return np.abs(_channels(values)[:, None] - _channels(table)).max(-1)


def mended(packed: np.ndarray, colors: tuple[int, ...], tolerance: int) -> np.ndarray:
    """Replaces colours within the tolerance of a table's colour by the nearest of the table.

    The tolerance is the largest difference in a channel; where two colours are equally near, the
    first wins. `packed` holds 0xRRGGBB in any shape; the result is int32 of its shape. Each colour
    is compared with the table when it is met first; later it is one lookup.
    """
    table = _mending_table(colors, tolerance)
    found = table.take(packed)
    if not found.all():
        new = np.unique(packed[found == 0])
        table[new] = _nearest(new, np.asarray(colors, np.int32), tolerance) + 1
        found = table.take(packed)
    return found - 1


@functools.lru_cache(maxsize=2)
def _mending_table(colors: tuple[int, ...], tolerance: int) -> np.ndarray:
    """What each colour becomes, plus 1; 0 until the colour is met.

    The system allocates only the pages that are written to. Threads that meet a colour at the same
    time write the same value.
    """
    return np.zeros(2**24, np.int32)


def _nearest(values: np.ndarray, colors: np.ndarray, tolerance: int) -> np.ndarray:
    result = values.copy()
    for start in range(0, len(values), _CHUNK):
        distance = distances(values[start : start + _CHUNK], colors)
        near = distance.min(1) <= tolerance
        result[start : start + _CHUNK][near] = colors[distance.argmin(1)[near]]
    return result


def _channels(packed: np.ndarray) -> np.ndarray:
    return np.stack([packed >> 16, packed >> 8 & 255, packed & 255], -1)


def default_colors(num_labels: int) -> tuple[RGB, ...]:
    """A fixed palette for any number of classes: distinct, never black, none like `WRONG`.

    Hues step by the golden ratio, which spreads every prefix of the sequence over the circle. Three
    shades alternate, so that hues that come near again (5, 8, 13 steps) differ in lightness.
    """
    shades = ((0.75, 0.95), (0.95, 0.6), (0.4, 1.0))
    colors: dict[RGB, None] = {}  # an ordered set
    step = 0
    while len(colors) < num_labels:
        saturation, value = shades[step % len(shades)]
        shares = colorsys.hsv_to_rgb(step * 0.618033988749895 % 1, saturation, value)
        red, green, blue = (round(255 * share) for share in shares)
        if max(abs(red - WRONG[0]), abs(green - WRONG[1]), abs(blue - WRONG[2])) >= _FAR:
            colors[red, green, blue] = None
        step += 1
    return tuple(colors)
