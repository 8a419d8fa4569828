"""A procedural data set: textured shapes over a textured background, drawn on access.

It needs no download and no licence, and a model learns it from scratch within minutes on a CPU.
Only the outline tells the class: colour, texture and brightness are drawn from the same
distributions for the background and every shape.
"""

import math
from typing import Any, Literal

import cv2
import datasets
import numpy as np

from finetune.labels.presets import PRESETS

NAMES = tuple(PRESETS["shapes"]["names"])

# Difficulty.
NUM_SHAPES = (1, 3)
"""Fewest and most shapes per picture; later ones cover earlier ones."""
RADIUS = (0.22, 0.38)
"""Radius of the circle around a shape, as a share of the picture's shorter side."""
OVERHANG = 0.2
"""How far a shape may stick out of the picture, as a share of its radius."""
MIN_CONTRAST = 80.0
"""Smallest distance (of 0..441 in RGB) from a shape's mean colour to the background's."""
TEXTURE = (0.0, 20.0)
"""Amplitude of a texture around its mean colour."""
LIGHTING = 0.25
"""Largest relative darkening and brightening from one side of the picture to the other."""
NOISE = (0.0, 6.0)
"""Standard deviation of the sensor noise."""
BLUR = (0.0, 0.7)
"""Sigma of the lens blur, in pixels."""

_SUBPIXEL_BITS = 4  # cv2 draws polygons with coordinates in 1/16 pixel
_STAR_INNER = 0.42  # inner radius of the star over its outer one
_RING_HOLE = 0.55  # radius of the hole over that of the ring


def shapes(
    split: Literal["train", "val"], *, num_samples: int, size: tuple[int, int], seed: int
) -> datasets.Dataset:
    """The data set: a column `index`, whose rows become Samples of `size` (H, W) on access.

    The splits draw from disjoint streams of the same seed, which is not negative.
    """
    stream = 2 * seed + (split == "val")
    rows = datasets.Dataset.from_dict({"index": range(num_samples)})
    return rows.with_transform(_DrawSamples(split, stream, size))


