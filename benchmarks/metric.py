"""`metric`: from small logits to mean IoU, beside `evaluate` as the stock example calls it."""

import functools
from typing import Any

import datasets
import evaluate
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from finetune.metrics import MeanIoU
from finetune.programs.benchmark.cases import (
    IGNORE,
    Benchmark,
    Case,
    Work,
    argmax_of,
    laid_out,
    logits_and_labels,
    size_of,
)


def regions_and_labels(case: Case) -> tuple[Tensor, ...]:
    """As `logits_and_labels`, but with regions, as in the logits of a trained model.

    Seeds of 16 logits; our argmax skips the inside of a region, 77 % here.
    """
    logits, target = logits_and_labels(case)
    seeds = F.avg_pool2d(logits, 16, ceil_mode=True) * 16
    smooth = F.interpolate(seeds, size=logits.shape[2:], mode="bilinear", align_corners=False)
    return smooth, target


def metric(case: Case, side: str) -> Work:
    """The batch's mean IoU from small logits and full-size labels."""
    classes = argmax_of(side)
    score = _mean_iou if side == "ours" else _stock_mean_iou

    @torch.no_grad()
    def run(logits: Tensor, target: Tensor) -> float:
        return score(classes(laid_out(logits, side), size_of(target)), target, case.num_labels)

    return Work(
        run,
        lambda *inputs: {"mean_iou": run(*inputs)},
        prepare=lambda logits, target: laid_out(logits, side),
    )


def _mean_iou(predicted: Tensor, truth: Tensor, num_labels: int) -> float:
    counts = MeanIoU(num_labels, IGNORE)
    counts.add_batch(predictions=predicted, references=truth)
    return float(counts.compute()["mean_iou"])


def _stock_mean_iou(predicted: Tensor, truth: Tensor, num_labels: int) -> float:
    """`evaluate`'s mean_iou as the stock example calls it: with NumPy's maps, on the CPU."""
    result = _evaluate_mean_iou().compute(
        predictions=predicted.cpu().numpy(),
        references=truth.cpu().numpy(),
        num_labels=num_labels,
        ignore_index=IGNORE,
    )
    return float(result["mean_iou"])


@functools.cache
def _evaluate_mean_iou() -> Any:
    """A metric of `evaluate` with the features and the algorithm of its mean_iou script.

    `evaluate` fetches the script itself from the Hub, and a benchmark must not depend on the Hub.
    The code around it is `evaluate`'s own: it stores the maps in Arrow and reads them again.
    """
    maps = datasets.Sequence(datasets.Sequence(datasets.Value("uint16")))

    class Script(evaluate.Metric):
        """Mean IoU from three histograms per image."""

        def _info(self) -> evaluate.MetricInfo:
            return evaluate.MetricInfo(
                description="mean IoU",
                citation="",
                inputs_description="class ids",
                features=datasets.Features(predictions=maps, references=maps),
            )

        def _compute(
            self, predictions: Any, references: Any, num_labels: int, ignore_index: int
        ) -> dict[str, float]:
            totals = np.zeros((3, num_labels))
            for guess, true in zip(predictions, references, strict=True):
                guess, true = np.array(guess), np.array(true)
                counted = true != ignore_index
                guess, true = guess[counted], true[counted]
                for row, ids in zip(totals, (guess[guess == true], guess, true), strict=True):
                    row += np.histogram(ids, bins=num_labels, range=(0, num_labels - 1))[0]
            hits, guessed, seen = totals
            with np.errstate(invalid="ignore"):
                return {"mean_iou": float(np.nanmean(hits / (guessed + seen - hits)))}

    return Script()


BENCHMARK = Benchmark(metric, regions_and_labels, (None,), rounds=15, compiles=False)
