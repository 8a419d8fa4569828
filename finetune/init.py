"""`finetune init`: a folder of images and masks to a recipe that trains as it stands.

What was seen is a comment in the recipe, and so is what was assumed; a folder that may be meant in
several ways is a question on a terminal, and a mistake elsewhere.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np

from finetune.data.channels import guess_channels
from finetune.data.guess import guess, with_preset
from finetune.data.inspection import LabelGuess
from finetune.data.recognise import Layout, recognise
from finetune.data.samples import upright_sizes
from finetune.data.sources import open_split
from finetune.errors import UserError
from finetune.parallel import device
from finetune.recipe import Recipe, load_recipe, to_yaml

MAX_CROP = 512
SMALLEST_CROP = 64
STEPS_CPU, STEPS_GPU = 2000, 20_000
EPOCHS = 60
"""At most: small sets are seen that often."""


@dataclass(frozen=True)
class Draft:
    """A recipe and what to say about it."""

    text: str
    recipe: Recipe
    found: tuple[str, ...]
    assumed: tuple[str, ...]


def draft(root: Path, output: Path, choose: Callable[[Sequence[Layout]], Layout]) -> Draft:
    """Looks at a folder, writes the recipe to `output` and reads it back.

    Args:
        root: The folder.
        output: The recipe's file, which must not exist.
        choose: Takes one of several layouts, or raises a UserError.

    Raises:
        UserError: `output` exists; or what the folder holds is not known, or makes no sense.
    """
    if output.exists():
        raise UserError(f"{output}: exists; it is not overwritten. Choose another with -o.")
    root = root.expanduser().absolute()
    layouts = recognise(root)
    layout = layouts[0] if len(layouts) == 1 else choose(layouts)
    labels = guess(root, layout)
    images = _images(layout, labels)
    sizes = np.array(upright_sizes(images))
    channels = guess_channels(images)
    found = [*layout.found, *labels.found, _described(sizes), *channels.found]
    assumed = [*layout.assumed, *labels.assumed, *channels.assumed]
    training, reasons = _training(sizes)
    training["model"] = {**channels.model, **training["model"]}
    data = {**layout.data, **channels.data}
    sections = {"data": data, "labels": labels.labels, **training}
    lines = [
        f"# Written by `finetune init` for {root.name}.",
        "# Seen:",
        *(f"# - {line}" for line in found),
        "# Assumed, change what is wrong:",
        *(f"# - {line}" for line in [*assumed, *reasons]),
    ]
    text = "\n".join(lines) + "\n" + to_yaml(sections)
    output.parent.mkdir(parents=True, exist_ok=True)
    new = output.with_name(f".{output.stem}.new.yaml")
    new.write_text(text, encoding="utf-8")
    try:
        load_recipe(new)
    except UserError:
        new.unlink()
        raise
    new.replace(output)
    return Draft(text, load_recipe(output), tuple(found), (*assumed, *reasons))


def _images(layout: Layout, labels: LabelGuess) -> datasets.Dataset:
    """The training split."""
    recipe = Recipe.model_validate({"data": layout.data, "labels": with_preset(labels.labels)})
    return open_split(recipe.data, recipe.labels.build(), recipe.data.train_split)


def _described(sizes: np.ndarray) -> str:
    (height, width), count = np.median(sizes, axis=0).astype(int), len(sizes)
    same = (sizes == sizes[0]).all()
    return f"{count} images to train on, {height} x {width}" + ("" if same else " (median)")


def _training(sizes: np.ndarray) -> tuple[dict[str, Any], list[str]]:
    """Crop, batch and steps for the images and the device at hand."""
    on_gpu = device().type == "cuda"
    shorter = np.median(sizes.min(axis=1))
    limit = MAX_CROP if on_gpu else MAX_CROP // 2
    side = int(min(limit, max(SMALLEST_CROP, shorter // 32 * 32)))
    batch = min(16 if on_gpu else 8, len(sizes))
    steps = STEPS_GPU if on_gpu else STEPS_CPU
    steps = int(max(100, min(steps, EPOCHS * len(sizes) // batch)))
    train: dict[str, Any] = {
        "steps": steps,
        "global_batch": batch,
        "warmup_steps": min(200, steps // 10),
        "eval_every": max(50, steps // 8),
        "lr": 1.0e-3,
        "head_lr_multiplier": 1,
        "clip_norm": 1.0,
    }
    if on_gpu:
        train["precision"] = "bf16"
    sections = {
        "model": {"drop_path_rate": 0},
        "augment": {"crop": [side, side]},
        "train": train,
    }
    where = "a GPU" if on_gpu else "a CPU"
    reasons = [
        f"B0 from scratch on {where}: crops of {side}, batches of {batch}, {steps} steps",
        "with pretrained weights (model.init) take train.lr=6e-5 train.head_lr_multiplier=10",
    ]
    return sections, reasons
