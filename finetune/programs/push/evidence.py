"""What is known of a trained model, and the predictions that show it: what a card is made of."""

import json
import re
import warnings
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from finetune.errors import UserError
from finetune.inference import Segmenter
from finetune.metrics import MeanIoU
from finetune.pictures.drawing import PanelRow
from finetune.publish import DataSet, hub_id
from finetune.recipe import Recipe, recipe_from_yaml
from finetune.run.log import read
from finetune.run.screen import progress_bar
from finetune.trainers.segmentation import SegmentationTask, check_same_task, data_set_of
from finetune.weights import Card, card_of, is_checkpoint_file, licence_in

METRICS = ("mean_iou", "mean_accuracy", "overall_accuracy")
LOOKED_AT = 64
"""Validation images, evenly spread, among which the best and the worst are looked for."""
BEST, WORST = 2, 2


@dataclass(frozen=True)
class Results:
    """One evaluation, a row of metrics.jsonl.

    Attributes:
        step: after which it was made.
        scores: metric of `METRICS` -> share of 1, None where it is not defined.
        per_class_iou: class -> share of 1, None where the class does not occur.
        evaluations: how many the training has made so far.
        seconds: that the training had taken by then, None if nothing says so.
    """

    step: int
    scores: Mapping[str, float | None]
    per_class_iou: Mapping[str, float | None]
    evaluations: int
    seconds: float | None


@dataclass(frozen=True)
class Evidence:
    """What is known of a model.

    Attributes:
        folder: the model's.
        identity: of the folder as it was read, which a training replaces whole.
        run: the run folder that it came out of, None if it stands alone.
        name: of the run, or of the folder.
        segmenter: the model itself.
        card: that lies in the folder, written by the training or by somebody.
        recipe: with the paths of this machine; None: nothing says how it was trained.
        data_set: of the recipe.
        results: the evaluation of these very weights, None if there is none.
        environment: environment.json, empty if there is none.
    """

    folder: Path
    identity: tuple[int, int]
    run: Path | None
    name: str
    segmenter: Segmenter
    card: Card
    recipe: Recipe | None = None
    data_set: DataSet | None = None
    results: Results | None = None
    environment: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Examples:
    """Predictions beside the truth, best first.

    Attributes:
        rows: of the panel.
        looked_at: how many images they were chosen from.
        total: how many the split has.
        ignore_index: the id in the truth that is not a class.
    """

    rows: Sequence[PanelRow]
    looked_at: int
    total: int
    ignore_index: int


def gather(run: Path) -> Evidence:
    """Everything that a run folder, or a model folder, says of its model.

    Args:
        run: a run folder, of which `best` is taken, or a model folder. One that lies in its run
            folder has that run's evidence.

    Raises:
        UserError: there is no model, or a file cannot be read; names it.
    """
    folder, home = folders(run)
    identity = identity_of(folder)
    segmenter = Segmenter.load(folder)
    card = card_of(str(folder), fetch=False)
    recipe = _recipe(folder / "recipe.yaml")
    if recipe is None:
        return Evidence(folder, identity, None, folder.resolve().name, segmenter, card)
    data_set = _data_set(recipe, card)
    colors = recipe.labels.build().colors
    if not hasattr(segmenter.model.config, "finetune_colors") and len(colors) == len(
        segmenter.names
    ):
        segmenter.colors = tuple(colors)  # an older folder, which does not say
    if home is None:
        return Evidence(folder, identity, None, recipe.name, segmenter, card, recipe, data_set)
    return Evidence(
        folder,
        identity,
        home,
        recipe.name,
        segmenter,
        card,
        recipe,
        data_set,
        _results(home / "metrics.jsonl", card, is_last=folder.resolve().name == "last"),
        _environment(home / "environment.json"),
    )


def identity_of(folder: Path) -> tuple[int, int]:
    """Another one when a folder is put into the place of this one."""
    found = (folder / "config.json").stat()
    return found.st_ino, found.st_mtime_ns


