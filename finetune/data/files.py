"""Pictures: any of them as an array, any mask as the numbers that it stores.

They are files, or encoded bytes out of a table. What can be wrong with one is said with its name,
by `UserError`.
"""

import io
import math
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import cv2
import numpy as np
from PIL import ExifTags, Image, ImageFile, ImageOps

from finetune.errors import UserError

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".bmp")
MASK_SUFFIXES = (".png", ".bmp", ".tif", ".tiff")  # lossless only: ids do not survive JPEG


@dataclass(frozen=True)
class Encoded:
    """The bytes of a picture that is no file of its own."""

    name: str
    """What messages call it."""
    data: bytes

    def __str__(self) -> str:
        return self.name


Picture: TypeAlias = Path | Encoded


class Pictures(Protocol):
    """Finds pictures by references, such as the strings in the rows of a data set. Picklable."""

    def open(self, reference: Any) -> Picture:
        """The picture, not yet decoded."""

    def name(self, reference: Any) -> str:
        """What messages call it."""

    def files(self, reference: Any) -> list[Path]:
        """The files that it is read from and that may change; none, if they cannot."""


@dataclass(frozen=True)
class Files:
    """Pictures whose references are paths."""

    def open(self, reference: str) -> Picture:
        """The file."""
        return Path(reference)

    def name(self, reference: str) -> str:
        """The path."""
        return reference

    def files(self, reference: str) -> list[Path]:
        """The file."""
        return [Path(reference)]


FILES = Files()

# Pillow spreads the grey levels of 2 and 4 bit files over 0..255, which multiplies class ids.
_SPREAD_GREY = {"L;2": 85, "L;4": 17}

_STORED = {
    "1": "1 bit",
    "L": "8 bit grey",
    "P": "palette",
    "PA": "palette with transparency",
    "I": "32 bit numbers",
    "RGB": "colours",
    "RGBA": "colours with transparency",
}


def read_image(picture: Picture) -> np.ndarray:
    """Reads any picture as uint8 (H, W, 3), RGB, upright (EXIF orientation applied).

    16 bit grey keeps its high byte, which is what Pillow does to 16 bit colour. Transparency is
    dropped.

    Raises:
        UserError: The file cannot be read, or holds floating point or 32 bit values.
    """
    if (decoded := _decode_plain(picture)) is not None and decoded.ndim == 3:
        return decoded
    with opened(picture) as image:
        _check_png(picture, image)
        upright = ImageOps.exif_transpose(image)
        if upright.mode not in ("I", "F") and not upright.mode.startswith("I;16"):
            return np.array(upright.convert("RGB"))
        grey = np.asarray(upright)  # convert() would clip these at 255
    if grey.dtype.kind == "f" or grey.min() < 0 or grey.max() > 65535:
        raise UserError(
            f"{picture}: a grey image with {grey.dtype} values, whose range cannot be known. "
            f"Convert it to 8 or 16 bit."
        )
    return np.repeat((grey.astype(np.uint16) >> 8).astype(np.uint8)[..., None], 3, axis=2)


def read_mask(picture: Picture) -> np.ndarray:
    """Reads the raw values of a mask: palette indices, never their colours.

    Returns:
        (H, W) bool, uint8, uint16 or int32: the numbers that the file stores.

    Raises:
        UserError: The file cannot be read, or holds colours.
    """
    if (decoded := _decode_plain(picture)) is not None and decoded.ndim == 2:
        return decoded
    with opened(picture) as mask:
        _check_png(picture, mask)
        _check_mask_mode(picture, mask)
        spread = _SPREAD_GREY.get(_raw_mode(mask))
        values = np.array(mask)
    return values // np.uint8(spread) if spread else values


def read_colors(picture: Picture) -> np.ndarray:
    """Reads a mask whose colours mean something, those of a palette too: int32 (H, W), 0xRRGGBB.

    Raises:
        UserError: The file cannot be read, or holds no 8 bit colours.
    """
    with opened(picture) as mask:
        if mask.mode not in ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX"):
            raise UserError(
                f"{picture}: the mask is {mask.mode}, not 8 bit colours. Convert it, or set "
                "labels.kind to ids if its numbers are the classes.",
                kind="mask-not-colors",
            )
        if "16" in _raw_mode(mask):  # of which Pillow would keep the high bytes
            raise UserError(
                f"{picture}: the mask has 16 bits a channel. Save it with 8.",
                kind="mask-not-colors",
            )
        _check_png(picture, mask)
        channels = np.array(mask.convert("RGB")).astype(np.int32)
    return channels[..., 0] << 16 | channels[..., 1] << 8 | channels[..., 2]


def image_size(picture: Picture, *, expected: tuple[int, int] | None = None) -> tuple[int, int]:
    """Height and width of a picture, upright, from its header.

    Args:
        picture: The picture.
        expected: What it should be. Only if it is not, a PNG, which may have its EXIF data behind
            the pixels, is decoded to look for it.

    Raises:
        UserError: The file cannot be opened.
    """
    with opened(picture) as image:
        size = image.height, image.width
        may_be_turned = image.format != "PNG" or "exif" in image.info or size != (expected or size)
        if may_be_turned and image.getexif().get(ExifTags.Base.Orientation, 1) >= 5:
            return size[::-1]
        return size


