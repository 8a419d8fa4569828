"""TIFFs of any number of channels, in 8 or 16 bit, side by side, in planes or in pages.

Pillow reads up to four channels, and few TIFFs of 16 bit; tifffile reads the rest. `tiff_to_read`
decides which of the two reads a file.
"""

import functools
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from finetune.errors import UserError
from finetune.pictures.channels import grey, other_channels, unknown_range
from finetune.pictures.numbers import main_pages
from finetune.pictures.opening import max_pixels, named, source_of, too_large
from finetune.pictures.orientation import orientation_in, swaps_sides, upright
from finetune.pictures.references import Picture

_BITS, _ORIENTATION, _SAMPLES, _PLANAR, _XMP = 258, 274, 277, 284, 700  # tags
_NODATA = 42113  # GDAL's tag
_PLANES = 2
_REDUCED, _TRANSPARENCY = 1, 4  # bits of a page's kind: a smaller copy, a mask


@dataclass(frozen=True)
class TiffForm:
    """What the header of a TIFF says."""

    size: tuple[int, int]  # height and width, upright
    samples: int  # values per pixel, in the first page
    pages: int  # of the first one's size and type; smaller copies and masks do not count
    dtype: np.dtype
    photometric: str  # "MINISBLACK", "RGB" and so on
    has_alpha: bool  # whether one sample is transparency
    largest_part: int  # bytes of a strip or tile of the first page, decoded
    is_turned: bool  # whether the file holds it in another orientation
    missing: str  # the compression for which the package imagecodecs is missing, "" if none is

    @property
    def channels(self) -> int:
        """Samples of all pages: a stack of grey pages is one image."""
        return self.samples * self.pages

    @property
    def is_color(self) -> bool:
        """Whether it is red, green and blue, with or without transparency."""
        return self.photometric == "RGB" and self.samples == 3 + self.has_alpha

    @property
    def is_plain(self) -> bool:
        """Whether its values are channels, in a type of known range."""
        kinds = ("MINISBLACK", "MINISWHITE", "RGB", "SEPARATED")
        return self.dtype in (np.uint8, np.uint16) and self.photometric in kinds

    def describe(self) -> str:
        """Number and type of the channels, for messages."""
        pages = f" ({self.pages} pages)" if self.pages > 1 else ""
        plural = "s" * (self.channels > 1)
        return f"{self.channels} channel{plural} of {8 * self.dtype.itemsize} bit{pages}"


@contextmanager
def _pages(picture: Picture) -> Iterator[list[Any]]:
    """The pages that are channels of one image."""
    import tifffile  # slow to import, and few data sets need it

    logging.getLogger("tifffile").setLevel(logging.CRITICAL)  # its exceptions say the same
    with tifffile.TiffFile(source_of(picture)) as file:
        first = file.pages.first
        pages: list[Any] = [first]
        for page in list(file.pages)[1:] if first.samplesperpixel == 1 else ():
            kind = int(getattr(page, "subfiletype", 0) or 0)
            is_same = (page.shape, page.dtype) == (first.shape, first.dtype)
            if is_same and not kind & (_REDUCED | _TRANSPARENCY):
                pages.append(page)
        yield pages


def orientation_tag(page: Any) -> int:
    """The orientation of a page of tifffile's, 1 to 8; 1 is upright."""
    tag, xmp = page.tags.get(_ORIENTATION), page.tags.get(_XMP)
    if tag is not None:
        return int(tag.value)
    return orientation_in(xmp.value) if xmp is not None else 1


@functools.cache
def _missing(compression: int, predictor: int) -> str:
    """Which of these two tifffile cannot undo by itself, "" if it can undo both."""
    from tifffile import COMPRESSION, PREDICTOR, TIFF

    compressions = (compression, COMPRESSION, TIFF.DECOMPRESSORS)
    for number, names, table in (compressions, (predictor, PREDICTOR, TIFF.UNPREDICTORS)):
        try:
            table[number]
        except (KeyError, ValueError, ImportError):
            return str(names(number).name) if number in set(names) else f"number {number}"
    return ""


def num_pages(picture: Picture) -> int:
    """The pages of a TIFF, without smaller copies of others."""
    import tifffile

    with named(picture), tifffile.TiffFile(source_of(picture)) as file:
        return main_pages(file)


def nodata_of(picture: Picture) -> float | None:
    """GDAL's value for "no data" in a TIFF; None for any other picture."""
    if not is_tiff(picture):
        return None
    import tifffile

    with named(picture), tifffile.TiffFile(source_of(picture)) as file:
        tag = file.pages.first.tags.get(_NODATA)
        text = str(tag.value).strip("\0 ") if tag is not None else ""
    try:
        return float(text) if text else None
    except ValueError:
        return None


# ------------------------------------------------------------------ which library reads which TIFF


