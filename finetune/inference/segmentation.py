"""`Segmentation`, the result of `segment`: a picture with its classes."""

import io
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from PIL import Image

from finetune.pictures.drawing import Color, colored, overlay, with_legend

_SHOWN = 1024  # longer side of the picture in a notebook, in pixels
_NUM_NAMED = 6  # classes that `repr` names


@dataclass(frozen=True, eq=False)
class Segmentation:
    """The class of every pixel of a picture.

    Attributes:
        mask: (H, W), class ids; uint8, or uint16 from 257 classes on.
        names: the classes' names by id.
        colors: the classes' colours (R, G, B) by id.
        confidence: (H, W) float16, the probability of each pixel's class; None if not asked for.
        image: the picture for display, uint8 (H, W, 3).
    """

    mask: np.ndarray = field(repr=False)
    names: tuple[str, ...]
    colors: tuple[Color, ...]
    confidence: np.ndarray | None = field(repr=False)
    image: np.ndarray = field(repr=False)

    def areas(self) -> dict[str, dict[str, float]]:
        """Pixels and share of the picture of each class, 0 for absent classes."""
        counts = np.bincount(self.mask.ravel(), minlength=len(self.names))
        return {
            name: {"pixels": int(count), "share": float(count) / self.mask.size}
            for name, count in zip(self.names, counts, strict=True)
        }

    def overlay(self, *, legend: bool = True) -> Image.Image:
        """The mask laid over the picture, with the names of the classes that occur below it."""
        drawn = overlay(self.image, self.mask, self.colors)
        return with_legend(drawn, self._entries()) if legend else Image.fromarray(drawn)

    def colored(self) -> Image.Image:
        """The mask in the classes' colours."""
        return Image.fromarray(colored(self.mask, self.colors))

    def _entries(self) -> Sequence[tuple[str, Color]]:
        """Name and colour of the classes that occur, the largest first."""
        counts = np.bincount(self.mask.ravel(), minlength=len(self.names))
        order = np.argsort(-counts, kind="stable")
        return [(self.names[i], self.colors[i]) for i in order if counts[i]]

    def __repr__(self) -> str:
        height, width = self.mask.shape
        areas = self.areas()
        found = [f"{name} {areas[name]['share']:.1%}" for name, _ in self._entries()]
        more = f", and {len(found) - _NUM_NAMED} more" if len(found) > _NUM_NAMED else ""
        return f"Segmentation({width} x {height}: {', '.join(found[:_NUM_NAMED])}{more})"

    def _repr_png_(self) -> bytes:
        height, width = self.mask.shape
        scale = min(1.0, _SHOWN / max(height, width))
        size = max(1, round(width * scale)), max(1, round(height * scale))
        image = np.asarray(Image.fromarray(self.image).resize(size, Image.Resampling.BOX))
        nearest = Image.fromarray(self.mask).resize(size, Image.Resampling.NEAREST)
        shown = with_legend(overlay(image, np.asarray(nearest), self.colors), self._entries())
        buffer = io.BytesIO()
        shown.save(buffer, "PNG")
        return buffer.getvalue()
