"""What is measured inside a model, against stock's outputs, whole Jacobians and counts by hand."""

import functools

import numpy as np
import pytest
import torch
import transformers
from torch import nn
from torch.nn.functional import scaled_dot_product_attention as attend

from finetune.inference import Preprocessing, Segmenter
from finetune.inference.analysis import (
    attention_costs,
    attention_maps,
    change_when_shifted,
    mean_iou,
    padding_mode,
    patches_alone,
    principal_colors,
    receptive_field,
    side_of,
    without_detail,
)
from finetune.segformer import VARIANTS, SegformerConfig, SegformerForSemanticSegmentation
from finetune.segformer.costs import count_flop

SMALL = {"depths": [1, 2, 1, 1], "hidden_sizes": [8, 16, 40, 64], "decoder_hidden_size": 32}


@pytest.fixture
def model():
    torch.manual_seed(0)
    return SegformerForSemanticSegmentation(SegformerConfig(**SMALL, num_labels=3)).eval()


def maps_of(model, pixel_values):
    with torch.no_grad():
        return model(pixel_values, output_hidden_states=True).hidden_states


def test_principal_colors_are_the_eigenvectors_of_the_covariance():
    generator = torch.Generator().manual_seed(0)
    directions = torch.linalg.qr(torch.randn(6, 6, generator=generator)).Q
    wanted = (
        torch.randn(3, 8, 9, generator=generator) * torch.tensor([9.0, 4.0, 2.0])[:, None, None]
    )
    shown = principal_colors(torch.einsum("kc,khw->chw", directions[:3], wanted) + 5)
    assert shown.dtype == np.uint8
    assert shown.shape == (8, 9, 3)
    channels = zip(shown.reshape(-1, 3).T, wanted.flatten(1).numpy(), directions, strict=False)
    for component, truth, direction in channels:
        sign = float(direction[direction.abs().argmax()].sign())
        assert sign * np.corrcoef(component, truth)[0, 1] > 0.9
        assert component.min() == 0
        assert component.max() == 255


@pytest.mark.parametrize("size", [(64, 96), (97, 65)])
def test_attention_maps_are_those_of_stock(model, size, tmp_path):
    model.save_pretrained(tmp_path)
    stock = transformers.SegformerForSemanticSegmentation.from_pretrained(
        tmp_path, attn_implementation="eager"
    ).eval()
    pixel_values = torch.randn(1, 3, *size)
    with torch.no_grad():
        whole = stock(pixel_values, output_attentions=True, output_hidden_states=True)
    before = model.config._attn_implementation
    assert before != "eager"
    found = attention_maps(model, pixel_values, (size[0] - 1, 10))
    assert model.config._attn_implementation == before
    assert [len(stage) for stage in found] == SMALL["depths"]
    blocks = [block for stage in found for block in stage]
    stages = zip(whole.hidden_states, SMALL["depths"], strict=True)
    widths = [maps.shape[3] for maps, depth in stages for _ in range(depth)]
    for block, weights, width in zip(blocks, whole.attentions, widths, strict=True):
        torch.testing.assert_close(block.sum((1, 2)), torch.ones(len(block)))
        # The pixel is in the last row, and in the cell at its share of the width.
        queries = weights.shape[2]
        query = queries - width + int(10 / size[1] * width)
        torch.testing.assert_close(block.flatten(1), weights[0, :, query])


@pytest.mark.parametrize("ratios", [[8, 4, 2, 1], [1, 1, 1, 1]])
def test_attention_costs_are_what_is_computed(ratios):
    config = SegformerConfig(**VARIANTS["b0"], sr_ratios=ratios)
    model = SegformerForSemanticSegmentation(config).eval()
    counted = attention_costs(config, (100, 70))
    maps = maps_of(model, torch.randn(1, 3, 100, 70))
    for cost, blocks, x in zip(counted, model.segformer.encoder.block, maps, strict=True):
        x = x.permute(0, 2, 3, 1).contiguous()
        attention = blocks[0].attention
        assert cost.queries == x.shape[1] * x.shape[2]
        assert cost.keys == attention.self._reduce(x).flatten(1, 2).shape[1]
        keys = torch.randn(1, 1, cost.keys, x.shape[3])
        queries = torch.randn(1, 1, cost.queries, x.shape[3])
        flop = count_flop(functools.partial(attend, queries, keys, keys))
        assert 2 * cost.products == flop * len(blocks)


def test_zeros_around_maps_tell_positions_and_nothing_else_does(model):
    constant = torch.full((1, 3, 96, 128), 0.7)

    def spread():
        return [float(x.std((2, 3)).max()) for x in maps_of(model, constant)]

    encoder = model.segformer.encoder
    assert min(spread()) > 1e-3
    with padding_mode(encoder.block, "replicate"):
        assert min(spread()) > 1e-3  # patch merging pads as well
    for mode in ("replicate", "circular"):
        with padding_mode(encoder, mode):
            assert max(spread()) < 1e-5
    assert min(spread()) > 1e-3


