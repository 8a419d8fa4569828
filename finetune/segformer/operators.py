"""Cross entropy and argmax of upsampled logits as custom operators of PyTorch.

Their work depends on the data and may raise on a CPU. `torch.compile(fullgraph=True)` takes custom
operators whole. Each operator has its work, which chooses between `bands` and `kernels`, the shapes
of its results, and the gradient.
"""

import re
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from .bands import LossOptions, argmax_by_cells, cross_entropy_in_bands

# Operator names are global to the process, and this file may be loaded several times: models can
# carry a copy of it.
_NAMESPACE = re.sub(r"\W", "_", __name__)


@torch.library.custom_op(f"{_NAMESPACE}::upsampled_cross_entropy", mutates_args=())
def cross_entropy_op(
    logits: Tensor,
    labels: Tensor,
    weight: Tensor | None,
    ignore_index: int,
    label_smoothing: float,
    focal_gamma: float,
    with_grad: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Sum of losses, sum of weights, number of stray labels, gradient (or an empty tensor)."""
    if labels.device.type == "cpu":
        num_labels = logits.shape[1]
        stray = labels[((labels < 0) | (labels >= num_labels)) & (labels != ignore_index)]
        if stray.numel():
            raise ValueError(
                f"labels hold {stray[0].item()} ({stray.numel()} such pixels), which is neither "
                f"a class id (0 to {num_labels - 1}) nor ignore_index={ignore_index}"
            )
    options = LossOptions(ignore_index, label_smoothing, focal_gamma, with_grad)
    if not _has_kernels(logits):
        return cross_entropy_in_bands(logits, labels, weight, options)
    from .kernels import cross_entropy  # here, because importing Triton takes a while

    loss, normaliser, num_stray, grad = cross_entropy(logits, labels, weight, options)
    if with_grad:
        grad = grad.contiguous(memory_format=torch.channels_last)
    return loss, normaliser, num_stray, grad


def _has_kernels(logits: Tensor) -> bool:
    """Whether Triton is there, with PyTorch's builds for CUDA, and the GPU is Volta or newer."""
    return (
        logits.device.type == "cuda"
        and torch.version.cuda is not None
        and logits.dtype == torch.float32
        and torch.cuda.get_device_capability(logits.device) >= (7, 0)
        and find_spec("triton") is not None
    )


@cross_entropy_op.register_fake
def _(logits: Tensor, labels: Tensor, *others: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    with_grad = others[-1]
    grad = torch.empty_like(logits, memory_format=torch.channels_last)
    return (
        logits.new_empty(()),
        logits.new_empty(()),
        labels.new_empty((), dtype=torch.int64),
        grad if with_grad else logits.new_empty(0),
    )


def _keep_gradient(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(output[3])
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)


def _scale_gradient(ctx: Any, loss_grad: Tensor | None, *others: Tensor | None) -> tuple[Any, ...]:
    if torch.is_grad_enabled():  # create_graph: the gradient would be taken for a constant
        raise RuntimeError("upsampled_cross_entropy can be differentiated only once")
    (grad,) = ctx.saved_tensors
    return (None if loss_grad is None else grad * loss_grad, *[None] * 6)


cross_entropy_op.register_autograd(_scale_gradient, setup_context=_keep_gradient)


@torch.library.custom_op(f"{_NAMESPACE}::upsampled_argmax", mutates_args=())
def argmax_op(logits: Tensor, height: int, width: int) -> Tensor:
    """(B, K, h, w) -> (B, height, width) int64."""
    dtype = torch.promote_types(logits.dtype, torch.float32)
    return argmax_by_cells(logits.to(dtype), (height, width))


@argmax_op.register_fake
def _(logits: Tensor, height: int, width: int) -> Tensor:
    return logits.new_empty(logits.shape[0], height, width, dtype=torch.int64)
