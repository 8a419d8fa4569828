"""Model folders and Hub ids: readers of configuration and weights that run no foreign code."""

import pickle
import warnings
from pathlib import Path
from typing import Any

from transformers import AutoConfig, PreTrainedModel

from finetune.errors import UserError, first_line
from finetune.segformer import SegformerConfig, SegformerForSemanticSegmentation
from finetune.weights.cards import licence_of
from finetune.weights.reading import is_checkpoint_file


def load_config(model: str, what: str) -> SegformerConfig:
    """The configuration of a SegFormer folder or Hub id, which messages call `what`.

    Raises:
        UserError: there is no configuration, or it belongs to another kind of model.
    """
    if is_checkpoint_file(model):
        raise UserError(
            f"{what}: this is a file of weights, but a model folder or Hub id is needed; "
            f"`finetune convert {model} OUT` makes a folder from it"
        )
    folder = Path(model)
    if (folder / "best" / "config.json").is_file():
        raise UserError(f"{what}: is a run folder; name its model, {model}/best")
    if not folder.exists():
        if model.count("/") != 1:
            raise UserError(f"{what}: there is no such folder, and a Hub id is OWNER/NAME")
        if folder.parent.is_dir():  # the Hub is slow to say no, above all without a network
            raise UserError(
                f"{what}: {folder.parent} holds no such folder. (For a model of the Hub, start "
                f"where no folder is called {folder.parent}.)"
            )
    try:
        config = AutoConfig.from_pretrained(model, trust_remote_code=False)
    except Exception as error:  # somebody else's files: their readers raise anything
        raise UserError(f"{what}: not a model folder or Hub id ({first_line(error)})") from error
    if config.model_type != "segformer":
        raise UserError(f"{what}: a model of type {config.model_type}; only segformer is supported")
    return config


def load_model(
    model: str, what: str, config: SegformerConfig
) -> tuple[SegformerForSemanticSegmentation, list[str]]:
    """A SegFormer with a head for `config`, in float32, and the names of newly drawn weights.

    Warns of a licence that is known to restrict the use of the weights.

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
    """The model of a folder or Hub id, in float32, and the names of newly drawn weights.

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
            f"{what}: its weights are a pickle that holds more than plain tensors and could run "
            "code, so it was not opened. Use a model with model.safetensors."
        ) from error
    except Exception as error:  # somebody else's files: their readers raise anything
        raise UserError(f"{what}: its weights cannot be read ({first_line(error)})") from error
    if not all(tensor.isfinite().all() for tensor in loaded.state_dict().values()):
        raise UserError(f"{what}: its weights hold NaN or infinity; use another model")
    fresh = {*info["missing_keys"], *(key for key, *_ in info["mismatched_keys"])}
    return loaded.float(), sorted(fresh)
