"""Opens pictures with Pillow: limits on their size, and one message for whatever goes wrong."""

import io
import re
import threading
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from PIL import Image, ImageFile

from finetune.errors import UserError
from finetune.pictures.references import Encoded, Picture, encoded_bytes

MAX_PIXELS = 178_956_970
"""Of an image, unless told otherwise: as Pillow has it."""


def max_pixels() -> int:
    """What an image may have outside of `pixel_limit`: Pillow refuses twice what it warns of."""
    return 2 * Image.MAX_IMAGE_PIXELS if Image.MAX_IMAGE_PIXELS else 2**62


class _Limits:
    """Pillow has one limit for all threads: the largest that any of them asks for."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.asked: list[int] = []
        self.before: int | None = None


_LIMITS = _Limits()


@contextmanager
def pixel_limit(limit: int | None) -> Iterator[None]:
    """Inside, Pillow opens images of up to `limit` pixels, without a warning; None: of its own.

    Other threads' may be larger meanwhile: `check_pixels` says which are too large.
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
    """Raises a UserError if an image of this height and width has more pixels than `limit`.

    None: `MAX_PIXELS`.
    """
    own = MAX_PIXELS if limit is None else limit
    if size[0] * size[1] > own:
        raise too_large(what, f"{size[1]} x {size[0]} pixels", own)


@contextmanager
def opened(picture: Picture) -> Iterator[ImageFile.ImageFile]:
    """Opens one with Pillow; whatever goes wrong until the end of the block has its name."""
    with named(picture), Image.open(source_of(picture)) as image:
        yield image


def source_of(picture: Picture) -> Path | io.BytesIO:
    """What Pillow and tifffile open."""
    return io.BytesIO(picture.data) if isinstance(picture, Encoded) else picture


@contextmanager
def named(picture: Picture) -> Iterator[None]:
    """Whatever goes wrong in the block is a UserError with the picture's name."""
    try:
        yield
    except UserError:
        raise
    except Image.DecompressionBombError as error:
        what = str(error).partition(" exceeds")[0].lower()
        raise too_large(picture, what, max(_LIMITS.asked, default=max_pixels())) from error
    except Exception as error:  # damaged files raise OSError, SyntaxError, ValueError, struct.error
        # Pillow names what it read from, which is said already, or says nothing.
        reason = re.sub(r" <_io\.BytesIO [^>]*>", "", str(error)).replace(f" {str(picture)!r}", "")
        if isinstance(picture, Encoded):
            size = len(picture.data)
            what = f"cannot be read ({size} bytes): {reason}. Replace it"
        elif picture.is_file():
            size = picture.stat().st_size
            what = f"cannot be read ({size} bytes): {reason}. Replace the file"
        else:
            size, what = None, "the file is gone. Replace the file"
        kind = {None: "missing-file", 0: "empty-file"}.get(size, "unreadable-file")
        raise UserError(f"{picture}: {what}, or remove image and mask.", kind=kind) from error


def too_large(picture: object, what: str, limit: int) -> UserError:
    """The error for a picture with more pixels than `limit`."""
    return UserError(
        f"{picture}: {what}, more than the {limit:,} that are read: such files are made to fill "
        "the memory. If it is what it seems, cut it into tiles; `finetune predict` takes "
        "--max-pixels.",
        kind="too-large",
    )


def check_png(picture: Picture, image: ImageFile.ImageFile) -> None:
    """Checks the sums of a PNG's parts: Pillow decodes pixels that were damaged without a word."""
    if image.format == "PNG" and (damage := png_damage(encoded_bytes(picture))):
        raise ValueError(damage)


def png_damage(data: bytes) -> str:
    """What is wrong with a PNG by the sums of its parts, "" if nothing is."""
    position = 8
    while position < len(data):
        length = int.from_bytes(data[position : position + 4], "big")
        end = position + 8 + length
        checksum = int.from_bytes(data[end : end + 4], "big")
        if end + 4 > len(data) or zlib.crc32(data[position + 4 : end]) != checksum:
            return "its pixels are damaged"
        if data[position + 4 : position + 8] == b"IEND":
            return ""
        position = end + 4
    return "its end is missing"


def raw_mode(image: ImageFile.ImageFile) -> str:
    """How the file stores its pixels, as Pillow calls it; "" once they are loaded."""
    if not image.tile:
        return ""
    args = image.tile[0][3]
    return str(args[0] if isinstance(args, tuple) else args)
