"""Counts of a model's parameters and multiply-accumulates."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count
from transformers.initialization import no_init_weights


class Cost(NamedTuple):
    """The cost of a model on one image."""

    parameters: int
    macs: int
    """Multiply-accumulates of its products, including the two of attention."""


def cost(build: Callable[[], nn.Module], size: tuple[int, int]) -> Cost:
    """Counts the cost of the model that `build` makes, on an image of (height, width) pixels.

    Only shapes are needed. They come from fake tensors, so nothing is allocated or computed,
    whatever the sizes.
    """
    with FakeTensorMode(), no_init_weights():
        model: Any = build().eval()
        image = torch.empty(1, model.config.num_channels, *size)
        # No torch.no_grad: without a graph our head works in bands, and the counter would see the
        # products of each band.
        flop = count_flop(lambda: model(image))
    return Cost(sum(parameter.numel() for parameter in model.parameters()), flop // 2)


def count_flop(work: Callable[[], object]) -> int:
    """Floating-point operations of the products of a forward pass, two a multiply-accumulate.

    It is wrong for a backward pass: torch's counter takes grouped convolutions for dense ones.
    """

    def attention(q: Any, k: Any, v: Any, *_: Any, **__: Any) -> int:  # the counter lacks the CPU's
        return sdpa_flop_count(q, k, v)

    mapping = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: attention}
    with FlopCounterMode(display=False, custom_mapping=mapping) as counter:
        work()
    return counter.get_total_flops()
