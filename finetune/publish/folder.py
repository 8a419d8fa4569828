"""Writes a stock `segformer` folder, whole or not at all."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import ModelCard
from safetensors import SafetensorError
from transformers import PreTrainedModel

from finetune.disk import swap_folder
from finetune.errors import UserError
from finetune.inference.preprocessing import Preprocessing
from finetune.pictures.drawing import Color


def save_model_folder(
    folder: Path,
    model: PreTrainedModel,
    *,
    preprocessing: Preprocessing,
    colors: Sequence[Color],
    card: ModelCard,
    recipe: str | None = None,
) -> None:
    """Writes a stock `segformer` folder, aside, and swaps it in by rename.

    config.json, model.safetensors (float32), preprocessor_config.json, README.md and recipe.yaml.

    Args:
        folder: where it goes; an older one is replaced whole.
        model: with its labels in the config.
        preprocessing: how images are to be shown to it; what stock's file cannot say stands in
            config.json under `finetune_eval`.
        colors: of the classes; in config.json under `finetune_colors`. Stock ignores both.
        card: README.md.
        recipe: recipe.yaml, resolved; None: there is none.

    Raises:
        UserError: the folder cannot be written.
    """
    folder = folder.resolve()  # "." has no name, and a link's target is what is replaced
    temp = folder.with_name(f".{folder.name}.new")
    try:
        shutil.rmtree(temp, ignore_errors=True)
        temp.mkdir(parents=True)
        model.config.finetune_eval = preprocessing.protocol.model_dump(mode="json")
        model.config.finetune_colors = [list(color) for color in colors]
        model.save_pretrained(temp)
        processor = json.dumps(preprocessing.to_stock(), indent=2)
        (temp / "preprocessor_config.json").write_text(processor + "\n", encoding="utf-8")
        (temp / "README.md").write_text(str(card), encoding="utf-8")
        if recipe is not None:
            (temp / "recipe.yaml").write_text(recipe, encoding="utf-8")
        if folder == Path.cwd() and not any(folder.iterdir()):  # a shell stands in it: it stays
            for file in temp.iterdir():
                file.rename(folder / file.name)
            temp.rmdir()
        else:
            swap_folder(temp, folder)
    except (OSError, SafetensorError) as error:  # safetensors has an error of its own
        shutil.rmtree(temp, ignore_errors=True)
        reason = getattr(error, "strerror", None) or error
        raise UserError(
            f"cannot write the model folder {folder}: {reason}; free some space, or let `output` "
            "point elsewhere"
        ) from error
