"""Fused operations of SegFormer: the same numbers from fewer operations and bytes.

All of them are exact up to rounding. Shapes use the legend of `modeling.py`; K is the number of
classes.
"""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, overload

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .autograd import apply, is_traced, once_without_autocast, without_autocast
from .cpu import drop_, linear, linear_backward
from .operators import argmax_op, cross_entropy_op


def upsample(x: Tensor, size: Sequence[int]) -> Tensor:
    """(B, C, h, w) -> (B, C, H, W), bilinearly, by the rule of `align_corners=False`."""
    return F.interpolate(x, size=tuple(size), mode="bilinear", align_corners=False)


def reduce_sequence(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The sequence-reducing convolution (kernel = stride = r, no padding) as one product.

    From (B, H, W, C), by a weight (C', C, r, r) and a bias (C',), to (B, H // r, W // r, C'). Like
    the convolution, it does not read rows and columns beyond the last whole patch.
    """
    ratio = weight.shape[-1]
    height, width = x.shape[1] // ratio, x.shape[2] // ratio
    patches = x[:, : height * ratio, : width * ratio].unflatten(1, (height, ratio))
    patches = patches.unflatten(3, (width, ratio)).transpose(2, 3)  # (B, H', W', r, r, C)
    return linear(patches.flatten(3), weight.permute(0, 2, 3, 1).flatten(1), bias)


def mix_ffn(
    x: Tensor,  # (B, H, W, C)
    dense1: tuple[Tensor, Tensor],  # weight (4 C, C) and bias
    dwconv: tuple[Tensor, Tensor],  # weight (4 C, 1, 3, 3) and bias
    dense2: tuple[Tensor, Tensor],  # weight (C', 4 C) and bias
) -> Tensor:  # (B, H, W, C')
    """Mix-FFN, Linear(GELU(DWConv3x3(Linear(x)))), keeping 5 C channels a pixel for backward.

    Autograd would keep 13 C: the input, and 4 C before the convolution, after it and after GELU.
    This function keeps the input and the convolution's result, and computes the rest again in the
    backward pass, for an eighth of the forward's products.
    """
    if is_traced() or not torch.is_grad_enabled():
        return linear(F.gelu(_depthwise(linear(x, *dense1), *dwconv)), *dense2)
    return apply(_MixFFN, x, *dense1, *dwconv, *dense2)


def _depthwise(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """The 3 x 3 convolution of each channel, padded with zeros; (B, H, W, C) -> the same."""
    x = F.conv2d(x.permute(0, 3, 1, 2), weight, bias, padding=1, groups=weight.shape[0])
    return x.permute(0, 2, 3, 1)


class _MixFFN(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight1: Tensor,
        bias1: Tensor,
        conv_weight: Tensor,
        conv_bias: Tensor,
        weight2: Tensor,
        bias2: Tensor,
    ) -> Tensor:
        inner = _depthwise(linear(x, weight1, bias1), conv_weight, conv_bias)  # (B, H, W, 4 C)
        ctx.save_for_backward(x, inner, weight1, bias1, conv_weight, weight2)
        return linear(F.gelu(inner), weight2, bias2)

    @staticmethod
    @once_without_autocast
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, inner, weight1, bias1, conv_weight, weight2 = ctx.saved_tensors
        needed = ctx.needs_input_grad
        inner_grad, *grads2 = linear_backward(grad, F.gelu(inner), weight2, (True, *needed[5:]))
        inner_grad = torch.ops.aten.gelu_backward(inner_grad, inner)
        channels = len(conv_weight)
        inner_grad, *conv_grads = torch.ops.aten.convolution_backward(
            inner_grad.permute(0, 3, 1, 2),
            linear(x, weight1, bias1).permute(0, 3, 1, 2),
            conv_weight,
            bias_sizes=[channels],
            stride=[1, 1],
            padding=[1, 1],
            dilation=[1, 1],
            transposed=False,
            output_padding=[0, 0],
            groups=channels,
            output_mask=[any(needed[:3]), *needed[3:5]],
        )
        grads1: tuple[Tensor | None, ...] = (None, None, None)
        if inner_grad is not None:
            grads1 = linear_backward(inner_grad.permute(0, 2, 3, 1), x, weight1, needed[:3])
        return *grads1, *conv_grads, *grads2


def fold_projections(
    fuse: Tensor,  # (C, S C), the 1 x 1 convolution over the concatenated maps, coarsest first
    weights: Sequence[Tensor],  # S projections (C, C_i), finest first
    biases: Sequence[Tensor],  # S biases (C,)
) -> tuple[list[Tensor], Tensor]:  # S matrices (C, C_i) and one bias (C,)
    """Multiplies the head's fusion into each stage's projection.

    The product is in float32 (float64 for float64 weights), under autocast too, because the
    unfolded head never multiplies weights with each other. It is part of the graph, and is not kept
    between calls: the next optimiser step or load would make it stale.
    """
    with without_autocast(fuse):
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
    with without_autocast(bias):
        scale = (norm.running_var.to(bias.dtype) + norm.eps).rsqrt()
        if norm.affine:
            scale = scale * norm.weight.to(bias.dtype)
        shifted = (bias - norm.running_mean.to(bias.dtype)) * scale
        if norm.affine:
            shifted = shifted + norm.bias.to(bias.dtype)
        return [matrix * scale[:, None] for matrix in matrices], shifted


def project_and_add(maps: Sequence[Tensor], matrices: Sequence[Tensor], bias: Tensor) -> Tensor:
    """Sums the maps' projections at the first one's size, each bilinearly upsampled to it.

    From maps (B, H_i, W_i, C_i), by matrices (C, C_i) and a bias (C,), to (B, C, H_0, W_0) in
    channels-last memory.
    """
    if is_traced():
        return _project_and_add(maps, matrices, bias)
    return apply(_ProjectAndAdd, bias, *maps, *matrices)


def _project_and_add(maps: Sequence[Tensor], matrices: Sequence[Tensor], bias: Tensor) -> Tensor:
    total = linear(maps[0], matrices[0], bias).permute(0, 3, 1, 2)
    for x, matrix in zip(maps[1:], matrices[1:], strict=True):
        total += upsample(linear(x, matrix).permute(0, 3, 1, 2), total.shape[2:])
    return total


class _ProjectAndAdd(torch.autograd.Function):
    """Adds in place; autograd alone would copy the gradient for each addition."""

    @staticmethod
    def forward(ctx: Any, bias: Tensor, *tensors: Tensor) -> Tensor:
        ctx.save_for_backward(*tensors)
        half = len(tensors) // 2
        return _project_and_add(tensors[:half], tensors[half:], bias)

    @staticmethod
    @once_without_autocast
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        half = len(ctx.saved_tensors) // 2
        maps, matrices = ctx.saved_tensors[:half], ctx.saved_tensors[half:]
        bias_needed, *needed = ctx.needs_input_grad
        grads = []
        for i, (x, matrix) in enumerate(zip(maps, matrices, strict=True)):
            part = grad
            if i > 0:
                part = torch.ops.aten.upsample_bilinear2d_backward(
                    grad, list(grad.shape[2:]), [*grad.shape[:2], *x.shape[1:3]], False
                )
            which = (needed[i], needed[i + len(maps)], bias_needed and i == 0)
            grads.append(linear_backward(part.permute(0, 2, 3, 1), x, matrix, which))
        map_grads, matrix_grads, bias_grads = zip(*grads, strict=True)
        return bias_grads[0], *map_grads, *matrix_grads


def classify(x: Tensor, dropout: float, weight: Tensor, bias: Tensor) -> Tensor:
    """ReLU, dropout and the classifier, keeping one map for backward.

    From (B, C, H, W), by a weight (K, C) and a bias (K,), to logits (B, K, H, W), both in
    channels-last memory. Where the activation after dropout is 0, the gradient is 0, whether by
    ReLU or by dropout.
    """
    if is_traced():
        x = F.dropout(x.relu(), dropout, training=dropout > 0)
        return F.conv2d(x, weight[:, :, None, None], bias)
    return apply(_Classify, x, dropout, weight, bias)


class _Classify(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, dropout: float, weight: Tensor, bias: Tensor) -> Tensor:
        x = x.permute(0, 2, 3, 1).relu().contiguous()  # (B, H, W, C)
        kept = drop_(x, dropout)
        ctx.scale = 1 / kept if kept else 0.0
        ctx.save_for_backward(x, weight)
        return linear(x, weight * ctx.scale, bias).permute(0, 3, 1, 2)

    @staticmethod
    @once_without_autocast
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        needed = (ctx.needs_input_grad[0], *ctx.needs_input_grad[2:])
        x_grad, weight_grad, bias_grad = linear_backward(
            grad.permute(0, 2, 3, 1), x, weight * ctx.scale, needed
        )
        if x_grad is not None:
            torch.ops.aten.threshold_backward(x_grad, x, 0, grad_input=x_grad)
            x_grad = x_grad.permute(0, 3, 1, 2)
        if weight_grad is not None:
            weight_grad *= ctx.scale
        return x_grad, None, weight_grad, bias_grad


# ------------------------------------------------------- logits, upsampled to the size of labels


class CrossEntropySums(NamedTuple):
    """The sums from which a mean over several batches or devices is taken."""

    loss: Tensor
    """Sum of the pixels' losses."""
    weight: Tensor
    """Sum of the weights of the pixels that count; their number without weights."""
    stray: Tensor
    """int64, number of labels that are neither a class nor the ignored one."""


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
    """Cross entropy of logits that are bilinearly upsampled to the size of the labels.

    Value and gradient equal those of `F.cross_entropy(F.interpolate(logits, size), labels)`, in
    float32 or better. Each pixel's loss can take the focal factor (1 - p)^gamma of Lin et al.
    (arXiv:1708.02002). The full-size logits never exist: loss and gradient are computed together,
    in bands of rows. The result can be differentiated once.

    Args:
        logits: (B, K, h, w) floating point; channels-last memory is fastest.
        labels: (B, H, W) integers: class ids or `ignore_index`.
        ignore_index: the label of pixels that do not count.
        weight: (K,) weights of the classes, or None for equal ones.
        label_smoothing: share of the target that is spread over all classes, in [0, 1).
        focal_gamma: exponent of the focal factor; 0 switches it off.
        reduction: "mean" divides the sum of losses by the sum of the counted pixels' weights, and
            is 0 without counted pixels; "sum" returns the two sums.

    Returns:
        A scalar, or two scalars for "sum", in float32 (float64 for float64 logits).

    Raises:
        ValueError: `labels` or `weight` do not fit the logits; or, on a CPU, a label is neither a
            class nor `ignore_index`. A GPU skips such pixels, because a check would wait for the
            device; `cross_entropy_sums` returns their number.
    """
    loss, normaliser, _ = cross_entropy_sums(
        logits, labels, ignore_index, weight, label_smoothing, focal_gamma
    )
    if reduction == "sum":
        return loss, normaliser
    # Without counted pixels the sum is 0, and so is its gradient.
    return loss / normaliser.where(normaliser > 0, 1)


def cross_entropy_sums(
    logits: Tensor,
    labels: Tensor,
    ignore_index: int = 255,
    weight: Tensor | None = None,
    label_smoothing: float = 0.0,
    focal_gamma: float = 0.0,
) -> CrossEntropySums:
    """`upsampled_cross_entropy` before its division, with the number of stray labels."""
    batch, num_labels = logits.shape[:2]
    if labels.ndim != 3 or labels.shape[0] != batch:
        raise ValueError(
            f"labels of shape {tuple(labels.shape)} do not fit logits of shape "
            f"{tuple(logits.shape)}: they must be ({batch}, height, width)"
        )
    if weight is not None and weight.shape != (num_labels,):
        raise ValueError(f"weight of shape {tuple(weight.shape)} must be ({num_labels},)")
    if labels.dtype == torch.uint8 and not (0 <= ignore_index <= 255 and num_labels <= 255):
        labels = labels.int()  # comparisons of uint8 see only the last byte of a number
    with without_autocast(logits):
        dtype = torch.promote_types(logits.dtype, torch.float32)
        loss, normaliser, stray, _ = cross_entropy_op(
            logits.to(dtype),
            labels,
            None if weight is None else weight.to(logits.device, dtype),
            ignore_index,
            label_smoothing,
            focal_gamma,
            logits.requires_grad and torch.is_grad_enabled(),
        )
    return CrossEntropySums(loss, normaliser, stray)


def upsampled_argmax(logits: Tensor, size: tuple[int, int]) -> Tensor:
    """The class of each pixel after bilinear upsampling to `size`, (B, H, W) int64.

    The full-size logits (157 MB at 150 classes and 512 x 512) never exist.

    Args:
        logits: (B, K, h, w). With K = 1, stock's binary head, class 1 is a logit above 0.
        size: (H, W) of the result.
    """
    return argmax_op(logits.detach(), *size)
