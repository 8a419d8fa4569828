"""Loss and argmax of upsampled logits, a band of rows at a time, in PyTorch.

The usual code upsamples all logits before it takes the loss or the argmax: 157 MB an image at 150
classes and 512 x 512, several times over. Here only one band of them exists at a time. It stays in
the processor's cache, and the same pass computes the gradient. Upsampling is bilinear, by the rule
of `F.interpolate(mode="bilinear", align_corners=False)`.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .cpu import BAND_ELEMENTS, argmax

# Elements of a band on a GPU: more than on a CPU, so that launches cost little.
_BAND_ELEMENTS_GPU = 1 << 25

# Smallest number of classes for which a band keeps a pixel's logits side by side (see `_Grid`).
_MANY_CLASSES = 48

# The logarithm of the smallest probability that float32 holds with all its digits.
_LOG_TINY = -80.0


class LossOptions(NamedTuple):
    """The options of the cross entropy."""

    ignore_index: int
    """The label of pixels that do not count."""
    label_smoothing: float
    """Share of the target that is spread over all classes, in [0, 1)."""
    focal_gamma: float
    """Exponent of the focal factor (1 - p)^gamma; 0 switches it off."""
    with_grad: bool
    """Whether to compute the gradient."""


def cross_entropy_in_bands(
    logits: Tensor,  # (B, K, h, w), float32 or float64
    labels: Tensor,  # (B, H, W) integers: class ids or `ignore_index`
    weight: Tensor | None,  # (K,), of the classes; None: equal ones
    options: LossOptions,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Cross entropy of upsampled logits and its gradient, as sums.

    Returns:
        The sum of the losses; the sum of the weights of the pixels that count (their number without
        weights); the number of labels that are neither a class nor ignored, int64; and the gradient
        of the sum of losses, (B, K, h, w) in channels-last memory, or an empty tensor.
    """
    wanted = labels != options.ignore_index
    counted = (labels >= 0) & (labels < logits.shape[1]) & wanted
    stray = (~counted & wanted).sum()
    target = labels.long().where(counted, 0)
    counts = counted.to(logits.dtype)
    weights = counts if weight is None else weight[target] * counts

    grid = _Grid.of(logits, (labels.shape[1], labels.shape[2]))
    target, counts = grid.spread(target), grid.spread(counts)
    loss = logits.new_zeros((), dtype=torch.float64)
    grad = logits.new_empty(0)
    if options.with_grad:
        grad = torch.zeros_like(logits, memory_format=torch.channels_last)
    for images, rows, band in grid.bands(logits):
        losses, gradient = _pixel_losses(
            grid.as_pixels(band),
            grid.as_pixels(target[images, rows]),
            grid.as_pixels(counts[images, rows]),
            weight,
            options,
        )
        loss += losses.sum(dtype=torch.float64)
        if gradient is not None:
            grid.add_back(gradient.view_as(band), grad, images, rows)
    normaliser = weights.sum(dtype=torch.float64).to(logits.dtype)
    return loss.to(logits.dtype), normaliser, stray, grad