def folders(run: Path) -> tuple[Path, Path | None]:
    """The model's folder and the run's, if there is one; argument and errors as of `gather`."""
    if (run / "config.json").is_file():
        home = run.resolve().parent
        own, above = _recipe(run / "recipe.yaml"), _recipe(home / "recipe.yaml")
        is_run = own is not None and above is not None and own.hash() == above.hash()
        return run, home if is_run and (home / "metrics.jsonl").is_file() else None
    if (run / "best" / "config.json").is_file():
        return run / "best", run
    if (run / "metrics.jsonl").is_file():
        raise UserError(
            f"{run}: has no best/ yet, which the first evaluation writes (train.eval_every)"
        )
    raise UserError(
        f"{run}: neither a run folder with a best/ in it, nor a model folder with a config.json"
    )


def _recipe(path: Path) -> Recipe | None:
    return recipe_from_yaml(path) if path.is_file() else None


def _data_set(recipe: Recipe, card: Card) -> DataSet:
    """The recipe's; the training knew whether a name was the Hub's or a folder's."""
    found = data_set_of(recipe)
    if scores_of(card) and found.id not in (card.header.get("datasets") or ()):
        return replace(found, id=None, name=found.name.rpartition("/")[2])
    return found


def _results(path: Path, card: Card, *, is_last: bool) -> Results | None:
    """The evaluation of the weights: the one that their card tells of, if it tells."""
    rows = read(path) if path.is_file() else []
    scored = [row for row in rows if row.get("eval/mean_iou") is not None]
    if told := scores_of(card):
        scored = [row for row in scored if _scores(row) == told]
    if not scored:
        return None
    # An older card tells of nothing: `best` is the first that no other was better than.
    row = scored[-1] if is_last else max(scored, key=lambda found: found["eval/mean_iou"])
    times = [r["seconds"] for r in rows if r["step"] <= row["step"] and r.get("seconds")]
    made = sum("eval/mean_iou" in other for other in rows)
    classes = row.get("eval/per_class_iou") or {}
    return Results(
        row["step"],
        {metric: row.get(f"eval/{metric}") for metric in METRICS},
        classes,
        made,
        times[-1] if times else None,
    )


def _scores(row: Mapping[str, Any]) -> dict[str, float]:
    found = {metric: row.get(f"eval/{metric}") for metric in METRICS}
    return {metric: value for metric, value in found.items() if value is not None}


def scores_of(card: Card) -> dict[str, float]:
    """The metrics of `METRICS` in the header of a card that this package wrote."""
    found = {}
    for model in card.header.get("model-index") or []:
        for result in model["results"]:
            for metric in result["metrics"]:
                found[metric["type"]] = metric["value"]
    return {metric: found[metric] for metric in METRICS if metric in found}


