"""Scores a saved model folder: the table that training printed, from the folder alone."""

import json
import os
from pathlib import Path

import torch
from rich.console import Console
from transformers import AutoModelForSemanticSegmentation

from finetune.errors import UserError
from finetune.parallel import set_threads
from finetune.recipe import Recipe, recipe_from_yaml
from finetune.trainers import Evaluation
from finetune.trainers.segmentation import SegmentationTask

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def evaluate(model: str, recipe: Recipe) -> Evaluation:
    """Evaluates a model folder (or Hub id) on a recipe's validation split.

    In the precision and the protocol that the folder was trained with, if it says so in its own
    `recipe.yaml`; else in the recipe's. Data and labels are the recipe's.

    Raises:
        UserError: the folder cannot be read, or its classes are not the recipe's.
    """
    own = _own_recipe(model)
    if own is not None:
        train = recipe.train.model_copy(update={"precision": own.train.precision})
        recipe = recipe.model_copy(update={"train": train, "evaluation": own.evaluation})
        data = recipe.data.model_copy(
            update={"image_mean": own.data.image_mean, "image_std": own.data.image_std}
        )
        recipe = recipe.model_copy(update={"data": data})
    set_threads(recipe.train.threads)
    device = torch.accelerator.current_accelerator() or torch.device("cpu")
    module = _load(model, recipe).to(device)
    task = SegmentationTask(recipe)
    task.check()
    dtype = DTYPES.get(recipe.train.precision)
    with torch.autocast(device.type, dtype=dtype, enabled=dtype is not None):
        evaluation = task.evaluate(module, rank=0, world_size=1, stop=lambda: False)
    assert evaluation is not None, "nobody can stop it"
    return evaluation


def show(evaluation: Evaluation, model: str, recipe: Recipe, *, as_json: bool) -> None:
    """Prints an evaluation as a table, or as one JSON object."""
    if as_json:
        print(json.dumps({"model": model, "recipe": recipe.name, **evaluation.metrics}))
        return
    console = Console()
    console.print(f"{model} on {recipe.name}", style="bold", highlight=False)
    console.print(evaluation.table)


def _own_recipe(model: str) -> Recipe | None:
    path = Path(model) / "recipe.yaml"
    return recipe_from_yaml(path) if path.is_file() else None


def _load(model: str, recipe: Recipe) -> torch.nn.Module:
    if os.sep in model and not Path(model).is_dir():
        raise UserError(f"model {model}: no such folder")
    try:
        module = AutoModelForSemanticSegmentation.from_pretrained(model)
    except (OSError, ValueError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"model {model}: cannot be loaded ({reason})") from error
    names = [module.config.id2label[index] for index in range(module.config.num_labels)]
    if names != list(recipe.labels.names):
        wanted = recipe.labels.names
        raise UserError(
            f"model {model}: its {len(names)} classes ({', '.join(names[:3])}, ...) are not the "
            f"{len(wanted)} of the recipe's labels ({', '.join(wanted[:3])}, ...)"
        )
    return module.float()