def argmax_by_cells(logits: Tensor, size: tuple[int, int]) -> Tensor:
    """The class of each pixel of upsampled logits.

    If the four corners of a cell agree on the class, so do all mixtures of them, and the cell is
    not upsampled. This holds for most cells of a picture. The other cells are upsampled one by one.
    From logits (B, K, h, w), float32 or float64, to (B, H, W) int64; with K = 1, class 1 is a logit
    above 0.
    """
    num_labels, height, width = logits.shape[1:]
    pixels = logits.permute(0, 2, 3, 1).contiguous()
    if (height, width) == size:
        return _classes(pixels)
    rows, columns = _Cells.of(height, size[0], logits), _Cells.of(width, size[1], logits)
    (top, bottom), (left, right) = (_ends(edge, logits.device) for edge in (height, width))
    # A narrow type, because the next lines copy it.
    corner = _classes(pixels).to(torch.int16 if num_labels < 2**15 else torch.int64)
    first = corner[:, top][:, :, left]  # (B, h + 1, w + 1)
    agree = first == corner[:, top][:, :, right]
    agree &= first == corner[:, bottom][:, :, left]
    agree &= first == corner[:, bottom][:, :, right]
    slots_of_rows, slots_of_columns = rows.fraction.shape[1], columns.fraction.shape[1]
    labels = first[:, :, None, :, None].repeat(1, 1, slots_of_rows, 1, slots_of_columns)
    at_once = max(1, _limit(logits) // (slots_of_rows * slots_of_columns * num_labels))
    for cells in (~agree).nonzero().split(at_once):
        image, row, column = cells.unbind(1)
        across, down = columns.fraction[column][..., None], rows.fraction[row][:, :, None, None]
        start, end = left[column], right[column]
        above, below = (
            torch.lerp(pixels[image, y, start, None], pixels[image, y, end, None], across)
            for y in (top[row], bottom[row])
        )  # (n, m', K)
        mixed = torch.lerp(above[:, None], below[:, None], down)
        labels[image, row, :, column] = _classes(mixed).to(labels.dtype)
    labels = labels.flatten(3).flatten(1, 2).index_select(1, rows.slot)
    return labels.index_select(2, columns.slot).long()


def _limit(logits: Tensor) -> int:
    return BAND_ELEMENTS if logits.device.type == "cpu" else _BAND_ELEMENTS_GPU


def _ends(num_logits: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Indices of the logits before and after each cell of an axis, (n + 1,) each; see `_Cells`."""
    cell = torch.arange(num_logits + 1, device=device)
    return (cell - 1).clamp_(min=0), cell.clamp(max=num_logits - 1)


def _classes(x: Tensor) -> Tensor:
    """(..., K) -> (...), int64."""
    if x.shape[-1] == 1:
        return (x[..., 0] > 0).long()
    return argmax(x)


class _Cells(NamedTuple):
    """An axis of n logits and its pixels, sorted into n + 1 cells of up to m pixels.

    Cell i lies between logit i - 1 and logit i. The two outermost cells lie between a logit at the
    border and a copy of it. All pixels of a cell mix the same two logits, so that upsampling is
    one broadcast `lerp` and its gradient is a product with small matrices, without gather or
    scatter. Empty slots (beyond the borders; also inside, if one size is not a multiple of the
    other) are computed and not used.
    """

    slot: Tensor  # (pixels,) int64, the place of each pixel in the flattened (n + 1, m) slots
    fraction: Tensor  # (n + 1, m), weight of the second logit in a pixel; 0 if empty
    share: Tensor  # (n + 1, 2, m), weight of each logit in a pixel; 0 if empty

    @classmethod
    def of(cls, num_logits: int, num_pixels: int, like: Tensor) -> "_Cells":
        """Computed in the dtype of `like`, for the same rounding as `F.interpolate`."""
        # On the CPU: the number of slots is needed here, and reading it from a GPU would wait.
        pixel = torch.arange(num_pixels)
        position = (pixel.to(like.dtype) + 0.5) * (num_logits / num_pixels) - 0.5
        cell = (position.floor().long() + 1).clamp(max=num_logits)
        place = pixel - torch.searchsorted(cell, torch.arange(num_logits + 1))[cell]
        num_slots = int(place.max()) + 1
        slot = cell * num_slots + place
        fraction, filled = torch.zeros(2, (num_logits + 1) * num_slots, dtype=like.dtype)
        fraction[slot] = position - position.floor()
        filled[slot] = 1
        share = torch.stack([(1 - fraction) * filled, fraction * filled])
        return cls(
            slot.to(like.device),
            fraction.view(-1, num_slots).to(like.device),
            share.view(2, -1, num_slots).transpose(0, 1).contiguous().to(like.device),
        )


class _Grid(NamedTuple):
    """Logits (B, K, h, w) upsampled to (H, W), in bands of rows of cells.

    A band is (b, r, m, C, K), where C is the slots of all columns. With few classes it is
    (b, r, m, K, C): on a CPU, operations on vectors of 11 classes take ten times as long.
    """

    rows: _Cells
    columns: _Cells
    classes_last: bool

    @classmethod
    def of(cls, logits: Tensor, size: tuple[int, int]) -> "_Grid":
        rows, columns = (
            _Cells.of(num_logits, num_pixels, logits)
            for num_logits, num_pixels in zip(logits.shape[2:], size, strict=True)
        )
        return cls(rows, columns, logits.shape[1] >= _MANY_CLASSES)

    def spread(self, x: Tensor) -> Tensor:
        """(B, H, W) -> (B, h + 1, m, C), 0 in empty slots."""
        rows, columns = self.rows.fraction.numel(), self.columns.fraction.numel()
        x = x.new_zeros(*x.shape[:2], columns).index_copy_(2, self.columns.slot, x)
        x = x.new_zeros(x.shape[0], rows, columns).index_copy_(1, self.rows.slot, x)
        return x.unflatten(1, self.rows.fraction.shape)

    def as_pixels(self, x: Tensor) -> Tensor:
        """A band as (P, K) or (P, K, C); or a band of a `spread` tensor, where K is 1."""
        if self.classes_last:
            return x.reshape(-1, 1) if x.ndim == 4 else x.flatten(0, 3)
        return x.flatten(0, 2).unsqueeze(1) if x.ndim == 4 else x.flatten(0, 2)

    def bands(self, logits: Tensor) -> Iterator[tuple[slice, slice, Tensor]]:
        """Yields the images, the rows of cells, and the logits of their pixels."""
        batch, num_labels, height, _ = logits.shape
        line = self.columns.fraction.numel() * num_labels
        at_once = max(1, _limit(logits) // (self.rows.fraction.shape[1] * line))  # rows of cells
        num_images, num_rows = max(1, at_once // (height + 1)), min(at_once, height + 1)
        for first in range(0, batch, num_images):
            images = slice(first, min(first + num_images, batch))
            some = logits[images]
            for start in range(0, height + 1, num_rows):
                rows = slice(start, min(start + num_rows, height + 1))
                x = self._lines(some, rows)[:, :, None]  # (b, r + 1, 1, C, K)
                fraction = self.rows.fraction[rows, :, None, None]
                yield images, rows, torch.lerp(x[:, :-1], x[:, 1:], fraction)

    def _lines(self, logits: Tensor, rows: slice) -> Tensor:
        """The r + 1 rows of logits around r rows of cells, their columns upsampled."""
        height = logits.shape[2]
        inside = slice(max(rows.start - 1, 0), min(rows.stop, height))
        beyond = (int(rows.start == 0), int(rows.stop > height))
        x = F.pad(logits[:, :, inside], (1, 1, *beyond), mode="replicate")
        x = x.permute(0, 2, 3, 1).unsqueeze(3)  # (b, r + 1, w + 2, 1, K)
        x = torch.lerp(x[:, :, :-1], x[:, :, 1:], self.columns.fraction[..., None])
        x = x.flatten(2, 3)
        return x if self.classes_last else x.transpose(2, 3).contiguous()

    def add_back(self, gradient: Tensor, total: Tensor, images: slice, rows: slice) -> None:
        """Adds a band's gradient to that of the logits, (B, K, h, w)."""
        height, width = total.shape[2:]
        parts = self.rows.share[rows] @ gradient.flatten(3)  # (b, r, 2, C K)
        lines = F.pad(parts[:, :, 0], (0, 0, 0, 1))  # (b, r + 1, C K)
        lines[:, 1:] += parts[:, :, 1]
        lines = lines.unflatten(2, gradient.shape[3:])
        if not self.classes_last:
            lines = lines.transpose(2, 3).contiguous()
        lines = lines.unflatten(2, self.columns.fraction.shape)
        parts = self.columns.share @ lines  # (b, r + 1, w + 1, 2, K)
        points = F.pad(parts[..., 0, :], (0, 0, 0, 1))  # (b, r + 1, w + 2, K)
        points[:, :, 1:] += parts[..., 1, :]
        points[:, :, 1] += points[:, :, 0]  # the outermost points are copies of the border logits
        points[:, :, width] += points[:, :, width + 1]
        row = torch.arange(rows.start - 1, rows.stop, device=total.device).clamp_(0, height - 1)
        total[images].permute(0, 2, 3, 1).index_add_(1, row, points[:, :, 1:-1])


def _pixel_losses(
    logits: Tensor,  # (P, K) or (P, K, W)
    target: Tensor,  # (P, 1) or (P, 1, W) int64, the class
    counts: Tensor,  # like `target`; 1 for pixels that count, else 0
    weight: Tensor | None,  # (K,)
    options: LossOptions,
) -> tuple[Tensor, Tensor | None]:
    """Losses, like `target`, and their gradient, like `logits`, if `options` ask for it."""
    _, label_smoothing, focal_gamma, with_grad = options
    log_p, p = None, None
    if logits.device.type == "cpu" and not label_smoothing:
        # One exponential an element instead of two...
        p = logits.softmax(1)
        log_target = p.gather(1, target).log_()
        if log_target.numel() and log_target.min() < _LOG_TINY:
            p = None  # ...unless the target's probability has lost digits
    if p is None:
        log_p = logits.log_softmax(1)
        log_target = log_p.gather(1, target)

    pull = counts if weight is None else counts * weight[target]  # of the target
    losses = pull * -log_target
    if label_smoothing:
        assert log_p is not None
        every = log_p.new_ones(log_p.shape[1]) if weight is None else weight
        every = every.view(-1, *[1] * (logits.ndim - 2))  # (K,) or (K, 1)
        push = counts * (label_smoothing / log_p.shape[1])  # of each class
        pull = pull * (1 - label_smoothing)
        losses = losses * (1 - label_smoothing) - push * (log_p * every).sum(1, keepdim=True)
    if focal_gamma:
        likelihood = log_target.exp()
        # Not 0: the slope of x ** gamma at 0 is infinite for gamma below 1.
        doubt = (1 - likelihood).clamp_(min=torch.finfo(likelihood.dtype).eps)
        factor = doubt**focal_gamma
        pull = pull * factor + focal_gamma * doubt ** (focal_gamma - 1) * likelihood * losses
        losses = losses * factor
    if not with_grad:
        return losses, None

    # The gradient of -log p_t is p - (1 at t), that of -sum_k w_k log p_k is p sum_k w_k - w.
    grad = p if log_p is None else log_p.exp_()
    assert grad is not None
    if label_smoothing:
        push = push * factor if focal_gamma else push
        grad *= pull + push * every.sum()
        grad -= push * every
    else:
        grad *= pull
    return losses, grad.scatter_add_(1, target, -pull)
