"""Evaluation of semantic segmentation: mean IoU and loss of a split, their table, and pictures."""

import math
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing
from itertools import chain
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from finetune.data.loader import Batch
from finetune.data.stream import Streamed
from finetune.errors import UserError
from finetune.inference import Segmenter
from finetune.inference.preprocessing import Preprocessing
from finetune.inference.scores import score_bands
from finetune.labels.translation import Labels
from finetune.losses import Term
from finetune.metrics import MeanIoU
from finetune.pictures.drawing import PanelRow, panel
from finetune.run.processes import agree, all_sum
from finetune.run.report import percent
from finetune.run.screen import progress_bar
from finetune.segformer.functional import upsampled_argmax
from finetune.trainers import Evaluation, Share

NUM_EXAMPLES = 4
LONG_LIST, GROUP_WIDTH = 24, 56  # classes in one column at most; characters of a column


@torch.no_grad()
def evaluation_of(
    model: Any,
    batches: Generator[Batch, None, None],  # this process's share, from `eval_loader`
    *,
    num_images: int,  # of all processes, for the progress bar
    preprocessing: Preprocessing,
    labels: Labels,
    terms: Mapping[str, tuple[Term, float]],  # of the loss, with their factors
    share: Share,
    stop: Callable[[], bool],
) -> Evaluation | None:
    """The scores of a model, summed over all processes; None if any of them was told to stop.

    Raises:
        UserError: a process cannot read a file; all processes raise it.
    """
    metric = MeanIoU(labels.num_labels, labels.ignore_index)
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    sums = torch.zeros(len(terms), 2, dtype=torch.float64, device=device)  # loss, weight
    problem, stopped = "", False
    progress = progress_bar(
        total=num_images, desc="evaluating", unit="image", show=share.rank == 0, leave=False
    )
    with closing(progress), closing(batches):
        try:
            for batch in batches:
                stopped = stop()
                if stopped:
                    break
                truths = batch["labels"].to(device, non_blocking=True)
                views = [batch["pixel_values"], *batch["other_scales"]]
                size = (truths.shape[1], truths.shape[2])
                for rows, scores in score_bands(model, views, preprocessing, size):
                    truth = truths[:, rows]
                    predicted = upsampled_argmax(scores, (truth.shape[1], truth.shape[2]))
                    metric.add_batch(predictions=predicted, references=truth)
                    sums += torch.stack(
                        [torch.stack(term.sums(scores, truth)[:2]) for term, _ in terms.values()]
                    )
                progress.update(len(batch["ids"]) * share.world_size)
        except UserError as error:  # an unreadable file in this process's share
            problem = str(error)
    model.train(was_training)
    if agree(problem, stop=stopped):
        return None
    loss = sum(
        factor * total / weight if weight else math.nan
        for (_, factor), (total, weight) in zip(terms.values(), all_sum(sums).tolist(), strict=True)
    )
    confusion = all_sum(torch.from_numpy(metric.confusion).to(device))
    metric.reset()
    metric.merge(confusion)
    result, names = metric.compute(), labels.names
    row = {
        "eval/mean_iou": _number(result["mean_iou"]),
        "eval/mean_accuracy": _number(result["mean_accuracy"]),
        "eval/overall_accuracy": _number(result["overall_accuracy"]),
        "eval/loss": _number(loss),
        "eval/per_class_iou": dict(
            zip(names, map(_number, result["per_category_iou"]), strict=True)
        ),
    }
    return Evaluation(row, iou_table(result, names, metric.confusion.sum(1).tolist()))


def _number(value: float) -> float | None:
    """A plain float; None for NaN, which JSON cannot hold."""
    return None if math.isnan(value) else float(value)


def iou_table(result: Mapping[str, Any], names: Sequence[str], pixels: Sequence[int]) -> Table:
    """The scores per class as a table for the terminal, with the mean at the end.

    Long lists take up to three columns if they fit.

    Args:
        result: the result of `MeanIoU.compute`.
        names: the classes' names by id.
        pixels: true pixels per class (`confusion.sum(axis=1)`), for the column with their share.
    """
    total = sum(pixels) or math.nan
    ious, accuracies = result["per_category_iou"], result["per_category_accuracy"]
    lines = [
        [escape(name), percent(iou), percent(accuracy), percent(count / total)]
        for name, iou, accuracy, count in zip(names, ious, accuracies, pixels, strict=True)
    ]
    fits = Console().width // GROUP_WIDTH
    groups = max(1, min(3, fits)) if len(lines) > LONG_LIST else 1
    height = math.ceil(len(lines) / groups)
    table = Table(header_style="bold")
    for _ in range(groups):
        table.add_column("class", overflow="ellipsis", no_wrap=True, max_width=26)
        for title in ("IoU", "accuracy", "pixels"):
            table.add_column(title, justify="right", no_wrap=True)
    for row in range(height):
        table.add_row(*chain.from_iterable(lines[row::height]), end_section=row == height - 1)
    table.add_row(
        "mean", percent(result["mean_iou"]), percent(result["mean_accuracy"]), style="bold"
    )
    return table


@torch.no_grad()
def example_pictures(
    model: Any,
    samples: datasets.Dataset | Streamed,
    preprocessing: Preprocessing,
    labels: Labels,
    path: Path,
) -> None:
    """Writes image, truth, prediction and error of evenly spread samples as a PNG."""
    was_training = model.training
    device = next(model.parameters()).device
    segmenter = Segmenter(model, preprocessing, names=labels.names, device=device)
    rows = []
    places = np.linspace(0, len(samples) - 1, min(NUM_EXAMPLES, len(samples))).astype(int)
    for sample in (samples[int(place)] for place in places):
        truth = sample["mask"]
        masks, _ = segmenter.masks(segmenter.views([sample["image"]]), truth.shape)
        metric = MeanIoU(labels.num_labels, labels.ignore_index)
        mean_iou = metric.compute(predictions=masks[0], references=truth)["mean_iou"]
        rows.append(PanelRow(sample["id"], sample["image"], truth, masks[0], mean_iou))
    model.train(was_training)
    panel(rows, labels.names, labels.colors, labels.ignore_index, path)
