"""Measurements inside SegFormer, for `notebooks/05_inside_segformer.ipynb`.

Sections are those of Xie et al., "SegFormer: Simple and Efficient Design for Semantic Segmentation
with Transformers" (2021). `forward` is any part of a model, from `pixel_values` (B, C, H, W) to a
map (B, C', H', W').
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from finetune.inference import Segmenter
from finetune.metrics import MeanIoU
from finetune.segformer import SegformerConfig, SegformerForSemanticSegmentation
from finetune.segformer.configuration import side_after

Forward = Callable[[Tensor], Tensor]


def patches_alone(model: SegformerForSemanticSegmentation, stage: int) -> Forward:
    """The patch merging of the stages up to this one, without their blocks."""
    merging = nn.Sequential(*model.segformer.encoder.patch_embeddings[: stage + 1])
    return lambda pixel_values: merging(pixel_values.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


# ------------------------------------------------------------------- four scales, section 3.1


def principal_colors(feature_map: Tensor) -> np.ndarray:
    """A map (C, H, W) as a picture, its three principal components as red, green and blue.

    Channels and positions must be three at least. The range of each component is its 2nd to 98th
    percentile. So colours can be compared within a map, not across maps.

    Returns:
        uint8 (H, W, 3).
    """
    positions = feature_map.detach().double().flatten(1).T  # (H W, C)
    positions = positions - positions.mean(0)
    directions = torch.linalg.svd(positions, full_matrices=False).Vh[:3]
    # The sign of a direction is free: make its largest entry positive.
    largest = directions.gather(1, directions.abs().argmax(1, keepdim=True))
    scores = positions @ (directions * largest.sign()).T  # (H W, 3)
    low, high = scores.quantile(torch.tensor([0.02, 0.98], dtype=scores.dtype), dim=0)
    shares = ((scores - low) / (high - low).clamp(min=1e-12)).clamp(0, 1)
    return (255 * shares).round().byte().unflatten(0, feature_map.shape[1:]).numpy()


# --------------------------------------------------- overlapped patch merging, section 3.1


def change_when_shifted(
    forward: Forward, pixel_values: Tensor, shifts: Sequence[int]
) -> list[float]:
    """The change of a map when the content of the picture moves to the left by `shifts` pixels.

    Of `pixel_values` (B, C, H, W), a window is shown that is W less the largest shift wide, which
    should be a multiple of the strides.

    Returns:
        For each shift, the norm of the difference over the norm of the unmoved map around its mean:
        0 for equal maps, about 1.4 for unrelated ones.
    """
    width = pixel_values.shape[3] - max(shifts)
    with torch.no_grad():
        still = forward(pixel_values[..., :width])
        spread = (still - still.mean((0, 2, 3), keepdim=True)).norm()
        moved = (forward(pixel_values[..., shift : shift + width]) for shift in shifts)
        return [float((one - still).norm() / spread) for one in moved]


# ------------------------------------------------- efficient self-attention, section 3.1


def attention_maps(
    model: Any, pixel_values: Tensor, position: tuple[int, int]
) -> list[list[Tensor]]:
    """The attention weights of one pixel's query, in every block.

    Args:
        model: our SegFormer or stock transformers', in eval mode.
        pixel_values: (1, C, H, W).
        position: row and column of the pixel.

    Returns:
        For each stage a list with one tensor a block: (h, H_k, W_k), the weights of the h heads on
        the reduced keys, which sum to 1 a head.
    """
    config = model.config
    before = config._attn_implementation
    model.set_attn_implementation("eager")  # only eager attention gives the weights
    try:
        with torch.no_grad():
            outputs = model(pixel_values, output_attentions=True, output_hidden_states=True)
    finally:
        model.set_attn_implementation(before)
    height, width = pixel_values.shape[2:]
    weights = iter(outputs.attentions)
    found = []
    for depth, ratio, maps in zip(
        config.depths, config.sr_ratios, outputs.hidden_states, strict=True
    ):
        rows, columns = maps.shape[2:]
        query = position[0] * rows // height * columns + position[1] * columns // width
        keys = rows // ratio, columns // ratio
        found.append([next(weights)[0, :, query].unflatten(-1, keys) for _ in range(depth)])
    return found


class AttentionCost(NamedTuple):
    """The cost of the two products of attention in all blocks of one stage, for one image."""

    queries: int
    """N, positions of the map."""
    keys: int
    """M, positions of the reduced map."""
    products: int
    """Multiply-accumulates of Q K^T and of the weights with V, 2 N M C a block. They grow with the
    square of the pixels."""


def attention_costs(config: SegformerConfig, size: tuple[int, int]) -> list[AttentionCost]:
    """Counts each stage's attention on an image of `size` (height, width).

    With `sr_ratios` of 1 in the configuration, it is full attention.
    """
    costs = []
    sides = list(size)
    for stage, (depth, channels, ratio) in enumerate(
        zip(config.depths, config.hidden_sizes, config.sr_ratios, strict=True)
    ):
        sides = [side_after(config, stage, side) for side in sides]
        queries, keys = math.prod(sides), math.prod(side // ratio for side in sides)
        costs.append(AttentionCost(queries, keys, depth * 2 * queries * keys * channels))
    return costs


# ---------------------------------------------------------------------- Mix-FFN, section 3.1


@contextmanager
def padding_mode(modules: nn.Module, mode: str) -> Iterator[None]:
    """Changes the padding of the convolutions in `modules`, inside a `with` block.

    Attention and MLPs treat every position alike, so only the zeros around the maps tell a layer
    the position of a pixel. The modes "replicate" and "circular" of `torch.nn.functional.pad`
    remove these zeros.
    """
    with ExitStack() as after:
        for module in modules.modules():
            if isinstance(module, nn.Conv2d) and any(module.padding):
                after.callback(setattr, module, "padding_mode", module.padding_mode)
                module.padding_mode = mode  # type: ignore[assignment]
        yield


# ------------------------------------------------------------------- all-MLP head, section 3.2


def receptive_field(forward: Forward, pixel_values: Tensor, *, seed: int = 0) -> Tensor:
    """The influence of each pixel on the middle of a map (section 3.2.1).

    It is the root of the mean square gradient over the images of the batch and the channels of the
    map. Each image takes one direction of random signs over the channels, whose expectation is the
    sum over all channels. (A plain sum of channels is constant after a layer norm.)

    Args:
        forward: the part of the model; differentiable.
        pixel_values: (B, C, H, W), with tens of images to average the directions.
        seed: seed of the directions.

    Returns:
        (H, W), not negative.
    """
    pixel_values = pixel_values.detach().clone().requires_grad_()
    maps = forward(pixel_values)
    middle = maps[:, :, maps.shape[2] // 2, maps.shape[3] // 2]
    generator = torch.Generator().manual_seed(seed)
    signs = torch.randint(2, middle.shape, generator=generator, dtype=middle.dtype) * 2 - 1
    (gradient,) = torch.autograd.grad(middle, pixel_values, signs.to(middle.device))
    return gradient.square().sum(1).mean(0).sqrt()


def side_of(field: Tensor, share: float) -> float:
    """The size of a receptive field (H, W), as the side of a square in pixels.

    The square has the area of the fewest pixels that hold the given share of the field's sum.
    """
    held = field.flatten().double().sort(descending=True).values.cumsum(0)
    # The last sum is the total; take it as such, so that rounding cannot miss it.
    pixels = int(torch.searchsorted(held, share * held[-1])) + 1
    return pixels**0.5


@contextmanager
def without_detail(model: SegformerForSemanticSegmentation, stage: int) -> Iterator[None]:
    """Inside a `with` block, the head gets a stage's map replaced by its mean over all positions.

    Stages are 0 (the map at 1/4) to 3 (at 1/32).
    """

    def flatten(_: nn.Module, inputs: tuple[Sequence[Tensor]]) -> tuple[list[Tensor]]:
        maps = list(inputs[0])
        maps[stage] = torch.zeros_like(maps[stage]) + maps[stage].mean((2, 3), keepdim=True)
        return (maps,)

    with model.decode_head.register_forward_pre_hook(flatten):
        yield


def mean_iou(segmenter: Segmenter, pictures: Iterable[tuple[np.ndarray, np.ndarray]]) -> float:
    """The mean IoU over pictures (H, W, C) of any sizes and their class ids (H, W); 255 is ignored.

    The pictures are shown one at a time.
    """
    metric = MeanIoU(len(segmenter.names))
    for image, truth in pictures:
        found = segmenter(image, confidence=False)
        metric.add(prediction=found.mask, reference=truth)
    return float(metric.compute()["mean_iou"])
