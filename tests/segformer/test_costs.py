"""Parameters and multiply-accumulates of B0 to B5: the published ones, and what folding saves.

Shapes decide both, so the models are fake tensors: nothing is allocated or computed.
"""

import pytest
import torch
import transformers
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode
from transformers.initialization import no_init_weights

from finetune.segformer import VARIANTS, SegformerConfig, SegformerForSemanticSegmentation

NUM_LABELS = 150

# Millions of parameters, and GMACs at 512 x 512 with the attention products, of the stock graph.
PUBLISHED = {
    "b0": (3.75, 8.4),
    "b1": (13.72, 15.9),
    "b2": (27.46, 62.3),
    "b3": (47.34, 79.0),
    "b4": (64.11, 95.6),
    "b5": (84.71, 111.5),
}


def parameters_and_macs(model_class, variant: str, size: int = 512) -> tuple[int, int]:
    # Eager attention, because the counter knows its two products, but not the CPU's fused one. The
    # graph is kept (no torch.no_grad), because without it our head is cut into bands.
    config = SegformerConfig(
        **VARIANTS[variant], num_labels=NUM_LABELS, attn_implementation="eager"
    )
    with FakeTensorMode(), no_init_weights(), FlopCounterMode(display=False) as counter:
        model = model_class(config).eval()
        logits = model(torch.empty(1, 3, size, size)).logits
    assert logits.shape == (1, NUM_LABELS, size // 4, size // 4)
    assert logits.requires_grad
    flops = counter.get_total_flops()
    assert flops % 2 == 0  # the counter's flop is half a multiply-accumulate
    return sum(p.numel() for p in model.parameters()), flops // 2


def macs_saved_by_folding(variant: str, size: int = 512) -> int:
    """The fusion that is not done at 1/4 resolution, less the products of weights.

    Stock multiplies S C concatenated channels with C x S C weights at each of (size / 4)^2 places.
    Folded, each of the S slices F_i (C x C) is multiplied once with its projection (C x C_i)
    instead. (S products F_i b_i, C^2 each, are matrix times vector, which the counter leaves out:
    at most 0.01 % of the total.)
    """
    width, channels = VARIANTS[variant]["decoder_hidden_size"], VARIANTS[variant]["hidden_sizes"]
    places = (size // 4) ** 2
    return places * width * len(channels) * width - sum(width * width * c for c in channels)


@pytest.mark.parametrize("variant", VARIANTS)
def test_costs(variant):
    assert PUBLISHED.keys() == VARIANTS.keys()
    stock_parameters, stock_macs = parameters_and_macs(
        transformers.SegformerForSemanticSegmentation, variant
    )
    parameters, macs = parameters_and_macs(SegformerForSemanticSegmentation, variant)
    million_parameters, giga_macs = PUBLISHED[variant]
    assert round(parameters / 1e6, 2) == million_parameters
    assert parameters == stock_parameters
    assert round(stock_macs / 1e9, 1) == giga_macs
    assert stock_macs - macs == macs_saved_by_folding(variant)


def test_published_cost_of_b5_at_its_own_crop():
    _, macs = parameters_and_macs(transformers.SegformerForSemanticSegmentation, "b5", size=640)
    assert round(macs / 1e9, 1) == 183.1
