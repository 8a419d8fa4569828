"""A glance at a picture: is it a mask, and does it have two values only."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from finetune.discover.values.mask_values import MAX_COLORS
from finetune.errors import UserError
from finetune.pictures.opening import opened
from finetune.pictures.reading import image_size
from finetune.pictures.references import MASK_SUFFIXES


@dataclass(frozen=True)
class Glance:
    """The look of one file."""

    is_mask: bool | None
    """Whether it has few values, unlike a photograph; None if it cannot be read."""
    is_binary: bool = False
    """Whether it holds one value, or 0 and one other."""


Look = Callable[[Path], Glance]


def glance(file: Path) -> Glance:
    """The look of a file, from some of its pixels."""
    try:
        with opened(file) as image:
            if image.mode in ("P", "1") and image.format != "GIF":
                colors = image.getcolors() or []
                return Glance(file.suffix.lower() in MASK_SUFFIXES, len(colors) <= 2)
            plain = image.mode in ("L", "I") or image.mode.startswith("I;16")
            values = np.array(image if plain else image.convert("RGB"))
    except UserError:
        return Glance(False if _has_channels(file) else None)
    channels = values.reshape(values.shape[0] * values.shape[1], -1)
    channels = channels[:: max(1, len(channels) // 65536)].astype(np.int64)
    # One number per pixel: rows of channels sort thirty times as slowly.
    flat = channels @ (1 << 8 * np.arange(channels.shape[1]))
    changes = (flat[1:] != flat[:-1]).mean() if len(flat) > 1 else 0
    found = np.unique(flat)
    is_mask = len(found) <= MAX_COLORS and bool(changes < 0.5 or len(found) <= 32)
    return Glance(is_mask, len(found) == 1 or (len(found) == 2 and found[0] == 0))


def _has_channels(file: Path) -> bool:
    """Whether it is a TIFF with more channels than Pillow reads."""
    try:
        image_size(file)
    except UserError:
        return False
    return True
