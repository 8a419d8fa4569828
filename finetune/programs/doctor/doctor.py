"""`finetune doctor`: reads a whole data set once and lists its faults by file.

    examination = examine("camvid", ["data.path=CamVid"])
    examination.write(Path("out"))   # doctor.json and doctor.html

`scan` reads, `figures` adds up, `verdict` judges, `page` draws.
"""

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np

import finetune
from finetune.data.faults import Fault
from finetune.data.samples import reader_of
from finetune.data.sources.opening import open_split
from finetune.discover.channels import guess_channels, some_images
from finetune.discover.labels.guesses import LabelGuess
from finetune.discover.labels.layout_labels import guess
from finetune.discover.labels.value_labels import guess_labels
from finetune.discover.recognise import Layout, recognise
from finetune.discover.values.mask_values import MaskValues
from finetune.disk import make_folder, write_whole
from finetune.errors import UserError
from finetune.labels.translation import Labels
from finetune.machine import usable_cores
from finetune.programs.doctor import figures, page
from finetune.programs.doctor.figures import Split
from finetune.programs.doctor.scan import read_facts
from finetune.programs.doctor.verdict import (
    Expectations,
    Finding,
    judge,
    rare_values,
    smeared_values,
)
from finetune.recipe import Recipe, find_recipe, load_recipe, recipe_from_values
from finetune.run.screen import progress_bar
from finetune.segformer.configuration import SegformerConfig, smallest_side

VERSION = 1
"""Version of doctor.json; it changes when a key is renamed or changes its meaning."""
DISTANCE = 8
MAX_WORKERS = 8


@dataclass(frozen=True)
class Examination:
    """A data set with its facts and findings."""

    name: str
    recipe: Recipe
    seen: tuple[str, ...]
    """How a folder without a recipe was understood."""
    expected: Expectations
    splits: tuple[Split, ...]
    findings: tuple[Finding, ...]
    data: tuple[datasets.Dataset, ...]
    """The splits' samples, for the pictures."""

    @property
    def clean(self) -> bool:
        """Whether there is no problem; warnings are allowed."""
        return not any(finding.severity == "problem" for finding in self.findings)

    def to_json(self) -> dict[str, Any]:
        """The content of doctor.json."""
        labels, splits = self.expected.labels, self.splits
        counts = [figures.class_counts(split, labels) for split in splits]
        weights = figures.class_weights(counts[0].pixels)
        statistics = figures.mean_and_std(splits[0])
        places: Counter[str] = Counter()
        for finding in self.findings:
            places[finding.severity] += len(finding.places)
        return {
            "version": VERSION,
            "finetune": finetune.__version__,
            "name": self.name,
            "verdict": "clean" if self.clean else "problems",
            "problems": places["problem"],
            "warnings": places["warning"],
            "understood": list(self.seen),
            "data": self.recipe.data.model_dump(mode="json", include={"source", "path"}),
            "splits": {
                split.name: {
                    "samples": len(split),
                    "pixels": own.total,
                    "ignored_pixels": own.ignored,
                    "uncovered_pixels": own.uncovered,
                }
                for split, own in zip(splits, counts, strict=True)
            },
            "findings": [
                {
                    "kind": finding.kind,
                    "severity": finding.severity,
                    "message": finding.message,
                    "remedy": finding.remedy,
                    "files": [_text(file) for file in finding.files],
                    "places": [
                        {"files": [_text(file) for file in place.files], "what": _text(place.what)}
                        for place in finding.places
                    ],
                }
                for finding in self.findings
            ],
            "classes": [
                {
                    "id": i,
                    "name": name,
                    "weight": weights[i],
                    **{
                        split.name: {"pixels": int(own.pixels[i]), "images": int(own.images[i])}
                        for split, own in zip(splits, counts, strict=True)
                    },
                }
                for i, name in enumerate(labels.names)
            ],
            "weights": "1 / ln(1.02 + share of the labelled training pixels), as ENet has it; "
            "loss.class_weights of a recipe takes them by name",
            "masks": {
                "kind": labels.kind,
                "stored": dict(figures.stored_kinds(splits)),
                "values": _values_json(splits, labels),
            },
            "sizes": _sizes_json(self),
            "colors": {
                "mean": statistics and [round(value, 6) for value in statistics[0]],
                "std": statistics and [round(value, 6) for value in statistics[1]],
                "recipe_mean": list(self.recipe.data.image_mean),
                "recipe_std": list(self.recipe.data.image_std),
            },
        }

    def write(self, folder: Path) -> tuple[Path, Path]:
        """Writes doctor.json and doctor.html, each whole or not at all.

        Raises:
            UserError: The folder cannot be made or written to.
        """
        make_folder(folder)
        facts = self.to_json()
        files = folder / "doctor.json", folder / "doctor.html"
        write_whole(files[0], json.dumps(facts, indent=1, allow_nan=False) + "\n")
        write_whole(
            files[1], page.draw(facts, self.expected, self.splits, self.findings, self.data)
        )
        return files


