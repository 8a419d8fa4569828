"""What our own backwards share: when they may run, and autocast, whose rule stops at them."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import wraps
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


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


def without_autocast(tensor: Tensor) -> AbstractContextManager:
    """Switches autocast off for the tensor's device."""
    kind = tensor.device.type  # there is none for the meta device
    if torch.amp.is_autocast_available(kind):
        return torch.autocast(kind, enabled=False)
    return nullcontext()


def apply(function: type[torch.autograd.Function], x: Tensor, *operands: Any) -> Tensor:
    """`function.apply` without autocast, on what autocast would make of a product's operands."""
    kind = x.device.type
    if torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind):
        dtype = torch.get_autocast_dtype(kind)
        x = x.to(dtype)
        operands = tuple(o.to(dtype) if isinstance(o, Tensor) else o for o in operands)
    with without_autocast(x):
        return function.apply(x, *operands)


def once_without_autocast(
    function: Callable[[Any, Tensor], tuple[Tensor | None, ...]],
) -> Callable[[Any, Tensor], tuple[Tensor | None, ...]]:
    """Makes a Function's `backward`: without autocast, and differentiable no second time."""

    @once_differentiable
    @wraps(function)
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        with without_autocast(grad):
            return function(ctx, grad)

    return backward
