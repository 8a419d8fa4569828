"""What SegFormer does with a picture, measured: what `notebooks/05_inside_segformer.ipynb` shows.

Sections are those of Xie et al., "SegFormer: Simple and Efficient Design for Semantic Segmentation
with Transformers" (2021). Where a function takes `forward`, that is any part of a model, from
`pixel_values` (B, C, H, W) to a map (B, C', H', W').
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from finetune.inference import Segmenter
from finetune.metrics import MeanIoU
from finetune.segformer import SegformerConfig, SegformerForSemanticSegmentation

Forward = Callable[[Tensor], Tensor]


def stage_map(model: SegformerForSemanticSegmentation, stage: int) -> Forward:
    """The encoder as far as the map of a stage, 0 (at 1/4) to 3 (at 1/32)."""
    return lambda pixel_values: model(pixel_values, output_hidden_states=True).hidden_states[stage]


def patches_alone(model: SegformerForSemanticSegmentation, stage: int) -> Forward:
    """The patch merging of the stages up to this one, with nothing between: no block sees it."""

    def forward(pixel_values: Tensor) -> Tensor:
        x = pixel_values.permute(0, 2, 3, 1)
        for embed in model.segformer.encoder.patch_embeddings[: stage + 1]:
            x = embed(x)
        return x.permute(0, 3, 1, 2)

    return forward


# ------------------------------------------------------------------- four scales, section 3.1


def principal_colors(feature_map: Tensor) -> np.ndarray:
    """A map as a picture: its three principal components as red, green and blue.

    Args:
        feature_map: (C, H, W), with at least three channels and three positions.

    Returns:
        uint8 (H, W, 3). Each component fills the range from its 2nd to its 98th percentile, so
        colours tell positions of one map apart and mean nothing across maps.
    """
    positions = feature_map.detach().double().flatten(1).T  # (H W, C)
    positions = positions - positions.mean(0)
    directions = torch.linalg.svd(positions, full_matrices=False).Vh[:3]
    # A direction is as good as its opposite: let its largest entry be positive.
    largest = directions.gather(1, directions.abs().argmax(1, keepdim=True))
    scores = positions @ (directions * largest.sign()).T  # (H W, 3)
    low, high = scores.quantile(torch.tensor([0.02, 0.98], dtype=scores.dtype), dim=0)
    shares = ((scores - low) / (high - low).clamp(min=1e-12)).clamp(0, 1)
    return (255 * shares).round().byte().unflatten(0, feature_map.shape[1:]).numpy()


# --------------------------------------------------- overlapped patch merging, section 3.1


def change_when_shifted(
    forward: Forward, pixel_values: Tensor, shifts: Sequence[int]
) -> list[float]:
    """How much a map changes when what is in the picture moves to the left.

    Args:
        forward: what is looked at.
        pixel_values: (B, C, H, W); the widest window is W less the largest shift, and should suit
            the strides.
        shifts: in pixels.

    Returns:
        For each shift, the norm of the difference over that of the unmoved map around its mean: 0
        if nothing changes, about 1.4 if the two have nothing to do with each other.
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
    """What one pixel's query looks at, in every block.

    Args:
        model: a SegFormer of transformers', ours or stock's; in eval mode.
        pixel_values: (1, C, H, W).
        position: row and column of the pixel.

    Returns:
        A list a stage of one tensor a block: (h, H_k, W_k), the weights of the h heads on the
        reduced keys, which sum to 1 a head.
    """
    config = model.config
    before = config._attn_implementation
    model.set_attn_implementation("eager")  # the others never have the weights
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
    """Of one stage, all its blocks together, on one image."""

    queries: int
    """N, the positions of the map."""
    keys: int
    """M, the positions that are left to look at."""
    products: int
    """Multiply-accumulates of Q K^T and of the weights with V, 2 N M C a block: the part that
    grows with the square of the pixels."""
    linear: int
    """Those of everything else that attention needs: Q, K, V, the output and the reduction, in
    proportion to the pixels."""


