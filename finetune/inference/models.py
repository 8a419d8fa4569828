"""Readers of a model folder's preprocessing, class names and colours."""

import hashlib
import itertools
import json
from pathlib import Path
from typing import Any

import torch
from transformers.utils import cached_file

from finetune.errors import UserError, first_line
from finetune.inference.preprocessing import Preprocessing
from finetune.recipe import InferenceProtocol
from finetune.segformer import SegformerConfig
from finetune.segformer.configuration import smallest_side
from finetune.weights.files import as_colors


def load_preprocessing(model: str, what: str, config: SegformerConfig) -> Preprocessing:
    """The preprocessing of a model folder or Hub id, which messages call `what`.

    Raises:
        UserError: the preprocessing is missing or not supported.
    """
    try:
        path = cached_file(model, "preprocessor_config.json")
        assert path is not None, "it raises instead"
        values = json.loads(Path(path).read_text(encoding="utf-8"))
        if not isinstance(values, dict):
            raise ValueError("it holds no JSON object")
    except (OSError, ValueError) as error:
        raise UserError(
            f"{what}: preprocessor_config.json cannot be read ({first_line(error)}). It says how "
            "pictures are resized and normalised, and stock transformers needs it too"
        ) from error
    try:
        found = Preprocessing.from_stock(values, getattr(config, "finetune_eval", None))
    except UserError as error:
        raise UserError(f"{what}: its preprocessing is not supported: {error}") from error
    except (TypeError, ValueError) as error:
        raise UserError(
            f"{what}: a value in preprocessor_config.json has a wrong type ({error})"
        ) from error
    check_window(found.protocol, config, what)
    if found.num_channels != config.num_channels:
        raise UserError(
            f"{what}: the model reads {config.num_channels} channels, but image_mean in "
            f"preprocessor_config.json has {found.num_channels} values"
        )
    return found


def check_window(protocol: InferenceProtocol, config: SegformerConfig, what: str) -> None:
    """Raises a UserError if the protocol's windows are too small for the model."""
    window, side = protocol.window, smallest_side(config)
    if window is not None and min(window) < side:
        raise UserError(f"{what}: window {window} is too small; the model needs {side} pixels")


def class_colors(config: Any, count: int, what: str) -> tuple[tuple[int, int, int], ...] | None:
    """The classes' colours in a configuration; None unless there is one for each class.

    Raises:
        UserError: The values are no colours.
    """
    found = getattr(config, "finetune_colors", None)
    if found is None:
        return None
    colors = as_colors(found)
    if colors is None:
        raise UserError(f"{what}: finetune_colors in config.json must be a list of [R, G, B]")
    return colors if len(colors) == count else None


def class_names(config: Any, what: str) -> list[str]:
    """The classes' names by id, made unique, since areas are reported by name."""
    labels = config.id2label or {}
    if set(labels) != set(range(config.num_labels)) or not all(map(str, labels.values())):
        raise UserError(f"{what}: id2label in config.json must name 0 to {config.num_labels - 1}")
    names: list[str] = []
    for name in (str(labels[i]) for i in range(config.num_labels)):
        numbered = (f"{name} ({count})" for count in itertools.count(2))
        names.append(next(one for one in itertools.chain([name], numbered) if one not in names))
    return [f"not {names[0]}", *names] if len(names) == 1 else names  # stock's binary head


def digest_of(model: Any) -> str:
    """A digest of a model's weights: a folder such as `best` may hold others tomorrow."""
    digest = hashlib.blake2b(digest_size=16)
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()
