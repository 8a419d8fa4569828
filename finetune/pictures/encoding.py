"""Pixels to the bytes of image files."""

import cv2
import numpy as np

_MAX_JPEG = 65_500  # pixels of the longest side that the format can hold


def as_png(pixels: np.ndarray) -> bytes:
    """PNG of 8 or 16 bit (H, W), such as class ids."""
    # Level 1: masks are runs of equal bytes, which it packs as well as other levels and in a third
    # of the time.
    written, data = cv2.imencode(".png", pixels, [cv2.IMWRITE_PNG_COMPRESSION, 1])
    assert written, "PNG holds 8 and 16 bit"
    return data.tobytes()


def as_jpeg(pixels: np.ndarray, quality: int = 90) -> bytes:
    """JPEG of uint8 RGB (H, W, 3); what the format cannot hold is made smaller."""
    if (longer := max(pixels.shape[:2])) > _MAX_JPEG:
        size = [max(1, side * _MAX_JPEG // longer) for side in pixels.shape[1::-1]]
        pixels = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)
    options = [cv2.IMWRITE_JPEG_QUALITY, quality]
    written, data = cv2.imencode(".jpg", cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR), options)
    assert written, "JPEG holds RGB"
    return data.tobytes()
