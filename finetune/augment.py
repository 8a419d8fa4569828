"""The published training augmentation. The only file that knows albumentations.

SegFormer's recipe (NVlabs/SegFormer, local_configs; mmsegmentation's transforms), in its order:
resize by a random factor, random crop that avoids one-class crops, flip, photometric distortion,
pad. Normalisation is missing on purpose: pixels travel as bytes and are normalised on the device.

albumentations brings two traps that this file deals with. `Compose.set_random_seed(seed)` gives
every transform a generator of its own with the SAME seed, so that all first draws are equal (an
image is flipped exactly when another p=0.5 transform fires too); `set_random_state` shares one
generator instead. And importing it asks the network for a newer version unless told not to.
"""

import os
import random
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
        photometric: Whether to distort brightness, contrast, saturation and hue. Never done to
            images with other than three channels, nor to uint16: there is no hue to turn.
        ignore_index: Pads the mask.
        image_fill: Pads the image, one number per channel. The published pipeline pads zeros after
            normalisation, which is the rounded mean here.
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
            transforms.insert(2, PhotometricDistortion())
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

    One transform, because the choice of the window looks at the resized mask.
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
        """Draws the new size (h, w) and the window of it that is kept."""
        height, width = params["shape"][:2]
        size = self._random_size(height, width)
        window = self._random_window(size)
        if self.cat_max_ratio < 1:
            mask = _resize(data["mask"], size, cv2.INTER_NEAREST)
            for _ in range(CROP_TRIES):
                if self._is_varied(mask[window]):
                    break
                window = self._random_window(size)
        return {"size": size, "window": window}

    def apply(
        self, img: np.ndarray, size: tuple[int, int], window: tuple[slice, slice], **params: Any
    ) -> np.ndarray:
        """Resizes and crops the image."""
        return _resize(img, size, cv2.INTER_LINEAR)[window]

    def apply_to_mask(
        self, mask: np.ndarray, size: tuple[int, int], window: tuple[slice, slice], **params: Any
    ) -> np.ndarray:
        """Resizes and crops the mask, without mixing ids."""
        return _resize(mask, size, cv2.INTER_NEAREST)[window]

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
        return slice(top, top + self.crop[0]), slice(left, left + self.crop[1])

    def _is_varied(self, mask: np.ndarray) -> bool:
        """Whether more than one class is there and none of them has too large a share."""
        counts = np.bincount(mask.ravel())
        counts[self.ignore_index :] = 0
        largest, total = int(counts.max(initial=0)), int(counts.sum())
        return largest < total and largest < self.cat_max_ratio * total


class PhotometricDistortion(A.ImageOnlyTransform):
    """mmsegmentation's PhotoMetricDistortion: each part with probability one half.

    Brightness, then contrast, saturation and hue, or saturation, hue and contrast. Values are
    truncated to bytes after each part, as published.
    """

    def __init__(self) -> None:
        super().__init__(p=1)

    def get_params(self) -> dict[str, Any]:
        """Draws the parts; None for one that is left out."""
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
        """Distorts the image, uint8 (H, W, 3); any other is returned as it is."""
        if img.dtype != np.uint8 or img.shape[2] != 3:
            return img
        if brightness is not None:
            img = cv2.LUT(img, _linear_table(1.0, brightness))
        if contrast is not None and contrast_first:
            img = cv2.LUT(img, _linear_table(contrast, 0.0))
        # Saturation and hue go through HSV once each: its rounding is part of what was published.
        if saturation is not None:
            img = _map_hsv_channel(img, 1, _linear_table(saturation, 0.0))
        if hue is not None:
            img = _map_hsv_channel(img, 0, ((np.arange(256) + hue) % 180).astype(np.uint8))
        if contrast is not None and not contrast_first:
            img = cv2.LUT(img, _linear_table(contrast, 0.0))
        return img


class PadToCrop(A.DualTransform):
    """Pads right and bottom with a constant.

    albumentations' PadIfNeeded does the same for up to four channels and fails beyond.
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
        padded[:] = fill
        padded[:height, :width] = array
        return padded


def _resize(array: np.ndarray, size: tuple[int, int], interpolation: int) -> np.ndarray:
    """Resizes (H, W) or (H, W, C) to (h, w); cv2 alone would drop a single channel's axis."""
    if array.shape[:2] == size:
        return array
    resized = cv2.resize(array, size[::-1], interpolation=interpolation)
    return resized.reshape(*size, *array.shape[2:])


def _linear_table(factor: float, offset: float) -> np.ndarray:
    """The bytes 0..255 times `factor` plus `offset`, clipped and truncated: uint8 (256,)."""
    return np.clip(np.arange(256, dtype=np.float32) * factor + offset, 0, 255).astype(np.uint8)


def _map_hsv_channel(image: np.ndarray, channel: int, table: np.ndarray) -> np.ndarray:
    """Replaces the values of one HSV channel of an RGB image by those of a table."""
    hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV)
    hsv[..., channel] = table[hsv[..., channel]]
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)
