"""What a model costs, counted and not timed: parameters and multiply-accumulates."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count
from transformers.initialization import no_init_weights


class Cost(NamedTuple):
    """Of a model on one image."""

    parameters: int
    macs: int
    """Multiply-accumulates of its products, attention's two among them."""


def cost(build: Callable[[], nn.Module], size: tuple[int, int]) -> Cost:
    """Counts a model of transformers that is never there: its tensors are fake.

    Shapes decide, so nothing is allocated or computed, however large the model or the image.

    Args:
        build: makes the model.
        size: height and width of the image, in pixels.
    """
    with FakeTensorMode(), no_init_weights():
        model: Any = build().eval()
        image = torch.empty(1, model.config.num_channels, *size)
        # The graph is kept (no torch.no_grad): without it our head works in bands, where the
        # counter sees as many products as there are bands.
        flop = count_flop(lambda: model(image))
    return Cost(sum(parameter.numel() for parameter in model.parameters()), flop // 2)


def count_flop(work: Callable[[], object]) -> int:
    """Arithmetic of the products of a forward pass: two for each multiply-accumulate.

    Not of a backward pass, where torch's counter takes grouped convolutions for dense ones.
    """

    def attention(q: Any, k: Any, v: Any, *_: Any, **__: Any) -> int:  # the CPU's, unknown to it
        return sdpa_flop_count(q, k, v)

    mapping = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: attention}
    with FlopCounterMode(display=False, custom_mapping=mapping) as counter:
        work()
    return counter.get_total_flops()