def is_tiff(picture: Picture) -> bool:
    """Whether it is a TIFF by its name or, without one, by its first bytes."""
    if isinstance(picture, Path):
        return picture.suffix.lower() in (".tif", ".tiff")
    return picture.data[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


def pillow_header(picture: Picture) -> tuple[str | None, dict[int, Any]]:
    """The format that Pillow sees, None if it knows none; and the tags of a TIFF."""
    with named(picture):
        try:
            with Image.open(source_of(picture)) as image:
                return image.format, dict(getattr(image, "tag_v2", {}))
        except UnidentifiedImageError:
            return None, {}


def tiff_form(picture: Picture) -> TiffForm:
    """The header of a TIFF as tifffile reads it."""
    with named(picture), _pages(picture) as pages:
        first = pages[0]
        if len(first.shape) != (3 if first.samplesperpixel > 1 else 2):
            raise ValueError(f"its first page has {len(first.shape)} axes ({first.axes})")
        height, width = first.imagelength, first.imagewidth
        photometric = getattr(first.photometric, "name", str(first.photometric))
        return TiffForm(
            size=(width, height) if swaps_sides(orientation_tag(first)) else (height, width),
            samples=first.samplesperpixel,
            pages=len(pages),
            dtype=np.dtype(first.dtype).newbyteorder("="),
            photometric=photometric,
            has_alpha=any(int(sample) in (1, 2) for sample in first.extrasamples),
            largest_part=int(np.prod(first.chunks)) * first.dtype.itemsize,
            is_turned=orientation_tag(first) != 1,
            missing=_missing(int(first.compression), int(first.predictor)),
        )


def tiff_to_read(picture: Picture, num_channels: int) -> TiffForm | None:
    """The header of a TIFF that tifffile is to read; None for any other picture.

    Pillow reads those whose numbers are no channels (palettes, YCbCr, single bits) and, where
    colours become RGB or grey in 8 bit, every TIFF that it knows.

    Raises:
        UserError: It has other channels, or neither library can undo its compression.
    """
    if not is_tiff(picture):
        return None
    known, tags = pillow_header(picture)
    if known not in (None, "TIFF"):
        return None
    samples, planar = tags.get(_SAMPLES, 1), tags.get(_PLANAR) == 2
    # Pillow 12 reads planes of 16 bit as if their values lay side by side.
    is_misread = planar and samples > 1 and 16 in tags.get(_BITS, ())
    is_readable = known is not None and not is_misread
    if num_channels == 3 and is_readable and samples <= 4:
        return None
    tiff = tiff_form(picture)
    if tiff.size[0] * tiff.size[1] > max_pixels():
        raise too_large(picture, f"{tiff.size[1]} x {tiff.size[0]} pixels", max_pixels())
    if not tiff.is_plain:
        if is_readable:
            return None
        raise unknown_range(picture, f"a TIFF with {tiff.dtype} values ({tiff.photometric})")
    is_converted = num_channels in (1, 3) and tiff.is_color
    if tiff.channels != num_channels and not is_converted:
        raise other_channels(picture, tiff.describe(), num_channels)
    if is_readable and num_channels == 1 and is_converted:
        return None
    if tiff.missing:
        is_whole = tiff.pages == 1 and (tiff.dtype == np.uint8 or num_channels == 1)
        if is_readable and is_whole:
            return None
        raise UserError(
            f"{picture}: its compression ({tiff.missing}) with {tiff.describe()} needs the package "
            "imagecodecs. Run `pip install imagecodecs`, or save it uncompressed or with deflate."
        )
    return tiff


def read_tiff(picture: Picture, tiff: TiffForm, num_channels: int) -> np.ndarray:
    """The pixels, upright (H, W, num_channels), of a TIFF from `tiff_to_read`.

    Where 0 is white, grey is inverted.
    """
    with named(picture), _pages(picture) as pages:
        first = pages[0]
        planes = [page.asarray(maxworkers=1) for page in pages]
        if planes[0].ndim == 2:
            pixels = np.stack(planes, axis=2) if len(planes) > 1 else planes[0][..., None]
        elif int(first.planarconfig) == _PLANES:
            pixels = np.moveaxis(planes[0], 0, -1)
        else:
            pixels = planes[0]
        if getattr(first.photometric, "name", "") == "MINISWHITE":
            pixels = np.iinfo(pixels.dtype).max - pixels
        pixels = upright(pixels, orientation_tag(first))
        pixels = np.ascontiguousarray(pixels, pixels.dtype.newbyteorder("="))
    if tiff.channels == num_channels != 3:
        return pixels
    if pixels.dtype == np.uint16:
        pixels = (pixels >> 8).astype(np.uint8)
    rgb = np.ascontiguousarray(pixels[..., :3])
    return rgb if num_channels == 3 else grey(rgb)
