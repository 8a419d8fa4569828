"""Parameters and multiply-accumulates of B0 to B5: the published ones, and what folding saves."""

import pytest
import transformers

from finetune.costs import Cost, cost
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


def cost_of(model_class, variant: str, size: int = 512) -> Cost:
    config = SegformerConfig(**VARIANTS[variant], num_labels=NUM_LABELS)
    return cost(lambda: model_class(config), (size, size))


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


@pytest.mark.slow
@pytest.mark.parametrize("variant", VARIANTS)
def test_costs(variant):
    assert PUBLISHED.keys() == VARIANTS.keys()
    stock = cost_of(transformers.SegformerForSemanticSegmentation, variant)
    ours = cost_of(SegformerForSemanticSegmentation, variant)
    million_parameters, giga_macs = PUBLISHED[variant]
    assert round(ours.parameters / 1e6, 2) == million_parameters
    assert ours.parameters == stock.parameters
    assert round(stock.macs / 1e9, 1) == giga_macs
    assert stock.macs - ours.macs == macs_saved_by_folding(variant)


@pytest.mark.slow
def test_published_cost_of_b5_at_its_own_crop():
    stock = cost_of(transformers.SegformerForSemanticSegmentation, "b5", size=640)
    assert round(stock.macs / 1e9, 1) == 183.1
