"""Pictures with edges, areas and noise, of which every pixel is known."""

import numpy as np
from PIL import Image


def picture(height, width, *, seed=0, channels=3):
    """(H, W, C) uint8: coarse colours enlarged, with some noise."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (6, 7, channels), dtype=np.uint8)
    planes = [
        Image.fromarray(coarse[..., channel]).resize((width, height), Image.Resampling.BICUBIC)
        for channel in range(channels)
    ]
    noisy = np.stack([np.asarray(p) for p in planes], -1) + rng.normal(0, 8, (height, width, 1))
    return noisy.clip(0, 255).astype(np.uint8)
