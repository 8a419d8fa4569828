"""Faster forms of operations on a CPU. Other devices get the plain operation."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .autograd import apply, is_traced, once_without_autocast

# Elements of a band: 2 MB of float32, the size of a second-level cache.
BAND_ELEMENTS = 1 << 19


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`F.linear` on channels-last maps: (B, H, W, C) and (C', C) give (B, H, W, C').

    On a CPU it runs as a 1 x 1 convolution. oneDNN compiles kernels for the processor and adds the
    bias in the same pass, while `F.linear` calls the BLAS (on an AVX-512 processor of AMD: 350 to
    450 against 180 GFLOP/s for every shape of B0 to B5).
    """
    if x.device.type != "cpu" or x.dtype == torch.float64 or is_traced():
        return F.linear(x, weight, bias)
    if torch.is_grad_enabled():
        return apply(_Linear, x, weight, bias)
    return F.conv2d(x.permute(0, 3, 1, 2), weight[:, :, None, None], bias).permute(0, 2, 3, 1)


class _Linear(torch.autograd.Function):
    """`linear` whose weights' gradient is one BLAS product.

    For this product the BLAS is faster than oneDNN: 80 against 35 GFLOP/s for 32 x 128 channels on
    2 x 128 x 128 pixels.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return linear(x, weight, bias)

    @staticmethod
    @once_without_autocast
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        return linear_backward(grad, x, weight, ctx.needs_input_grad)


def linear_backward(
    grad: Tensor, x: Tensor, weight: Tensor, needed: Sequence[bool]
) -> tuple[Tensor | None, ...]:
    """The gradients of x, weight and bias from `grad`, the gradient of `linear`'s result."""
    x_grad = weight_grad = bias_grad = None
    if needed[0]:
        x_grad = linear(grad, weight.t())
    pixels = grad.flatten(0, 2)
    if needed[1]:
        inputs = x.flatten(0, 2)
        if grad.shape[3] < x.shape[3]:  # faster with the larger number first
            weight_grad = (inputs.t() @ pixels).t()
        else:
            weight_grad = pixels.t() @ inputs
    if needed[2]:
        bias_grad = pixels.sum(0)
    return x_grad, weight_grad, bias_grad


def drop_(x: Tensor, probability: float) -> float:
    """Zeroes random elements of x, which is contiguous; returns the exact share that is kept.

    On a CPU, four elements share one number of the generator, 16 bits each. PyTorch's dropout draws
    one number an element and takes six times as long; the difference is a tenth of B0's training
    step. The probability is rounded to a multiple of 1 / 65536.
    """
    if probability == 0:
        return 1.0
    if x.device.type != "cpu":
        x *= torch.empty_like(x).bernoulli_(1 - probability)
        return 1 - probability
    dropped = round(probability * 65536)
    if dropped == 65536:
        x.zero_()
        return 0.0
    for piece in x.view(-1).split(BAND_ELEMENTS):
        draws = torch.empty(-(-len(piece) // 4), dtype=torch.int64).random_(-(2**63), None)
        kept = torch.empty_like(piece)
        torch.ge(draws.view(torch.int16)[: len(piece)], dropped - 32768, out=kept)
        piece *= kept
    return 1 - dropped / 65536


def argmax(x: Tensor) -> Tensor:
    """(..., K) -> (...), int64."""
    if x.device.type == "cpu":
        # NumPy's argmax is vectorised along the last axis: 5 ms against PyTorch's 250.
        return torch.from_numpy(x.numpy().argmax(-1))
    return x.argmax(-1)


def bands_pay(x: Tensor) -> bool:
    """Whether `classify_in_bands` may and should run: on a CPU, without a graph.

    On a GPU, bands cost launches and save no cache misses.
    """
    return x.device.type == "cpu" and not torch.is_grad_enabled() and not is_traced()


def classify_in_bands(
    maps: Sequence[Tensor],  # (B, H_i, W_i, C_i), the first at the size of the result
    matrices: Sequence[Tensor],  # (C, C_i), the folded projections
    bias: Tensor,  # (C,), added before the ReLU
    weight: Tensor,  # (K, C), the classifier's
    class_bias: Tensor | None,  # (K,)
) -> Tensor:  # logits (B, K, H, W) in channels-last memory
    """The folded head a band of rows at a time: project, upsample, add, ReLU, classify.

    The (B, H, W, C) sum, 50 MB an image for 768 channels at 128 x 128, never exists. A band of it
    stays in the cache, which saves a third of B0's whole forward pass.
    """
    batch, height, width, _ = maps[0].shape
    rows = max(1, BAND_ELEMENTS // (batch * width * bias.numel()))
    coarse = [linear(x, matrix) for x, matrix in zip(maps[1:], matrices[1:], strict=True)]
    logits = maps[0].new_empty(batch, height, width, weight.shape[0])
    for start in range(0, height, rows):
        stop = min(start + rows, height)
        total = linear(maps[0][:, start:stop], matrices[0], bias)  # (B, rows, W, C)
        for x in coarse:
            above, below, share = neighbours(slice(start, stop), x.shape[1], height, x.dtype)
            share = share.to(x.dtype)[:, None, None]
            band = torch.lerp(x[:, above], x[:, below], share)  # (B, rows, W_i, C)
            total += F.interpolate(
                band.permute(0, 3, 1, 2), size=(stop - start, width), mode="bilinear"
            ).permute(0, 2, 3, 1)
        logits[:, start:stop] = linear(total.relu_(), weight, class_bias)
    return logits.permute(0, 3, 1, 2)


def neighbours(
    rows: slice, source: int, target: int, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor, Tensor]:
    """For some of `target` rows: the source rows above and below, and the share of the lower one.

    The rule of `F.interpolate(align_corners=False)`: target row r lies at (r + 1/2) source / target
    - 1/2, clamped at the first row. The share is in float32 or in a wider `dtype`.
    """
    position = torch.arange(rows.start, rows.stop, dtype=torch.promote_types(dtype, torch.float32))
    position = ((position + 0.5) * (source / target) - 0.5).clamp_(min=0)
    above = position.long()
    return above, (above + 1).clamp_(max=source - 1), position - above
