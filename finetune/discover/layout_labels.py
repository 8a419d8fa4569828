"""A folder's layout to the `labels:` block of a recipe: what its masks mean."""

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from finetune.data.faults import Fault
from finetune.data.faults import listed as shown
from finetune.data.sources.opening import open_split
from finetune.data.sources.ultralytics import read_data_yaml
from finetune.discover.class_lists import ClassList, find_class_list, is_background
from finetune.discover.layout import TableRows
from finetune.discover.mask_values import MaskValues, inspect
from finetune.discover.recognise import Layout
from finetune.discover.value_labels import LabelGuess, guess_labels
from finetune.errors import UserError
from finetune.labels.presets import PRESETS
from finetune.labels.rules import NO_LABEL
from finetune.labels.translation import Labels
from finetune.pictures.references import MASK_SUFFIXES
from finetune.recipe import DataSection

PRESETS_OF = {
    "ade20k": ("ade20k",),
    "camvid": ("camvid",),
    "cityscapes": ("cityscapes", "cityscapes-label-ids"),
    "coco-stuff": ("coco-stuff",),
    "voc": ("voc",),
}
"""Of the official layouts; of several, the one whose files are there."""
_FEWEST_VALUES = 3
_ALL_SEEN = 100
"""Masks in which half of a preset's classes come up, if it is theirs."""
_NOT_POLYGONS = ("classes.txt", "labels.txt", "readme.txt", "notes.txt")


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
    if source == "coco":
        return _coco_labels(layout)
    if source == "ultralytics":
        return _ultralytics_labels(layout, faults)
    if layout.classes:
        return _labels_of_files(layout)
    lenient = faults is not None
    if layout.table is not None:
        return _labels_of_table(layout.table, root, lenient)
    preset = _preset(root, source)
    files = [Path(reference) for reference in _references(layout, faults, preset)]
    folders = [root, Path(layout.data["path"]), *(file.parent for file in files[:1])]
    classes = find_class_list(list(dict.fromkeys(folders)))
    values = inspect(files, lenient=lenient)
    if preset is not None:
        reason = _against(preset, values, classes, lenient)
        if not reason:
            return _of_preset(preset, values)
        if source == "cityscapes":
            raise UserError(
                f"{root}: these are Cityscapes' folders and names of files, but {reason}."
            )
        values = MaskValues(
            **{**vars(values), "assumed": (*values.assumed, f"not the preset {preset}: {reason}")}
        )
    return guess_labels(values, classes)


def _references(layout: Layout, faults: list[Fault] | None, preset: str | None = None) -> list[str]:
    """References of the masks of both splits, before their labels are known."""
    data = DataSection.model_validate(layout.data)
    names = (data.train_split, data.val_split)
    try:
        splits = [open_split(data, _anything(preset), name, faults=faults) for name in names]
    except UserError:
        if data.source != "folder" or preset is not None:
            raise
        # Only masks of colours may be in files that keep no ids.
        colors = Labels.build(
            ["0", "1"], colors=[(0, 0, 0), (1, 1, 1)], kind="colors", unknown="ignore"
        )
        try:
            splits = [open_split(data, colors, name) for name in names]
        except UserError:
            splits = []
        files = [Path(mask) for split in splits for mask in split.with_format(None)["mask"][:]]
        if not files or all(file.suffix.lower() in MASK_SUFFIXES for file in files):
            raise
    return [mask for split in splits for mask in split.with_format(None)["mask"][:]]


def _anything(preset: str | None) -> Labels:
    """Labels that take any value, but choose the files of a preset."""
    if preset is None:
        return Labels.build(["0", "1"], unknown="ignore")
    return Labels.build(**{**PRESETS[preset], "unknown": "ignore"})


# ------------------------------------------------------------------------------------------ presets


def _preset(root: Path, source: str) -> str | None:
    presets = PRESETS_OF.get(source)
    if source == "cityscapes" and not any((root / "gtFine").rglob("*_gtFine_labelTrainIds.png")):
        return "cityscapes-label-ids"
    return presets[0] if presets else None


def _against(preset: str, values: MaskValues, classes: ClassList | None, lenient: bool) -> str:
    """What speaks against a preset whose folders these are; "" if nothing does.

    Anybody may name folders as a known data set does.
    """
    names: list[str] = PRESETS[preset]["names"]
    if values.kind != "ids":
        return "masks hold colours"
    if classes is not None and {name.lower() for name in classes.names} - {
        *(name.lower() for name in names),
        *(name for name in map(str.lower, classes.names) if is_background(name)),
    }:
        return f"{classes.file.name} lists other classes"
    rules = dict(Labels.build(**PRESETS[preset]).rules)
    strangers = sorted(values.counts.keys() - rules.keys() - set(NO_LABEL))
    if strangers and not lenient:
        return f"masks hold {', '.join(map(str, strangers[:3]))}, which it does not have"
    if preset.startswith("cityscapes"):  # whose names of files say enough
        return ""
    seen = len(values.counts.keys() & {raw for raw, i in rules.items() if 0 <= i < len(names)})
    expected = max(_FEWEST_VALUES, len(names) * min(0.5, values.num_masks / _ALL_SEEN))
    if len(values.counts.keys() & rules.keys()) < _FEWEST_VALUES or seen < min(
        expected, len(names) - 1
    ):
        return f"only {seen} of its {len(names)} classes come up in {values.num_masks} masks"
    return ""


