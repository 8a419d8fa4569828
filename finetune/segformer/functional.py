"""The fused pieces of SegFormer: the same numbers from fewer operations and bytes.

Everything here is exact up to rounding; `modeling.py` says where each piece belongs. Shapes use
the legend of `modeling.py`; K is the number of classes.
"""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal, overload

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def _without_autocast(tensor: Tensor) -> AbstractContextManager:
    kind = tensor.device.type  # there is none for the meta device
    if torch.amp.is_autocast_available(kind):
        return torch.autocast(kind, enabled=False)
    return nullcontext()


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`F.linear` on channels-last maps: (B, H, W, C) and (C', C) give (B, H, W, C').

    On a CPU it is taken as the 1 x 1 convolution that it is: oneDNN's kernels, which are compiled
    for the processor at hand and add the bias on the way, where `F.linear` calls the BLAS (on an
    AVX-512 processor of AMD's: 350 to 450 against 180 GFLOP/s for every shape of B0 to B5).
    """
    if x.device.type != "cpu" or x.dtype == torch.float64 or torch.compiler.is_compiling():
        return F.linear(x, weight, bias)
    return F.conv2d(x.permute(0, 3, 1, 2), weight[:, :, None, None], bias).permute(0, 2, 3, 1)


def reduce_sequence(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The sequence-reducing convolution (kernel = stride = r, no padding) as one product.

    Args:
        x: (B, H, W, C).
        weight: (C', C, r, r), the convolution's.
        bias: (C',) or None.

    Returns:
        (B, H // r, W // r, C'); rows and columns beyond the last whole patch are not read, which
        is the convolution's own rule.
    """
    ratio = weight.shape[-1]
    height, width = x.shape[1] // ratio, x.shape[2] // ratio
    patches = x[:, : height * ratio, : width * ratio].unflatten(1, (height, ratio))
    patches = patches.unflatten(3, (width, ratio)).transpose(2, 3)  # (B, H', W', r, r, C)
    return linear(patches.flatten(3), weight.permute(0, 2, 3, 1).flatten(1), bias)


def fold_projections(
    fuse: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor]
) -> tuple[list[Tensor], Tensor]:
    """Multiplies the head's fusion into each stage's projection.

    Formed in float32 whatever the weights' type and under autocast too, because it is a product of
    weights that the unfolded head would keep apart; part of the graph, and never kept between
    calls (a kept product goes stale with the next optimiser step or load).

    Args:
        fuse: (C, S C), the 1 x 1 convolution over the concatenated maps, coarsest first.
        weights: S projections (C, C_i), finest first.
        biases: S biases (C,).

    Returns:
        S matrices (C, C_i) and one bias (C,), float32 (float64 for float64 weights).
    """
    with _without_autocast(fuse):
        dtype = torch.promote_types(fuse.dtype, torch.float32)
        parts = fuse.to(dtype).chunk(len(weights), dim=1)[::-1]
        matrices = [part @ weight.to(dtype) for part, weight in zip(parts, weights, strict=True)]
        products = [part @ bias.to(dtype) for part, bias in zip(parts, biases, strict=True)]
        return matrices, torch.stack(products).sum(0)


def fold_batch_norm(
    norm: nn.BatchNorm2d, matrices: Sequence[Tensor], bias: Tensor
) -> tuple[list[Tensor], Tensor]:
    """Folds a batch norm's running statistics into the matrices before it, for evaluation."""
    assert norm.running_mean is not None, "the caller looked"
    assert norm.running_var is not None
    with _without_autocast(bias):
        scale = (norm.running_var.to(bias.dtype) + norm.eps).rsqrt()
        if norm.affine:
            scale = scale * norm.weight.to(bias.dtype)
        shifted = (bias - norm.running_mean.to(bias.dtype)) * scale
        if norm.affine:
            shifted = shifted + norm.bias.to(bias.dtype)
        return [matrix * scale[:, None] for matrix in matrices], shifted