def _environment(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({error}); remove it, or mend it") from error
    return values if isinstance(values, dict) else {}


# ------------------------------------------------------------------------------------ predictions


@torch.no_grad()
def look(evidence: Evidence, recipe: Recipe | None) -> Examples | None:
    """The best and the worst predictions among some validation images.

    Args:
        evidence: with the model.
        recipe: whose validation split is looked at; must be of the model's classes.

    Returns:
        None, with a warning, if the images are not to be had here.
    """
    if recipe is None:
        return None
    segmenter = evidence.segmenter
    try:
        check_same_task(segmenter, recipe, f"model {evidence.folder}")
        task = SegmentationTask(recipe, segmenter.preprocessing)
        samples, labels = task.val_samples, task.labels
        # Neighbours are alike where a set is made of videos.
        count = min(LOOKED_AT, len(samples))
        chosen = np.linspace(0, len(samples) - 1, count).astype(int).tolist()
        bar = progress_bar(
            total=count, desc="looking at predictions", unit="image", show=True, leave=False
        )
        ious = []
        with closing(bar):
            for index in chosen:
                row = _predicted(samples[index], segmenter, labels.num_labels, labels.ignore_index)
                ious.append(row.mean_iou)
                bar.update()
        # Read again instead of kept: 64 photographs of a camera would take gigabytes.
        rows = [
            _predicted(samples[chosen[n]], segmenter, labels.num_labels, labels.ignore_index)
            for n in best_and_worst(ious)
        ]
    except UserError as error:
        warnings.warn(
            f"no predictions are shown: {error} (data.path=FOLDER says where the images lie now)",
            stacklevel=2,
        )
        return None
    return Examples(rows, count, len(samples), labels.ignore_index) if rows else None


def _predicted(
    sample: Mapping[str, Any], segmenter: Segmenter, num_labels: int, ignore_index: int
) -> PanelRow:
    truth = sample["mask"]
    masks, _ = segmenter.masks(segmenter.views([sample["image"]]), truth.shape)
    metric = MeanIoU(num_labels, ignore_index)
    metric.add_batch(predictions=masks[0], references=truth)
    # The last part of a name: what stands before it may be a path of this machine.
    name = re.split(r"[\\/]", sample["id"])[-1]
    return PanelRow(name, sample["image"], truth, masks[0], metric.compute()["mean_iou"])


def best_and_worst(ious: Sequence[float]) -> list[int]:
    """Which to show, best first: the best two and the worst two; images of which none counts not.

    Args:
        ious: a mean IoU an image, NaN where no pixel counts.
    """
    order = sorted(
        (index for index, iou in enumerate(ious) if not np.isnan(iou)),
        key=lambda index: (-ious[index], index),
    )
    return order if len(order) <= BEST + WORST else [*order[:BEST], *order[-WORST:]]


# ------------------------------------------------------------------------------ what may be shown


def public(evidence: Evidence) -> Recipe | None:
    """The recipe without the paths of this machine, nor what addresses hold beside the place.

    What is on the Hub keeps its name; of a folder the last part of its path stays.
    """
    if evidence.recipe is None or evidence.data_set is None:
        return None
    values = evidence.recipe.model_dump()
    data, model = values["data"], values["model"]
    values["output"], values["resume"] = f"runs/{evidence.name}", "auto"
    del values["hub"]  # whoever takes the recipe pushes elsewhere
    if evidence.data_set.id is None and "path" in data:
        data["path"] = shown_path(data["path"])
    if model["init"] != base_of(evidence)[0]:
        model["init"] = shown_path(model["init"])
    for key in ("images", "masks", "annotations", "split_list"):
        if key in data:
            data[key] = _shown_pattern(data[key])
    return Recipe(**values)


def shown_path(path: str | None) -> str | None:
    """The last part of a path; an address without user, password and query."""
    if path is None:
        return None
    if "://" in path:
        scheme, _, rest = path.partition("://")
        place = re.split(r"[?#]", rest)[0]
        host, slash, inside = place.partition("/")
        return f"{scheme}://{host.rpartition('@')[2]}{slash}{inside}"
    return re.split(r"[\\/]", str(Path(path).expanduser().resolve()))[-1] or "data"


def _shown_pattern(pattern: str | None) -> str | None:
    """A path below the data's stays; of an absolute one what tells splits apart, and the rest."""
    if pattern is None or not Path(pattern).expanduser().is_absolute():
        return pattern
    parts = Path(pattern).parts
    first = next((n for n, part in enumerate(parts) if "{" in part), len(parts) - 1)
    return "/".join(parts[first:])


def base_of(evidence: Evidence) -> tuple[str | None, Card]:
    """The Hub id that training started from, and the card of those weights if it is here."""
    init = evidence.recipe.model.init if evidence.recipe else None
    told = evidence.card.header.get("base_model")
    base = hub_id(told) if isinstance(told, str) else None
    if init is None or is_checkpoint_file(init):
        return base, Card()
    return base, card_of(init, fetch=False)


def licence_remark(evidence: Evidence) -> str:
    """What restricts the use of the weights, or nothing; also where the model's card was lost."""
    init = evidence.recipe.model.init if evidence.recipe else None
    cards = (evidence.card, base_of(evidence)[1], Card({"base_model": init}))
    return next(filter(None, map(licence_in, cards)), "")
