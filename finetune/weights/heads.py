"""Conversion of foreign heads to stock's head, where possible."""

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from finetune.errors import UserError
from finetune.weights.naming import ENCODER, HEAD, HEADS, layout_of, renamed
from finetune.weights.shapes import check_numbers, shape_of

BATCH_NORM_EPS = 1e-5  # PyTorch's default, which all originals keep
_TELLING = {
    "NVlabs": "linear_fuse.conv.weight",
    "mmsegmentation": "fusion_conv.conv.weight",
    "transformers": "linear_fuse.weight",
}


def stock_head(
    tensors: Mapping[str, Tensor], state: Mapping[str, Tensor], what: str
) -> tuple[dict[str, Tensor], str, list[str]]:
    """The head converted to stock's, or the reason why not, and the names of unused tensors."""
    layout = layout_of(tensors, HEADS)
    if layout is None or _TELLING[layout] not in tensors:
        return {}, f"its head is not SegFormer's ({', '.join(list(tensors)[:3])})", []
    found, unknown = renamed(tensors, layout, HEADS, what)
    # NVlabs' head inherits an unused classifier.
    unused = [name for name in unknown if layout == "NVlabs" and name.startswith("conv_seg.")]
    strange = [name for name in unknown if name not in unused]
    if strange:
        return {}, f"its head has tensors that SegFormer's lacks ({HEAD}{strange[0]})", []
    lost = ""
    if layout == "mmsegmentation":
        found, lost = _without_relu(found, state, what)
    for name, tensor in found.items():
        if name.startswith("linear_c.") and tensor.ndim == 4 and tensor.shape[2:] == (1, 1):
            found[name] = tensor.flatten(1)
    return found, lost, [HEAD + name for name in unused]


def _without_relu(
    head: dict[str, Tensor],  # by the names of `HEADS`
    state: Mapping[str, Tensor],  # the encoder's, for the norms of its stages
    what: str,
) -> tuple[dict[str, Tensor], str]:
    """The head of mmsegmentation converted to stock's, or the reason why not.

    mmsegmentation's head applies ReLU(BN(conv(x))) to a stage's map before it upsamples and fuses;
    stock's head applies a linear layer alone. Batch norm is affine and folds into the layer. A ReLU
    can be removed only from channels that are always positive, or always negative. The weights
    decide this without data: the input is a layer norm's output, gamma z + beta, where z has mean 0
    and a length of at most sqrt(C). So the channel a x + b lies within
    a beta + b +- sqrt(C) |a gamma - mean(a gamma)|.
    """
    found = {name: tensor for name, tensor in head.items() if not name.startswith("convs.")}
    stages = sum(bool(re.fullmatch(r"convs\.\d+\.conv\.weight", name)) for name in head)
    acting = channels = 0
    for stage in range(stages):
        conv, norm = f"convs.{stage}.conv.", f"convs.{stage}.bn."
        gamma_name, beta_name = (
            f"{ENCODER}layer_norm.{stage}.{leaf}" for leaf in ("weight", "bias")
        )
        width, inputs = shape_of(head, f"{conv}weight", what, 4)[:2]
        wanted: dict[str, tuple[int, ...]] = {f"{conv}weight": (width, inputs, 1, 1)}
        for name in ("weight", "bias", "running_mean", "running_var"):
            wanted[f"{norm}{name}"] = (width,)
        if f"{conv}bias" in head:
            wanted[f"{conv}bias"] = (width,)
        for name, shape in wanted.items():
            if shape_of(head, name, what) != shape:
                raise UserError(
                    f"{what}: {HEAD}{name} has the shape {tuple(head[name].shape)}, not {shape}"
                )
        for name in wanted:
            check_numbers(head[name], HEAD + name, what)
        for name in (gamma_name, beta_name):
            if shape_of(state, name, what) != (inputs,):
                raise UserError(f"{what}: {HEAD}{conv}weight and {name} differ in their channels")
            check_numbers(state[name], name, what)
        weight, scale, shift, mean, variance, *conv_bias = (head[name].double() for name in wanted)
        scale = scale / (variance + BATCH_NORM_EPS).sqrt()
        weight = scale[:, None] * weight.flatten(1)  # (width, C)
        bias = shift - scale * mean
        if conv_bias:
            bias = bias + scale * conv_bias[0]
        gamma, beta = state[gamma_name].double(), state[beta_name].double()
        spread = weight * gamma
        reach = (spread - spread.mean(1, keepdim=True)).norm(dim=1) * len(gamma) ** 0.5
        middle = weight @ beta + bias
        is_off = middle + reach <= 0
        acting += int((~is_off & (middle < reach)).sum())
        channels += len(middle)
        found[f"linear_c.{stage}.proj.weight"] = (weight * ~is_off[:, None]).float()
        found[f"linear_c.{stage}.proj.bias"] = (bias * ~is_off).float()
    if acting:
        return {}, (
            "mmsegmentation's head has a ReLU between each stage's projection and the fusion, "
            f"which may act on {acting} of {channels} channels here. Stock's head has no ReLU "
            "there and cannot give these logits"
        )
    # mmsegmentation's finest map comes first, stock's coarsest.
    fused = found.get("linear_fuse.weight")
    if fused is not None and fused.ndim == 4 and stages and not fused.shape[1] % stages:
        found["linear_fuse.weight"] = torch.cat(fused.chunk(stages, dim=1)[::-1], dim=1)
    return found, ""
