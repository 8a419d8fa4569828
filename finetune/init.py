"""`finetune init`: a folder of images and masks to a recipe that trains as it stands.

What was seen is a comment in the recipe, and so is what was assumed; a folder that may be meant in
several ways is a question on a terminal, and a mistake elsewhere.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np

from finetune.data.classes import find_class_list
from finetune.data.coco import read_annotations
from finetune.data.files import channels_to_keep, image_dtype, read_image
from finetune.data.inspection import LabelGuess, guess_labels, inspect
from finetune.data.labels import Labels
from finetune.data.layouts import read_data_yaml
from finetune.data.recognise import Layout, recognise
from finetune.data.samples import reader_of, upright_sizes
from finetune.data.sources import open_split
from finetune.errors import UserError
from finetune.parallel import device
from finetune.recipe import DataSection, Recipe, load_recipe, to_yaml

PRESET_OF = {
    "ade20k": "ade20k",
    "cityscapes": "cityscapes",
    "voc": "voc",
    "coco-stuff": "coco-stuff",
}
MAX_CROP = 512
SMALLEST_CROP = 64
STEPS_CPU, STEPS_GPU = 2000, 20_000
EPOCHS = 60
"""At most: small sets are seen that often."""
NUM_IMAGES = 50
"""Images whose channels are looked at."""


@dataclass(frozen=True)
class Draft:
    """A recipe and what to say about it."""

    text: str
    recipe: Recipe
    found: tuple[str, ...]
    assumed: tuple[str, ...]


@dataclass(frozen=True)
class ChannelGuess:
    """Keys of the `model:` and `data:` blocks, what was seen and what was decided."""

    model: dict[str, Any]
    data: dict[str, Any]
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
    labels = _labels(root, layout)
    images = _images(layout, labels)
    sizes = np.array(upright_sizes(images))
    channels = _channels(images)
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


def _labels(root: Path, layout: Layout) -> LabelGuess:
    source = layout.data["source"]
    if source == "cityscapes":
        return _cityscapes_labels(root)
    if source in PRESET_OF:
        preset = PRESET_OF[source]
        return LabelGuess({"preset": preset}, (f"classes of {preset}",), ())
    if source == "coco":
        return _coco_labels(layout)
    if source == "ultralytics":
        return _ultralytics_labels(layout)
    files = [Path(reference) for reference in _references(layout)]
    listed = find_class_list([root, *sorted({file.parent for file in files[:1]})])
    values = inspect(files)
    return guess_labels(values, listed)


def _references(layout: Layout) -> list[str]:
    """References of the masks of both splits, before their labels are known."""
    data = DataSection.model_validate(layout.data)
    anything = Labels.build(["0", "1"], unknown="ignore")
    splits = [open_split(data, anything, name) for name in (data.train_split, data.val_split)]
    return [mask for split in splits for mask in split.with_format(None)["mask"]]


def _cityscapes_labels(root: Path) -> LabelGuess:
    if any((root / "gtFine").rglob("*_labelTrainIds.png")):
        return LabelGuess({"preset": "cityscapes"}, ("masks of the 19 train ids",), ())
    found = "masks of the 34 label ids, translated by the official table"
    return LabelGuess({"preset": "cityscapes-label-ids"}, (found,), ())


def _coco_labels(layout: Layout) -> LabelGuess:
    file = Path(layout.data["path"]) / layout.data["annotations"].replace(
        "{split}", layout.data.get("train_split", "train")
    )
    content = read_annotations(file)
    used = {annotation.get("category_id") for annotation in content["annotations"]}
    categories = sorted(content["categories"], key=lambda category: category["id"])
    # Roboflow writes a category of everything, which no object has.
    empty = [c["name"] for c in categories if c["id"] not in used and c["id"] == 0]
    categories = [category for category in categories if category["name"] not in empty]
    names = list(dict.fromkeys(["background", *(category["name"] for category in categories)]))
    raw = {category["id"]: names.index(category["name"]) for category in categories}
    labels = {"names": names, "background": "background", "map": raw}
    assumed = ["what no object covers is a class, background (labels.background)"]
    if empty:
        assumed.append(f"the category {empty[0]}, which no object has, is left out")
    return LabelGuess(labels, (f"{len(categories)} categories in {file.name}",), tuple(assumed))


def _ultralytics_labels(layout: Layout) -> LabelGuess:
    path = Path(layout.data["path"])
    content = read_data_yaml(path / "data.yaml" if path.is_dir() else path)
    names = content["names"]
    found = (f"{len(names)} names in its `names`",)
    if content.get("masks_dir"):
        return LabelGuess({"names": names}, found, ("255 is no class and does not count",))
    if "background" in names:
        return LabelGuess({"names": names, "background": "background"}, found, ())
    labels = {"names": [*names, "background"], "background": "background"}
    assumed = "what no polygon covers is a class of its own, background (labels.background)"
    return LabelGuess(labels, found, (assumed,))


def _images(layout: Layout, labels: LabelGuess) -> datasets.Dataset:
    """The training split."""
    recipe = Recipe.model_validate({"data": layout.data, "labels": _without_preset(labels.labels)})
    return open_split(recipe.data, recipe.labels.build(), recipe.data.train_split)


def _channels(images: datasets.Dataset) -> ChannelGuess:
    """The sections for images that are more than RGB in 8 bit; mean and deviation as measured."""
    pictures, references = reader_of(images).pictures, images.with_format(None)["image"]
    spread = np.linspace(0, len(references) - 1, min(NUM_IMAGES, len(references)))
    chosen = [pictures.open(references[int(i)]) for i in spread]
    counts = Counter(channels_to_keep(picture) for picture in chosen)
    number = counts.most_common(1)[0][0]
    if number == 3:
        return ChannelGuess({}, {}, (), ())
    dtype = image_dtype(chosen[0], number)
    full, pixels, sums, squares = np.iinfo(dtype).max, 0, np.zeros(number), np.zeros(number)
    for picture in chosen:
        values = read_image(picture, number).reshape(-1, number) / full
        pixels += len(values)
        sums += values.sum(0)
        squares += np.square(values).sum(0)
    mean = sums / pixels
    std = np.sqrt(np.maximum(squares / pixels - np.square(mean), 0))
    data = {
        "image_mean": [float(f"{value:.4g}") for value in mean],
        # a channel that is the same everywhere has no deviation to divide by
        "image_std": [float(f"{value:.4g}") if value > 1e-6 else 1.0 for value in std],
    }
    bits = 8 * dtype.itemsize
    found = f"images have {number} channel{'s' * (number > 1)} of {bits} bit"
    assumed = f"mean and deviation a channel are those of {len(chosen)} images (data.image_mean)"
    return ChannelGuess({"num_channels": number}, data, (found,), (assumed,))


def _without_preset(labels: dict[str, Any]) -> dict[str, Any]:
    from finetune.data.presets import PRESETS

    return {**PRESETS.get(labels.get("preset", ""), {}), **labels}


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
