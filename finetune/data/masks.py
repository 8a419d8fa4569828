"""The forms in which data sets keep masks, each read as raw values that `Labels` translates.

A sample names its mask by a reference, a string in its row: the path of a file, or whatever else
its form needs. Raw values are what the form itself counts in: stored ids, colours as 0xRRGGBB, the
ids of an annotation file's categories. Two values are common to the forms that mark objects instead
of pixels: `NO_OBJECT` and `UNCOUNTED`.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np

from finetune.errors import UserError
from finetune.labels.rules import NO_OBJECT
from finetune.labels.translation import Labels
from finetune.pictures.reading import mask_size, read_colors, read_mask
from finetune.pictures.references import PATHS, Pictures

Size = tuple[int, int]
"""Height and width."""


class MaskForm(Protocol):
    """How to read a mask, given its reference. Picklable."""

    def name(self, reference: Any) -> str:
        """What messages call the mask; "" if it has no name of its own, or several."""

    def files(self, reference: Any) -> list[Path]:
        """The files that hold the mask; if one changes, so does the mask."""

    def size(self, reference: Any) -> Size | None:
        """The mask's size, without reading its pixels; None if it takes that of its image."""

    def read(self, reference: Any, size: Size) -> np.ndarray:
        """Raw values, integer or bool (H, W).

        Args:
            reference: Names the mask.
            size: Of the image.

        Raises:
            UserError: The mask cannot be read; names the file.
        """


@dataclass(frozen=True)
class _PictureMasks:
    """One picture an image."""

    pictures: Pictures = PATHS

    _of_ids: ClassVar[bool]

    def name(self, reference: Any) -> str:
        """The picture's."""
        return self.pictures.name(reference)

    def files(self, reference: Any) -> list[Path]:
        """The picture's."""
        return self.pictures.files(reference)

    def size(self, reference: Any) -> Size | None:
        """The picture's."""
        return mask_size(self.pictures.open(reference), of_ids=self._of_ids)


@dataclass(frozen=True)
class IdMasks(_PictureMasks):
    """One picture an image, whose pixels hold ids: grey, palette or 16 bit."""

    _of_ids = True

    def read(self, reference: Any, size: Size) -> np.ndarray:
        """The ids as stored; of a palette its indices."""
        return read_mask(self.pictures.open(reference))


@dataclass(frozen=True)
class ColorMasks(_PictureMasks):
    """One picture an image, whose colours stand for classes."""

    _of_ids = False

    def read(self, reference: Any, size: Size) -> np.ndarray:
        """The colours as int32 0xRRGGBB."""
        return read_colors(self.pictures.open(reference))


def picture_masks(labels: Labels, pictures: Pictures = PATHS) -> IdMasks | ColorMasks:
    """How masks of one picture an image are read for some labels: as ids, or as colours."""
    return IdMasks(pictures) if labels.kind == "ids" else ColorMasks(pictures)


@dataclass(frozen=True)
class ClassFiles:
    """One file a class and image, not zero where the class is; the reference is {raw: path}.

    Where several claim a pixel, the one that stands last has it.
    """

    def name(self, reference: str) -> str:
        """The file, if there is one only."""
        files = self.files(reference)
        return str(files[0]) if len(files) == 1 else ""

    def files(self, reference: str) -> list[Path]:
        """One a class that is in the image."""
        return [Path(path) for path in json.loads(reference).values()]

    def size(self, reference: str) -> Size | None:
        """That of the first file."""
        files = self.files(reference)
        return mask_size(files[0], of_ids=True) if files else None

    def read(self, reference: str, size: Size) -> np.ndarray:
        """Raw values as the reference gives them, `NO_OBJECT` elsewhere; int32."""
        raw = np.full(size, NO_OBJECT, np.int32)
        for value, path in json.loads(reference).items():
            mask = read_mask(Path(path))
            if mask.shape != size:
                raise UserError(
                    f"{path} is {mask.shape[1]} x {mask.shape[0]} pixels (width x height), but its "
                    f"image is {size[1]} x {size[0]}. All files of an image must have its size.",
                    kind="size-mismatch",
                )
            raw[mask != 0] = int(value)
        return raw
