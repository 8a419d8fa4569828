"""Writes a stock `segformer` folder, whole or not at all."""

import json
from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import ModelCard
from safetensors import SafetensorError
from transformers import PreTrainedModel

from finetune.disk import whole_folder
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
    """Writes a stock `segformer` folder aside and renames it into place.

    It holds config.json, model.safetensors (float32), preprocessor_config.json, README.md and
    recipe.yaml.

    Args:
        folder: the target; an older folder is replaced whole.
        model: the model; its config holds the labels.
        preprocessing: goes to preprocessor_config.json, and to config.json under `finetune_eval`
            because stock's file cannot hold the protocol.
        colors: one for each class; goes to config.json under `finetune_colors`. Stock ignores both
            keys.
        card: content of README.md.
        recipe: the resolved recipe, content of recipe.yaml; None: no such file.

    Raises:
        UserError: the folder cannot be written.
    """
    with whole_folder(folder, "the model folder") as new:
        model.config.finetune_eval = preprocessing.protocol.model_dump(mode="json")
        model.config.finetune_colors = [list(color) for color in colors]
        try:
            model.save_pretrained(new)
        except SafetensorError as error:  # for example a full disk
            raise OSError(str(error)) from error
        processor = json.dumps(preprocessing.to_stock(), indent=2)
        (new / "preprocessor_config.json").write_text(processor + "\n", encoding="utf-8")
        (new / "README.md").write_text(str(card), encoding="utf-8")
        if recipe is not None:
            (new / "recipe.yaml").write_text(recipe, encoding="utf-8")
        for weights in new.glob("*.safetensors"):  # safetensors lets nobody else read them
            weights.chmod((new / "README.md").stat().st_mode)