def mask_size(picture: Picture, *, of_ids: bool) -> tuple[int, int]:
    """Height and width of a mask, which is never turned, from its header.

    Args:
        picture: The picture.
        of_ids: Whether it must hold ids, not colours.

    Raises:
        UserError: The file cannot be opened, or holds colours where there must be ids.
    """
    with opened(picture) as mask:
        if of_ids:
            _check_mask_mode(picture, mask)
        return mask.height, mask.width


def stored_as(picture: Picture) -> str:
    """How a picture stores its pixels, in words, from its header.

    Raises:
        UserError: The file cannot be opened.
    """
    with opened(picture) as image:
        if image.mode in _STORED:
            return _STORED[image.mode]
        return "16 bit grey" if image.mode.startswith("I;16") else image.mode


def _decode_plain(picture: Picture) -> np.ndarray | None:
    """Decodes what most files are, upright RGB in JPEG and 8 bit grey in PNG, by cv2.

    The same bits as Pillow's, of which a test makes sure, in two thirds of the time: Pillow copies
    three times on the way to an array. Returns None for any other file, and for what might be
    damaged: Pillow knows better what that is, and what to say about it.
    """
    if isinstance(picture, Path) and picture.suffix.lower() not in (".jpg", ".jpeg", ".png"):
        return None
    try:
        data = _bytes(picture)
        is_png = data[:1] == b"\x89"
        size = _plain_png(data) if is_png else _plain_jpeg(data)
        # Pillow warns of sizes beyond, and refuses twice that.
        if size is None or size[0] * size[1] > (Image.MAX_IMAGE_PIXELS or math.inf):
            return None
        flags = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
        flags = cv2.IMREAD_UNCHANGED if is_png else flags
        decoded = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except (OSError, IndexError, cv2.error):
        return None
    return decoded if decoded is not None and decoded.shape[:2] == size else None


def _bytes(picture: Picture) -> bytes:
    return picture.data if isinstance(picture, Encoded) else picture.read_bytes()


def _plain_png(data: bytes) -> tuple[int, int] | None:
    """Height and width of a whole PNG of 8 bit grey; libpng writes to stderr about damage."""
    if data[:8] != b"\x89PNG\r\n\x1a\n" or data[24:26] != b"\x08\x00" or _png_damage(data):
        return None
    return int.from_bytes(data[20:24], "big"), int.from_bytes(data[16:20], "big")


def _plain_jpeg(data: bytes) -> tuple[int, int] | None:
    """Height and width of a JPEG of three colours, without EXIF data, and whole in all likelihood.

    cv2 gives half a picture without a word where Pillow raises. That takes a file that is cut off
    or has a marker in the middle of the picture, as it never has in a single scan.
    """
    if data[:2] != b"\xff\xd8" or data[-2:] != b"\xff\xd9":
        return None
    position, size = 2, None
    while (marker := data[position + 1]) != 0xDA and data[position] == 0xFF:  # until the scan
        if marker == 0xE1 and data[position + 4 : position + 8] == b"Exif":
            return None
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):  # the frame's header
            height, width = data[position + 5 : position + 7], data[position + 7 : position + 9]
            if (data[position + 4], data[position + 9]) != (8, 3):  # bits, components
                return None
            size = int.from_bytes(height, "big"), int.from_bytes(width, "big")
        position += 2 + int.from_bytes(data[position + 2 : position + 4], "big")
    scan = np.frombuffer(data, np.uint8)[position + 2 : -2]
    after = scan[1:][scan[:-1] == 0xFF]  # 0: the byte was a 255; 0xD0 to 0xD7: a restart
    return size if ((after == 0) | ((after >= 0xD0) & (after <= 0xD7))).all() else None


@contextmanager
def opened(picture: Picture) -> Iterator[ImageFile.ImageFile]:
    """Opens one with Pillow; whatever goes wrong until the end of the block has its name."""
    source = io.BytesIO(picture.data) if isinstance(picture, Encoded) else picture
    try:
        with Image.open(source) as image:
            yield image
    except UserError:
        raise
    except Exception as error:  # damaged files raise OSError, SyntaxError, ValueError, struct.error
        if isinstance(picture, Encoded):
            size = len(picture.data)
            what = f"cannot be read ({size} bytes): {error}. Replace it"
        elif picture.is_file():
            size = picture.stat().st_size
            what = f"cannot be read ({size} bytes): {error}. Replace the file"
        else:
            size, what = None, "the file is gone. Replace the file"
        kind = {None: "missing-file", 0: "empty-file"}.get(size, "unreadable-file")
        raise UserError(f"{picture}: {what}, or remove image and mask.", kind=kind) from error


def _check_png(picture: Picture, image: ImageFile.ImageFile) -> None:
    """Checks the sums of a PNG's parts: Pillow decodes pixels that were damaged without a word."""
    if image.format == "PNG" and (damage := _png_damage(_bytes(picture))):
        raise ValueError(damage)


def _png_damage(data: bytes) -> str:
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


def _raw_mode(image: ImageFile.ImageFile) -> str:
    """How the file stores its pixels, as Pillow calls it; "" once they are loaded."""
    if not image.tile:
        return ""
    args = image.tile[0][3]
    return str(args[0] if isinstance(args, tuple) else args)


def _check_mask_mode(picture: Picture, mask: ImageFile.ImageFile) -> None:
    if mask.mode not in ("1", "L", "P", "I") and not mask.mode.startswith("I;16"):
        raise UserError(
            f"{picture}: the mask is {mask.mode} (colours, or several channels); masks must hold "
            f"class ids: one channel of whole numbers, or a palette. Convert colours to ids first.",
            kind="mask-not-ids",
        )
