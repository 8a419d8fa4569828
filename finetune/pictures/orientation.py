"""Turns pictures upright, whatever their format and channels; masks too.

EXIF and TIFF share eight orientations. The rule is that of Pillow's `exif_transpose`, which also
reads XMP where there is no EXIF data.
"""

import re

import numpy as np
from PIL import ExifTags, Image, ImageOps
from PIL.TiffImagePlugin import TiffImageFile

_SIGNS = (b"eXIf", b"Exif\0", b"Raw profile type", b"com.adobe.xmp", b":Orientation")


def orientation_of(image: Image.Image) -> int:
    """The orientation in a picture's EXIF data or XMP, 1 if it has none."""
    return int(image.getexif().get(ExifTags.Base.Orientation, 1))


def orientation_in(xmp: bytes | str) -> int:
    """The orientation in XMP, 1 if it has none."""
    text = xmp if isinstance(xmp, str) else bytes(xmp).decode("latin-1")
    found = re.search(r'tiff:Orientation(?:="|>)([0-9])', text)
    return int(found[1]) if found else 1


def may_be_turned(data: bytes) -> bool:
    """Whether an encoded picture may say an orientation anywhere, even behind its pixels."""
    return any(sign in data for sign in _SIGNS)


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


def upright_image(image: Image.Image) -> Image.Image:
    """A PIL image, turned. Moves whole pixels, faster than numpy."""
    image.load()  # Pillow itself turns a TIFF here, and finds EXIF data behind a PNG's pixels
    return ImageOps.exif_transpose(image)


def upright_size(image: Image.Image, *, expected: tuple[int, int] | None = None) -> tuple[int, int]:
    """Height and width, from the header.

    A PNG may have its EXIF data behind the pixels; only one of another size than `expected` is
    decoded to look for it.
    """
    size = image.height, image.width
    if isinstance(image, TiffImageFile):  # whose size newer versions of Pillow turn
        size = image.tag_v2[ExifTags.Base.ImageLength], image.tag_v2[ExifTags.Base.ImageWidth]
    says = {"exif", "XML:com.adobe.xmp", "xmp", "Raw profile type exif"} & image.info.keys()
    is_asked = image.format != "PNG" or says or size != (expected or size)
    return size[::-1] if is_asked and swaps_sides(orientation_of(image)) else size
