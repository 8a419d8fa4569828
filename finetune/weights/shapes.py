"""The configuration of a model from its tensors' shapes, and the check that none is missing."""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from finetune.errors import UserError
from finetune.segformer import (
    VARIANTS,
    SegformerConfig,
    SegformerForImageClassification,
    SegformerForSemanticSegmentation,
    SegformerModel,
)
from finetune.weights.naming import ENCODER, HEAD

Kind = Literal["segmentation", "classification", "encoder"]
ARCHITECTURES: dict[Kind, type] = {
    "segmentation": SegformerForSemanticSegmentation,
    "classification": SegformerForImageClassification,
    "encoder": SegformerModel,
}


def variant_of(depths: Sequence[int], hidden_sizes: Sequence[int]) -> str | None:
    """The published size of an encoder, such as "b0", or None."""
    sizes = list(depths), list(hidden_sizes)
    found = [k for k, v in VARIANTS.items() if (v["depths"], v["hidden_sizes"]) == sizes]
    return found[0] if found else None


def shape_of(state: Mapping[str, Tensor], name: str, what: str, ndim: int | None = None) -> Any:
    """The shape of a required tensor; raises a UserError if it is missing or has other axes."""
    if name not in state:
        raise UserError(f"{what}: {name} is missing; the file is incomplete")
    shape = state[name].shape
    if (ndim is not None and len(shape) != ndim) or 0 in shape or not shape:
        raise UserError(f"{what}: {name} has the shape {tuple(shape)}, which is not SegFormer's")
    return shape


def encoder_arguments(
    state: Mapping[str, Tensor],
    what: str,
    heads: Sequence[int] | None,
    check_size: Callable[[dict[str, Any]], None] | None = None,
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Keyword arguments of the configuration, from the encoder's shapes."""
    found = [re.match(rf"{ENCODER}block\.(\d+)\.(\d+)\.", name) for name in state]
    blocks = sorted({(int(match[1]), int(match[2])) for match in found if match})
    stages = 1 + max((stage for stage, _ in blocks), default=-1)
    depths = [sum(stage == wanted for stage, _ in blocks) for wanted in range(min(stages, 64))]
    if not blocks or blocks != [
        (stage, block) for stage, depth in enumerate(depths) for block in range(depth)
    ]:
        raise UserError(f"{what}: blocks are missing; its stages hold only {depths} of them")
    patches = [
        shape_of(state, f"{ENCODER}patch_embeddings.{stage}.proj.weight", what, 4)
        for stage in range(stages)
    ]
    hidden_sizes = [shape[0] for shape in patches]
    reductions, ratios = [], []
    for stage in range(stages):
        block = f"{ENCODER}block.{stage}.0."
        reduce = f"{block}attention.self.sr.weight"
        reductions.append(shape_of(state, reduce, what, 4)[2] if reduce in state else 1)
        expanded = shape_of(state, f"{block}mlp.dense1.weight", what, 2)[0]
        if expanded % hidden_sizes[stage]:
            raise UserError(
                f"{what}: {block}mlp.dense1.weight widens {hidden_sizes[stage]} channels to "
                f"{expanded}; stock transformers supports whole multiples only"
            )
        ratios.append(expanded // hidden_sizes[stage])
    if check_size is not None:
        check_size({"depths": depths, "hidden_sizes": hidden_sizes})
    numbers, assumed = _num_heads(depths, hidden_sizes, what, heads)
    arguments = {
        "num_channels": patches[0][1],
        "num_encoder_blocks": stages,
        "depths": depths,
        "hidden_sizes": hidden_sizes,
        "num_attention_heads": numbers,
        "sr_ratios": reductions,
        "mlp_ratios": ratios,
        "patch_sizes": [shape[2] for shape in patches],
        "strides": [4, *[2] * (stages - 1)],
    }
    if variant_of(depths, hidden_sizes) is None:
        strides = " ".join(map(str, arguments["strides"]))
        assumed = (*assumed, f"strides of {strides} a stage and GELU, as all published sizes have")
    return arguments, assumed


def _num_heads(
    depths: list[int], hidden_sizes: list[int], what: str, heads: Sequence[int] | None
) -> tuple[list[int], tuple[str, ...]]:
    """Attention heads of each stage, which no shape gives, and the assumptions about them."""
    if heads is not None:
        if len(heads) != len(hidden_sizes) or not all(
            n > 0 and size % n == 0 for n, size in zip(heads, hidden_sizes, strict=True)
        ):
            raise UserError(
                f"{what}: {list(heads)} heads do not divide the widths of its stages, "
                f"{hidden_sizes}"
            )
        return list(heads), ()
    published = SegformerConfig().num_attention_heads
    if variant_of(depths, hidden_sizes):
        return list(published), ()
    # In both originals the width of a stage is its heads times the width of stage 1, with one head.
    numbers = [size // hidden_sizes[0] for size in hidden_sizes]
    if any(size % hidden_sizes[0] for size in hidden_sizes):
        numbers = list(published)
        fits = len(numbers) == len(hidden_sizes)
        if not fits or any(size % n for n, size in zip(numbers, hidden_sizes, strict=True)):
            raise UserError(
                f"{what}: the file does not tell the attention heads of its stages, which have "
                f"{hidden_sizes} channels; give them with --heads"
            )
    said = f"{' '.join(map(str, numbers))} attention heads in the stages (--heads gives others)"
    return numbers, (said,)


def checked(
    state: Mapping[str, Tensor], arguments: dict[str, Any], kind: Kind, what: str
) -> dict[str, Tensor]:
    """The state in float32, after checks of names, shapes and finite numbers."""
    try:
        with torch.device("meta"):
            model = ARCHITECTURES[kind](SegformerConfig(**arguments))
    except ValueError as error:
        raise UserError(f"{what}: no SegFormer has the shapes of its tensors ({error})") from error
    # An encoder alone has the prefix `segformer.` here, as in a model with a head.
    prefix = "segformer." if kind == "encoder" else ""
    expected = {f"{prefix}{name}": tensor for name, tensor in model.state_dict().items()}
    counter = f"{HEAD}batch_norm.num_batches_tracked"  # not used by any result
    if counter in expected:
        state = {counter: torch.tensor(0), **state}
    missing = [name for name in expected if name not in state]
    if missing:
        raise UserError(
            f"{what}: {len(missing)} tensors are missing, such as {missing[0]}; the file is "
            "incomplete"
        )
    surplus = [name for name in state if name not in expected]
    if surplus:
        raise UserError(
            f"{what}: SegFormer lacks {len(surplus)} of its tensors, such as {surplus[0]}; this is "
            "another model"
        )
    checked = {}
    for name, tensor in state.items():
        if tensor.shape != expected[name].shape:
            raise UserError(
                f"{what}: {name} has the shape {tuple(tensor.shape)}, but the other tensors need "
                f"{tuple(expected[name].shape)}"
            )
        if name != counter:
            check_numbers(tensor, name, what)
        # A copy: a tensor mapped from a file changes with the file.
        checked[name] = tensor.to(tensor.dtype if name == counter else torch.float32, copy=True)
        if not checked[name].isfinite().all():
            raise UserError(f"{what}: {name} holds NaN or infinity; use another file")
    return checked


def check_numbers(tensor: Tensor, name: str, what: str) -> None:
    """Raises a UserError unless a tensor is floating point, and not negative if a variance."""
    if not tensor.is_floating_point():
        raise UserError(f"{what}: {name} holds {tensor.dtype}, not floating point numbers")
    if name.endswith("running_var") and (tensor < 0).any():
        raise UserError(f"{what}: {name} is a variance but has values below 0; use another file")
