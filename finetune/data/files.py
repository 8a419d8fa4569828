"""Pictures: any of them as an array, any mask as the numbers that it stores.

They are files, or encoded bytes out of a table. What can be wrong with one is said with its name,
by `UserError`.
"""

import io
import re
import threading
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import cv2
import numpy as np
from PIL import ExifTags, Image, ImageFile, ImageOps, UnidentifiedImageError

from finetune.data import tiffs
from finetune.errors import UserError

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".bmp")
MASK_SUFFIXES = (".png", ".bmp", ".tif", ".tiff", ".gif")  # lossless only: JPEG changes ids
LOSSY_SUFFIXES = (".jpg", ".jpeg", ".webp")
COLOR_MASK_SUFFIXES = tuple(dict.fromkeys((*IMAGE_SUFFIXES, *MASK_SUFFIXES)))


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

MAX_PIXELS = 178_956_970
"""Of an image, unless told otherwise: as Pillow has it."""

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


def read_image(picture: Picture, num_channels: int = 3) -> np.ndarray:
    """Reads any picture as (H, W, C), upright (EXIF orientation applied).

    3 channels are RGB in uint8, whatever the file holds: 16 bit keeps its high byte, transparency
    is dropped. One channel is grey in the depth of the file; a colour picture becomes what Pillow's
    "L" makes of its RGB. 2 are grey and alpha, 4 are RGB and alpha or the four inks of CMYK, as
    they are stored. And any number may come out of a TIFF, whose channels may be side by side, in
    planes or in pages; `model.num_channels` other than 1 and 3 must be what the file holds.

    Args:
        picture: The picture.
        num_channels: C.

    Returns:
        uint8, or uint16 if C is not 3 and the file holds 16 bit.

    Raises:
        UserError: The file cannot be read, has other channels, or holds floating point or 32 bit
            values.
    """
    if num_channels in (1, 3) and (decoded := _decode_plain(picture)) is not None:
        if decoded.ndim == 3:
            return decoded if num_channels == 3 else _grey(decoded)
        if num_channels == 1:
            return decoded[..., None]
    if (tiff := _tiff(picture, num_channels)) is not None:
        return _read_tiff(picture, tiff, num_channels)
    with opened(picture) as image:
        _check_png(picture, image)
        if _is_deep_png(image, num_channels):
            turned = image.getexif().get(ExifTags.Base.Orientation, 1)
            return _read_deep_png(picture, num_channels, turned)
        _check_still(picture, image)
        return from_pillow(picture, image, num_channels)


def from_pillow(name: object, image: Image.Image, num_channels: int = 3) -> np.ndarray:
    """An image that Pillow holds as `read_image` gives it.

    Args:
        name: What messages call it.
        image: Not turned yet, if its EXIF data says that it is to be.
        num_channels: C.

    Raises:
        UserError: As `read_image`.
    """
    upright = ImageOps.exif_transpose(image)
    mode = _check_mode(name, upright, num_channels)
    if upright.mode not in ("I", "F") and not upright.mode.startswith("I;16"):
        pixels = np.array(upright if upright.mode == mode else upright.convert(mode))
        return pixels if pixels.ndim == 3 else pixels[..., None]
    grey = np.asarray(upright)  # convert() would clip these at 255
    if grey.dtype.kind == "f" or grey.min() < 0 or grey.max() > 65535:
        raise _unknown_range(name, f"a grey image with {grey.dtype} values")
    if num_channels == 1:
        return grey.astype(np.uint16)[..., None]
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
        _check_one_frame(picture, mask)
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
        _check_png(picture, mask)
        if ";16" in _raw_mode(mask):
            raise UserError(
                f"{picture}: the mask has 16 bits a channel, of which only 8 would be read. "
                "Convert it to 8 bit colours.",
                kind="mask-not-colors",
            )
        _check_one_frame(picture, mask)
        rgb = np.array(mask.convert("RGB"))
    packed = cv2.cvtColor(rgb, cv2.COLOR_RGB2BGRA).view("<i4")[..., 0]
    return packed & 0xFFFFFF


def image_size(picture: Picture, *, expected: tuple[int, int] | None = None) -> tuple[int, int]:
    """Height and width of a picture, upright, from its header.

    Args:
        picture: The picture.
        expected: What it should be. Only if it is not, a PNG, which may have its EXIF data behind
            the pixels, is decoded to look for it.

    Raises:
        UserError: The file cannot be opened.
    """
    if _is_tiff(picture) and _pillow_header(picture)[0] is None:
        return _tiff_form(picture).size
    with opened(picture) as image:
        size = image.height, image.width
        may_be_turned = image.format != "PNG" or "exif" in image.info or size != (expected or size)
        if may_be_turned and image.getexif().get(ExifTags.Base.Orientation, 1) >= 5:
            return size[::-1]
        return size