def attention_costs(config: SegformerConfig, size: tuple[int, int]) -> list[AttentionCost]:
    """Counts each stage's attention on one image; with `sr_ratios` of 1 it is the full one.

    Args:
        config: its widths, depths, strides and ratios.
        size: height and width of the image, in pixels.
    """
    height, width = size
    costs = []
    for depth, channels, kernel, stride, ratio in zip(
        config.depths,
        config.hidden_sizes,
        config.patch_sizes,
        config.strides,
        config.sr_ratios,
        strict=True,
    ):
        height, width = (
            (side + 2 * (kernel // 2) - kernel) // stride + 1 for side in (height, width)
        )
        queries, keys = height * width, (height // ratio) * (width // ratio)
        linear = 2 * queries * channels**2 + 2 * keys * channels**2  # Q and output, K and V
        if ratio > 1:
            linear += keys * ratio**2 * channels**2
        costs.append(
            AttentionCost(queries, keys, depth * 2 * queries * keys * channels, depth * linear)
        )
    return costs


# ---------------------------------------------------------------------- Mix-FFN, section 3.1


@contextmanager
def padding_mode(modules: nn.Module, mode: str) -> Iterator[None]:
    """Pads otherwise than with zeros, for the time of a `with`.

    Attention and MLPs treat every position alike, so the zeros around the maps are all that can
    tell a layer where it is; with "replicate" or "circular" there are none.

    Args:
        modules: those of its convolutions that pad do so otherwise.
        mode: of `torch.nn.functional.pad`.
    """

    def repad(convolution: Any, inputs: tuple[Tensor, ...], _: Tensor) -> Tensor:
        rows, columns = convolution.padding
        padded = F.pad(inputs[0], (columns, columns, rows, rows), mode)
        return F.conv2d(
            padded,
            convolution.weight,
            convolution.bias,
            convolution.stride,
            dilation=convolution.dilation,
            groups=convolution.groups,
        )

    with ExitStack() as hooks:
        # A hook also keeps our fused Mix-FFN from going past the module.
        for module in modules.modules():
            if isinstance(module, nn.Conv2d) and any(module.padding):
                hooks.callback(module.register_forward_hook(repad).remove)
        yield


# ------------------------------------------------------------------- all-MLP head, section 3.2


def receptive_field(forward: Forward, pixel_values: Tensor, *, seed: int = 0) -> Tensor:
    """Which pixels the middle of a map depends on, and how much (section 3.2.1).

    The root of the mean square gradient: over the images of the batch, and over the channels of
    the map by one direction of random signs an image, whose expectation is the sum over all.
    (A plain sum of channels will not do: a layer norm makes it constant.)

    Args:
        forward: what is looked at; differentiable.
        pixel_values: (B, C, H, W); tens of images, or the directions show.
        seed: of the directions.

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
    """The side, in pixels, of a square as large as the fewest pixels that hold most of a field.

    Args:
        field: (H, W), from `receptive_field`.
        share: of the field's sum.
    """
    held = field.flatten().double().sort(descending=True).values.cumsum(0)
    # The last of the sums is the total, which must not be missed by rounding.
    pixels = int(torch.searchsorted(held, share * held[-1])) + 1
    return pixels**0.5


@contextmanager
def without_detail(model: SegformerForSemanticSegmentation, stage: int) -> Iterator[None]:
    """Shows the head the mean of a stage's map at each position, for the time of a `with`.

    Args:
        model: whose head.
        stage: 0 (the map at 1/4) to 3 (at 1/32).
    """

    def flatten(_: nn.Module, inputs: tuple[Sequence[Tensor]]) -> tuple[list[Tensor]]:
        maps = list(inputs[0])
        maps[stage] = torch.zeros_like(maps[stage]) + maps[stage].mean((2, 3), keepdim=True)
        return (maps,)

    hook = model.decode_head.register_forward_pre_hook(flatten)
    try:
        yield
    finally:
        hook.remove()


def mean_iou(segmenter: Segmenter, pictures: Iterable[tuple[np.ndarray, np.ndarray]]) -> float:
    """The mean IoU of a model over pictures of any sizes, one at a time.

    Args:
        segmenter: the model.
        pictures: images (H, W, C) and their class ids (H, W), 255 where none counts.
    """
    metric = MeanIoU(len(segmenter.names))
    for image, truth in pictures:
        found = segmenter(image, confidence=False)
        metric.add(prediction=found.mask, reference=truth)
    return float(metric.compute()["mean_iou"])
