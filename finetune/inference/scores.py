"""From pixels to the scores of every pixel of a picture, in bands of rows.

The scores of a whole picture can take 58 GB (150 classes, 12,000 x 8,000), so they are made band by
band. A `Band` holds the scores of some rows, either as the model's small logits, which the
consumers (`upsampled_argmax`, `cross_entropy_sums`) upsample in parts, or pixel by pixel.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from finetune.inference.preprocessing import Preprocessing
from finetune.segformer.configuration import smallest_side
from finetune.segformer.cpu import neighbours
from finetune.segformer.functional import upsample, upsampled_argmax

MAX_WHOLE = 2**25
"""Largest picture that is shown whole, in pixels: 33 million, as in 8K video."""
WINDOW, STRIDE = (1024, 1024), (768, 768)
"""Windows of a larger picture: as many as with this stride, evenly spread."""

_BAND, _BAND_GPU = 2**23, 2**27  # scores of a band
_TINY = 1e-30  # smallest probability whose logarithm is taken


class Band(NamedTuple):
    """The scores of some rows of every picture of a batch."""

    rows: slice
    """Rows of the pictures."""
    scores: Tensor
    """(B, K, h, w) float32; to upsample to the rows and the pictures' width."""


@torch.no_grad()
def score_bands(
    model: Any, views: Sequence[Tensor], preprocessing: Preprocessing, size: tuple[int, int]
) -> Iterator[Band]:
    """The scores of pictures, from top to bottom.

    Args:
        model: a SegFormer in eval mode.
        views: one for each scale of the protocol, integer (B, h, w, C), on any device.
        preprocessing: how the views are normalised and shown.
        size: the pictures' own (H, W).

    Yields:
        Bands that cover all rows. Scores are logits. With several scales or flips, they are
        logarithms of the mean of the probabilities, as in mmsegmentation.
    """
    flips = (False, True) if preprocessing.protocol.flip else (False,)
    shown = [
        (_show(model, view.flip(2) if flip else view, preprocessing, size), flip)
        for flip in flips
        for view in views
    ]
    if len(shown) == 1:
        yield from shown[0][0].bands()
        return
    batch, num_labels = len(views[0]), model.config.num_labels
    device = next(model.parameters()).device
    for rows in _in_rows(batch, num_labels, size, device):
        total = torch.zeros(batch, num_labels, rows.stop - rows.start, size[1], device=device)
        for one, flip in shown:
            chance = probabilities(one.rows(rows))
            total += chance.flip(3) if flip else chance
        total /= len(shown)
        yield Band(rows, total.logit_(_TINY) if num_labels == 1 else total.clamp_(_TINY).log_())


