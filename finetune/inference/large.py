"""Masks of pictures that do not fit into memory, band by band from the top."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from finetune.inference.scores import MAX_WHOLE, score_bands
from finetune.inference.segmenter import Segmenter
from finetune.pictures.geotiff import TiffRows
from finetune.pictures.references import Picture
from finetune.segformer.functional import upsampled_argmax


class FileView:
    """A file as the model sees it: sliced like a tensor (1, H, W, C), read where it is sliced.

    The rows of the last slice are kept, because windows go from left to right.
    """

    def __init__(self, source: TiffRows, is_mirrored: bool = False):
        self.shape = (1, *source.shape)
        self._source, self._is_mirrored = source, is_mirrored
        self._rows, self._pixels = slice(0, 0), torch.empty(0)

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: tuple[slice, slice, slice]) -> Tensor:
        """Pixels (1, h, w, C): all of the first axis, then rows and columns."""
        _, rows, columns = index
        if rows != self._rows:
            pixels = self._source.rows(rows)
            # torch cannot compare uint16
            pixels = pixels if pixels.dtype == np.uint8 else pixels.astype(np.int32)
            pixels = np.ascontiguousarray(pixels[:, ::-1]) if self._is_mirrored else pixels
            self._rows, self._pixels = rows, torch.from_numpy(pixels)[None]
        return self._pixels[:, :, columns]

    def flip(self, axis: int) -> "FileView":
        """The view mirrored from left to right."""
        assert axis == 2, "the axis of columns"
        return FileView(self._source, not self._is_mirrored)


def large_view(segmenter: Segmenter, picture: Picture) -> TiffRows | None:
    """A picture to predict by `mask_bands`; None if it fits into memory or cannot be read so.

    Only a protocol that shows pictures in their own size can do without the whole picture.

    Raises:
        UserError: It cannot be read, or has other integers than the model's images.
    """
    protocol = segmenter.preprocessing.protocol
    if protocol.resizes or protocol.scales != (1.0,):
        return None
    rows = TiffRows.of(picture, segmenter.preprocessing.num_channels)
    if rows is None or rows.shape[0] * rows.shape[1] <= MAX_WHOLE:
        return None
    segmenter.check_depth(rows.dtype, picture)
    return rows


def mask_bands(segmenter: Segmenter, rows: TiffRows) -> Iterator[np.ndarray]:
    """The class ids of a large picture, (h, W) uint8 or uint16, from the top.

    They are those of `Segmenter.masks`, by the protocol's windows or, without one, by those for
    large pictures. Memory holds one row of windows.
    """
    size = rows.shape[0], rows.shape[1]
    dtype = np.uint8 if segmenter.model.config.num_labels <= 256 else np.uint16
    with torch.autocast(
        segmenter.device.type, dtype=segmenter.dtype, enabled=segmenter.dtype is not None
    ):
        view: Any = FileView(rows)
        for band, scores in score_bands(segmenter.model, [view], segmenter.preprocessing, size):
            ids = upsampled_argmax(scores, (band.stop - band.start, size[1]))
            yield ids[0].cpu().numpy().astype(dtype, copy=False)
