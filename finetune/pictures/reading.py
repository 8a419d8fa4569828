"""Pictures as arrays: images in the wanted channels, masks as the numbers that they store.

Pictures are files, or encoded bytes out of a table. Every fault is a `UserError` with their name.
"""

import cv2
import numpy as np
from PIL import Image

from finetune.errors import UserError
from finetune.labels.rules import UNCOUNTED
from finetune.pictures.channels import (
    check_mode,
    grey,
    is_deep_grey,
    is_deep_png,
    read_deep_png,
    unknown_range,
)
from finetune.pictures.numbers import whole_numbers
from finetune.pictures.opening import opened, opened_whole, raw_mode
from finetune.pictures.orientation import orientation_of, upright, upright_image, upright_size
from finetune.pictures.plain import decode_plain
from finetune.pictures.references import Picture
from finetune.pictures.tiffs import (
    is_tiff,
    nodata_of,
    num_pages,
    pillow_header,
    read_tiff,
    tiff_form,
    tiff_to_read,
)

# Pillow spreads the grey levels of 2 and 4 bit files over 0..255: class ids times these.
_SPREAD_GREY = {"L;2": 85, "L;4": 17}

_MOVING = ("AVIF", "GIF", "PNG", "WEBP")  # formats whose frames are an animation
_STORED = {
    "1": "1 bit",
    "L": "8 bit grey",
    "P": "palette",
    "PA": "palette with transparency",
    "I": "32 bit numbers",
    "F": "floating point",
    "RGB": "colours",
    "RGBA": "colours with transparency",
}


def read_image(picture: Picture, num_channels: int = 3) -> np.ndarray:
    """Reads any picture as (H, W, C), upright (EXIF orientation applied).

    - 1 channel is grey, in the depth of the file. Colours are converted as by Pillow's "L".
    - 2 channels are grey and alpha.
    - 3 channels are RGB in uint8, whatever the file holds: 16 bit keeps its high byte, transparency
      is dropped.
    - 4 channels are RGB and alpha, or the inks of CMYK.
    - A TIFF has any number, side by side, in planes or in pages.

    Channels other than 1 and 3 must be those of the file.

    Returns:
        uint8, or uint16 if C is not 3 and the file holds 16 bit.

    Raises:
        UserError: The file cannot be read, has other channels, or holds floating point or 32 bit
            values.
    """
    if num_channels in (1, 3) and (decoded := decode_plain(picture)) is not None:
        if decoded.ndim == 3:
            return decoded if num_channels == 3 else grey(decoded)
        if num_channels == 1:
            return decoded[..., None]
    if (tiff := tiff_to_read(picture, num_channels)) is not None:
        return read_tiff(picture, tiff, num_channels)
    with opened_whole(picture) as image:
        if is_deep_png(image, num_channels):
            return upright(read_deep_png(picture, num_channels), orientation_of(image))
        _check_one_frame(picture, image, is_mask=False)
        return from_pillow(picture, image, num_channels)


def from_pillow(name: object, image: Image.Image, num_channels: int = 3) -> np.ndarray:
    """A PIL image as `read_image` gives it: turned upright here, with the same errors.

    Messages call it `name`.
    """
    image = upright_image(image)
    mode = check_mode(name, image, num_channels)
    if image.mode == "F" or is_deep_grey(image):
        return _deep_grey(name, image, num_channels)
    pixels = np.array(image if image.mode == mode else image.convert(mode))
    return pixels if pixels.ndim == 3 else pixels[..., None]


def _deep_grey(name: object, image: Image.Image, num_channels: int) -> np.ndarray:
    grey = np.asarray(image)  # convert() would clip these at 255
    if grey.dtype.kind == "f" or grey.min() < 0 or grey.max() > 65535:
        raise unknown_range(name, f"a grey image with {grey.dtype} values")
    if num_channels == 1:
        return grey.astype(np.uint16)[..., None]
    return np.repeat((grey.astype(np.uint16) >> 8).astype(np.uint8)[..., None], 3, axis=2)


def read_mask(picture: Picture) -> np.ndarray:
    """Reads the raw values of a mask, upright: palette indices, never their colours.

    Returns:
        (H, W) bool, uint8, uint16 or int32: the numbers that the file stores. `UNCOUNTED` stands
        where a TIFF of floating point or signed numbers has its "no data" (GDAL's tag).

    Raises:
        UserError: The file cannot be read, or holds colours.
    """
    if (decoded := decode_plain(picture)) is not None and decoded.ndim == 2:
        return decoded
    with opened_whole(picture) as mask:
        _check_mask_mode(picture, mask)
        _check_one_frame(picture, mask, is_mask=True)
        spread = _SPREAD_GREY.get(raw_mode(mask))
        is_float, values = mask.mode == "F", np.array(upright_image(mask))
        if is_float:
            values = whole_numbers(values, nodata_of(picture), UNCOUNTED)
        elif values.dtype.kind == "i" and values.min() < 0:
            if UNCOUNTED in values:
                raise ValueError(f"it holds {UNCOUNTED}, which stands for pixels that do not count")
            values = np.where(values == nodata_of(picture), UNCOUNTED, values)
    return values // np.uint8(spread) if spread else values