def predict_masks(
    model: Any,
    views: Sequence[Tensor],
    preprocessing: Preprocessing,
    size: tuple[int, int],
    *,
    confidence: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """Class ids of pictures and, if `confidence` is set, the probability of each pixel's class.

    The other arguments are those of `score_bands`.

    Returns:
        Ids (B, H, W), uint8 up to 256 classes, else int64; and (B, H, W) float16, or None.
    """
    ids = torch.uint8 if model.config.num_labels <= 256 else torch.int64
    masks = torch.empty(len(views[0]), *size, dtype=ids)
    chances = torch.empty(masks.shape, dtype=torch.float16) if confidence else None
    for rows, scores in score_bands(model, views, preprocessing, size):
        own = rows.stop - rows.start, size[1]
        masks[:, rows].copy_(upsampled_argmax(scores, own))
        if chances is None:
            continue
        for part in _in_rows(len(masks), scores.shape[1], own, scores.device):
            chance = probabilities(_upsampled(scores, own, part))
            is_binary = chance.shape[1] == 1
            best = torch.maximum(chance, 1 - chance)[:, 0] if is_binary else chance.amax(1)
            chances[:, rows][:, part].copy_(best)
    return masks, chances


def predict_doubts(
    model: Any,
    views: Sequence[Tensor],
    preprocessing: Preprocessing,
    truths: Tensor,
) -> tuple[Tensor, Tensor]:
    """Class ids of pictures and, at each pixel, how much surer the model is of them than of labels.

    Args:
        model: see `score_bands`, as the next two.
        views: one for each scale.
        preprocessing: how the views are shown.
        truths: labels, integer (B, H, W); ids that are no class of the model are ignored.

    Returns:
        Ids (B, H, W), uint8 up to 256 classes, else int64; and log p(predicted) - log p(label),
        (B, H, W) float32, natural logarithms: 0 where both agree and at ignored labels.
    """
    size = truths.shape[1], truths.shape[2]
    num_labels = max(model.config.num_labels, 2)  # stock's binary head has one logit
    masks = torch.empty(truths.shape, dtype=torch.uint8 if num_labels <= 256 else torch.int64)
    doubts = torch.empty(truths.shape)
    for rows, scores in score_bands(model, views, preprocessing, size):
        own = rows.stop - rows.start, size[1]
        for part in _in_rows(len(masks), num_labels, own, scores.device):
            full = _upsampled(scores, own, part)
            if full.shape[1] == 1:  # the logit is the log-odds of class 1 against class 0
                full = torch.cat([torch.zeros_like(full), full], 1)
            best, ids = full.max(1)
            given = truths[:, rows][:, part].to(full.device, torch.int64)
            counted = (given >= 0) & (given < num_labels)
            # A softmax divides both probabilities by the same sum, which a difference loses.
            of_given = full.gather(1, given.where(counted, ids)[:, None])[:, 0]
            masks[:, rows][:, part].copy_(ids)
            doubts[:, rows][:, part].copy_(best - of_given)
    return masks, doubts


def probabilities(scores: Tensor) -> Tensor:
    """Scores (B, K, ...) as probabilities; of class 1 for K = 1, stock's binary head."""
    return scores.softmax(1) if scores.shape[1] > 1 else scores.sigmoid()


def _in_rows(
    batch: int, num_labels: int, size: tuple[int, int], device: torch.device
) -> Iterator[slice]:
    limit = _BAND if device.type == "cpu" else _BAND_GPU
    step = max(1, limit // (batch * num_labels * size[1]))
    for first in range(0, size[0], step):
        yield slice(first, min(first + step, size[0]))


def _show(
    model: Any, view: Tensor, preprocessing: Preprocessing, size: tuple[int, int]
) -> "_Whole | _Windows":
    protocol = preprocessing.protocol
    window, stride = protocol.window, protocol.stride
    if window is None and view.shape[1] * view.shape[2] > MAX_WHOLE:
        window = WINDOW
        stride = _evenly(view.shape[1], 0), _evenly(view.shape[2], 1)
    if window is None or stride is None:
        return _Whole(_scores(model, view, preprocessing), size)
    return _Windows(model, view, preprocessing, size, window, stride)


class _Whole:
    """Pictures at one scale, shown to the model whole."""

    def __init__(self, scores: Tensor, size: tuple[int, int]):
        self.scores, self.size = scores, size

    def bands(self) -> Iterator[Band]:
        """Yields bands that cover all rows."""
        yield Band(slice(0, self.size[0]), self.scores)

    def rows(self, rows: slice) -> Tensor:
        """Scores (B, K, r, W) of rows; each call asks for rows further down."""
        return _upsampled(self.scores, self.size, rows)


class _Windows:
    """As `_Whole`, window by window; overlapping windows are averaged at the view's resolution.

    Only the logits of the rows of windows that a band touches are kept, 40 MB a window of
    1024 x 1024 at 150 classes. Windows above are dropped before the next row of windows is shown.
    """

    def __init__(
        self,
        model: Any,
        view: Tensor,
        preprocessing: Preprocessing,
        size: tuple[int, int],
        window: tuple[int, int],
        stride: tuple[int, int],
    ):
        self.model, self.view, self.preprocessing, self.size = model, view, preprocessing, size
        self.height, self.width = (min(w, n) for w, n in zip(window, view.shape[1:3], strict=True))
        self.tops = _starts(view.shape[1], window[0], stride[0])
        self.lefts = _starts(view.shape[2], window[1], stride[1])
        self.num_rows = 0  # rows of the scores of a window
        self.kept: dict[int, tuple[int, list[Tensor]]] = {}  # by top: the first row kept

    def bands(self) -> Iterator[Band]:
        device = next(self.model.parameters()).device
        for rows in _in_rows(len(self.view), self.model.config.num_labels, self.size, device):
            yield Band(rows, self.rows(rows))

    def rows(self, rows: slice) -> Tensor:
        own = self.view.shape[1], self.view.shape[2]
        if own == self.size:
            return self._mean(rows)
        above, below, _ = neighbours(rows, own[0], self.size[0])
        first = int(above[0])
        part = self._mean(slice(first, int(below[-1]) + 1))
        return _upsampled(part, self.size, rows, first=first, height=own[0])

    def _mean(self, rows: slice) -> Tensor:
        """Mean scores (B, K, r, w) of rows of the view."""
        batch, width = len(self.view), self.view.shape[2]
        shape = batch, self.model.config.num_labels, rows.stop - rows.start, width
        total = torch.zeros(shape, device=next(self.model.parameters()).device)
        count = total.new_zeros(shape[2:])
        for top in self.tops:
            first, last = max(top, rows.start), min(top + self.height, rows.stop)
            if first >= last:
                continue
            if top not in self.kept:
                self._forget(rows.start)
                self._show(top)
            cut, row = self.kept[top]
            source, target = (slice(first - at, last - at) for at in (top, rows.start))
            for left, scores in zip(self.lefts, row, strict=True):
                columns = slice(left, left + self.width)
                size = self.height, self.width
                part = _upsampled(scores, size, source, first=cut, height=self.num_rows)
                total[:, :, target, columns] += part
                count[target, columns] += 1
        total /= count
        return total

    def _show(self, top: int) -> None:
        """Shows a row of windows to the model."""
        row = [
            _scores(
                self.model,
                self.view[:, top : top + self.height, left : left + self.width],
                self.preprocessing,
            )
            for left in self.lefts
        ]
        self.num_rows = row[0].shape[2]
        self.kept[top] = 0, row

    def _forget(self, start: int) -> None:
        """Drops the kept logits above row `start` of the view."""
        for top, (cut, row) in list(self.kept.items()):
            if top + self.height <= start:
                del self.kept[top]
                continue
            first = max(start - top, 0)
            if self.num_rows != self.height:
                first = int(neighbours(slice(first, first + 1), self.num_rows, self.height)[0])
            self.kept[top] = first, [scores[:, :, first - cut :].clone() for scores in row]


def _scores(model: Any, pixels: Tensor, preprocessing: Preprocessing) -> Tensor:
    """The model's logits (B, K, h, w) for integer pixels (B, H, W, C).

    Images below the model's smallest side are padded right and bottom with zeros, the mean colour;
    the scores cover the image without the padding.
    """
    pixels = pixels.to(next(model.parameters()).device, non_blocking=True)
    pixel_values = preprocessing.normalise(pixels).to(model.dtype)
    height, width = pixel_values.shape[2:]
    side = smallest_side(model.config)
    if min(height, width) >= side:
        return model(pixel_values).logits.float()
    padded = F.pad(pixel_values, (0, max(0, side - width), 0, max(0, side - height)))
    logits = model(padded).logits.float()
    return upsample(logits, padded.shape[2:])[:, :, :height, :width]


def _upsampled(
    scores: Tensor,  # (B, K, h, w), the rows from `first` on of `height` rows
    size: tuple[int, int],  # (H, W) of the whole result
    rows: slice,  # wanted rows of the result
    *,
    first: int = 0,
    height: int | None = None,  # None: h
) -> Tensor:
    """Some rows of `F.interpolate(scores, size, mode="bilinear")`, (B, K, r, W)."""
    own = scores.shape[2] if height is None else height
    if own != size[0]:
        above, below, share = neighbours(rows, own, size[0])
        above, below = ((place - first).to(scores.device) for place in (above, below))
        share = share[:, None].to(scores.device)
        scores = torch.lerp(scores[:, :, above], scores[:, :, below], share)
    else:
        scores = scores[:, :, rows.start - first : rows.stop - first]
    if scores.shape[3] == size[1]:
        return scores
    return upsample(scores, (scores.shape[2], size[1]))


def _evenly(length: int, axis: int) -> int:
    """The stride that spreads the windows of a huge picture evenly, to keep fewer at once."""
    steps = max(1, math.ceil((length - WINDOW[axis]) / STRIDE[axis]))
    return max(1, math.ceil((length - WINDOW[axis]) / steps))


def _starts(length: int, window: int, stride: int) -> list[int]:
    """The starts of the windows along one axis; the last window ends at the edge."""
    last = max(length - window, 0)
    return [*range(0, last, stride), last]
