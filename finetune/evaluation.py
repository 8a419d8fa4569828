"""Scores a saved model folder: the table that training printed, from the folder alone."""

import json
import os
import warnings
from pathlib import Path

import torch
from rich.console import Console

from finetune.errors import UserError
from finetune.inference import load_config, load_model
from finetune.parallel import device, set_threads
from finetune.recipe import Recipe, recipe_from_yaml
from finetune.trainers import Evaluation
from finetune.trainers.segmentation import SegmentationTask

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def evaluate(model: str, recipe: Recipe) -> Evaluation:
    """Evaluates a model folder (or Hub id) on a recipe's validation split.

    In the precision and the protocol that the folder was trained with, if it says so in its own
    `recipe.yaml`; else in the recipe's. Data, labels and batch size are the recipe's.

    Raises:
        UserError: the folder cannot be read, or its classes are not the recipe's.
    """
    recipe = _with_protocol_of(model, recipe)
    set_threads(recipe.train.threads)
    module = _load(model, recipe).to(device())
    task = SegmentationTask(recipe)
    task.check_split(task.val_samples)
    dtype = DTYPES.get(recipe.train.precision)
    with torch.autocast(device().type, dtype=dtype, enabled=dtype is not None):
        evaluation = task.evaluate(module, rank=0, world_size=1, stop=lambda: False)
    assert evaluation is not None, "nobody can stop it"
    return evaluation


def show(evaluation: Evaluation, model: str, recipe: Recipe, *, as_json: bool) -> None:
    """Prints an evaluation as a table, or as one JSON object."""
    if as_json:
        print(json.dumps({"model": model, "recipe": recipe.name, **evaluation.metrics}))
        return
    console = Console()
    console.print(f"{model} on {recipe.name}", style="bold", highlight=False, markup=False)
    console.print(evaluation.table)


def _with_protocol_of(model: str, recipe: Recipe) -> Recipe:
    path = Path(model) / "recipe.yaml"
    if not path.is_file():
        return recipe
    own = recipe_from_yaml(path)
    batch_size = {"batch_size": recipe.evaluation.batch_size}
    data = {"image_mean": own.data.image_mean, "image_std": own.data.image_std}
    updated = recipe.model_copy(
        update={
            "evaluation": own.evaluation.model_copy(update=batch_size),
            "train": recipe.train.model_copy(update={"precision": own.train.precision}),
            "data": recipe.data.model_copy(update=data),
        }
    )
    if updated != recipe:
        warnings.warn(
            f"scored as the model was trained to be shown images ({path}: evaluation, "
            "train.precision, data.image_mean, data.image_std), not as the recipe says",
            stacklevel=2,
        )
    return updated


def _load(model: str, recipe: Recipe) -> torch.nn.Module:
    what = f"model {model}"
    if os.sep in model and not Path(model).is_dir():
        raise UserError(f"{what}: no such folder")
    config = load_config(model, what)
    channels = recipe.model.num_channels
    if config.num_channels != channels:
        raise UserError(
            f"{what}: reads images of {config.num_channels} channels, but the recipe's "
            f"model.num_channels is {channels}"
        )
    names = list((config.id2label or {}).values())
    wanted = recipe.labels.names
    if names != list(wanted):
        raise UserError(
            f"{what}: its {len(names)} classes ({', '.join(names[:3])}, ...) are not the "
            f"{len(wanted)} of the recipe's labels ({', '.join(wanted[:3])}, ...)"
        )
    module, missing = load_model(model, what, config)
    if missing:
        raise UserError(
            f"{what}: {len(missing)} weights are missing, {missing[0]} among them; this is not a "
            "SegFormer for semantic segmentation"
        )
    return module
