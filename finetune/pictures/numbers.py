"""Arrays as pictures: NumPy's `.npy` files, and TIFFs of numbers that Pillow does not know."""

import io
import math
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from finetune.pictures.references import Picture, encoded_bytes

_MAGIC = b"\x93NUMPY"
_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_COLORS = (2, 3, 4)  # channels that Pillow has: grey and alpha, RGB, RGB and alpha
_LARGEST = 2**24  # float32 holds every whole number up to here


def is_npy(picture: Picture) -> bool:
    """Whether it is an `.npy` file by its name or, without one, by its first bytes."""
    if isinstance(picture, Path):
        return picture.suffix.lower() == ".npy"
    return picture.data.startswith(_MAGIC)


def npy_picture(picture: Picture, max_pixels: int) -> Image.Image:
    """The array of an `.npy` file. Its header is checked first; pickled objects are never read.

    Raises:
        ValueError: It is no array of pixels, or larger than it says.
    """
    data = encoded_bytes(picture)
    file = io.BytesIO(data)
    version = np.lib.format.read_magic(file)
    read = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }
    if version not in read:
        raise ValueError(f"version {version} of the .npy format is not read")
    shape, _, dtype = read[version](file)
    if dtype.hasobject or dtype.kind not in "biuf":
        raise ValueError(f"it holds {dtype} values, not numbers")
    if math.prod(shape) > max_pixels:
        raise ValueError(f"an array of shape {shape} is larger than the {max_pixels:,} pixels read")
    if math.prod(shape) * dtype.itemsize != len(data) - file.tell():
        raise ValueError(f"its size is not that of {shape} {dtype} values")
    return as_picture(np.load(io.BytesIO(data), allow_pickle=False))


def tiff_picture(picture: Picture) -> Image.Image | None:
    """A TIFF of one grey page, in a type that Pillow does not read, such as int64; else None."""
    data = encoded_bytes(picture)
    if data[:4] not in _TIFF:
        return None
    import tifffile  # slow to import, and few data sets need it

    with tifffile.TiffFile(io.BytesIO(data)) as file:
        first: Any = file.pages.first
        if first.samplesperpixel != 1 or len(first.shape) != 2 or first.dtype is None:
            return None
        if (pages := main_pages(file)) > 1:
            raise ValueError(f"it has {pages} pages; one is needed")
        return as_picture(first.asarray(maxworkers=1))


def main_pages(file: Any) -> int:
    """The pages of an open TIFF, without smaller copies of others."""
    return sum(not int(getattr(page, "subfiletype", 0) or 0) & 1 for page in file.pages)


def as_picture(array: np.ndarray) -> Image.Image:
    """An array (H, W), or uint8 (H, W, 2 to 4), as Pillow's picture of the same numbers.

    Raises:
        ValueError: It has other axes, or numbers that Pillow cannot hold.
    """
    if array.ndim == 3 and 1 in (array.shape[0], array.shape[2]):
        array = array[..., 0] if array.shape[2] == 1 else array[0]
    array = np.ascontiguousarray(array, array.dtype.newbyteorder("="))
    is_color = array.ndim == 3 and array.shape[2] in _COLORS and array.dtype == np.uint8
    if 0 in array.shape or not (array.ndim == 2 or is_color):
        raise ValueError(
            f"an array of shape {array.shape} and {array.dtype} is no picture: (height, width), or "
            "(height, width, channels) with up to 4 channels of uint8, is read"
        )
    if array.dtype in (np.bool_, np.uint8, np.uint16):
        return Image.fromarray(array)
    if array.dtype.kind == "f":
        return Image.fromarray(array.astype(np.float32))
    bounds = np.iinfo(np.int32)
    if array.min() < bounds.min or array.max() > bounds.max:
        raise ValueError(f"it holds numbers from {array.min()} to {array.max()}, beyond 32 bit")
    return Image.fromarray(array.astype(np.int32))


def whole_numbers(values: np.ndarray, absent: float | None, absent_as: int) -> np.ndarray:
    """Floating point ids as int32, `absent_as` where they are `absent` (it may be NaN).

    Raises:
        ValueError: A value is no whole number.
    """
    gone = np.zeros(values.shape, bool)
    if absent is not None and not absent >= 0:  # other ones are left to labels.ignore
        gone = np.isnan(values) if math.isnan(absent) else values == np.float32(absent)
    values = np.where(gone, 0, values)
    wrong = ~((values == np.round(values)) & (np.abs(values) <= _LARGEST)) | (values == absent_as)
    if wrong.any():
        raise ValueError(
            f"it holds {values[wrong][0]}, which is no class id; masks must hold whole numbers"
        )
    return np.where(gone, absent_as, values).astype(np.int32)
