"""The `labels:` block of a layout: what its masks mean."""

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from finetune.data.faults import Fault
from finetune.data.faults import listed as shown
from finetune.data.samples import preflight
from finetune.data.sources.opening import open_split
from finetune.data.sources.ultralytics import has_image, meanings, read_data_yaml
from finetune.discover.labels.guesses import LabelGuess
from finetune.discover.labels.known_labels import known_labels, names_alone, official_preset
from finetune.discover.labels.value_labels import guess_labels
from finetune.discover.recognise import Layout
from finetune.discover.values.class_lists import ClassList, find_class_list
from finetune.discover.values.damage import REACH
from finetune.discover.values.mask_values import MaskValues, inspect
from finetune.errors import UserError
from finetune.labels.presets import PRESETS
from finetune.labels.rules import UNCOUNTED, is_outside
from finetune.labels.translation import Labels
from finetune.pictures.references import LOSSY_SUFFIXES, MASK_SUFFIXES
from finetune.recipe import read_data

_NOT_POLYGONS = ("classes.txt", "labels.txt", "readme.txt", "notes.txt")


def guess(
    root: Path, layout: Layout, faults: list[Fault] | None = None, *, two_values: bool = False
) -> LabelGuess:
    """The labels of a folder, from its layout, a list of classes, or the values of its masks.

    Args:
        root: The folder.
        layout: How it is laid out.
        faults: Takes files without a partner and similar faults. Masks that cannot be read, or are
            of another kind than most, are then skipped. With None they are an error.
        two_values: See `value_labels.guess_labels`.

    Raises:
        UserError: The files tell nothing, or contradict each other.
    """
    source = layout.data["source"]
    if source in ("coco", "kaggle-rle"):
        return _coco_labels(layout)
    if source == "coco-panoptic":
        return _panoptic_labels(layout, faults)
    if source == "ultralytics":
        return _ultralytics_labels(layout, faults)
    if source in ("label-studio", "labelme", "supervisely", "via"):
        has_list = source in ("label-studio", "labelme")
        listed = find_class_list([root]) if has_list else None
        known = listed is not None and set(layout.classes) <= set(listed.names)
        own = listed.names if listed is not None and known else layout.classes
        names, background, assumed = _with_background(own, "shape")
        lines = [f"names of classes in {listed.file.name}"] if listed and known else []
        labels = {"names": names, "background": background, "ignore": []}
        return LabelGuess(labels, tuple(lines), tuple(assumed))
    if source == "cvat":
        names, background, assumed = _with_background(layout.classes, "shape")
        block: dict[str, Any] = {"names": names, "background": background, "ignore": []}
        colors = {background: (0, 0, 0), **layout.colors}
        if set(names) <= set(colors):
            block["colors"] = [list(colors[name]) for name in names]
        return LabelGuess(block, (f"{len(layout.classes)} labels of CVAT",), tuple(assumed))
    if source == "celebamask-hq":  # the names of its files were compared with the classes
        labels = dict(layout.known[0][1])
        overlap = "where parts overlap, the last of labels.names wins"
        return LabelGuess(labels, ("one file per part of a face",), (overlap,))
    if layout.classes:
        names, background, assumed = _with_background(layout.classes, "file")
        assumed.append("where files of several classes overlap, the last of labels.names wins")
        labels = {"names": names, "background": background, "ignore": []}
        return LabelGuess(labels, (), tuple(assumed))
    lenient = faults is not None
    if (rows := layout.table) is not None:
        if rows.labels is not None:
            return LabelGuess(rows.labels, ("classes of its index",), ())
        values = inspect([mask for _, mask in rows.pictures], lenient=lenient)
        return _guess_of(values, find_class_list([root]) if rows.is_here else None, two_values)
    preset = official_preset(root, source)
    files = [Path(reference) for reference in _references(layout, faults, preset)]
    folders = [root, root / "classes", Path(layout.data["path"])]
    folders += [file.parent for file in files[:1]]
    classes = layout.listed or find_class_list(list(dict.fromkeys(folders)))
    values = inspect(files, lenient=lenient)
    blocks = layout.known if preset is None else ((preset, {"preset": preset}),)
    fitting, reasons = known_labels(blocks, values, classes, lenient)
    if fitting is not None:
        return fitting
    if source == "cityscapes":
        raise UserError(
            f"{root}: has the folders and file names of Cityscapes, but they are {reasons[0]}. "
            "Correct the masks, or rename the folders."
        )
    values = replace(values, assumed=(*values.assumed, *reasons))
    listed = classes or names_alone(layout)
    return _lossy(files, values, _guess_of(values, listed, two_values))


