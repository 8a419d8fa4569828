"""Pictures of other channels or depths than RGB in 8 bit: TIFFs, and PNGs of 16 bit."""

from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image, ImageFile, UnidentifiedImageError

from finetune.errors import UserError
from finetune.pictures import tiffs
from finetune.pictures.opening import max_pixels, named, raw_mode, source_of, too_large
from finetune.pictures.references import Picture, encoded_bytes

# --------------------------------------------------------------------- other than RGB in 8 bit


_BITS, _SAMPLES, _PLANAR = 258, 277, 284  # tags of a TIFF

# What Pillow calls pictures of so many channels.
_MODES = {2: ("LA",), 4: ("RGBA", "CMYK", "RGBX")}


def check_mode(picture: object, image: Image.Image, num_channels: int) -> str:
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


def unknown_range(picture: object, what: str) -> UserError:
    """The error for values without a known range."""
    return UserError(f"{picture}: {what}, whose range cannot be known. Convert it to 8 or 16 bit.")


def grey(rgb: np.ndarray) -> np.ndarray:
    """(H, W, 1) of uint8 (H, W, 3)."""
    return np.array(Image.fromarray(rgb).convert("L"))[..., None]


def is_deep_grey(image: Image.Image) -> bool:
    """Whether it is grey in more than 8 bit."""
    return image.mode == "I" or image.mode.startswith("I;16")


def is_deep_png(image: ImageFile.ImageFile, num_channels: int) -> bool:
    """Whether it has alpha and 16 bit, of which Pillow keeps 8."""
    wanted = {1: "LA;16B", 2: "LA;16B", 4: "RGBA;16B"}.get(num_channels)
    return image.format == "PNG" and wanted is not None and raw_mode(image) == wanted


def read_deep_png(picture: Picture, num_channels: int, orientation: int) -> np.ndarray:
    """A PNG that `is_deep_png`, upright: uint16 (H, W, num_channels)."""
    flags = cv2.IMREAD_UNCHANGED | cv2.IMREAD_IGNORE_ORIENTATION
    decoded = cv2.imdecode(np.frombuffer(encoded_bytes(picture), np.uint8), flags)
    if decoded is None or decoded.dtype != np.uint16 or decoded.shape[2] != 4:
        raise ValueError("its pixels are damaged")
    # cv2 has blue first, and grey three times.
    pixels = decoded[..., {1: [0], 2: [0, 3], 4: [2, 1, 0, 3]}[num_channels]]
    return np.ascontiguousarray(tiffs.upright(pixels, orientation))


def is_tiff(picture: Picture) -> bool:
    """Whether it is a TIFF by its name or, without one, by its first bytes."""
    if isinstance(picture, Path):
        return picture.suffix.lower() in (".tif", ".tiff")
    return picture.data[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


def pillow_header(picture: Picture) -> tuple[str | None, dict[int, Any]]:
    """What Pillow takes it for, None if it does not know it; and the tags of a TIFF."""
    with named(picture):
        try:
            with Image.open(source_of(picture)) as image:
                return image.format, dict(getattr(image, "tag_v2", {}))
        except UnidentifiedImageError:
            return None, {}


def tiff_form(picture: Picture) -> tiffs.TiffForm:
    """The header of a TIFF as tifffile reads it."""
    with named(picture):
        return tiffs.read_form(source_of(picture))


def tiff_to_read(picture: Picture, num_channels: int) -> tiffs.TiffForm | None:
    """The header of a TIFF that tifffile is to read; None for any other picture.

    Left to Pillow are those whose numbers are no channels (palettes, YCbCr, single bits), and all
    that it knows where colours become RGB or grey in 8 bit.

    Raises:
        UserError: It has other channels, or is compressed as neither of the two can read it.
    """
    if not is_tiff(picture):
        return None
    known, tags = pillow_header(picture)
    if known not in (None, "TIFF"):
        return None
    samples, planar = tags.get(_SAMPLES, 1), tags.get(_PLANAR) == 2
    # Pillow 12 takes the values of planes of 16 bit for those of pixels.
    is_misread = planar and samples > 1 and 16 in tags.get(_BITS, ())
    is_readable = known is not None and not is_misread
    if num_channels == 3 and is_readable and samples <= 4:
        return None
    tiff = tiff_form(picture)
    if tiff.size[0] * tiff.size[1] > max_pixels():
        what = f"{tiff.size[1]} x {tiff.size[0]} pixels"
        raise too_large(picture, what, max_pixels())
    if not tiff.is_plain:
        if is_readable:
            return None
        raise unknown_range(picture, f"a TIFF with {tiff.dtype} values ({tiff.photometric})")
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


def read_tiff(picture: Picture, tiff: tiffs.TiffForm, num_channels: int) -> np.ndarray:
    """The pixels of a TIFF from `tiff_to_read`, (H, W, num_channels)."""
    with named(picture):
        pixels = tiffs.read_pixels(source_of(picture))
    if tiff.channels == num_channels != 3:
        return pixels
    if pixels.dtype == np.uint16:
        pixels = (pixels >> 8).astype(np.uint8)
    rgb = np.ascontiguousarray(pixels[..., :3])
    return rgb if num_channels == 3 else grey(rgb)