def read_colors(picture: Picture) -> np.ndarray:
    """Reads the colours of a mask, upright, a palette's too: int32 (H, W), 0xRRGGBB.

    Raises:
        UserError: The file cannot be read, or holds no 8 bit colours.
    """
    with opened_whole(picture) as mask:
        if mask.mode not in ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX"):
            raise UserError(
                f"{picture}: the mask is {mask.mode}, not 8 bit colours. Convert it, or set "
                "labels.kind to ids if its numbers are the classes.",
                kind="mask-not-colors",
            )
        if ";16" in raw_mode(mask):
            raise UserError(
                f"{picture}: the mask has 16 bits a channel, and only 8 would be read. "
                "Convert it to 8 bit colours.",
                kind="mask-not-colors",
            )
        _check_one_frame(picture, mask, is_mask=True)
        rgb = np.array(upright_image(mask).convert("RGB"))
    packed = cv2.cvtColor(rgb, cv2.COLOR_RGB2BGRA).view("<i4")[..., 0]
    return packed & 0xFFFFFF


def image_size(picture: Picture, *, expected: tuple[int, int] | None = None) -> tuple[int, int]:
    """Height and width of a picture, upright, from its header.

    A PNG may have its EXIF data behind the pixels; only one of another size than `expected` is
    decoded to look for it.

    Raises:
        UserError: The file cannot be opened.
    """
    if is_tiff(picture) and pillow_header(picture)[0] is None:
        return tiff_form(picture).size
    with opened(picture) as image:
        return upright_size(image, expected=expected)


def image_dtype(picture: Picture, num_channels: int) -> np.dtype:
    """The type that `read_image` gives a picture, from its header.

    Raises:
        UserError: The file cannot be opened, or has other channels.
    """
    if num_channels == 3 and not is_tiff(picture):
        return np.dtype(np.uint8)
    if (tiff := tiff_to_read(picture, num_channels)) is not None:
        return np.dtype(tiff.dtype if tiff.channels == num_channels != 3 else np.uint8)
    if num_channels == 3:
        return np.dtype(np.uint8)
    with opened(picture) as image:
        check_mode(picture, image, num_channels)
        is_deep = is_deep_grey(image) or is_deep_png(image, num_channels)
        return np.dtype(np.uint16 if is_deep else np.uint8)


def channels_to_keep(picture: Picture) -> int:
    """How many channels to read of a picture, from its header.

    3 for everything that is shown as RGB in 8 bit, including transparency, CMYK and 16 bit colour.

    Raises:
        UserError: The file cannot be opened.
    """
    if is_tiff(picture):
        tiff = tiff_form(picture)
        is_photograph = tiff.is_color or (tiff.photometric == "SEPARATED" and tiff.samples == 4)
        is_grey = tiff.channels == 1 and tiff.dtype != np.uint16
        return 3 if not tiff.is_plain or is_photograph or is_grey else tiff.channels
    with opened(picture) as image:
        return 1 if is_deep_grey(image) else 3


def mask_size(picture: Picture, *, of_ids: bool) -> tuple[int, int]:
    """Height and width of a mask, upright, from its header.

    Raises:
        UserError: The file cannot be opened, or holds colours where there must be ids.
    """
    with opened(picture) as mask:
        if of_ids:
            _check_mask_mode(picture, mask)
        return upright_size(mask)


def stored_as(picture: Picture) -> str:
    """How a picture stores its pixels, in words, from its header.

    Raises:
        UserError: The file cannot be opened.
    """
    with opened(picture) as image:
        if image.mode in _STORED:
            return _STORED[image.mode]
        return "16 bit grey" if image.mode.startswith("I;16") else image.mode


def _check_mask_mode(picture: Picture, mask: Image.Image) -> None:
    if mask.mode not in ("1", "L", "P", "I", "F") and not mask.mode.startswith("I;16"):
        raise UserError(
            f"{picture}: the mask is {mask.mode} (colours, or several channels); masks must hold "
            "class ids: one channel of whole numbers, or a palette. If its colours are the "
            "classes, set labels.kind=colors and labels.colors.",
            kind="mask-not-ids",
        )


def _check_one_frame(picture: Picture, image: Image.Image, *, is_mask: bool) -> None:
    """Refuses several frames or pages; Pillow gives the first of them without a word.

    In images only animations are refused; an MPO counts as one picture. Smaller copies in a
    TIFF, as in cloud-optimised ones, do not count.
    """
    frames = getattr(image, "n_frames", 1) if is_mask or image.format in _MOVING else 1
    if frames > 1 and image.format == "TIFF":
        frames = num_pages(picture)
    if frames > 1:
        what = "the mask has" if is_mask else "the image is an animation of"
        raise UserError(
            f"{picture}: {what} {frames} frames or pages; one is needed. Save it as a PNG.",
            kind="unreadable-file",
        )
