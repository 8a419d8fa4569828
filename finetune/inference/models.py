"""Readers of a model folder's preprocessing, class names and colours."""

import json
from pathlib import Path
from typing import Any

from transformers.utils import cached_file

from finetune.errors import UserError, first_line
from finetune.inference.preprocessing import Preprocessing
from finetune.segformer import SegformerConfig
from finetune.segformer.configuration import smallest_side


def load_preprocessing(model: str, what: str, config: SegformerConfig) -> Preprocessing:
    """The preprocessing of a model folder or Hub id.

    Args:
        model: the folder or id.
        what: its name in messages.
        config: its configuration.

    Raises:
        UserError: the preprocessing is missing or not supported.
    """
    try:
        path = cached_file(model, "preprocessor_config.json")
        assert path is not None, "it raises instead"
        values = json.loads(Path(path).read_text(encoding="utf-8"))
        if not isinstance(values, dict):
            raise ValueError("holds no object")
    except (OSError, ValueError) as error:
        raise UserError(
            f"{what}: preprocessor_config.json cannot be read ({first_line(error)}). It says how "
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
    """The classes' colours in a configuration; None unless there is one for each class.

    Raises:
        UserError: The values are no colours.
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
    """The classes' names by id, made unique, since areas are reported by name."""
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