def examine(
    target: str,
    overrides: Sequence[str] = (),
    *,
    choose: Callable[[Sequence[Layout]], Layout] | None = None,
    workers: int | None = None,
    distance: int = DISTANCE,
    show_progress: bool = False,
) -> Examination:
    """Reads all data that a recipe or a folder would train on and evaluate.

    Args:
        target: A recipe's name or file, or a folder of images and masks.
        overrides: "key=value" of the recipe; for a folder, of the recipe that `finetune init` would
            write.
        choose: Takes one of several layouts that a folder may have. None: several are a mistake.
        workers: Threads; None: one per core, up to `MAX_WORKERS`. They never change the findings.
        distance: Most bits, of 64, in which the perceptual hashes of near duplicates differ.
        show_progress: Draw a bar on stderr.

    Raises:
        UserError: The recipe is wrong, the folder is not understood, or no split can be opened.
    """
    folder = _folder(target, overrides)
    guessed: LabelGuess | None = None
    seen: tuple[str, ...] = ()
    if folder is None:
        recipe = load_recipe(target, overrides)
    else:
        recipe, guessed, seen = _recipe_of(folder, overrides, choose)
    if recipe.data.is_drawn:
        raise UserError("data.source=shapes draws its pictures, so there are no files to examine")
    if recipe.data.is_streamed:
        raise UserError(
            "data.streaming: doctor reads every sample; set data.streaming=false, which first "
            "copies the data set to this machine"
        )
    labels = recipe.labels.build()
    opened = _opened(recipe, labels)
    total = sum(len(samples) for _, samples, _ in opened)
    workers = workers or min(MAX_WORKERS, usable_cores())
    splits = []
    with progress_bar(total=total, desc="examining", unit="image", show=show_progress) as bar:
        for name, samples, faults in opened:
            reader, rows = reader_of(samples), samples.with_format(None)
            images = [reader.pictures.name(image) for image in rows["image"]]
            masks = [reader.form.name(mask) for mask in rows["mask"]]
            masks = [mask or image for mask, image in zip(masks, images, strict=True)]
            facts = read_facts(samples, workers=workers, advance=bar.update)
            splits.append(Split(name, list(rows["id"]), images, masks, facts, faults))
    known = guessed is None or guessed.known or any(o.startswith("labels.") for o in overrides)
    if guessed is not None and not known and not labels.tolerance:  # else damage was mended
        labels, seen = _guessed_again(splits, labels, guessed, seen)
    wants_crop = folder is None or any(text.startswith("augment.") for text in overrides)
    expected = Expectations(
        labels,
        known=known,
        crop=recipe.augment.crop if wants_crop else None,
        base_size=recipe.augment.base_size,
        smallest_side=smallest_side(SegformerConfig(**recipe.model.config_arguments())),
        drawn=recipe.data.held_back is not None,
        distance=distance,
    )
    findings, data = judge(splits, expected), (samples for _, samples, _ in opened)
    name = recipe.name or Path(target).name
    return Examination(name, recipe, seen, expected, tuple(splits), tuple(findings), tuple(data))


def _folder(target: str, overrides: Sequence[str]) -> Path | None:
    """The folder, or None for a recipe; a target is a recipe if a path is given beside it."""
    path = Path(target).expanduser()
    if path.is_dir() and path.name != target:  # a path, no bare name
        return path
    try:
        recipe = find_recipe(target)
    except UserError as error:
        if path.is_dir():
            return path
        raise UserError(f"{error} {target} is not a folder either.") from error
    if not path.is_dir() or any(text.startswith("data.path=") for text in overrides):
        return None
    raise UserError(
        f"{target} is a folder here and also the recipe {recipe.name}. Write ./{target} for the "
        f"folder, {recipe.name} for the recipe."
    )


