"""Opens pictures with Pillow: limits on their size, and one message for every fault."""

import io
import re
import threading
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from PIL import Image, UnidentifiedImageError
from PIL.PngImagePlugin import PngImageFile

from finetune.errors import UserError
from finetune.pictures.numbers import is_npy, npy_picture, tiff_picture
from finetune.pictures.references import Encoded, Picture, encoded_bytes

MAX_PIXELS = 178_956_970
"""Most pixels of an image by default, as in Pillow."""


def max_pixels() -> int:
    """The most pixels that Pillow opens now. It warns at half of that."""
    return 2 * Image.MAX_IMAGE_PIXELS if Image.MAX_IMAGE_PIXELS else 2**62


class _Limits:
    """Pillow has one limit for all threads: here the largest that any of them asks for."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.asked: list[int] = []
        self.before: int | None = None


_LIMITS = _Limits()


@contextmanager
def pixel_limit(limit: int | None) -> Iterator[None]:
    """Lets Pillow open images of up to `limit` pixels without a warning; None: `MAX_PIXELS`.

    Another thread's limit may be larger at the same time, so `check_pixels` has the last word.
    """
    own = MAX_PIXELS if limit is None else limit
    with _LIMITS.lock:
        if not _LIMITS.asked:
            _LIMITS.before = Image.MAX_IMAGE_PIXELS
        _LIMITS.asked.append(own)
        Image.MAX_IMAGE_PIXELS = max(_LIMITS.asked)  # beyond it warns, and refuses twice that
    try:
        yield
    finally:
        with _LIMITS.lock:
            _LIMITS.asked.remove(own)
            Image.MAX_IMAGE_PIXELS = max(_LIMITS.asked, default=_LIMITS.before)


def check_pixels(what: object, size: tuple[int, int], limit: int | None) -> None:
    """Raises a UserError if (height, width) is more than `limit` pixels; None: `MAX_PIXELS`."""
    own = MAX_PIXELS if limit is None else limit
    if size[0] * size[1] > own:
        raise too_large(what, f"{size[1]} x {size[0]} pixels", own)


@contextmanager
def opened(picture: Picture) -> Iterator[Image.Image]:
    """Opens a picture with Pillow; errors in the block carry the picture's name.

    Pillow gets an open file: by its name, Pillow 12 maps an uncompressed TIFF into memory and
    decodes it to noise if it lies on its side.
    """
    with named(picture):
        if is_npy(picture):
            yield npy_picture(picture, max_pixels())
            return
        file = io.BytesIO(picture.data) if isinstance(picture, Encoded) else picture.open("rb")
        with file, _pillows(picture, file) as image:
            yield image


def _pillows(picture: Picture, file: IO[bytes]) -> Image.Image:
    try:
        return Image.open(file)
    except UnidentifiedImageError:
        if (image := tiff_picture(picture)) is None:
            raise
        return image


@contextmanager
def opened_whole(picture: Picture) -> Iterator[Image.Image]:
    """The same for reading the pixels. Pillow decodes PNGs with a wrong checksum without a word."""
    with opened(picture) as image:
        if image.format == "PNG":
            whole_png(encoded_bytes(picture))
        yield image


def npy_as_png(picture: Picture) -> bytes:
    """The picture of an `.npy` file as PNG, with the same numbers."""
    file = io.BytesIO()
    with opened(picture) as image:
        image.save(file, "PNG")
    return file.getvalue()


def whole_png(data: bytes) -> PngImageFile:
    """The header of a PNG whose checksums are right; any other raises an exception."""
    file = io.BytesIO(data)
    image = PngImageFile(file)
    image.verify()  # up to the checksum of the last part
    if file.read(4) != zlib.crc32(b"IEND").to_bytes(4, "big"):
        raise ValueError("its end is damaged")
    return image


def source_of(picture: Picture) -> Path | io.BytesIO:
    """What Pillow and tifffile open."""
    return io.BytesIO(picture.data) if isinstance(picture, Encoded) else picture


@contextmanager
def named(picture: Picture) -> Iterator[None]:
    """Turns every error in the block into a UserError with the picture's name."""
    try:
        yield
    except UserError:
        raise
    except Image.DecompressionBombError as error:
        what = str(error).partition(" exceeds")[0].lower()
        raise too_large(picture, what, max(_LIMITS.asked, default=max_pixels())) from error
    except Exception as error:  # damaged files raise OSError, SyntaxError, ValueError, struct.error
        # Pillow repeats the name, or names a buffer.
        reason = re.sub(r" <_io\.Buffered[^>]*>| <_io\.BytesIO [^>]*>", "", str(error)).replace(
            f" {str(picture)!r}", ""
        )
        size = None
        if isinstance(picture, Encoded):
            size = len(picture.data)
        elif picture.is_file():
            size = picture.stat().st_size
        what = "the file is gone" if size is None else f"cannot be read ({size} bytes): {reason}"
        kind = {None: "missing-file", 0: "empty-file"}.get(size, "unreadable-file")
        raise UserError(f"{picture}: {what}. Replace or remove it.", kind=kind) from error


def too_large(picture: object, what: str, limit: int) -> UserError:
    """The error for a picture with more pixels than `limit`."""
    return UserError(
        f"{picture}: {what}, more than the {limit:,} that are read: such files are made to fill "
        "the memory. If you trust it, cut it into tiles; `finetune predict` takes --max-pixels.",
        kind="too-large",
    )


def raw_mode(image: Image.Image) -> str:
    """Pillow's name for how the file stores its pixels; "" once they are loaded."""
    tile = getattr(image, "tile", None)
    if not tile:
        return ""
    args = tile[0][3]
    return str(args[0] if isinstance(args, tuple) else args)
