"""`finetune eval`: scores a saved model folder, from the folder alone."""

import json
import warnings
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import torch
from rich.console import Console

from finetune.inference import InferenceProtocol, Segmenter
from finetune.machine import set_threads
from finetune.recipe import Recipe, recipe_from_yaml
from finetune.trainers import Evaluation, Share
from finetune.trainers.tasks import task_of

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def evaluate(model: str, recipe: Recipe, overridden: Iterable[str] = ()) -> Evaluation:
    """Evaluates a model folder (or Hub id) on a recipe's validation split.

    The folder decides how images are shown, and its own `recipe.yaml`, if there is one, the
    precision. A stock folder states only stock's protocol, and the published scores were measured
    with another. So only mean and deviation come from a stock folder, and the rest from the recipe.
    Data, labels and batch size are always the recipe's.

    Args:
        model: the folder or id.
        recipe: resolved.
        overridden: keys of the recipe's `evaluation` that override the folder's; "" stands for all
            of them.

    Raises:
        UserError: the folder cannot be read, or its classes are not the recipe's.
    """
    segmenter = Segmenter.load(model)
    task_of(recipe).check_model(segmenter, f"model {model}")
    own = segmenter.preprocessing
    if getattr(segmenter.model.config, "finetune_eval", None) is None:
        protocol = recipe.evaluation.protocol
    else:
        keys = set(InferenceProtocol.model_fields)
        names = keys if "" in overridden else keys & {*overridden}
        chosen = {name: getattr(recipe.evaluation, name) for name in names}
        protocol = recipe.evaluation.protocol if names == keys else own.protocol.replaced(**chosen)
    preprocessing = replace(own, protocol=protocol)
    if (path := Path(model) / "recipe.yaml").is_file():
        precision = recipe_from_yaml(path).train.precision
        train = recipe.train.model_copy(update={"precision": precision})
        recipe = recipe.model_copy(update={"train": train})
    task = task_of(recipe, preprocessing)
    data = recipe.data
    wanted = recipe.evaluation.protocol, tuple(data.image_mean), tuple(data.image_std)
    if (protocol, own.image_mean, own.image_std) != wanted:
        warnings.warn(
            f"images are prepared as the model's folder says ({protocol.describe()}; its mean and "
            "std), not as the recipe says; evaluation.KEY=VALUE overrides the folder",
            stacklevel=2,
        )
    set_threads(recipe.train.threads)
    task.check_split(task.val_samples)
    dtype = DTYPES.get(recipe.train.precision)
    with torch.autocast(segmenter.device.type, dtype=dtype, enabled=dtype is not None):
        evaluation = task.evaluate(segmenter.model, Share(), stop=lambda: False)
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
