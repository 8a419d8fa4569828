"""The published training augmentation. Only this file imports albumentations.

SegFormer's recipe (NVlabs/SegFormer, local_configs; mmsegmentation's transforms), in its order:
resize by a random factor, random crop that avoids one-class crops, flip, photometric distortion,
pad. There is no normalisation here: pixels travel as bytes and are normalised on the device.
Images may have up to 128 channels (cv2's limit) of 8 or 16 bit.

Scale and window are drawn first, and only the pixels in the window are resized: enlarged twice, an
ADE20K picture has five times the pixels of its crop. The result equals a crop of the resized
whole: the mask to the bit, the image up to `PHASE_TOLERANCE` of a source pixel, that is two grey
levels at worst, 0.03 on average.

albumentations has two traps. `Compose.set_random_seed(seed)` gives every transform its own
generator with the SAME seed, so that all first draws are equal (an image is flipped exactly when
another p=0.5 transform fires too); `set_random_state` shares one generator instead. Its import
asks the network for a newer version unless an environment variable forbids it.
"""

import math
import os
import random
from collections.abc import Callable
from typing import Any

import cv2
import numpy as np

# Read when albumentations is imported.
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")

import albumentations as A

CROP_TRIES = 10
BRIGHTNESS = 32.0
CONTRAST = SATURATION = (0.5, 1.5)
HUE = 18
"""In OpenCV's half degrees, 0..179."""
RGB_MEAN = 114.0
"""Mean grey level of ImageNet, for which `BRIGHTNESS` was published."""
PHASE_TOLERANCE = 1 / 256
"""Largest shift of a sample of the image, in pixels of the source."""

_BYTES = np.arange(256, dtype=np.uint8)
_EXACT_COUNTS = 2**24
"""cv2 counts in float32, which is exact up to this many pixels."""


