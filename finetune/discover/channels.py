"""The number of channels of a data set, from some of its images."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import datasets
import numpy as np

from finetune.data.samples import reader_of
from finetune.discover.values.mask_values import spread
from finetune.errors import UserError
from finetune.pictures.reading import channels_to_keep, image_dtype, read_image
from finetune.pictures.references import Picture

NUM_IMAGES = 50
"""Images to look at."""


@dataclass(frozen=True)
class ChannelGuess:
    """Keys of the `model:` and `data:` blocks, with what was seen and what was assumed."""

    model: dict[str, Any]
    data: dict[str, Any]
    found: tuple[str, ...]
    assumed: tuple[str, ...]


def some_images(split: datasets.Dataset) -> list[Picture]:
    """A few images of a split from `finetune.data.samples.as_samples`, evenly spread."""
    pictures, references = reader_of(split).pictures, split.with_format(None)["image"][:]
    return [pictures.open(reference) for reference in spread(references, NUM_IMAGES)]


def guess_channels(images: Sequence[Picture]) -> ChannelGuess:
    """The keys for images of other channels than RGB in 8 bit, with measured mean and deviation.

    Args:
        images: Some images of a data set. Unreadable ones are skipped.
    """
    found: dict[int, list[Picture]] = {}
    for picture in images:
        with suppress(UserError):
            found.setdefault(channels_to_keep(picture), []).append(picture)
    number = max(found, key=lambda key: len(found[key]), default=3)
    if number == 3:
        return ChannelGuess({}, {}, (), ())
    chosen = found[number]
    dtype = image_dtype(chosen[0], number)
    full, pixels, sums, squares = np.iinfo(dtype).max, 0, np.zeros(number), np.zeros(number)
    for picture in chosen:
        with suppress(UserError):
            values = read_image(picture, number).reshape(-1, number) / full
            pixels += len(values)
            sums += values.sum(0)
            squares += np.square(values).sum(0)
    mean = sums / max(pixels, 1)
    std = np.sqrt(np.maximum(squares / max(pixels, 1) - np.square(mean), 0))
    data = {
        "image_mean": [float(f"{value:.4g}") for value in mean],
        # a constant channel has no deviation to divide by
        "image_std": [float(f"{value:.4g}") if value > 1e-6 else 1.0 for value in std],
    }
    bits = 8 * dtype.itemsize
    seen = f"images have {number} channel{'s' * (number > 1)} of {bits} bit"
    assumed = f"mean and deviation per channel come from {len(chosen)} images (data.image_mean)"
    return ChannelGuess({"num_channels": number}, data, (seen,), (assumed,))