def upsample_and_add(maps: Sequence[Tensor]) -> Tensor:
    """Sums maps (B, H_i, W_i, C) at the first one's size, each bilinearly upsampled to it.

    The sum is taken in place: the first map must be nobody else's.
    """
    total, size = maps[0], maps[0].shape[1:3]
    for x in maps[1:]:
        up = F.interpolate(x.permute(0, 3, 1, 2), size=size, mode="bilinear", align_corners=False)
        total += up.permute(0, 2, 3, 1)
    return total


def classify_in_bands(
    maps: Sequence[Tensor],
    matrices: Sequence[Tensor],
    bias: Tensor,
    weight: Tensor,
    class_bias: Tensor | None,
) -> Tensor:
    """The folded head a band of rows at a time: project, upsample, add, ReLU, classify.

    Without a graph only. The (B, H, W, C) sum, 50 MB an image for 768 channels at 128 x 128,
    never exists; what does stays in the cache, worth a third of B0's whole forward pass on a CPU.

    Args:
        maps: (B, H_i, W_i, C_i), the first at the size of the result.
        matrices: (C, C_i), the folded projections.
        bias: (C,), added before the ReLU.
        weight: (K, C), the classifier's.
        class_bias: (K,) or None.

    Returns:
        Logits (B, H, W, K).
    """
    batch, height, width, _ = maps[0].shape
    rows = max(1, _BAND_ELEMENTS // (batch * width * bias.numel()))
    coarse = [linear(x, matrix) for x, matrix in zip(maps[1:], matrices[1:], strict=True)]
    logits = maps[0].new_empty(batch, height, width, weight.shape[0])
    for start in range(0, height, rows):
        stop = min(start + rows, height)
        total = linear(maps[0][:, start:stop], matrices[0], bias)  # (B, rows, W, C)
        for x in coarse:
            band = _rows_between(x, start, stop, height)  # (B, rows, W_i, C)
            total += F.interpolate(
                band.permute(0, 3, 1, 2),
                size=(stop - start, width),
                mode="bilinear",
                align_corners=False,
            ).permute(0, 2, 3, 1)
        logits[:, start:stop] = linear(total.relu_(), weight, class_bias)
    return logits


# Elements of a band: 2 MB of float32, a second-level cache's worth.
_BAND_ELEMENTS = 1 << 19


def _rows_between(x: Tensor, start: int, stop: int, height: int) -> Tensor:
    """Rows start..stop-1 of x (B, h, W, C) as if its rows were bilinearly upsampled to `height`.

    The rule of `F.interpolate(align_corners=False)`: output row r lies at (r + 1/2) h / height
    - 1/2, clamped at the first row, between the source row above it and the next one.
    """
    rows = x.shape[1]
    dtype = torch.promote_types(x.dtype, torch.float32)
    position = torch.arange(start, stop, device=x.device, dtype=dtype)
    position = ((position + 0.5) * (rows / height) - 0.5).clamp_(min=0)
    above = position.long()
    below = (above + 1).clamp_(max=rows - 1)
    fraction = (position - above).to(x.dtype)[:, None, None]
    return torch.lerp(x[:, above], x[:, below], fraction)


@overload
def upsampled_cross_entropy(
    logits: Tensor, labels: Tensor, *, reduction: Literal["sum"], **options: Any
) -> tuple[Tensor, Tensor]: ...


@overload
def upsampled_cross_entropy(
    logits: Tensor, labels: Tensor, *, reduction: Literal["mean"] = "mean", **options: Any
) -> Tensor: ...


def upsampled_cross_entropy(  # type: ignore[misc]
    logits: Tensor,
    labels: Tensor,
    *,
    ignore_index: int = 255,
    weight: Tensor | None = None,
    label_smoothing: float = 0.0,
    focal_gamma: float = 0.0,
    reduction: Literal["mean", "sum"] = "mean",
) -> Tensor | tuple[Tensor, Tensor]:
    """Cross entropy of logits that are first upsampled, bilinearly, to the size of the labels.

    The value of `F.cross_entropy(F.interpolate(logits, size), labels)`, in float32 or better, with
    the focal factor (1 - p)^gamma of Lin et al. (arXiv:1708.02002) on each pixel's loss if asked.

    Args:
        logits: (B, K, h, w) floating point.
        labels: (B, H, W) integers: class ids or `ignore_index`.
        ignore_index: the label of pixels that do not count.
        weight: (K,) weights of the classes, or None for equal ones.
        label_smoothing: share of the target that is spread over all classes, in [0, 1).
        focal_gamma: exponent of the focal factor; 0 switches it off.
        reduction: "mean" over the sum of the counted pixels' weights, 0 if none counts; "sum"
            returns that sum of losses and the sum of weights that it would be divided by.

    Returns:
        A scalar, or two scalars for "sum", in float32 (float64 for float64 logits).

    Raises:
        ValueError: on a CPU, a label that is neither a class nor `ignore_index`. Elsewhere such a
            pixel does not count, because looking would wait for the device.
    """
    num_labels = logits.shape[1]
    labels = labels.long()
    counts = (labels != ignore_index) & (labels >= 0) & (labels < num_labels)
    if labels.device.type == "cpu" and not torch.compiler.is_compiling():
        stray = labels[~counts & (labels != ignore_index)]
        if stray.numel():
            raise ValueError(
                f"labels hold {stray[0].item()} ({stray.numel()} such pixels), which is neither "
                f"a class id (0 to {num_labels - 1}) nor ignore_index={ignore_index}"
            )
    with _without_autocast(logits):
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        if weight is not None:
            weight = weight.to(logits.dtype)
        total = logits.new_zeros(())
        for band, rows in _upsampled_bands(logits, (labels.shape[-2], labels.shape[-1])):
            target = labels[:, rows].where(counts[:, rows], -100)
            losses = F.cross_entropy(
                band,
                target,
                weight,
                ignore_index=-100,
                label_smoothing=label_smoothing,
                reduction="none",
            )
            if focal_gamma:
                classes = target.clamp(min=0).unsqueeze(1)
                likelihood = band.log_softmax(1).gather(1, classes).squeeze(1).exp()
                # Not 0: the slope of x ** gamma at 0 is infinite for gamma below 1.
                doubt = (1 - likelihood).clamp(min=torch.finfo(likelihood.dtype).eps)
                losses = losses * doubt**focal_gamma
            total = total + losses.sum()
        weights = counts if weight is None else weight[labels.where(counts, 0)] * counts
        normaliser = weights.sum(dtype=total.dtype)
        if reduction == "sum":
            return total, normaliser
        # With nothing to divide by the sum is 0 and so is its gradient.
        return total / normaliser.where(normaliser > 0, 1)


def _upsampled_bands(logits: Tensor, size: tuple[int, int]) -> Iterator[tuple[Tensor, slice]]:
    """Bands (B, K, rows, W) of the logits upsampled to `size`, and which rows they are.

    One band, the whole, where a graph would keep every band anyway.
    """
    height, width = size
    if torch.compiler.is_compiling() or (torch.is_grad_enabled() and logits.requires_grad):
        whole = F.interpolate(logits, size=size, mode="bilinear", align_corners=False)
        yield whole, slice(0, height)
        return
    rows = max(1, 4 * _BAND_ELEMENTS // (logits.shape[0] * width * logits.shape[1]))
    maps = logits.permute(0, 2, 3, 1)
    for start in range(0, height, rows):
        stop = min(start + rows, height)
        band = _rows_between(maps, start, stop, height).permute(0, 3, 1, 2)
        band = F.interpolate(band, size=(stop - start, width), mode="bilinear", align_corners=False)
        yield band, slice(start, stop)


def upsampled_argmax(logits: Tensor, size: tuple[int, int]) -> Tensor:
    """The class of each pixel after bilinear upsampling, in bands of rows.

    Args:
        logits: (B, K, h, w). With K = 1, stock's binary head, class 1 is a logit above 0.
        size: (H, W) of the result.

    Returns:
        (B, H, W) int64. Full-size logits, 157 MB at 150 classes and 512 x 512, never exist.
    """
    labels = torch.empty(logits.shape[0], *size, dtype=torch.int64, device=logits.device)
    for band, rows in _upsampled_bands(logits.detach(), size):
        labels[:, rows] = band[:, 0] > 0 if logits.shape[1] == 1 else band.argmax(1)
    return labels
