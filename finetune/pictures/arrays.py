"""Images in memory as arrays, with the same numbers as `read_image` of their files."""

from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from finetune.errors import UserError
from finetune.pictures.reading import from_pillow


def as_pixels(image: Any, num_channels: int = 3) -> np.ndarray:
    """An image as (H, W, C), uint8 or uint16.

    Args:
        image: A PIL image; an array (H, W, C) or (H, W), uint8 or uint16; or a tensor (C, H, W) or
            (H, W), uint8, or floating point of 0..1.
        num_channels: C. For RGB, grey is repeated and alpha dropped.

    Raises:
        UserError: It is another kind of object, or has other channels.
    """
    if isinstance(image, Image.Image):
        return from_pillow("the image", image, num_channels)
    if isinstance(image, Tensor):
        image = _of_tensor(image)
    if not isinstance(image, np.ndarray):
        raise UserError(
            f"the image is a {type(image).__name__}, not a path, bytes, PIL image, array or tensor"
        )
    if image.dtype not in (np.uint8, np.uint16):
        raise UserError(
            f"the image is an array of {image.dtype}, whose range is unknown; pass uint8 or uint16"
        )
    if image.ndim == 2:
        image = image[..., None]
    if image.ndim != 3 or 0 in image.shape:
        raise UserError(
            f"the image is an array of shape {image.shape}, not (height, width, {num_channels})"
        )
    return _with_channels(image, num_channels)


def _of_tensor(image: Tensor) -> np.ndarray:
    found = image.detach().cpu()
    if found.is_floating_point():
        low, high = (float(value) for value in found.aminmax()) if found.numel() else (0.0, 0.0)
        if not (low >= 0 and high <= 1):
            raise UserError(
                f"the image is a tensor of values from {low:.4g} to {high:.4g}; floating point "
                "must be 0 to 1, not normalised yet"
            )
        found = (found.float() * 255).round().byte()
    array = found.numpy()
    return array.transpose(1, 2, 0) if array.ndim == 3 else array


def _with_channels(image: np.ndarray, num_channels: int) -> np.ndarray:
    own = image.shape[2]
    if num_channels == 3 and image.dtype == np.uint16 and own in (1, 3, 4):
        image = (image >> 8).astype(np.uint8)  # as of files
    if own == num_channels:
        return np.ascontiguousarray(image)
    if (own, num_channels) == (1, 3):
        return np.repeat(image, 3, axis=2)
    if (own, num_channels) == (4, 3):
        return np.ascontiguousarray(image[..., :3])
    if num_channels == 1 and own in (3, 4) and image.dtype == np.uint8:
        return from_pillow("the image", Image.fromarray(np.ascontiguousarray(image[..., :3])), 1)
    raise UserError(f"the image has {own} channels, but the model reads {num_channels}")
