"""The forms in which data sets keep masks, each read as raw values that `Labels` translates.

A sample names its mask by a reference, a string in its row: the path of a file, or whatever its
form needs. Raw values are stored ids, colours as 0xRRGGBB or the category ids of an annotation
file. Forms that mark objects instead of pixels also use `NO_OBJECT` and `UNCOUNTED`.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from finetune.errors import UserError
from finetune.labels.rules import NO_OBJECT, UNCOUNTED
from finetune.labels.translation import Labels
from finetune.pictures.opening import named, opened
from finetune.pictures.reading import mask_size, read_colors, read_mask
from finetune.pictures.references import PATHS, Pictures, is_lossy

Size = tuple[int, int]
"""Height and width."""

LOSSY_IDS = (
    "Ids next to each other do not survive this compression: export the masks as PNG. If their "
    "values are far apart, such as 0 and 255, set labels.map and labels.tolerance; if their "
    "colours are the classes, set labels.kind=colors, labels.colors and labels.tolerance=20."
)
"""What a message about masks in such files says of them."""


class MaskForm(Protocol):
    """How to read a mask, given its reference. Picklable."""

    def name(self, reference: Any) -> str:
        """The mask's name in messages; "" if it has no name of its own, or several."""

    def files(self, reference: Any) -> list[Path]:
        """The files that hold the mask."""

    def size(self, reference: Any) -> Size | None:
        """The mask's size, from its header; None if the mask takes its image's size."""

    def read(self, reference: Any, size: Size) -> np.ndarray:
        """Raw values, integer or bool (H, W).

        Args:
            reference: Names the mask.
            size: The image's.

        Raises:
            UserError: The mask cannot be read; names the file.
        """


@dataclass(frozen=True)
class PictureMasks:
    """One picture per image, whose pixels hold ids (grey, palette, 16 bit) or colours."""

    of_ids: bool
    pictures: Pictures = PATHS
    is_exact: bool = False
    """Whether the numbers must be those that were painted: no compression with loss keeps them."""

    def name(self, reference: Any) -> str:
        return self.pictures.name(reference)

    def files(self, reference: Any) -> list[Path]:
        return self.pictures.files(reference)

    def size(self, reference: Any) -> Size | None:
        return mask_size(self.pictures.open(reference), of_ids=self.of_ids)

    def read(self, reference: Any, size: Size) -> np.ndarray:
        """The ids as stored (for a palette, its indices), or the colours as int32 0xRRGGBB."""
        picture = self.pictures.open(reference)
        with named(picture):
            if self.is_exact and is_lossy(picture):
                raise UserError(
                    f"{self.name(reference)}: the mask is JPEG or WebP inside. {LOSSY_IDS}"
                )
        return read_mask(picture) if self.of_ids else read_colors(picture)


def picture_masks(labels: Labels, pictures: Pictures = PATHS) -> PictureMasks:
    """The form of masks in one picture per image: ids or colours, as the labels say."""
    of_ids = labels.kind == "ids"
    return PictureMasks(of_ids, pictures, is_exact=of_ids and not labels.tolerance)


@dataclass(frozen=True)
class ClassFiles:
    """One file per class and image, nonzero where the class is; the reference is {raw: path}.

    Where files overlap, the last one wins.
    """

    def name(self, reference: str) -> str:
        files = self.files(reference)
        return str(files[0]) if len(files) == 1 else ""

    def files(self, reference: str) -> list[Path]:
        return [Path(path) for path in json.loads(reference).values()]

    def size(self, reference: str) -> Size | None:
        files = self.files(reference)
        return mask_size(files[0], of_ids=True) if files else None

    def read(self, reference: str, size: Size) -> np.ndarray:
        """The raw values of the reference, `NO_OBJECT` elsewhere; int32."""
        raw = np.full(size, NO_OBJECT, np.int32)
        for value, path in json.loads(reference).items():
            mask = self._mask(Path(path), size)
            if mask.shape != size:
                raise UserError(
                    f"{path}: the mask has {mask.shape[1]} x {mask.shape[0]} pixels (width x "
                    f"height), its image {size[1]} x {size[0]}. Save both in one size.",
                    kind="size-mismatch",
                )
            raw[_covers(mask)] = int(value)
        return raw

    def _mask(self, file: Path, size: Size) -> np.ndarray:
        return _of_class(file)


class FaceParts(ClassFiles):
    """CelebAMask-HQ's files: black and white in RGB, at half the size of their image.

    Images may be any whole number of times as large; a pixel of the mask is a square of them.
    """

    def size(self, reference: str) -> Size | None:
        return None

    def _mask(self, file: Path, size: Size) -> np.ndarray:
        mask = read_colors(file)
        times = max(1, size[0] // mask.shape[0])
        return mask.repeat(times, 0).repeat(times, 1)


@dataclass(frozen=True)
class PanopticMasks:
    """COCO's PNGs of segments; the reference is {"file": path, "segments": {id: category}, ...}.

    A colour is the id R + 256 G + 65536 B of a segment. 0 is no label.
    """

    def name(self, reference: str) -> str:
        return str(json.loads(reference)["file"])

    def files(self, reference: str) -> list[Path]:
        return [Path(self.name(reference))]

    def size(self, reference: str) -> Size | None:
        return mask_size(Path(self.name(reference)), of_ids=False)

    def read(self, reference: str, size: Size) -> np.ndarray:
        """Category ids, `UNCOUNTED` where there is no label; int32."""
        content = json.loads(reference)
        colors = read_colors(Path(content["file"]))  # 0xRRGGBB; segments count from red
        numbers = (colors & 255) << 16 | colors & 0xFF00 | colors >> 16
        categories = {0: UNCOUNTED} | {int(k): value for k, value in content["segments"].items()}
        known = np.array(sorted(categories))
        values = np.array([categories[number] for number in known.tolist()], np.int32)
        places = np.minimum(np.searchsorted(known, numbers), len(known) - 1)
        if (strange := known[places] != numbers).any():
            number, pixels = int(numbers[strange][0]), int(strange.sum())
            raise UserError(
                f"{content['file']}: has segment {number} (R + 256 G + 65536 B), which its "
                f"segments_info in {content['where']} does not list; {pixels} pixels are of no "
                "listed segment. Export both again.",
                kind="bad-annotation",
            )
        return values[places]


def _of_class(file: Path) -> np.ndarray:
    """The numbers in a class's own file; of a palette of greys the greys: number 0 may be white."""
    with opened(file) as image:
        is_palette = image.mode == "P"
    if is_palette:
        colors = read_colors(file)
        if (colors >> 16 == colors & 255).all() and (colors >> 8 & 255 == colors & 255).all():
            return (colors & 255).astype(np.uint8)
    return read_mask(file)


def _covers(mask: np.ndarray) -> np.ndarray:
    """Where a class's own file has it: at any value, or from the middle on if greys were smoothed.

    Files of 0 and 1, or of 0 and numbers of instances, have few values; smoothing makes many.
    """
    if mask.dtype != np.uint8 or not mask.size or mask.max() < 250:
        return mask != 0
    return mask > 127 if len(np.unique(mask)) > 2 else mask != 0
