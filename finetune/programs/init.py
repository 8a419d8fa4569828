"""`finetune init`: a folder of images and masks becomes a recipe that trains as it stands.

Comments in the recipe list findings and assumptions. If a folder may have several
layouts, a terminal asks; elsewhere that is the user's mistake. The JSON Schema is written beside
the recipe, for editors.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import yaml

from finetune.data.samples import preflight, upright_sizes, with_channels
from finetune.data.sources.opening import open_split
from finetune.discover.channels import NUM_IMAGES, ChannelGuess, guess_channels, some_images
from finetune.discover.labels.guesses import LabelGuess
from finetune.discover.labels.known_labels import with_preset
from finetune.discover.labels.layout_labels import guess
from finetune.discover.recognise import Layout, recognise, table
from finetune.disk import check_folder, make_folder, write_whole
from finetune.errors import UserError
from finetune.machine import device
from finetune.pictures.reading import image_size
from finetune.recipe import SCHEMA_FILE, Recipe, recipe_from_values, recipe_schema, to_yaml

MAX_CROP = 512
SMALLEST_CROP = 64
NUM_SIZES = 1000
"""Images whose sizes decide the crop."""
STEPS_CPU, STEPS_GPU = 2000, 20_000
EPOCHS = 60
"""Most epochs, for small data sets."""


@dataclass(frozen=True)
class Draft:
    """A recipe, with lines about findings and assumptions."""

    text: str
    recipe: Recipe
    found: tuple[str, ...]
    assumed: tuple[str, ...]
    doubts: tuple[str, ...] = ()


def draft(
    root: Path,
    output: Path,
    choose: Callable[[Sequence[Layout]], Layout],
    accept: Callable[[Sequence[str]], None] = lambda doubts: None,
    *,
    two_values: bool = False,
) -> Draft:
    """Looks at a folder and writes the recipe to `output`.

    Args:
        root: The folder.
        output: The recipe's file, .yaml or .yml, which must not exist.
        choose: Takes one of the layouts (one or more), or raises a UserError.
        accept: Is shown the doubts about the labels, if there are any, before the recipe is
            written; it may raise a UserError.
        two_values: Reads masks as two classes, with a doubt, if damage hides what was painted and
            it may be two values. Not if several layouts fit.

    Raises:
        UserError: `output` exists, or the folder's content is unknown or contradicts itself.
    """
    _check_output(output)
    root = root.expanduser().absolute()
    layouts = recognise(root)
    two_values = two_values and len(layouts) == 1
    return _written(choose(layouts), root, output, accept, two_values)


def draft_from_table(path: str, output: Path, *, revision: str | None = None) -> Draft:
    """The same for a table elsewhere, from its columns and first rows.

    Args:
        path: A Hub id, or an address that fsspec understands.
        output: The recipe's file, .yaml or .yml, which must not exist.
        revision: Branch, tag or commit of a Hub id.

    Raises:
        UserError: As for `draft`, or the table cannot be opened.
    """
    _check_output(output)
    return _written(table(path, revision), Path(path), output)


def _check_output(output: Path) -> None:
    if output.suffix not in (".yaml", ".yml"):
        raise UserError(f"{output}: a recipe's name ends in .yaml. Choose another name with -o.")
    if output.exists():
        raise UserError(f"{output}: exists and is not overwritten. Choose another name with -o.")
    check_folder(output.parent)


def _written(
    layout: Layout,
    root: Path,
    output: Path,
    accept: Callable[[Sequence[str]], None] = lambda doubts: None,
    two_values: bool = False,
) -> Draft:
    labels = guess(root, layout, two_values=two_values)
    count: int | None
    if layout.table is not None and not layout.table.is_here:
        first = [image for image, _ in layout.table.pictures]
        sizes, count = np.array([image_size(picture) for picture in first]), layout.table.count
        channels = guess_channels(first[:NUM_IMAGES])
    else:
        images, channels = _images(layout, labels)
        count = len(images)
        some = np.linspace(0, count - 1, min(NUM_SIZES, count)).round().astype(int)
        sizes = np.array(upright_sizes(images.select(some)))
    found = [*layout.found, *labels.found, _described(sizes, count), *channels.found]
    assumed = [*layout.assumed, *labels.assumed, *channels.assumed]
    training, reasons = _training(sizes, count)
    training["model"] = {**channels.model, **training["model"]}
    data = {**layout.data, **channels.data}
    sections = {"data": data, "labels": labels.labels, **training}
    lines = [
        # Beside the recipe: an editor opens no files of a package and, offline, no URL.
        f"# yaml-language-server: $schema=./{SCHEMA_FILE}",
        f"# Written by `finetune init` for {root.name}.",
        *(["# Doubtful (look at the masks before you train):"] if labels.doubts else []),
        *(f"# - {line}" for line in labels.doubts),
        "# Seen:",
        *(f"# - {line}" for line in found),
        "# Assumed (change what is wrong):",
        *(f"# - {line}" for line in [*assumed, *reasons]),
    ]
    # Comments are one line each, but file names may hold any character, even a newline.
    lines = ["".join(c if c.isprintable() else "?" for c in line) for line in lines]
    text = "\n".join(lines) + "\n" + to_yaml(sections)
    recipe = recipe_from_values(yaml.safe_load(text), output)
    if labels.doubts:
        accept(labels.doubts)
    make_folder(output.parent)
    write_whole(output.with_name(SCHEMA_FILE), json.dumps(recipe_schema(), indent=1) + "\n")
    write_whole(output, text)
    return Draft(text, recipe, tuple(found), (*assumed, *reasons), labels.doubts)


def _images(layout: Layout, labels: LabelGuess) -> tuple[datasets.Dataset, ChannelGuess]:
    """The training split and its channels, after a check of both splits' files."""
    recipe = Recipe.model_validate({"data": layout.data, "labels": with_preset(labels.labels)})
    built = recipe.labels.build()
    names = (recipe.data.train_split, recipe.data.val_split)
    splits = [open_split(recipe.data, built, name) for name in names]
    channels = guess_channels(some_images(splits[0]))
    number = channels.model.get("num_channels", recipe.model.num_channels)
    train, val = (with_channels(split, number) for split in splits)
    preflight(train)
    preflight(val)
    return train, channels


def _described(sizes: np.ndarray, count: int | None) -> str:
    height, width = np.median(sizes, axis=0).astype(int)
    median = "" if (sizes == sizes[0]).all() else " (median)"
    number = "" if count is None else f"{count} "
    return f"{number}training images, {height} x {width}{median}"


def _training(sizes: np.ndarray, count: int | None) -> tuple[dict[str, Any], list[str]]:
    """Crop, batch and steps for these images and this device, with the reasons."""
    on_gpu = device().type == "cuda"
    where, limit = ("a GPU", MAX_CROP) if on_gpu else ("a CPU", MAX_CROP // 2)
    batch, steps = (16, STEPS_GPU) if on_gpu else (8, STEPS_CPU)
    shorter = np.median(sizes.min(axis=1))
    side = int(min(limit, max(SMALLEST_CROP, shorter // 32 * 32)))
    if count is not None:
        batch = min(batch, count)
        steps = int(max(100, min(steps, EPOCHS * count // batch)))
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
    sections = {"model": {"drop_path_rate": 0}, "augment": {"crop": [side, side]}, "train": train}
    reasons = [
        f"B0 from scratch on {where}: crops of {side}, batches of {batch}, {steps} steps",
        "for pretrained weights (model.init) set train.lr=6e-5 train.head_lr_multiplier=10",
    ]
    return sections, reasons
