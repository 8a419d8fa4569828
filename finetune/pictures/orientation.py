"""Turns pictures upright, whatever their format: EXIF and TIFF share eight orientations."""

import numpy as np
from PIL import ExifTags, Image


def orientation_of(image: Image.Image) -> int:
    """The orientation in a picture's EXIF data, 1 if it has none."""
    return int(image.getexif().get(ExifTags.Base.Orientation, 1))


def swaps_sides(orientation: int) -> bool:
    """Whether the stored height is the upright width."""
    return orientation in (5, 6, 7, 8)


def upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Turns and mirrors (H, W, C) by an orientation of 1 to 8; others change nothing."""
    if swaps_sides(orientation):
        pixels = pixels.swapaxes(0, 1)
    rows = slice(None, None, -1 if orientation in (3, 4, 7, 8) else 1)
    columns = slice(None, None, -1 if orientation in (2, 3, 6, 7) else 1)
    return np.ascontiguousarray(pixels[rows, columns])