def test_padding_mode_is_that_of_torch():
    module = nn.Sequential(nn.Conv2d(2, 4, 3, stride=2, padding=1), nn.Conv2d(4, 4, 1, groups=2))
    x = torch.randn(1, 2, 9, 8)
    expected = nn.Conv2d(2, 4, 3, stride=2, padding=1, padding_mode="circular")
    expected.load_state_dict(module[0].state_dict())
    with padding_mode(module, "circular"):
        torch.testing.assert_close(module(x), module[1](expected(x)))
    assert not torch.allclose(module(x), module[1](expected(x)))


def test_padding_mode_reaches_the_fused_mix_ffn(model):
    x = torch.randn(1, 6, 5, 8)
    mlp = model.segformer.encoder.block[0][0].mlp
    with padding_mode(mlp, "replicate"):
        padded = mlp(x)
        hook = mlp.dwconv.dwconv.register_forward_hook(lambda *_: None)  # each module is called
        torch.testing.assert_close(padded, mlp(x))
        hook.remove()
    assert not torch.allclose(mlp(x), padded)


def test_a_receptive_field_is_the_norm_of_the_jacobian(model):
    convolution = nn.Conv2d(3, 1, (3, 5), padding=(1, 2))
    images = torch.randn(2, 3, 9, 11)
    field = receptive_field(convolution, images)
    kernel = convolution.weight[0].square().sum(0).sqrt()
    expected = torch.zeros(9, 11)
    expected[3:6, 3:8] = kernel.detach()
    torch.testing.assert_close(field, expected)

    image = torch.randn(1, 3, 40, 48)

    def third_map(pixel_values):
        return model(pixel_values, output_hidden_states=True).hidden_states[2]

    whole = torch.autograd.functional.jacobian(lambda x: third_map(x)[0, :, 1, 1], image)
    expected = whole.square().sum((0, 1, 2)).sqrt()  # (C', 1, C, H, W)
    field = receptive_field(third_map, image.expand(512, -1, -1, -1))
    assert ((field - expected).norm() / expected.norm()) < 0.05


@pytest.mark.parametrize(
    ("patches", "sides"), [([7, 3, 3, 3], [7, 15, 31, 63]), ([4, 2, 2, 2], [4, 8, 16, 32])]
)
def test_patches_alone_see_what_kernels_and_strides_say(patches, sides):
    config = SegformerConfig(**SMALL, patch_sizes=patches)
    model = SegformerForSemanticSegmentation(config).eval()
    images = torch.randn(4, 3, 160, 160)
    for stage, side in enumerate(sides):
        seen = (receptive_field(patches_alone(model, stage), images) > 0).nonzero()
        assert (seen.amax(0) - seen.amin(0) + 1).tolist() == [side, side]


def test_side_of_a_field():
    field = torch.zeros(20, 30)
    field[2:8, 4:10] = 1
    assert side_of(field, 1.0) == 6
    assert side_of(field, 0.25) == 3
    field[15, 15] = 36
    assert side_of(field, 0.5) == 1


def test_change_when_shifted():
    stripes = torch.arange(24).float().remainder(4).expand(1, 1, 3, 24)
    same, other, same_again = change_when_shifted(lambda x: x, stripes, [0, 2, 4])
    assert same == same_again == 0
    # Values 0 1 2 3 become 2 3 0 1: differences of 2 around deviations of 1.5, 0.5, 0.5, 1.5.
    assert other == pytest.approx((4 / 1.25) ** 0.5)
    noise = torch.randn(1, 8, 40, 120, generator=torch.Generator().manual_seed(0))
    assert change_when_shifted(lambda x: x, noise, [20])[0] == pytest.approx(2**0.5, rel=0.05)


def test_without_detail_a_map_is_its_mean(model):
    pixel_values = torch.randn(2, 3, 64, 64)
    maps = list(maps_of(model, pixel_values))
    maps[1] = maps[1].mean((2, 3), keepdim=True).expand_as(maps[1]).contiguous()
    with torch.no_grad():
        expected = model.decode_head(maps)
        with without_detail(model, 1):
            found = model(pixel_values).logits
        torch.testing.assert_close(found, expected)
        assert not torch.allclose(model(pixel_values).logits, expected)


def test_mean_iou_counts_all_pictures_together(model):
    segmenter = Segmenter(model, Preprocessing(), names=["a", "b", "c"], device="cpu")
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (*size, 3), dtype=np.uint8) for size in ((40, 50), (64, 32))]
    masks = [segmenter(image).mask for image in images]
    assert mean_iou(segmenter, zip(images, masks, strict=True)) == 1
    truths = [rng.integers(0, 3, mask.shape, dtype=np.uint8) for mask in masks]
    found, true = (np.concatenate([part.ravel() for part in parts]) for parts in (masks, truths))
    ious = [
        ((found == k) & (true == k)).sum() / ((found == k) | (true == k)).sum() for k in range(3)
    ]
    assert mean_iou(segmenter, zip(images, truths, strict=True)) == pytest.approx(np.mean(ious))