def draw(seed: int, index: int, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Draws one picture; the same (seed, index, size) gives the same bytes.

    Returns:
        image: uint8 (H, W, 3), RGB, outlines anti-aliased.
        mask: uint8 (H, W), class ids: the class that covers most of the pixel.
    """
    rng = np.random.default_rng([seed, index])
    height, width = size
    mask = np.zeros(size, np.uint8)
    background = rng.uniform(30, 225, 3)
    image = _texture(rng, background, size)

    for _ in range(rng.integers(NUM_SHAPES[0], NUM_SHAPES[1], endpoint=True)):
        class_id = int(rng.integers(1, len(NAMES)))
        radius = rng.uniform(*RADIUS) * min(size)
        angle = rng.uniform(0, 2 * math.pi)
        margin = radius * (1 - OVERHANG)
        center = rng.uniform(margin, (width - margin, height - margin))
        left, top = np.maximum(center - radius - 1, 0).astype(int)
        right, bottom = (center + radius + 2).astype(int)
        box = np.s_[top:bottom, left:right]  # the shape touches nothing outside
        canvas = mask[box].shape

        alpha = _coverage(NAMES[class_id], center - (left, top), radius, angle, canvas)
        fill = _texture(rng, _contrasting(rng, background), canvas)
        image[box] += (fill - image[box]) * alpha[..., None]
        mask[box][alpha >= 0.5] = class_id

    image *= _lighting(rng, size)[..., None]
    if (sigma := rng.uniform(*BLUR)) > 0.2:  # a weaker blur does not show
        image = cv2.GaussianBlur(image, (0, 0), sigma)
    image += rng.standard_normal(image.shape, np.float32) * np.float32(rng.uniform(*NOISE))
    return np.clip(image, 0, 255).astype(np.uint8), mask


class _DrawSamples:
    """The transform of `shapes`: a batch of indices to a batch of Samples."""

    def __init__(self, split: str, stream: int, size: tuple[int, int]) -> None:
        self.split = split
        self.stream = stream
        self.size = size

    def __call__(self, batch: dict[str, list[int]]) -> dict[str, list[Any]]:
        pairs = [draw(self.stream, index, self.size) for index in batch["index"]]
        return {
            "image": [image for image, _ in pairs],
            "mask": [mask for _, mask in pairs],
            "id": [f"shapes-{self.split}-{index:06d}" for index in batch["index"]],
        }


def _coverage(
    name: str, center: np.ndarray, radius: float, angle: float, size: tuple[int, int]
) -> np.ndarray:
    """How much of each pixel a shape covers, float32 (H, W) in 0..1.

    `center` (x, y) and `radius` are those of the circle around the shape, in pixels.
    """
    canvas = np.zeros(size, np.uint8)
    if name in ("disc", "ring"):
        _fill_circle(canvas, center, radius, 255)
        if name == "ring":
            _fill_circle(canvas, center, radius * _RING_HOLE, 0)
    else:
        num_corners = {"square": 4, "triangle": 3, "star": 10}[name]
        turns = angle + 2 * math.pi / num_corners * np.arange(num_corners)
        radii = np.full(num_corners, radius, np.float64)
        if name == "star":
            radii[1::2] *= _STAR_INNER
        corners = center + radii[:, None] * np.stack([np.cos(turns), np.sin(turns)], 1)
        fixed = np.round(corners * 2**_SUBPIXEL_BITS).astype(np.int32)
        cv2.fillPoly(canvas, [fixed], 255, cv2.LINE_AA, _SUBPIXEL_BITS)
    return canvas.astype(np.float32) / 255


def _fill_circle(canvas: np.ndarray, center: np.ndarray, radius: float, value: int) -> None:
    """In place, with subpixel position and an anti-aliased edge."""
    unit = 2**_SUBPIXEL_BITS
    x, y = (round(float(c) * unit) for c in center)
    cv2.circle(canvas, (x, y), round(radius * unit), value, -1, cv2.LINE_AA, _SUBPIXEL_BITS)


def _contrasting(rng: np.random.Generator, background: np.ndarray) -> np.ndarray:
    """A mean colour that can be told from the background's, by rejection."""
    while True:
        color = rng.uniform(30, 225, 3)
        if np.linalg.norm(color - background) >= MIN_CONTRAST:
            return color


def _texture(rng: np.random.Generator, color: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """One of five patterns around a mean colour, float32 (H, W, 3)."""
    period = rng.uniform(4, 14)  # pixels
    angle = rng.uniform(0, 2 * math.pi)
    pattern: np.ndarray
    match rng.integers(5):
        case 0:
            pattern = np.zeros(size, np.float32)
        case 1:
            pattern = np.sin(_phase(size, angle, period))
        case 2:  # checks
            rows, columns = _phase(size, angle, period), _phase(size, angle + math.pi / 2, period)
            pattern = np.sign(np.sin(rows) * np.sin(columns))
        case 3:  # a gradient: half a period from corner to corner, or less
            pattern = np.sin(_phase(size, angle, 3 * max(size)))
        case _:  # soft blotches: coarse noise, enlarged
            coarse = rng.standard_normal((size[0] // 6 + 1, size[1] // 6 + 1), np.float32)
            pattern = cv2.resize(coarse, size[::-1], interpolation=cv2.INTER_LINEAR)
    tint = rng.uniform(-1, 1, 3) * rng.uniform(*TEXTURE)
    return color.astype(np.float32) + pattern[..., None] * tint.astype(np.float32)


def _phase(size: tuple[int, int], angle: float, period: float) -> np.ndarray:
    """The phase of a plane wave at each pixel, float32 (H, W), zero at the top left corner."""
    y = np.arange(size[0], dtype=np.float32)[:, None]
    x = np.arange(size[1], dtype=np.float32)
    # math, not numpy: a float64 scalar of numpy's would make the whole array float64
    return (x * math.cos(angle) + y * math.sin(angle)) * (2 * math.pi / period)


def _lighting(rng: np.random.Generator, size: tuple[int, int]) -> np.ndarray:
    """A brightness ramp in a random direction, float32 (H, W) around 1."""
    angle = rng.uniform(0, 2 * math.pi)
    y = np.linspace(-1, 1, size[0], dtype=np.float32)[:, None]
    x = np.linspace(-1, 1, size[1], dtype=np.float32)
    strength = rng.uniform(0, LIGHTING) / math.sqrt(2)
    return 1 + strength * (x * math.cos(angle) + y * math.sin(angle))