def image_dtype(picture: Picture, num_channels: int) -> np.dtype:
    """The type that `read_image` gives a picture, from its header.

    Raises:
        UserError: The file cannot be opened, or has other channels.
    """
    if num_channels == 3 and not _is_tiff(picture):
        return np.dtype(np.uint8)
    if (tiff := _tiff(picture, num_channels)) is not None:
        return np.dtype(tiff.dtype if tiff.channels == num_channels != 3 else np.uint8)
    if num_channels == 3:
        return np.dtype(np.uint8)
    with opened(picture) as image:
        _check_mode(picture, image, num_channels)
        is_deep = _is_deep_grey(image) or _is_deep_png(image, num_channels)
        return np.dtype(np.uint16 if is_deep else np.uint8)


def channels_to_keep(picture: Picture) -> int:
    """The number of channels to read so that nothing of a picture is lost, from its header.

    3 for all that RGB in 8 bit is made for, transparency, CMYK and 16 bit colour among it.

    Raises:
        UserError: The file cannot be opened.
    """
    if _is_tiff(picture):
        tiff = _tiff_form(picture)
        is_photograph = tiff.is_color or (tiff.photometric == "SEPARATED" and tiff.samples == 4)
        is_grey = tiff.channels == 1 and tiff.dtype != np.uint16
        return 3 if not tiff.is_plain or is_photograph or is_grey else tiff.channels
    with opened(picture) as image:
        return 1 if _is_deep_grey(image) else 3


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
        if size is None or size[0] * size[1] > max_pixels():
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
        raise _too_large(what, f"{size[1]} x {size[0]} pixels", own)


@contextmanager
def opened(picture: Picture) -> Iterator[ImageFile.ImageFile]:
    """Opens one with Pillow; whatever goes wrong until the end of the block has its name."""
    with _named(picture), Image.open(_source(picture)) as image:
        yield image


def _source(picture: Picture) -> Path | io.BytesIO:
    return io.BytesIO(picture.data) if isinstance(picture, Encoded) else picture


@contextmanager
def _named(picture: Picture) -> Iterator[None]:
    """Whatever goes wrong in the block is a UserError with the picture's name."""
    try:
        yield
    except UserError:
        raise
    except Image.DecompressionBombError as error:
        what = str(error).partition(" exceeds")[0].lower()
        raise _too_large(picture, what, max(_LIMITS.asked, default=max_pixels())) from error
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


def _too_large(picture: object, what: str, limit: int) -> UserError:
    return UserError(
        f"{picture}: {what}, more than the {limit:,} that are read: such files are made to fill "
        "the memory. If it is what it seems, cut it into tiles; `finetune predict` takes "
        "--max-pixels.",
        kind="too-large",
    )


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
            f"class ids: one channel of whole numbers, or a palette. If its colours are the "
            f"classes, set labels.kind=colors and labels.colors.",
            kind="mask-not-ids",
        )


def _check_still(picture: Picture, image: ImageFile.ImageFile) -> None:
    """Of an animation Pillow gives the first frame; the two pictures of an MPO are one."""
    frames = getattr(image, "n_frames", 1) if image.format in _MOVING else 1
    if frames > 1:
        raise UserError(
            f"{picture}: is an animation of {frames} frames, not an image. Save the frame that is "
            "meant, or make it a video.",
            kind="unreadable-file",
        )


def _check_one_frame(picture: Picture, mask: ImageFile.ImageFile) -> None:
    """Of an animation, or a TIFF of several pages, Pillow gives the first without a word."""
    if (frames := getattr(mask, "n_frames", 1)) > 1:
        raise UserError(
            f"{picture}: the mask has {frames} frames or pages; it must have one. Save the one "
            "that is meant as a PNG.",
            kind="unreadable-file",
        )


# --------------------------------------------------------------------- other than RGB in 8 bit


_BITS, _SAMPLES, _PLANAR = 258, 277, 284  # tags of a TIFF

_MOVING = ("AVIF", "GIF", "PNG", "WEBP")  # formats whose frames are an animation

# What Pillow calls pictures of so many channels.
_MODES = {2: ("LA",), 4: ("RGBA", "CMYK", "RGBX")}


def _check_mode(picture: object, image: Image.Image, num_channels: int) -> str:
    """The mode that a picture is to be converted to; a UserError if it has other channels."""
    if num_channels == 3:
        return "RGB"
    if num_channels == 1:
        return "L"
    if image.mode in _MODES.get(num_channels, ()):
        return image.mode
    # A palette with transparent entries, or one colour that stands for transparency.
    if num_channels == 4 and image.mode in ("P", "PA", "RGB") and image.has_transparency_data:
        return "RGBA"
    count = 3 if image.mode in ("P", "PA") else len(image.getbands())
    has = f"{count} channel{'s' * (count > 1)} ({image.mode})"
    raise _other_channels(picture, has, num_channels)


