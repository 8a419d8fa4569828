"""Layers of SegFormer, and the check that a fused path may read their weights."""

from collections.abc import Container
from typing import Any

from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from .functional import linear, reduce_sequence


class Linear(nn.Linear):
    """`nn.Linear` on channels-last maps, by the fastest product of the device."""

    def forward(self, x: Tensor) -> Tensor:  # (B, H, W, C) -> (B, H, W, C')
        if is_traceable_wrapper_subclass(self.weight):
            return super().forward(x)  # quantised
        return linear(x, self.weight, self.bias)


class SequenceReduction(nn.Conv2d):
    """The convolution (kernel = stride = ratio) that shortens keys and values, as a product."""

    def __init__(self, channels: int, ratio: int):
        super().__init__(channels, channels, ratio, stride=ratio)

    def forward(self, x: Tensor) -> Tensor:  # (B, C, H, W) -> (B, C, H / ratio, W / ratio)
        if is_traceable_wrapper_subclass(self.weight):
            return super().forward(x)
        x = reduce_sequence(x.permute(0, 2, 3, 1), self.weight, self.bias)
        return x.permute(0, 3, 1, 2)


def are_plain(classes: Container[Any], *modules: nn.Module) -> bool:
    """Whether a fused path may read the weights of `modules` instead of calling them.

    Each of them, and each module inside, must be exactly one of `classes`, without a hook, a
    parametrization (which changes the class), a replaced `forward`, a wrapped weight or another
    padding than zeros. LoRA adapters, quantised layers, pruning and accelerate's offload rely on
    the call.
    """
    for module in modules:
        if (
            type(module) not in classes
            or module._forward_hooks
            or module._forward_pre_hooks
            or module._backward_hooks
            or module._backward_pre_hooks
            or "forward" in module.__dict__
            or module.__dict__.get("padding_mode", "zeros") != "zeros"
            or is_traceable_wrapper_subclass(getattr(module, "weight", None))
            or (module._modules and not are_plain(classes, *module.children()))
        ):
            return False
    return True
