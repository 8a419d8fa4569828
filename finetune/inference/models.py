"""Model folders and Hub ids: what they hold, read without running any of it."""

import json
import pickle
import warnings
from pathlib import Path
from typing import Any

from transformers import AutoConfig, PreTrainedModel
from transformers.utils import cached_file

from finetune.errors import UserError
from finetune.inference.preprocessing import Preprocessing
from finetune.segformer import SegformerConfig, SegformerForSemanticSegmentation
from finetune.segformer.configuration import smallest_side
from finetune.weights import is_checkpoint_file, licence_of


def load_config(model: str, what: str) -> SegformerConfig:
    """The configuration of a SegFormer folder or Hub id.

    Args:
        model: the folder or id.
        what: what to call it in messages, such as "model.init=...".

    Raises:
        UserError: there is none, or it is another kind of model's.
    """
    if is_checkpoint_file(model):
        raise UserError(
            f"{what}: a file of weights, where a model folder or Hub id is wanted; "
            f"`finetune convert {model} OUT` makes a folder of it"
        )
    try:
        config = AutoConfig.from_pretrained(model, trust_remote_code=False)
    except Exception as error:  # somebody else's files: their readers raise anything
        raise UserError(f"{what}: not a model folder or Hub id ({_first_line(error)})") from error
    if config.model_type != "segformer":
        raise UserError(f"{what}: a {config.model_type}, not a segformer")
    return config


def load_model(
    model: str, what: str, config: SegformerConfig
) -> tuple[SegformerForSemanticSegmentation, list[str]]:
    """A SegFormer with a head for `config`, in float32, and the names of the weights that are new.

    Warns of a licence that is known to restrict their use.

    Raises:
        UserError: the weights cannot be read.
    """
    loaded, fresh = read_model(model, what, config, SegformerForSemanticSegmentation)
    if licence := licence_of(model):
        warnings.warn(f"{what}: {licence}", stacklevel=2)
    return loaded, fresh  # type: ignore[return-value]


def read_model(
    model: str, what: str, config: SegformerConfig, architecture: type[PreTrainedModel]
) -> tuple[PreTrainedModel, list[str]]:
    """A model of a folder or Hub id, in float32, and the names of the weights that are new.

    Raises:
        UserError: the weights cannot be read.
    """
    loaded: Any
    info: dict[str, Any]
    try:
        loaded, info = architecture.from_pretrained(  # type: ignore[misc]
            model, config=config, ignore_mismatched_sizes=True, output_loading_info=True
        )
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{what}: its weights are a pickle of more than plain tensors, which is not opened: it "
            "could run code. Ask for model.safetensors."
        ) from error
    except Exception as error:  # somebody else's files: their readers raise anything
        raise UserError(f"{what}: its weights cannot be read ({_first_line(error)})") from error
    if not all(tensor.isfinite().all() for tensor in loaded.state_dict().values()):
        raise UserError(f"{what}: its weights are not finite (NaN or infinity); take another")
    fresh = {*info["missing_keys"], *(key for key, *_ in info["mismatched_keys"])}
    return loaded.float(), sorted(fresh)


def load_preprocessing(model: str, what: str, config: SegformerConfig) -> Preprocessing:
    """How pictures are to be shown to the model of a folder or Hub id.

    Args:
        model: the folder or id.
        what: what to call it in messages.
        config: its own.

    Raises:
        UserError: it does not say so, or asks for what is not done here.
    """
    try:
        path = cached_file(model, "preprocessor_config.json")
        assert path is not None, "it raises instead"
        values = json.loads(Path(path).read_text(encoding="utf-8"))
        if not isinstance(values, dict):
            raise ValueError("holds no object")
    except (OSError, ValueError) as error:
        raise UserError(
            f"{what}: preprocessor_config.json cannot be read ({_first_line(error)}). It says how "
            "pictures are resized and normalised, and stock transformers needs it too"
        ) from error
    try:
        found = Preprocessing.from_stock(values, getattr(config, "finetune_eval", None))
    except UserError as error:
        raise UserError(f"{what}: how images are to be shown is not clear: {error}") from error
    except (TypeError, ValueError) as error:
        raise UserError(f"{what}: preprocessor_config.json makes no sense ({error})") from error
    window, side = found.protocol.window, smallest_side(config)
    if window is not None and min(window) < side:
        raise UserError(f"{what}: window {window}: the model needs {side} pixels")
    if found.num_channels != config.num_channels:
        raise UserError(
            f"{what}: reads {config.num_channels} channels, but preprocessor_config.json has "
            f"{found.num_channels} values in image_mean"
        )
    return found


def class_colors(config: Any, count: int, what: str) -> list[tuple[int, int, int]] | None:
    """The classes' colours as a folder has them; None if it has none for so many classes.

    Raises:
        UserError: They are no colours.
    """
    found = getattr(config, "finetune_colors", None)
    if found is None:
        return None
    is_sound = isinstance(found, list) and all(
        isinstance(color, list)
        and len(color) == 3
        and all(type(value) is int and 0 <= value <= 255 for value in color)
        for color in found
    )
    if not is_sound:
        raise UserError(f"{what}: finetune_colors in config.json must be a list of [R, G, B]")
    return [(c[0], c[1], c[2]) for c in found] if len(found) == count else None


def class_names(config: Any, what: str) -> list[str]:
    """The classes' names by id, each once: areas are told by name."""
    labels = config.id2label or {}
    if set(labels) != set(range(config.num_labels)) or not all(map(str, labels.values())):
        raise UserError(f"{what}: id2label in config.json does not name 0 to {len(labels) - 1}")
    names: list[str] = []
    for name in (str(labels[i]) for i in range(config.num_labels)):
        count = 1
        unique = name
        while unique in names:
            count += 1
            unique = f"{name} ({count})"
        names.append(unique)
    return [f"not {names[0]}", *names] if len(names) == 1 else names  # stock's binary head


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
