"""Helpers of our autograd functions: tracing, autocast, differentiation once only."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import wraps
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def is_traced() -> bool:
    """Whether torch.compile, export, jit.trace or torch.func is tracing.

    A trace takes the plain operations: a tracer cannot read our backwards, and a compiler that
    fuses does not need them.
    """
    return (
        torch.compiler.is_compiling()
        or torch.jit.is_tracing()
        or torch._C._are_functorch_transforms_active()
    )


def without_autocast(tensor: Tensor) -> AbstractContextManager:
    """Switches autocast off for the tensor's device."""
    kind = tensor.device.type  # the meta device has no autocast
    if torch.amp.is_autocast_available(kind):
        return torch.autocast(kind, enabled=False)
    return nullcontext()


def apply(function: type[torch.autograd.Function], x: Tensor, *operands: Any) -> Tensor:
    """`function.apply` without autocast, on operands cast as autocast casts those of a product."""
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
    """Wraps a Function's `backward`: without autocast, and differentiable once only."""

    @once_differentiable
    @wraps(function)
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        with without_autocast(grad):
            return function(ctx, grad)

    return backward