def _of_preset(preset: str, values: MaskValues) -> LabelGuess:
    found = {
        "cityscapes": "masks of the 19 train ids",
        "cityscapes-label-ids": "masks of the 34 label ids, translated by the official table",
    }.get(preset, f"masks hold ids that fit the classes of {preset}")
    labels: dict[str, Any] = {"preset": preset}
    assumed = [f"names of classes are those of {preset}, by the names of its folders"]
    own = Labels.build(**PRESETS[preset])
    known = {raw for raw, _ in own.rules}
    if more := sorted(values.counts.keys() & set(NO_LABEL) - known):
        ignored = {raw for raw, i in own.rules if i == own.ignore_index and raw >= 0}
        labels["ignore"] = sorted({*PRESETS[preset].get("ignore", ignored), *more})
        assumed.append(f"{more[0]} is no class and does not count")
    return LabelGuess(labels, (found,), tuple(assumed))


# ------------------------------------------------------------------------------------------ objects


def _labels_of_table(rows: TableRows, root: Path, lenient: bool) -> LabelGuess:
    if rows.labels is not None:
        return LabelGuess(rows.labels, ("classes of its index",), ())
    values = inspect([mask for _, mask in rows.pictures], lenient=lenient)
    return guess_labels(values, find_class_list([root]) if rows.is_here else None)


def _labels_of_files(layout: Layout) -> LabelGuess:
    names, background, assumed = _with_background(layout.classes, "file")
    assumed.append("where files of several classes claim a pixel, the last of labels.names has it")
    labels = {"names": names, "background": background, "ignore": []}
    return LabelGuess(labels, (), tuple(assumed))


def _with_background(names: Sequence[str], thing: str) -> tuple[list[str], str, list[str]]:
    """Names with one of what no object covers, that one, and what to say about it."""
    background = next((name for name in names if name.lower() == "background"), None)
    if background is not None:
        return [*names], background, [f"what no {thing} covers is of the class {background}"]
    assumed = f"what no {thing} covers is a class of its own, background (labels.background)"
    return [*names, "background"], "background", [assumed]


def _coco_labels(layout: Layout) -> LabelGuess:
    """Classes by category ids, over the files of all splits.

    Raises:
        UserError: An id has two names.
    """
    names_of: dict[int, tuple[str, Path]] = {}
    for own in layout.categories:
        for number, name in own.names.items():
            first, file = names_of.setdefault(number, (name, own.file))
            if first != name:
                raise UserError(
                    f"{own.file}: calls category {number} {name!r}, but {file} calls it {first!r}. "
                    "Ids must mean the same in the files of all splits: export them together."
                )
    used = frozenset().union(*(own.used for own in layout.categories))
    # Roboflow writes a category of everything, which no object has.
    left_out = {number for number in names_of if number == 0 and number not in used}
    kept = {n: name for n, (name, _) in sorted(names_of.items()) if n not in left_out}
    names, background, assumed = _with_background(list(dict.fromkeys(kept.values())), "object")
    names = [background, *(name for name in names if name != background)]
    labels = {
        "names": names,
        "background": background,
        "map": {number: names.index(name) for number, name in kept.items()},
        "ignore": [],
    }
    if left_out:
        assumed.append(f"the category 0, {names_of[0][0]}, which no object has, is left out")
    by_name: dict[str, list[int]] = defaultdict(list)
    for number, name in kept.items():
        by_name[name].append(number)
    for name, numbers in by_name.items():
        if len(numbers) > 1:
            assumed.append(f"the categories {', '.join(map(str, numbers))} are one, {name}")
    files = " and ".join(own.file.name for own in layout.categories[:1])
    more = f" and {len(layout.categories) - 1} more" if len(layout.categories) > 1 else ""
    found = f"{len(kept)} categories in {files}{more}"
    return LabelGuess(labels, (found,), tuple(assumed))


def _ultralytics_labels(layout: Layout, faults: list[Fault] | None) -> LabelGuess:
    path = Path(layout.data["path"])
    content = read_data_yaml(path / "data.yaml" if path.is_dir() else path)
    names = content["names"]
    found = [f"{len(names)} names in its `names`"]
    if content.get("masks_dir"):
        return LabelGuess({"names": names}, tuple(found), ("255 is no class and does not count",))
    named, background, assumed = _with_background(names, "polygon")
    # By this map the number behind the last of `names` is nothing, and not the background.
    labels = {
        "names": named,
        "background": background,
        "map": {i: i for i in range(len(names))},
        "ignore": [],
    }
    texts = [Path(text) for text in _references(layout, faults)]
    missing = [text for text in texts if not text.is_file()]
    found.append(f"{len(missing)} of {len(texts)} images have no text file, and so no polygons")
    if 2 * len(missing) > len(texts):
        assumed.append(
            f"images without a text file, such as that of {missing[0].name}, show nothing but "
            f"{background}"
        )
    _refuse_texts_alone(texts, faults)
    return LabelGuess(labels, tuple(found), tuple(assumed))


def _refuse_texts_alone(texts: Sequence[Path], faults: list[Fault] | None) -> None:
    """Refuses text files of polygons that belong to no image, unless `faults` is there."""
    expected = set(texts)
    alone = sorted(
        file
        for folder in {text.parent for text in texts if text.is_file()}
        for file in folder.glob("*.txt")
        if file not in expected and file.name.lower() not in _NOT_POLYGONS
    )
    if alone and faults is None:
        raise UserError(
            f"{len(alone)} text files of polygons have no image: {shown([str(f) for f in alone])}. "
            "Add the images, or remove these files."
        )


def with_preset(labels: dict[str, Any]) -> dict[str, Any]:
    """A `labels:` block with the values of its preset, if it names one."""
    return {**PRESETS.get(labels.get("preset", ""), {}), **labels}
