"""The fused pieces of SegFormer: the same numbers from fewer operations and bytes.

Everything here is exact up to rounding; `modeling.py` says where each piece belongs. Shapes use
the legend of `modeling.py`; K is the number of classes.
"""

import re
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from importlib.util import find_spec
from typing import Any, Literal, NamedTuple, overload

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from .bands import argmax_by_cells, cross_entropy_in_bands


def is_traced() -> bool:
    """Whether a graph is being taken down, by torch.compile, export, jit.trace or torch.func.

    Then the plain operations belong into it: a tracer cannot read our own backwards, and a
    compiler that fuses has no need of them.
    """
    return (
        torch.compiler.is_compiling()
        or torch.jit.is_tracing()
        or torch._C._are_functorch_transforms_active()
    )


def _without_autocast(tensor: Tensor) -> AbstractContextManager:
    kind = tensor.device.type  # there is none for the meta device
    if torch.amp.is_autocast_available(kind):
        return torch.autocast(kind, enabled=False)
    return nullcontext()


def _as_autocast(*tensors: Tensor) -> tuple[Tensor, ...]:
    """What autocast would make of the operands of a product; its rule stops at our Functions."""
    kind = tensors[0].device.type
    if not torch.amp.is_autocast_available(kind) or not torch.is_autocast_enabled(kind):
        return tensors
    return tuple(tensor.to(torch.get_autocast_dtype(kind)) for tensor in tensors)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`F.linear` on channels-last maps: (B, H, W, C) and (C', C) give (B, H, W, C').

    On a CPU it is taken as the 1 x 1 convolution that it is: oneDNN's kernels, which are compiled
    for the processor at hand and add the bias on the way, where `F.linear` calls the BLAS (on an
    AVX-512 processor of AMD's: 350 to 450 against 180 GFLOP/s for every shape of B0 to B5).
    """
    if x.device.type != "cpu" or x.dtype == torch.float64 or is_traced():
        return F.linear(x, weight, bias)
    if not torch.is_grad_enabled():
        return _linear(x, weight, bias)
    if bias is None:
        x, weight = _as_autocast(x, weight)
    else:
        x, weight, bias = _as_autocast(x, weight, bias)
    with _without_autocast(x):
        return _Linear.apply(x, weight, bias)


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    if x.device.type != "cpu" or x.dtype == torch.float64:
        return F.linear(x, weight, bias)
    return F.conv2d(x.permute(0, 3, 1, 2), weight[:, :, None, None], bias).permute(0, 2, 3, 1)


class _Linear(torch.autograd.Function):
    """`linear` whose weights' gradient is one BLAS product.

    It is faster at that than oneDNN, the other way round than forwards: 80 against 35 GFLOP/s for
    32 x 128 channels on 2 x 128 x 128 pixels.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _linear(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        with _without_autocast(x):
            return _linear_backward(grad, x, weight, ctx.needs_input_grad)


def _linear_backward(
    grad: Tensor, x: Tensor, weight: Tensor, needed: Sequence[bool] = (True, True, True)
) -> tuple[Tensor | None, ...]:
    """What `grad`, that of `_linear`'s result, means to x, weight and bias."""
    x_grad = weight_grad = bias_grad = None
    if needed[0]:
        x_grad = _linear(grad, weight.t(), None)
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


def mix_ffn(
    x: Tensor,
    dense1: tuple[Tensor, Tensor],
    dwconv: tuple[Tensor, Tensor],
    dense2: tuple[Tensor, Tensor],
) -> Tensor:
    """Mix-FFN, Linear(GELU(DWConv3x3(Linear(x)))), keeping 5 C channels a pixel for backward.

    Of its 13 C (the input, and 4 C before the convolution, after it and after GELU) it keeps the
    input and the convolution's result; the rest is made again where it is needed, for an eighth of
    the forward's products.

    Args:
        x: (B, H, W, C).
        dense1: weight (4 C, C) and bias.
        dwconv: weight (4 C, 1, 3, 3) and bias.
        dense2: weight (C', 4 C) and bias.

    Returns:
        (B, H, W, C').
    """
    tensors = _as_autocast(x, *dense1, *dwconv, *dense2)
    with _without_autocast(x):
        return _MixFFN.apply(*tensors)


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
        inner = _linear(x, weight1, bias1).permute(0, 3, 1, 2)
        inner = F.conv2d(inner, conv_weight, conv_bias, padding=1, groups=len(conv_weight))
        inner = inner.permute(0, 2, 3, 1)  # (B, H, W, 4 C)
        ctx.save_for_backward(x, inner, weight1, bias1, conv_weight, weight2)
        return _linear(F.gelu(inner), weight2, bias2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, inner, weight1, bias1, conv_weight, weight2 = ctx.saved_tensors
        needed = ctx.needs_input_grad
        with _without_autocast(x):
            inner_grad, *grads2 = _linear_backward(
                grad, F.gelu(inner), weight2, (True, *needed[5:])
            )
            inner_grad = torch.ops.aten.gelu_backward(inner_grad, inner)
            channels = len(conv_weight)
            inner_grad, *conv_grads = torch.ops.aten.convolution_backward(
                inner_grad.permute(0, 3, 1, 2),
                _linear(x, weight1, bias1).permute(0, 3, 1, 2),
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
                inner_grad = inner_grad.permute(0, 2, 3, 1)
                grads1 = _linear_backward(inner_grad, x, weight1, needed[:3])
            return *grads1, *conv_grads, *grads2


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


def project_and_add(maps: Sequence[Tensor], matrices: Sequence[Tensor], bias: Tensor) -> Tensor:
    """Sums the maps' projections at the first one's size, each bilinearly upsampled to it.

    Args:
        maps: (B, H_i, W_i, C_i), the first at the size of the result.
        matrices: (C, C_i).
        bias: (C,).

    Returns:
        (B, C, H, W) in channels-last memory.
    """
    if is_traced():
        biases = [bias, *[None] * (len(maps) - 1)]
        first, *others = (
            linear(x, matrix, bias).permute(0, 3, 1, 2)
            for x, matrix, bias in zip(maps, matrices, biases, strict=True)
        )
        return first + sum(_upsample(x, first.shape[2:]) for x in others)
    bias, *tensors = _as_autocast(bias, *maps, *matrices)
    with _without_autocast(bias):
        return _ProjectAndAdd.apply(bias, *tensors)


def _upsample(x: Tensor, size: Sequence[int]) -> Tensor:
    return F.interpolate(x, size=tuple(size), mode="bilinear", align_corners=False)


class _ProjectAndAdd(torch.autograd.Function):
    """Adds in place, which autograd would answer with a copy of the gradient for each addition."""

    @staticmethod
    def forward(ctx: Any, bias: Tensor, *tensors: Tensor) -> Tensor:
        ctx.save_for_backward(*tensors)
        maps, matrices = tensors[: len(tensors) // 2], tensors[len(tensors) // 2 :]
        total = _linear(maps[0], matrices[0], bias).permute(0, 3, 1, 2)
        for x, matrix in zip(maps[1:], matrices[1:], strict=True):
            total += _upsample(_linear(x, matrix, None).permute(0, 3, 1, 2), total.shape[2:])
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        tensors = ctx.saved_tensors
        maps, matrices = tensors[: len(tensors) // 2], tensors[len(tensors) // 2 :]
        bias_needed, *needed = ctx.needs_input_grad
        grads = []
        with _without_autocast(grad):
            for i, (x, matrix) in enumerate(zip(maps, matrices, strict=True)):
                part = grad
                if i > 0:
                    part = torch.ops.aten.upsample_bilinear2d_backward(
                        grad, list(grad.shape[2:]), [*grad.shape[:2], *x.shape[1:3]], False
                    )
                which = (needed[i], needed[i + len(maps)], bias_needed and i == 0)
                grads.append(_linear_backward(part.permute(0, 2, 3, 1), x, matrix, which))
        map_grads, matrix_grads, bias_grads = zip(*grads, strict=True)
        return bias_grads[0], *map_grads, *matrix_grads


def classify(x: Tensor, dropout: float, weight: Tensor, bias: Tensor) -> Tensor:
    """ReLU, dropout and the classifier, keeping one map for backward.

    Where the dropped activation is 0, its gradient is 0 too, whether ReLU or dropout made it 0.

    Args:
        x: (B, C, H, W) in channels-last memory. Overwritten: nobody else may need it.
        dropout: probability, of single elements.
        weight: (K, C).
        bias: (K,).

    Returns:
        Logits (B, K, H, W) in channels-last memory.
    """
    x, weight, bias = _as_autocast(x, weight, bias)
    with _without_autocast(x):
        return _Classify.apply(x, dropout, weight, bias)


class _Classify(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, dropout: float, weight: Tensor, bias: Tensor) -> Tensor:
        x = x.detach().permute(0, 2, 3, 1).contiguous().relu_()  # (B, H, W, C)
        kept = _drop_(x, dropout)
        ctx.scale = 1 / kept if kept else 0.0
        ctx.save_for_backward(x, weight)
        return _linear(x, weight * ctx.scale, bias).permute(0, 3, 1, 2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        with _without_autocast(x):
            needed = (ctx.needs_input_grad[0], *ctx.needs_input_grad[2:])
            x_grad, weight_grad, bias_grad = _linear_backward(
                grad.permute(0, 2, 3, 1), x, weight * ctx.scale, needed
            )
            if x_grad is not None:
                torch.ops.aten.threshold_backward(x_grad, x, 0, grad_input=x_grad)
                x_grad = x_grad.permute(0, 3, 1, 2)
            if weight_grad is not None:
                weight_grad *= ctx.scale
        return x_grad, None, weight_grad, bias_grad


def _drop_(x: Tensor, probability: float) -> float:
    """Zeroes elements of x, contiguous, at random; returns the share that is kept.

    On a CPU, four elements share one number of the generator, 16 bits each, where PyTorch's
    dropout draws one number an element: a sixth of the time, a tenth of B0's training step. The
    probability is a multiple of 1 / 65536, and what is returned is exact.
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
    for piece in x.view(-1).split(_BAND_ELEMENTS):
        draws = torch.empty(-(-len(piece) // 4), dtype=torch.int64).random_(-(2**63), None)
        kept = torch.empty_like(piece)
        torch.ge(draws.view(torch.int16)[: len(piece)], dropped - 32768, out=kept)
        piece *= kept
    return 1 - dropped / 65536


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


# ------------------------------------------------- logits, looked at in the size of the labels


class CrossEntropySums(NamedTuple):
    """What a mean over several batches or devices is made of."""

    loss: Tensor
    """Sum of the pixels' losses."""
    weight: Tensor
    """Sum of the weights of the pixels that count; their number if there are no weights."""
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
    """Cross entropy of logits that are first upsampled, bilinearly, to the size of the labels.

    The value and the gradient of `F.cross_entropy(F.interpolate(logits, size), labels)`, in
    float32 or better, with the focal factor (1 - p)^gamma of Lin et al. (arXiv:1708.02002) on each
    pixel's loss if asked. The full-size logits never exist: it is computed in bands of rows, and
    the gradient in the same pass. It can be differentiated once.

    Args:
        logits: (B, K, h, w) floating point; channels-last memory is fastest.
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
        ValueError: `labels` or `weight` do not fit the logits; and, on a CPU, a label that is
            neither a class nor `ignore_index`. Elsewhere such a pixel does not count, because
            looking would wait for the device; `cross_entropy_sums` returns their number.
    """
    loss, normaliser, _ = cross_entropy_sums(
        logits,
        labels,
        ignore_index=ignore_index,
        weight=weight,
        label_smoothing=label_smoothing,
        focal_gamma=focal_gamma,
    )
    if reduction == "sum":
        return loss, normaliser
    # With nothing to divide by the sum is 0 and so is its gradient.
    return loss / normaliser.where(normaliser > 0, 1)


def cross_entropy_sums(
    logits: Tensor,
    labels: Tensor,
    *,
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
        labels = labels.int()  # uint8 is compared with no more than the last byte of a number
    with _without_autocast(logits):
        dtype = torch.promote_types(logits.dtype, torch.float32)
        loss, normaliser, stray, _ = _upsampled_cross_entropy(
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
    """The class of each pixel after bilinear upsampling.

    Args:
        logits: (B, K, h, w). With K = 1, stock's binary head, class 1 is a logit above 0.
        size: (H, W) of the result.

    Returns:
        (B, H, W) int64. Full-size logits, 157 MB at 150 classes and 512 x 512, never exist.
    """
    return _upsampled_argmax(logits.detach(), *size)


# Both are custom operators, because what they do depends on the data and, on a CPU, raises:
# `torch.compile(fullgraph=True)` takes them as they are. PyTorch knows an operator by its name in
# the whole process, where this file may be loaded several times: with models that bring it along.
_NAMESPACE = re.sub(r"\W", "_", __name__)


@torch.library.custom_op(f"{_NAMESPACE}::upsampled_cross_entropy", mutates_args=())
def _upsampled_cross_entropy(
    logits: Tensor,
    labels: Tensor,
    weight: Tensor | None,
    ignore_index: int,
    label_smoothing: float,
    focal_gamma: float,
    with_grad: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Sum of losses, sum of weights, number of stray labels, d loss / d logits or nothing."""
    if labels.device.type == "cpu":
        num_labels = logits.shape[1]
        stray = labels[((labels < 0) | (labels >= num_labels)) & (labels != ignore_index)]
        if stray.numel():
            raise ValueError(
                f"labels hold {stray[0].item()} ({stray.numel()} such pixels), which is neither "
                f"a class id (0 to {num_labels - 1}) nor ignore_index={ignore_index}"
            )
    arguments = (logits, labels, weight, ignore_index, label_smoothing, focal_gamma, with_grad)
    if not _has_kernels(logits):
        return cross_entropy_in_bands(*arguments)
    from .kernels import cross_entropy  # here, because importing Triton takes a while

    loss, normaliser, num_stray, grad = cross_entropy(*arguments)
    if with_grad:
        grad = grad.contiguous(memory_format=torch.channels_last)
    return loss, normaliser, num_stray, grad


def _has_kernels(logits: Tensor) -> bool:
    """Triton's code runs on GPUs from Volta on; it comes with PyTorch's builds for CUDA."""
    return (
        logits.device.type == "cuda"
        and torch.version.cuda is not None
        and logits.dtype == torch.float32
        and torch.cuda.get_device_capability(logits.device) >= (7, 0)
        and find_spec("triton") is not None
    )


@_upsampled_cross_entropy.register_fake
def _(
    logits: Tensor,
    labels: Tensor,
    weight: Tensor | None,
    ignore_index: int,
    label_smoothing: float,
    focal_gamma: float,
    with_grad: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    scalar = logits.new_empty(())
    grad = torch.empty_like(logits, memory_format=torch.channels_last)
    return (
        scalar,
        torch.empty_like(scalar),
        labels.new_empty((), dtype=torch.int64),
        grad if with_grad else logits.new_empty(0),
    )


def _keep_gradient(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(output[3])
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)


def _scale_gradient(ctx: Any, loss_grad: Tensor | None, *others: Tensor | None) -> tuple[Any, ...]:
    if torch.is_grad_enabled():  # create_graph: what follows would pass for a constant
        raise RuntimeError("upsampled_cross_entropy can be differentiated only once")
    (grad,) = ctx.saved_tensors
    return (None if loss_grad is None else grad * loss_grad, *[None] * 6)


_upsampled_cross_entropy.register_autograd(_scale_gradient, setup_context=_keep_gradient)


@torch.library.custom_op(f"{_NAMESPACE}::upsampled_argmax", mutates_args=())
def _upsampled_argmax(logits: Tensor, height: int, width: int) -> Tensor:
    dtype = torch.promote_types(logits.dtype, torch.float32)
    return argmax_by_cells(logits.to(dtype), (height, width))


@_upsampled_argmax.register_fake
def _(logits: Tensor, height: int, width: int) -> Tensor:
    return logits.new_empty(logits.shape[0], height, width, dtype=torch.int64)
