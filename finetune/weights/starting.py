"""The starting weights of a training, from a folder, a Hub id or a file."""

import warnings
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from finetune.errors import UserError
from finetune.segformer import SegformerConfig, SegformerForSemanticSegmentation
from finetune.weights.cards import licence_of
from finetune.weights.folders import load_config, load_model
from finetune.weights.reading import is_checkpoint_file, read_weights
from finetune.weights.shapes import variant_of


def starting_model(init: str | None, arguments: dict[str, Any]) -> tuple[PreTrainedModel, str]:
    """SegFormer with the weights that `model.init` names, or with fresh ones.

    Args:
        init: `model.init`: a folder, a Hub id, a file of weights, or None.
        arguments: arguments of the recipe's `SegformerConfig`, labels included.

    Returns:
        The model, and a remark on the licence of its weights, or "".

    Raises:
        UserError: the weights cannot be read, or belong to another model.
    """
    if init is None:
        return SegformerForSemanticSegmentation(SegformerConfig(**arguments)), ""
    load = _from_file if is_checkpoint_file(init) else _from_folder
    return load(init, arguments)


_FIRST = "segformer.encoder.patch_embeddings.0.proj.weight"


def _from_folder(init: str, arguments: dict[str, Any]) -> tuple[PreTrainedModel, str]:
    """Starts from a folder or Hub id; draws a new head for other labels, with a message."""
    what = f"model.init={init}"
    found = load_config(init, what)
    _check_size(found.to_dict(), arguments, what, ("num_attention_heads",))
    config = SegformerConfig(**{**found.to_dict(), **arguments})
    model, fresh = load_model(init, what, config)
    is_other_image = found.num_channels != config.num_channels
    lost = [key for key in fresh if key.startswith("segformer.")]
    if is_other_image and _FIRST in lost:
        lost.remove(_FIRST)
    if lost:
        raise UserError(
            f"{what}: {len(lost)} weights of the encoder are missing, such as {lost[0]}. This "
            "is not a SegFormer checkpoint."
        )
    if fresh:
        loaded = _but_for_channels("the encoder is loaded", found.num_channels, config)
        warnings.warn(f"{what}: {loaded}, new are {', '.join(fresh)}", stacklevel=3)
    return model, licence_of(init)


def _from_file(init: str, arguments: dict[str, Any]) -> tuple[PreTrainedModel, str]:
    """Starts from a file of weights; prints which tensors it used."""
    what = f"model.init={init}"
    weights = read_weights(
        Path(init),
        what,
        heads=arguments["num_attention_heads"],
        check_size=lambda found: _check_size(found, arguments, what),
    )
    shapes = {key: value for key, value in weights.arguments.items() if key != "num_labels"}
    config = SegformerConfig(**{**shapes, **arguments})
    model = SegformerForSemanticSegmentation(config)
    own = model.state_dict()
    taken = {
        name: tensor
        for name, tensor in weights.state.items()
        if name in own and own[name].shape == tensor.shape
    }
    model.load_state_dict(taken, strict=False)
    fresh = sorted(own.keys() - taken.keys())
    has_head = any(name.startswith("decode_head.") for name in taken)
    loaded = "the encoder and the head are" if has_head and not fresh else "the encoder is"
    said = f"{weights.describe()}: {loaded} loaded"
    said = _but_for_channels(said, weights.arguments["num_channels"], config)
    if fresh:
        said += f", new are {', '.join(fresh)}"
    if weights.lost_head:
        said += f" ({weights.lost_head})"
    warnings.warn(f"{what}: {said}", stacklevel=3)
    if weights.licence:
        warnings.warn(f"{what}: {weights.licence}", stacklevel=3)
    return model, weights.licence


def _check_size(
    found: dict[str, Any], wanted: dict[str, Any], what: str, more: tuple[str, ...] = ()
) -> None:
    """Raises a UserError unless a checkpoint's encoder has the recipe's size."""
    for key in ("depths", "hidden_sizes", *more):
        if list(found[key]) == list(wanted[key]):
            continue
        sizes = ("depths", "hidden_sizes", "num_attention_heads")
        known = [size for size in sizes if size in found]
        remedy = " ".join(f"model.{k}={list(found[k])}".replace(", ", ",") for k in known)
        if key == "num_attention_heads":
            remedy = f"model.{key}={list(found[key])}".replace(", ", ",")
        elif (size := variant_of(found["depths"], found["hidden_sizes"])) is not None:
            remedy = f"model.variant={size}"
        elif "num_attention_heads" not in found:
            remedy += " and model.num_attention_heads, a number a stage that divides its width"
        raise UserError(
            f"{what}: {key} are {list(found[key])}, but the recipe says {list(wanted[key])}. "
            f"Set {remedy}."
        )


def _but_for_channels(loaded: str, channels: int, config: SegformerConfig) -> str:
    if channels == config.num_channels:
        return loaded
    return (
        f"{loaded} except for its first convolution, which reads {config.num_channels} channels "
        f"here and {channels} there"
    )