def _recipe_of(
    folder: Path,
    overrides: Sequence[str],
    choose: Callable[[Sequence[Layout]], Layout] | None,
) -> tuple[Recipe, LabelGuess, tuple[str, ...]]:
    """The recipe that `finetune init` would write for a folder; bad files are tolerated."""
    root = folder.absolute()
    layouts = recognise(root)
    if len(layouts) > 1 and choose is None:
        raise UserError(f"{folder}: {len(layouts)} layouts fit this folder; choose one")
    layout = layouts[0] if choose is None else choose(layouts)
    guessed = guess(root, layout, faults=[])  # found again when all is opened
    values = {"data": layout.data, "labels": guessed.labels}
    recipe = recipe_from_values(values, root.name, overrides)
    images = open_split(recipe.data, recipe.labels.build(), recipe.data.train_split, faults=[])
    channels = guess_channels(some_images(images))
    if channels.model:
        values["model"] = channels.model
        values["data"] = {**layout.data, **channels.data}
        recipe = recipe_from_values(values, root.name, overrides)
    return recipe, guessed, (*layout.found, *guessed.found, *layout.assumed, *guessed.assumed)


def _opened(recipe: Recipe, labels: Labels) -> list[tuple[str, datasets.Dataset, list[Fault]]]:
    """Names and samples of the splits, and the files that make no sample."""
    data, channels = recipe.data, recipe.model.num_channels
    opened: list[tuple[str, datasets.Dataset, list[Fault]]] = []
    missing: list[Fault] = []
    known: set[Fault] = set()
    for name in dict.fromkeys((data.train_split, data.val_split)):
        faults: list[Fault] = []
        try:
            samples = open_split(data, labels, name, num_channels=channels, faults=faults)
        except UserError as error:
            missing.append(Fault("split-missing", (), f"{name}: {error}"))
            first = error
            continue
        opened.append((name, samples, [fault for fault in faults if fault not in known]))
        known.update(faults)
    if not opened:
        raise first
    if data.train_split == data.val_split:
        missing.append(Fault("same-split", (), data.train_split))
    opened[0][2][:0] = missing
    return opened


def _guessed_again(
    splits: Sequence[Split], labels: Labels, guessed: LabelGuess, seen: tuple[str, ...]
) -> tuple[Labels, tuple[str, ...]]:
    """Labels guessed again from the values of all masks, without the slips."""
    values, num_masks = figures.value_counts(splits), figures.num_masks(splits)
    if labels.kind == "colors" or not values:
        return labels, seen
    slips = set(smeared_values(values) or rare_values(values, num_masks, labels.kind))
    counts = Counter({v: c.pixels for v, c in values.items() if v not in slips})
    try:
        again = guess_labels(MaskValues("ids", counts, None, num_masks), guessed.listed)
    except UserError:  # fewer than two classes: the first guess stays
        return labels, seen
    block = {**again.labels, "colors": None}
    lines = tuple(line for line in seen if line not in (*guessed.found, *guessed.assumed))
    return Labels.build(**block), (*lines, *again.found, *again.assumed)


# -------------------------------------------------------------------------------------------- JSON


MAX_VALUES = 1000
"""Raw values that doctor.json lists; the most frequent."""


def _values_json(splits: Sequence[Split], labels: Labels) -> list[dict[str, Any]]:
    values, rules = figures.value_counts(splits), dict(labels.rules)
    frequent = sorted(values, key=lambda value: (-values[value].pixels, value))[:MAX_VALUES]
    meanings: dict[int | None, str] = dict(enumerate(labels.names))
    meanings[labels.ignore_index] = "ignored"
    return [
        {
            "value": figures.value_name(value, labels.kind) if labels.kind == "colors" else value,
            "meaning": meanings.get(rules.get(value)),
            "pixels": values[value].pixels,
            "images": values[value].images,
        }
        for value in sorted(frequent)
    ]


def _sizes_json(done: Examination) -> dict[str, Any]:
    sizes, crop = figures.sizes(done.splits), done.expected.crop
    if not len(sizes):
        return {"crop": crop}
    smallest, median, largest = sizes.min(0), np.median(sizes, axis=0), sizes.max(0)
    pairs, number = np.unique(sizes, axis=0, return_counts=True)
    common = np.argsort(-number, kind="stable")[:MAX_VALUES]
    return {
        "crop": None if crop is None else list(crop),
        "smallest": smallest.tolist(),
        "median": median.tolist(),
        "largest": largest.tolist(),
        "different": len(pairs),
        "most_common": [[*pairs[i].tolist(), int(number[i])] for i in common],
    }


def _text(name: str) -> str:
    """A name as valid Unicode; file systems allow any bytes."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