class TrainTransform:
    """Random resize, crop, flip, photometric distortion and padding, a pure function of the seed.

    Args:
        crop: Height and width of every output.
        base_size: Long and short edge that the image is fitted into at scale 1, keeping its aspect
            ratio. None: the image's own size is scale 1.
        scale: Range of the random factor on `base_size`.
        cat_max_ratio: A crop in which one class has at least this share of the labelled pixels is
            drawn again, up to `CROP_TRIES` times; 1 takes the first.
        flip: Probability of a horizontal flip.
        photometric: Whether to distort brightness, contrast, saturation and hue. Only brightness
            and contrast are distorted in uint16 images and in images without three channels.
        ignore_index: Pads the mask.
        image_fill: Pads the image, one number per channel, in its own units. The published
            pipeline pads zeros after normalisation, which is the rounded mean here.
    """

    def __init__(
        self,
        crop: tuple[int, int],
        *,
        base_size: tuple[int, int] | None = None,
        scale: tuple[float, float] = (0.5, 2.0),
        cat_max_ratio: float = 0.75,
        flip: float = 0.5,
        photometric: bool = True,
        ignore_index: int,
        image_fill: tuple[int, ...],
    ) -> None:
        transforms: list[A.BasicTransform] = [
            ResizeAndCrop(crop, base_size, scale, cat_max_ratio, ignore_index),
            A.HorizontalFlip(p=flip),
            PadToCrop(crop, image_fill, ignore_index),
        ]
        if photometric:
            transforms.insert(2, PhotometricDistortion(image_fill))
        self.compose = A.Compose(transforms)

    def __call__(
        self, image: np.ndarray, mask: np.ndarray, seed: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Transforms one sample.

        Args:
            image: uint8 or uint16 (H, W, C).
            mask: uint8 or uint16 (H, W), class ids.
            seed: Not negative; everything random follows from it.

        Returns:
            image (h, w, C) and mask (h, w) of the size of the crop, with the dtypes of the input.
        """
        self.compose.set_random_state(np.random.default_rng(seed), random.Random(seed))
        out = self.compose(image=image, mask=mask)
        return out["image"], out["mask"]


class ResizeAndCrop(A.DualTransform):
    """mmsegmentation's RandomResize (keep_ratio) and RandomCrop in one.

    They are one transform, because the choice of the window reads the resized mask.
    """

    def __init__(
        self,
        crop: tuple[int, int],
        base_size: tuple[int, int] | None,
        scale: tuple[float, float],
        cat_max_ratio: float,
        ignore_index: int,
    ) -> None:
        super().__init__(p=1)
        self.crop = crop
        self.base_size = base_size
        self.scale = scale
        self.cat_max_ratio = cat_max_ratio
        self.ignore_index = ignore_index

    def get_params_dependent_on_data(
        self, params: dict[str, Any], data: dict[str, Any]
    ) -> dict[str, Any]:
        """Draws the new size (h, w) and the window; returns them with the resized mask."""
        height, width = params["shape"][:2]
        size = self._random_size(height, width)
        window = self._random_window(size)
        mask = _resized_mask(data["mask"], size, window)
        for _ in range(CROP_TRIES if self.cat_max_ratio < 1 else 0):
            if self._is_varied(mask):
                break
            window = self._random_window(size)
            mask = _resized_mask(data["mask"], size, window)
        return {"size": size, "window": window, "kept": mask}

    def apply(
        self, img: np.ndarray, size: tuple[int, int], window: tuple[slice, slice], **params: Any
    ) -> np.ndarray:
        """Resizes and crops the image."""
        return _resized_image(img, size, window)

    def apply_to_mask(self, mask: np.ndarray, kept: np.ndarray, **params: Any) -> np.ndarray:
        """Returns the window of the mask, which the draw has resized."""
        return kept

    def _random_size(self, height: int, width: int) -> tuple[int, int]:
        """Fits the image into `base_size` times a random factor."""
        factor = self.py_random.uniform(*self.scale)
        long, short = self.base_size or (max(height, width), min(height, width))
        fit = min(int(long * factor) / max(height, width), int(short * factor) / min(height, width))
        return max(1, int(height * fit + 0.5)), max(1, int(width * fit + 0.5))

    def _random_window(self, size: tuple[int, int]) -> tuple[slice, slice]:
        top, left = (
            self.py_random.randint(0, max(edge - crop, 0))
            for edge, crop in zip(size, self.crop, strict=True)
        )
        bottom, right = min(top + self.crop[0], size[0]), min(left + self.crop[1], size[1])
        return slice(top, bottom), slice(left, right)

    def _is_varied(self, mask: np.ndarray) -> bool:
        """Whether the mask has more than one class, each with a share below the limit."""
        if mask.dtype == np.uint8 and mask.size < _EXACT_COUNTS:  # 4 times as fast as bincount
            counts = cv2.calcHist([mask], [0], None, [256], [0, 256]).ravel()
        else:
            counts = np.bincount(mask.ravel())
        counts[self.ignore_index :] = 0
        largest, total = int(counts.max(initial=0)), int(counts.sum())
        return largest < total and largest < self.cat_max_ratio * total


class PhotometricDistortion(A.ImageOnlyTransform):
    """mmsegmentation's PhotoMetricDistortion: each part with probability one half.

    The order is brightness, contrast, saturation, hue, or brightness, saturation, hue, contrast.
    Values are truncated to bytes after each part, as published.

    Images that are not 8 bit RGB get brightness and contrast only, from the same draws. The
    published grey levels become the same share of each channel's mean, since many 16 bit images
    fill a small part of their range.

    Args:
        mean: The mean of each channel, in the units of the image.
    """

    def __init__(self, mean: tuple[int, ...]) -> None:
        super().__init__(p=1)
        self.mean = mean

    def get_params(self) -> dict[str, Any]:
        """Draws the parameters of each part; None skips the part."""
        rng = self.py_random

        def half_the_time(low: float, high: float) -> float | None:
            return rng.uniform(low, high) if rng.random() < 0.5 else None

        return {
            "brightness": half_the_time(-BRIGHTNESS, BRIGHTNESS),
            "contrast": half_the_time(*CONTRAST),
            "contrast_first": rng.random() < 0.5,
            "saturation": half_the_time(*SATURATION),
            "hue": rng.randrange(-HUE, HUE) if rng.random() < 0.5 else None,
        }

    def apply(
        self,
        img: np.ndarray,
        brightness: float | None,
        contrast: float | None,
        contrast_first: bool,
        saturation: float | None,
        hue: int | None,
        **params: Any,
    ) -> np.ndarray:
        """Distorts the image, uint8 or uint16 (H, W, C)."""
        if img.dtype != np.uint8 or img.shape[2] != 3:
            # Brightness comes before contrast in either order.
            return self._distort_channels(img, brightness or 0.0, contrast or 1.0)
        if brightness is not None:
            img = _linear(img, 1.0, brightness)
        if contrast is not None and contrast_first:
            img = _linear(img, contrast, 0.0)
        # Saturation and hue each convert to HSV and back, as published: both conversions round.
        if saturation is not None:
            img = _in_hsv(img, 1, lambda plane: _linear(plane, saturation, 0.0))
        if hue is not None:
            turned = ((np.arange(256) + hue) % 180).astype(np.uint8)
            img = _in_hsv(img, 0, lambda plane: cv2.LUT(plane, turned))
        if contrast is not None and not contrast_first:
            img = _linear(img, contrast, 0.0)
        return img

    def _distort_channels(self, img: np.ndarray, brightness: float, contrast: float) -> np.ndarray:
        if (brightness, contrast) == (0.0, 1.0):
            return img
        offset = np.array(self.mean, np.float32) * np.float32(brightness / RGB_MEAN)
        top = np.iinfo(img.dtype).max
        # Rows of width x channels: broadcasting along an axis of a few numbers is slow.
        values = img.reshape(len(img), -1) + np.tile(offset, img.shape[1])
        values = np.clip(np.clip(values, 0, top, out=values) * np.float32(contrast), 0, top)
        return values.astype(img.dtype).reshape(img.shape)


class PadToCrop(A.DualTransform):
    """Pads right and bottom with a constant.

    albumentations' PadIfNeeded fails on more than four channels.
    """

    def __init__(
        self, crop: tuple[int, int], image_fill: tuple[int, ...], ignore_index: int
    ) -> None:
        super().__init__(p=1)
        self.crop = crop
        self.image_fill = image_fill
        self.ignore_index = ignore_index

    def apply(self, img: np.ndarray, **params: Any) -> np.ndarray:
        """Pads the image with `image_fill`."""
        return self._pad(img, self.image_fill)

    def apply_to_mask(self, mask: np.ndarray, **params: Any) -> np.ndarray:
        """Pads the mask with `ignore_index`."""
        return self._pad(mask, self.ignore_index)

    def _pad(self, array: np.ndarray, fill: int | tuple[int, ...]) -> np.ndarray:
        height, width = array.shape[:2]
        if (height, width) == self.crop:
            return array
        padded = np.empty((*self.crop, *array.shape[2:]), array.dtype)
        row = np.empty(padded.shape[1:], array.dtype)
        row[:] = fill  # once: filling pixel by pixel is slow
        padded[:height, :width] = array
        padded[:height, width:] = row[width:]
        padded[height:] = row
        return padded


def _resized_image(
    image: np.ndarray, size: tuple[int, int], window: tuple[slice, slice]
) -> np.ndarray:
    """The window of `image` (H, W, C), bilinearly resized to `size`, at the cost of the window.

    cv2.resize aligns output pixel 0 with source pixel 0 and takes no offset. So its input begins at
    the nearest output pixel before the window that coincides with the start of a source pixel, up
    to PHASE_TOLERANCE: 128 pixels before on average, none at round factors. (warpAffine and remap
    take any offset, but 2 to 5 times as long.)
    """
    if image.shape[:2] == size:
        return image[window]
    (rows, top), (columns, left) = map(_aligned_part, image.shape[:2], size, window)
    source = image[rows, columns]
    if source.shape == image.shape:
        resized = cv2.resize(image, size[::-1], interpolation=cv2.INTER_LINEAR)
    else:
        fy, fx = (new / edge for edge, new in zip(image.shape[:2], size, strict=True))
        resized = cv2.resize(source, None, fx=fx, fy=fy, interpolation=cv2.INTER_LINEAR)
    height, width = (kept.stop - kept.start for kept in window)
    # cv2 drops a single channel's axis
    return resized[top : top + height, left : left + width].reshape(height, width, image.shape[2])


def _aligned_part(edge: int, new: int, kept: slice) -> tuple[slice, int]:
    """The part of an edge whose resized form holds `kept`, and the offset of `kept` in that form.

    The edge has `new` pixels after the resize of the whole; `kept` is a range of them.
    """
    step = edge / new  # source pixels per output pixel
    first, start = 0, 0
    # Half a source pixel before the window: there cv2 repeats the part's first pixel.
    latest = kept.start - math.ceil(0.5 / step)
    if latest > 0:
        starts = np.arange(latest, -1, -1) * step
        # The second bound keeps the number of output pixels right at extreme factors.
        is_aligned = np.abs(starts - np.rint(starts)) <= min(PHASE_TOLERANCE, step / 4)
        first = latest - int(is_aligned.argmax())  # 0 is always aligned
        start = round(first * step)
    last_sample = int((kept.stop - 0.5) * step - 0.5)
    length = kept.stop - first
    stop = min(max(last_sample + 3, start + math.ceil(length * step) + 1), edge)
    return slice(start, stop), kept.start - first


def _resized_mask(
    mask: np.ndarray, size: tuple[int, int], window: tuple[slice, slice]
) -> np.ndarray:
    """The window of `mask` (H, W), resized to `size` by nearest neighbour.

    It picks rows, then columns as rows of the transpose: to pick single pixels takes 12 times as
    long as whole rows.
    """
    if mask.shape == size:
        return mask[window]
    rows, columns = (
        _nearest(edge, new)[kept] for edge, new, kept in zip(mask.shape, size, window, strict=True)
    )
    if size[0] < mask.shape[0]:
        band = mask[rows]
        rows = np.arange(len(rows))
    else:  # enlarged: rows, many of them repeated, come last
        band = mask[rows[0] : rows[-1] + 1]
        rows = rows - rows[0]
    return cv2.transpose(cv2.transpose(band)[columns])[rows]


def _nearest(edge: int, new: int) -> np.ndarray:
    """The source pixel of each pixel of a resized edge, computed by cv2 itself."""
    positions = np.arange(edge, dtype=np.float32)[None]
    return cv2.resize(positions, (new, 1), interpolation=cv2.INTER_NEAREST)[0].astype(np.intp)


def _linear(array: np.ndarray, factor: float, offset: float) -> np.ndarray:
    """Bytes times `factor` plus `offset`, clipped and truncated.

    cv2's arithmetic takes a third of the time of a table, but rounds. Subtracting a little less
    than one half makes it truncate; it is used if the result is right for all 256 bytes.
    """
    table = np.clip(_BYTES.astype(np.float32) * factor + offset, 0, 255).astype(np.uint8)

    def rounded(values: np.ndarray) -> np.ndarray:
        return cv2.addWeighted(values, factor, values, 0.0, offset - 0.5 + 2**-13)

    if np.array_equal(rounded(_BYTES).ravel(), table):
        return rounded(array)
    return cv2.LUT(array, table)


def _in_hsv(
    image: np.ndarray, index: int, change: Callable[[np.ndarray], np.ndarray]
) -> np.ndarray:
    """An RGB image with one plane of hue, saturation and value changed."""
    planes = list(cv2.split(cv2.cvtColor(image, cv2.COLOR_RGB2HSV)))
    planes[index] = change(planes[index])
    return cv2.cvtColor(cv2.merge(planes), cv2.COLOR_HSV2RGB)
