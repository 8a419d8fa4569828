"""The facts and predictions that the card of a trained model shows."""

import json
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from finetune.errors import UserError
from finetune.inference import Segmenter
from finetune.labels.translation import Labels
from finetune.metrics import MeanIoU
from finetune.pictures.drawing import PanelRow
from finetune.publish import DataSet, hub_id
from finetune.publish.facts import data_set_of
from finetune.recipe import Recipe, recipe_from_yaml
from finetune.run import log
from finetune.run.screen import progress_bar
from finetune.trainers.tasks import task_of
from finetune.weights.cards import Card, card_of, licence_in
from finetune.weights.reading import is_checkpoint_file

METRICS = ("mean_iou", "mean_accuracy", "overall_accuracy")
LOOKED_AT = 64
"""Validation images, evenly spread over the split, that the model is run on."""
BEST, WORST = 2, 2


@dataclass(frozen=True)
class Results:
    """One evaluation, a row of metrics.jsonl.

    Attributes:
        step: the training step of the evaluation.
        scores: metric of `METRICS` -> share of 1, None if it is undefined.
        per_class_iou: class -> share of 1, None if the class does not occur.
        evaluations: their number in the training so far.
        seconds: training time until then, None if it is unknown.
    """

    step: int
    scores: Mapping[str, float | None]
    per_class_iou: Mapping[str, float | None]
    evaluations: int
    seconds: float | None


@dataclass(frozen=True)
class Evidence:
    """The facts about a model.

    Attributes:
        folder: the model folder.
        identity: `identity_of` the folder when it was read; a training may replace it.
        run: the run folder of the model, None if there is none.
        name: the run's name, or the folder's.
        segmenter: the model.
        card: the folder's README.md, by the training or by somebody else.
        recipe: it holds paths of this machine; None: the folder has none.
        data_set: the recipe's.
        results: the evaluation of exactly these weights, None if there is none.
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
        rows: the panel's.
        looked_at: the number of images that the model was run on.
        total: the number of images in the split.
        ignore_index: the id in the truth that is not a class.
    """

    rows: Sequence[PanelRow]
    looked_at: int
    total: int
    ignore_index: int


def gather(run: Path) -> Evidence:
    """Reads the facts about a model from its run folder or model folder.

    Args:
        run: a run folder (its `best` is taken) or a model folder. A model folder inside its run
            folder has the evidence of that run.

    Raises:
        UserError: there is no model, or a file cannot be read; the message names it.
    """
    folder, home = folders(run)
    identity = identity_of(folder)
    segmenter = Segmenter.load(folder)
    card = card_of(str(folder), fetch=False)
    recipe = _recipe(folder / "recipe.yaml")
    if recipe is None:
        return Evidence(folder, identity, None, folder.resolve().name, segmenter, card)
    data_set = _data_set(recipe, card)
    colors = tuple(recipe.labels.build().colors)
    is_older = not hasattr(segmenter.model.config, "finetune_colors")
    if is_older and len(colors) == len(segmenter.names):
        segmenter.colors = colors
    evidence = Evidence(folder, identity, home, recipe.name, segmenter, card, recipe, data_set)
    if home is None:
        return evidence
    results = _results(home / "metrics.jsonl", card, is_last=folder.resolve().name == "last")
    return replace(evidence, results=results, environment=_environment(home / "environment.json"))


def identity_of(folder: Path) -> tuple[int, int]:
    """A value that changes when another folder takes the place of this one."""
    found = (folder / "config.json").stat()
    return found.st_ino, found.st_mtime_ns


def folders(run: Path) -> tuple[Path, Path | None]:
    """The model folder, and the run folder if there is one; arguments and errors as in `gather`."""
    if (run / "config.json").is_file():
        home = run.resolve().parent
        own, above = _recipe(run / "recipe.yaml"), _recipe(home / "recipe.yaml")
        is_run = own is not None and above is not None and own.hash() == above.hash()
        return run, home if is_run and (home / "metrics.jsonl").is_file() else None
    if (run / "best" / "config.json").is_file():
        return run / "best", run
    if (run / "metrics.jsonl").is_file():
        raise UserError(
            f"{run}: has no best/ yet; the first evaluation writes it (train.eval_every)"
        )
    raise UserError(
        f"{run}: neither a run folder with best/ nor a model folder with config.json; name another"
    )


def _recipe(path: Path) -> Recipe | None:
    return recipe_from_yaml(path) if path.is_file() else None


def _data_set(recipe: Recipe, card: Card) -> DataSet:
    """The recipe's; the training knew whether a name was the Hub's or a folder's."""
    found = data_set_of(recipe.data)
    if scores_of(card) and found.id not in (card.header.get("datasets") or ()):
        return replace(found, id=None, name=found.name.rpartition("/")[2])
    return found