def _guess_of(values: MaskValues, listed: ClassList | None, two_values: bool) -> LabelGuess:
    """The guess of the ids that may be classes; the others are ignored, and named."""
    counts = Counter({v: number for v, number in values.counts.items() if v not in values.absent})
    guess = guess_labels(replace(values, counts=counts), listed, two_values=two_values)
    if UNCOUNTED in values.absent:
        line = "pixels that GDAL's tag calls 'no data' are ignored"
        guess = replace(guess, found=(*guess.found, line))
    if not (absent := sorted(values.absent - {UNCOUNTED})):
        return guess
    own = guess.labels.get("ignore", [255] if len(guess.labels["names"]) <= 255 else [])
    labels = {**guess.labels, "ignore": [*own, *(value for value in absent if value not in own)]}
    line = f"{', '.join(map(str, absent))}: no class (negative, or GDAL's 'no data'), so ignored"
    return replace(guess, labels=labels, assumed=(*guess.assumed, line))


def _lossy(files: Sequence[Path], values: MaskValues, guess: LabelGuess) -> LabelGuess:
    """Lets lossy files hold ids only with a tolerance."""
    lossy = [file for file in files if file.suffix.lower() in LOSSY_SUFFIXES]
    if not lossy or values.kind == "colors" or "tolerance" in guess.labels:
        return guess
    gap = int(np.diff(sorted(values.counts)).min(initial=255))
    if gap > 2 * REACH:  # undamaged by luck; other masks may not be
        return replace(guess, labels={**guess.labels, "tolerance": min(127, gap // 2)})
    raise UserError(
        f"{lossy[0]}: JPEG and WebP change the values of pixels, so ids in them are damaged. "
        f"Export the masks as PNG ({', '.join(MASK_SUFFIXES)} are read)."
    )


def _references(layout: Layout, faults: list[Fault] | None, preset: str | None = None) -> list[str]:
    """References to the masks of both splits, before their labels are known."""
    data = read_data(layout.data)
    names = (data.train_split, data.val_split)
    # Labels that accept any value, and choose the files of a preset.
    rules = {"names": ["0", "1"]} if preset is None else PRESETS[preset]
    anything = Labels.build(**{**rules, "unknown": "ignore"})
    try:
        splits = [open_split(data, anything, name, faults=faults) for name in names]
    except UserError:
        if data.source != "folder" or preset is not None:
            raise
        # Only masks of colours may be in lossy files.
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


# ------------------------------------------------------------------------------------------ objects


def _with_background(names: Sequence[str], thing: str) -> tuple[list[str], str, list[str]]:
    """The names with a background class, that class, and lines about it."""
    outside = sorted(filter(is_outside, names), key="background".__ne__)
    background = next(iter(outside), None)
    if background is not None:
        return [*names], background, [f"pixels outside of every {thing} are {background}"]
    assumed = f"pixels outside of every {thing} are a new class, background (labels.background)"
    return [*names, "background"], "background", [assumed]


def _coco_labels(layout: Layout) -> LabelGuess:
    """Classes by category id, from the files of all splits."""
    kept, found, assumed = _categories(layout)
    names, background, more = _with_background(list(dict.fromkeys(kept.values())), "object")
    names = [background, *(name for name in names if name != background)]
    ids = {number: names.index(name) for number, name in kept.items()}
    labels = {"names": names, "background": background, "map": ids, "ignore": []}
    return LabelGuess(labels, (found,), (*more, *assumed))


def _panoptic_labels(layout: Layout, faults: list[Fault] | None) -> LabelGuess:
    """Classes by category id, things and stuff; some PNGs are read, for their segments."""
    kept, found, assumed = _categories(layout)
    names = list(dict.fromkeys(kept.values()))
    ids = {number: names.index(name) for number, name in kept.items()}
    labels: dict[str, Any] = {"names": names, "map": ids, "ignore": []}
    if faults is None:
        data = read_data(layout.data)
        for split in dict.fromkeys((data.train_split, data.val_split)):
            preflight(open_split(data, Labels.build(**labels), split))
    assumed += [
        "pixels of segment 0 have no label and are ignored",
        "segments with iscrowd 1 count as their category",
    ]
    return LabelGuess(labels, (found,), tuple(assumed))


def _categories(layout: Layout) -> tuple[dict[int, str], str, list[str]]:
    """The names of the categories that are classes, with what was found and assumed."""
    names_of: dict[int, tuple[str, Path]] = {}
    for own in layout.categories:
        for number, name in own.names.items():
            known, file = names_of.setdefault(number, (name, own.file))
            if known != name:
                raise UserError(
                    f"{own.file}: category {number} is {name!r}, but in {file} it is {known!r}. "
                    "Ids must mean the same in all files: export the splits together."
                )
    used = frozenset().union(*(own.used for own in layout.categories))
    # Roboflow writes a category of all categories, which no object has.
    left_out = {number for number in names_of if number == 0 and number not in used}
    kept = {n: name for n, (name, _) in sorted(names_of.items()) if n not in left_out}
    assumed = []
    if left_out:
        assumed.append(f"category 0, {names_of[0][0]}, is left out: no object has it")
    by_name: dict[str, list[int]] = defaultdict(list)
    for number, name in kept.items():
        by_name[name].append(number)
    for name, numbers in by_name.items():
        if len(numbers) > 1:
            assumed.append(f"categories {', '.join(map(str, numbers))} are one class, {name}")
    first, *others = (own.file.name for own in layout.categories)
    more = f" and {len(others)} more" if others else ""
    return kept, f"{len(kept)} categories in {first}{more}", assumed


def _ultralytics_labels(layout: Layout, faults: list[Fault] | None) -> LabelGuess:
    path = Path(layout.data["path"])
    file = path / "data.yaml" if path.is_dir() else path
    content = read_data_yaml(file)
    names = content["names"]
    found = [f"{len(names)} names in its `names`"]
    known = meanings(content, file)
    if "label_mapping" in content:
        found.append(f"{len(known)} mask values in its `label_mapping`")
        if 255 not in known:
            known[255] = None
        ignored = [raw for raw, name in known.items() if name is None]
        raw_map = {raw: names.index(name) for raw, name in known.items() if name is not None}
        labels = {"names": names, "map": raw_map, "ignore": ignored}
        return LabelGuess(labels, tuple(found), ("255 is not a class and is ignored",))
    if content.get("masks_dir"):
        return LabelGuess({"names": names}, tuple(found), ("255 is not a class and is ignored",))
    named, background, assumed = _with_background(names, "polygon")
    # With this map, the number after the last name is an error, and not the background.
    identity = {i: i for i in range(len(names))}
    labels = {"names": named, "background": background, "map": identity, "ignore": []}
    texts = [Path(text) for text in _references(layout, faults)]
    missing = [text for text in texts if not text.is_file()]
    found.append(f"{len(missing)} of {len(texts)} images have no text file, so no polygons")
    if 2 * len(missing) > len(texts):
        assumed.append(
            f"images without a text file, such as {missing[0].name}, show {background} only"
        )
    _refuse_texts_alone(texts, faults)
    return LabelGuess(labels, tuple(found), tuple(assumed))


def _refuse_texts_alone(texts: Sequence[Path], faults: list[Fault] | None) -> None:
    """Refuses text files of polygons without an image, unless `faults` takes them."""
    expected = set(texts)
    alone = sorted(
        file
        for folder in {text.parent for text in texts if text.is_file()}
        for file in folder.glob("*.txt")
        if file not in expected and file.name.lower() not in _NOT_POLYGONS and not has_image(file)
    )
    if alone and faults is None:
        raise UserError(
            f"{len(alone)} text files of polygons have no image: {shown([str(f) for f in alone])}. "
            "Add the images, or remove these files."
        )
