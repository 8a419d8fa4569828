"""A folder's layout to the `labels:` block of a recipe: what its masks mean."""

from pathlib import Path
from typing import Any

from finetune.data.classes import find_class_list
from finetune.data.coco import read_annotations
from finetune.data.faults import Fault
from finetune.data.inspection import LabelGuess, guess_labels, inspect
from finetune.data.labels import Labels
from finetune.data.layouts import read_data_yaml
from finetune.data.presets import PRESETS
from finetune.data.recognise import Layout
from finetune.data.sources import open_split
from finetune.recipe import DataSection

PRESET_OF = {
    "ade20k": "ade20k",
    "cityscapes": "cityscapes",
    "voc": "voc",
    "coco-stuff": "coco-stuff",
}


def guess(root: Path, layout: Layout, faults: list[Fault] | None = None) -> LabelGuess:
    """What the masks of a folder mean, by its layout, a list beside them, or what they hold.

    Args:
        root: The folder.
        layout: How it is laid out.
        faults: Takes files without a partner, and such; masks that cannot be read, or are of
            another kind than most, are then passed over. With None they are an error.

    Raises:
        UserError: The files say nothing, or make no sense.
    """
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
    files = [Path(reference) for reference in _references(layout, faults)]
    listed = find_class_list([root, *sorted({file.parent for file in files[:1]})])
    values = inspect(files, lenient=faults is not None)
    return guess_labels(values, listed)


def _references(layout: Layout, faults: list[Fault] | None) -> list[str]:
    """References of the masks of both splits, before their labels are known."""
    data = DataSection.model_validate(layout.data)
    anything = Labels.build(["0", "1"], unknown="ignore")
    names = (data.train_split, data.val_split)
    splits = [open_split(data, anything, name, faults=faults) for name in names]
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


def with_preset(labels: dict[str, Any]) -> dict[str, Any]:
    """A `labels:` block with the values of its preset, if it names one."""
    return {**PRESETS.get(labels.get("preset", ""), {}), **labels}