def _results(path: Path, card: Card, *, is_last: bool) -> Results | None:
    """The evaluation of the weights: the one that their card states, if it states one."""
    rows = log.rows(path)
    scored = [row for row in rows if row.get("eval/mean_iou") is not None]
    if told := scores_of(card):
        scored = [r for r in scored if all(r.get(f"eval/{m}") == told.get(m) for m in METRICS)]
    if not scored:
        return None
    # Older cards state no scores: `best` is the first evaluation with the highest score.
    row = scored[-1] if is_last else max(scored, key=lambda found: found["eval/mean_iou"])
    times = [r["seconds"] for r in rows if r["step"] <= row["step"] and r.get("seconds")]
    return Results(
        step=row["step"],
        scores={metric: row.get(f"eval/{metric}") for metric in METRICS},
        per_class_iou=row.get("eval/per_class_iou") or {},
        evaluations=sum("eval/mean_iou" in other for other in rows),
        seconds=times[-1] if times else None,
    )


def scores_of(card: Card) -> dict[str, float]:
    """The metrics of `METRICS` in the header of a card that this package wrote."""
    found = {
        metric["type"]: metric["value"]
        for model in card.header.get("model-index") or []
        for result in model["results"]
        for metric in result["metrics"]
    }
    return {metric: found[metric] for metric in METRICS if metric in found}


def _environment(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({error}); correct or delete it") from error
    return values if isinstance(values, dict) else {}


# ------------------------------------------------------------------------------------ predictions


@torch.no_grad()
def look(evidence: Evidence, recipe: Recipe, *, needed: bool = False) -> Examples | None:
    """The best and the worst predictions on some validation images.

    Args:
        evidence: holds the model.
        recipe: names the validation split; its classes must be the model's.
        needed: whether images that cannot be read here are an error.

    Returns:
        None, with a warning, if the images cannot be read here and are not needed.

    Raises:
        UserError: they are needed.
    """
    segmenter = evidence.segmenter
    try:
        task = task_of(recipe, segmenter.preprocessing)
        task.check_model(segmenter, f"model {evidence.folder}")
        samples, labels = task.val_samples, recipe.labels.build()
        # Neighbours are alike where a set is made of videos.
        count = min(LOOKED_AT, len(samples))
        chosen = np.linspace(0, len(samples) - 1, count).astype(int).tolist()
        ious = []
        with progress_bar(
            total=count, desc="looking at predictions", unit="image", show=True, leave=False
        ) as bar:
            for index in chosen:
                ious.append(_predicted(samples[index], segmenter, labels).mean_iou)
                bar.update()
        # These are read again: 64 photographs of a camera would take gigabytes.
        rows = [_predicted(samples[chosen[n]], segmenter, labels) for n in best_and_worst(ious)]
    except UserError as error:
        if needed:
            raise
        warnings.warn(
            f"the card shows no predictions: {error} (data.path=FOLDER names the images' folder)",
            stacklevel=2,
        )
        return None
    return Examples(rows, count, len(samples), labels.ignore_index) if rows else None


def _predicted(sample: Mapping[str, Any], segmenter: Segmenter, labels: Labels) -> PanelRow:
    truth = sample["mask"]
    masks, _ = segmenter.masks(segmenter.views([sample["image"]]), truth.shape)
    metric = MeanIoU(labels.num_labels, labels.ignore_index)
    metric.add_batch(predictions=masks[0], references=truth)
    # The last part of a name: the first parts may be a path of this machine.
    name = re.split(r"[\\/]", sample["id"])[-1]
    return PanelRow(name, sample["image"], truth, masks[0], metric.compute()["mean_iou"])


def best_and_worst(ious: Sequence[float]) -> list[int]:
    """The indices of the best two and the worst two; images without counted pixels are skipped.

    Args:
        ious: one mean IoU an image, NaN if no pixel counts.
    """
    counted = [index for index, iou in enumerate(ious) if not np.isnan(iou)]
    order = sorted(counted, key=lambda index: -ious[index])  # of equals, the first comes first
    return order if len(order) <= BEST + WORST else [*order[:BEST], *order[-WORST:]]


# ---------------------------------------------------------------------- the public part of a recipe


def public(evidence: Evidence) -> Recipe | None:
    """The recipe without paths of this machine, and without user names and queries in addresses.

    Names on the Hub stay; a folder keeps the last part of its path.
    """
    if evidence.recipe is None or evidence.data_set is None:
        return None
    values = evidence.recipe.model_dump()
    data, model = values["data"], values["model"]
    values["output"], values["resume"] = f"runs/{evidence.name}", "auto"
    del values["hub"]  # others push to their own repository
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
    """Relative paths stay; an absolute one keeps its parts from the first {placeholder} on."""
    if pattern is None or not Path(pattern).expanduser().is_absolute():
        return pattern
    parts = Path(pattern).parts
    first = next((n for n, part in enumerate(parts) if "{" in part), len(parts) - 1)
    return "/".join(parts[first:])


def base_of(evidence: Evidence) -> tuple[str | None, Card]:
    """The Hub id that training started from, and its card if it is in the cache."""
    init = evidence.recipe.model.init if evidence.recipe else None
    told = evidence.card.header.get("base_model")
    base = hub_id(told) if isinstance(told, str) else None
    if init is None or is_checkpoint_file(init):
        return base, Card()
    return base, card_of(init, fetch=False)


def licence_remark(evidence: Evidence) -> str:
    """A restriction on the use of the weights, or ""; known even if the model's card is lost."""
    init = evidence.recipe.model.init if evidence.recipe else None
    cards = (evidence.card, base_of(evidence)[1], Card({"base_model": init}))
    return next(filter(None, map(licence_in, cards)), "")
