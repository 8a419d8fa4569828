"""Scores a saved model folder: the table that training printed, from the folder alone."""

import json
import os
import warnings
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import torch
from rich.console import Console
from transformers import PreTrainedModel

from finetune.data.presets import SYNONYMS
from finetune.errors import UserError
from finetune.inference.models import load_config, load_model, load_preprocessing
from finetune.inference.preprocessing import Preprocessing
from finetune.parallel import device, set_threads
from finetune.recipe import Recipe, recipe_from_yaml
from finetune.trainers import Evaluation
from finetune.trainers.segmentation import SegmentationTask, protocol_of

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def evaluate(model: str, recipe: Recipe, overridden: Iterable[str] = ()) -> Evaluation:
    """Evaluates a model folder (or Hub id) on a recipe's validation split.

    Images are shown to it as the folder says, in the precision of its own `recipe.yaml` if it has
    one. A stock folder says only what stock can do, which is not what the published scores were
    measured with: of it only mean and deviation are taken, the rest is the recipe's. Data, labels
    and batch size are the recipe's.

    Args:
        model: the folder or id.
        recipe: resolved.
        overridden: keys of the recipe's `evaluation` that count whatever the folder says.

    Raises:
        UserError: the folder cannot be read, or its classes are not the recipe's.
    """
    module, own = _load(model, recipe)
    if getattr(module.config, "finetune_eval", None) is None:
        protocol = protocol_of(recipe)
    else:
        names = {*overridden} - {"batch_size"}
        names |= {"stride"} if "window" in names else set()
        chosen = {name: getattr(recipe.evaluation, name) for name in names}
        protocol = replace(own.protocol, **chosen)
    preprocessing = replace(own, protocol=protocol)
    recipe = _in_precision_of(model, recipe)
    task = SegmentationTask(recipe, preprocessing)
    data = recipe.data
    wanted = protocol_of(recipe), tuple(data.image_mean), tuple(data.image_std)
    if (protocol, own.image_mean, own.image_std) != wanted:
        warnings.warn(
            f"scored as the model's folder shows images ({protocol.describe()}; its mean and std), "
            "not as the recipe says; name evaluation.KEY=VALUE to have it otherwise",
            stacklevel=2,
        )
    set_threads(recipe.train.threads)
    module.to(device())  # type: ignore[arg-type]
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


def _in_precision_of(model: str, recipe: Recipe) -> Recipe:
    path = Path(model) / "recipe.yaml"
    if not path.is_file():
        return recipe
    precision = recipe_from_yaml(path).train.precision
    return recipe.model_copy(
        update={"train": recipe.train.model_copy(update={"precision": precision})}
    )


def _load(model: str, recipe: Recipe) -> tuple[PreTrainedModel, Preprocessing]:
    what = f"model {model}"
    if os.sep in model and not Path(model).exists():
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
    if [SYNONYMS.get(name, name) for name in names] != [SYNONYMS.get(n, n) for n in wanted]:
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
    return module, load_preprocessing(model, what, config)
