"""Channels and depth of pictures: which ones a model can read, and grey and alpha in 16 bit."""

import cv2
import numpy as np
from PIL import Image

from finetune.errors import UserError
from finetune.pictures.opening import raw_mode
from finetune.pictures.references import Picture, encoded_bytes

# Pillow's modes with so many channels.
_MODES = {2: ("LA",), 4: ("RGBA", "CMYK", "RGBX")}


def check_mode(picture: object, image: Image.Image, num_channels: int) -> str:
    """The mode to convert a picture to; a UserError if it has other channels."""
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
    raise other_channels(picture, has, num_channels)


def other_channels(picture: object, has: str, num_channels: int) -> UserError:
    """The error for a picture with other channels than the model's."""
    return UserError(
        f"{picture}: has {has}, but model.num_channels is {num_channels}. Set model.num_channels, "
        "data.image_mean and data.image_std to what the images have, or convert the images."
    )


def unknown_range(picture: object, what: str) -> UserError:
    """The error for values without a known range."""
    return UserError(f"{picture}: {what}, whose range is unknown. Convert it to 8 or 16 bit.")


def grey(rgb: np.ndarray) -> np.ndarray:
    """uint8 (H, W, 3) as grey (H, W, 1), by Pillow's weights."""
    return np.array(Image.fromarray(rgb).convert("L"))[..., None]


def is_deep_grey(image: Image.Image) -> bool:
    """Whether it is grey in more than 8 bit."""
    return image.mode == "I" or image.mode.startswith("I;16")


def is_deep_png(image: Image.Image, num_channels: int) -> bool:
    """Whether it is a PNG with alpha in 16 bit, which Pillow reduces to 8."""
    wanted = {1: "LA;16B", 2: "LA;16B", 4: "RGBA;16B"}.get(num_channels)
    return image.format == "PNG" and wanted is not None and raw_mode(image) == wanted


def read_deep_png(picture: Picture, num_channels: int) -> np.ndarray:
    """The pixels of a PNG for which `is_deep_png`, as stored: uint16 (H, W, num_channels)."""
    flags = cv2.IMREAD_UNCHANGED | cv2.IMREAD_IGNORE_ORIENTATION
    decoded = cv2.imdecode(np.frombuffer(encoded_bytes(picture), np.uint8), flags)
    if decoded is None or decoded.dtype != np.uint16 or decoded.shape[2] != 4:
        raise ValueError("its pixels are damaged")
    # cv2 puts blue first, and repeats grey three times.
    pixels = decoded[..., {1: [0], 2: [0, 3], 4: [2, 1, 0, 3]}[num_channels]]
    return np.ascontiguousarray(pixels)
