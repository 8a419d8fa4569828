"""An array to another size, as stock's image processor does it."""

import numpy as np
from PIL import Image

BILINEAR = Image.Resampling.BILINEAR


def resized(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """An image (H, W, C) of bytes or 16 bit at another height and width.

    That is by Pillow's bilinear filter. Other images than RGB channel by channel: Pillow takes a
    fourth channel for transparency, by which it weighs the colours. 16 bit are rounded to the
    nearest, as Pillow rounds 8 bit.
    """
    if size == image.shape[:2]:
        return image
    across = size[::-1]
    if image.dtype == np.uint8 and image.shape[2] == 3:
        return np.asarray(Image.fromarray(image).resize(across, BILINEAR))
    resized = np.empty((*size, image.shape[2]), image.dtype)
    for channel in range(image.shape[2]):
        plane = np.ascontiguousarray(image[..., channel])
        if image.dtype == np.uint16:
            deep = Image.fromarray(plane.astype(np.float32)).resize(across, BILINEAR)
            resized[..., channel] = np.rint(np.asarray(deep))  # a mean: never out of range
        else:
            resized[..., channel] = Image.fromarray(plane).resize(across, BILINEAR)
    return resized
