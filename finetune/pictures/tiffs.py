"""TIFFs as tifffile reads them: any number of channels, in 8 or 16 bit, side by side or in planes.

Pillow knows those of up to four channels, and few of 16 bit. `finetune.pictures.channels` decides
which of the two reads a file.
"""

import functools
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

Source: TypeAlias = Path | BytesIO

_ORIENTATION = 274  # tag
_PLANES = 2
_REDUCED, _TRANSPARENCY = 1, 4  # bits of a page's kind: a smaller copy, a mask


@dataclass(frozen=True)
class TiffForm:
    """What the header of a TIFF says.

    Attributes:
        size: height and width, upright.
        samples: values a pixel, in the first page.
        pages: of the first one's size and type, less smaller copies and masks.
        dtype: of the values.
        photometric: "MINISBLACK", "RGB" and so on.
        has_alpha: whether a sample is transparency.
        missing: what takes the package imagecodecs, which is not there; "" if nothing does.
    """

    size: tuple[int, int]
    samples: int
    pages: int
    dtype: np.dtype
    photometric: str
    has_alpha: bool
    missing: str

    @property
    def channels(self) -> int:
        """Samples of all pages: a stack of grey ones is an image of as many channels."""
        return self.samples * self.pages

    @property
    def is_color(self) -> bool:
        """Whether it is a picture in red, green and blue, and perhaps transparency."""
        return self.photometric == "RGB" and self.samples == 3 + self.has_alpha

    @property
    def is_plain(self) -> bool:
        """Whether its values are those of channels, in a type whose range is known."""
        kinds = ("MINISBLACK", "MINISWHITE", "RGB", "SEPARATED")
        return self.dtype in (np.uint8, np.uint16) and self.photometric in kinds

    def describe(self) -> str:
        """Number and type of the channels, for messages."""
        bits = f"{8 * self.dtype.itemsize} bit"
        if self.pages > 1:
            return f"{self.channels} channels of {bits} ({self.pages} pages)"
        return f"{self.channels} channel{'s' * (self.channels > 1)} of {bits}"


def read_form(source: Source) -> TiffForm:
    """The header of a TIFF. What is wrong with it is an exception of any kind."""
    with _pages(source) as pages:
        first = pages[0]
        if len(first.shape) != (3 if first.samplesperpixel > 1 else 2):
            raise ValueError(f"its first page has {len(first.shape)} axes ({first.axes})")
        height, width = first.imagelength, first.imagewidth
        turned = _orientation(first) >= 5
        photometric = getattr(first.photometric, "name", str(first.photometric))
        return TiffForm(
            size=(width, height) if turned else (height, width),
            samples=first.samplesperpixel,
            pages=len(pages),
            dtype=np.dtype(first.dtype).newbyteorder("="),
            photometric=photometric,
            has_alpha=any(int(sample) in (1, 2) for sample in first.extrasamples),
            missing=_missing(int(first.compression), int(first.predictor)),
        )


def read_pixels(source: Source) -> np.ndarray:
    """The values of a plain TIFF, (H, W, C), upright; grey in which 0 is white is turned over."""
    with _pages(source) as pages:
        first = pages[0]
        planes = []
        for page in pages:
            values = page.asarray(maxworkers=1)
            if values.ndim == 2:
                values = values[..., None]
            elif int(page.planarconfig) == _PLANES:
                values = np.moveaxis(values, 0, -1)
            planes.append(values)
        pixels = planes[0] if len(planes) == 1 else np.concatenate(planes, axis=2)
        if getattr(first.photometric, "name", "") == "MINISWHITE":
            pixels = np.iinfo(pixels.dtype).max - pixels
        pixels = upright(pixels, _orientation(first))
        return np.ascontiguousarray(pixels, pixels.dtype.newbyteorder("="))


def upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Turns and mirrors (H, W, C) as EXIF's and TIFF's orientation, 1 to 8, says."""
    if orientation in (5, 6, 7, 8):
        pixels = pixels.swapaxes(0, 1)
    rows = slice(None, None, -1 if orientation in (3, 4, 7, 8) else 1)
    columns = slice(None, None, -1 if orientation in (2, 3, 6, 7) else 1)
    return pixels[rows, columns]


@contextmanager
def _pages(source: Source) -> Iterator[list[Any]]:
    """The pages that are channels of one image."""
    import tifffile  # slow to import, and few sets need it

    logging.getLogger("tifffile").setLevel(logging.CRITICAL)  # what it raises says the same
    with tifffile.TiffFile(source) as file:
        first = file.pages.first
        pages: list[Any] = [first]
        if first.samplesperpixel == 1:
            pages += [page for page in list(file.pages)[1:] if _belongs(page, first)]
        yield pages


def _belongs(page: Any, first: Any) -> bool:
    kind = int(getattr(page, "subfiletype", 0) or 0)
    is_same = (page.shape, page.dtype) == (first.shape, first.dtype)
    return is_same and not kind & (_REDUCED | _TRANSPARENCY)


def _orientation(page: Any) -> int:
    tag = page.tags.get(_ORIENTATION)
    return int(tag.value) if tag is not None else 1


@functools.cache
def _missing(compression: int, predictor: int) -> str:
    """What of these two tifffile cannot undo by itself."""
    from tifffile import COMPRESSION, PREDICTOR, TIFF

    kinds = (
        (compression, COMPRESSION, TIFF.DECOMPRESSORS),
        (predictor, PREDICTOR, TIFF.UNPREDICTORS),
    )
    for number, names, table in kinds:
        try:
            table[number]
        except (KeyError, ValueError, ImportError):
            return str(names(number).name) if number in set(names) else f"number {number}"
    return ""