def _other_channels(picture: object, has: str, num_channels: int) -> UserError:
    return UserError(
        f"{picture}: has {has}, but model.num_channels is {num_channels}. Set model.num_channels, "
        "data.image_mean and data.image_std to what the images have, or convert the images."
    )


def _unknown_range(picture: object, what: str) -> UserError:
    return UserError(f"{picture}: {what}, whose range cannot be known. Convert it to 8 or 16 bit.")


def _grey(rgb: np.ndarray) -> np.ndarray:
    """(H, W, 1) of uint8 (H, W, 3)."""
    return np.array(Image.fromarray(rgb).convert("L"))[..., None]


def _is_deep_grey(image: Image.Image) -> bool:
    return image.mode == "I" or image.mode.startswith("I;16")


def _is_deep_png(image: ImageFile.ImageFile, num_channels: int) -> bool:
    """Whether it has alpha and 16 bit, of which Pillow keeps 8."""
    wanted = {1: "LA;16B", 2: "LA;16B", 4: "RGBA;16B"}.get(num_channels)
    return image.format == "PNG" and wanted is not None and _raw_mode(image) == wanted


def _read_deep_png(picture: Picture, num_channels: int, orientation: int) -> np.ndarray:
    flags = cv2.IMREAD_UNCHANGED | cv2.IMREAD_IGNORE_ORIENTATION
    decoded = cv2.imdecode(np.frombuffer(_bytes(picture), np.uint8), flags)
    if decoded is None or decoded.dtype != np.uint16 or decoded.shape[2] != 4:
        raise ValueError("its pixels are damaged")
    # cv2 has blue first, and grey three times.
    pixels = decoded[..., {1: [0], 2: [0, 3], 4: [2, 1, 0, 3]}[num_channels]]
    return np.ascontiguousarray(tiffs.upright(pixels, orientation))


def _is_tiff(picture: Picture) -> bool:
    if isinstance(picture, Path):
        return picture.suffix.lower() in (".tif", ".tiff")
    return picture.data[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


def _pillow_header(picture: Picture) -> tuple[str | None, dict[int, Any]]:
    """What Pillow takes it for, None if it does not know it; and the tags of a TIFF."""
    with _named(picture):
        try:
            with Image.open(_source(picture)) as image:
                return image.format, dict(getattr(image, "tag_v2", {}))
        except UnidentifiedImageError:
            return None, {}


def _tiff_form(picture: Picture) -> tiffs.TiffForm:
    with _named(picture):
        return tiffs.read_form(_source(picture))


def _tiff(picture: Picture, num_channels: int) -> tiffs.TiffForm | None:
    """The header of a TIFF that tifffile is to read; None for any other picture.

    Left to Pillow are those whose numbers are no channels (palettes, YCbCr, single bits), and all
    that it knows where colours become RGB or grey in 8 bit.

    Raises:
        UserError: It has other channels, or is compressed as neither of the two can read it.
    """
    if not _is_tiff(picture):
        return None
    known, tags = _pillow_header(picture)
    if known not in (None, "TIFF"):
        return None
    samples, planar = tags.get(_SAMPLES, 1), tags.get(_PLANAR) == 2
    # Pillow 12 takes the values of planes of 16 bit for those of pixels.
    is_misread = planar and samples > 1 and 16 in tags.get(_BITS, ())
    is_readable = known is not None and not is_misread
    if num_channels == 3 and is_readable and samples <= 4:
        return None
    tiff = _tiff_form(picture)
    if tiff.size[0] * tiff.size[1] > max_pixels():
        what = f"{tiff.size[1]} x {tiff.size[0]} pixels"
        raise _too_large(picture, what, max_pixels())
    if not tiff.is_plain:
        if is_readable:
            return None
        raise _unknown_range(picture, f"a TIFF with {tiff.dtype} values ({tiff.photometric})")
    is_converted = num_channels in (1, 3) and tiff.is_color
    if tiff.channels != num_channels and not is_converted:
        raise _other_channels(picture, tiff.describe(), num_channels)
    if is_readable and num_channels == 1 and is_converted:
        return None
    if tiff.missing:
        is_whole = tiff.pages == 1 and (tiff.dtype == np.uint8 or num_channels == 1)
        if is_readable and is_whole:
            return None
        raise UserError(
            f"{picture}: its compression ({tiff.missing}) takes the package imagecodecs in a TIFF "
            f"with {tiff.describe()}. Run `pip install imagecodecs`, or save it without "
            "compression or with deflate."
        )
    return tiff


def _read_tiff(picture: Picture, tiff: tiffs.TiffForm, num_channels: int) -> np.ndarray:
    with _named(picture):
        pixels = tiffs.read_pixels(_source(picture))
    if tiff.channels == num_channels != 3:
        return pixels
    if pixels.dtype == np.uint16:
        pixels = (pixels >> 8).astype(np.uint8)
    rgb = np.ascontiguousarray(pixels[..., :3])
    return rgb if num_channels == 3 else _grey(rgb)
