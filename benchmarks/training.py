"""`training`: equal minutes of training, ours against the stock model in the same loop.

Each side, in a process of its own, first finds out how fast it trains, then trains for as many
steps as the minutes hold (stock, as the minutes that ours took), with the same recipe, seed,
initial weights, data order, optimiser and evaluation. What differs is the model and the loss:
stock's own, by `labels=`. So the difference in mean IoU is what the speed buys. The sides follow
each other: on a machine that changes its pace, compare images a second with those of `train-step`.
"""

import os
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import transformers
from rich.console import Console
from torch import Tensor
from transformers import PreTrainedModel

from benchmarks import children
from finetune.errors import UserError
from finetune.programs.benchmark.printing import columns_of
from finetune.recipe import PLAIN_LOSS, Recipe, load_recipe
from finetune.run.log import rows
from finetune.trainers import Batch, tasks
from finetune.trainers.segmentation import SegmentationTask

CALIBRATION_STEPS = 40
WARM_UP_STEPS = 100
"""At most, before the calibration's: an epoch, in which samples are decoded for the cache."""
LOG_STEPS = 10

_STDERR = 2  # the file, whatever sys.stderr has become


@dataclass(frozen=True)
class Trained:
    """What one side has to show."""

    side: str
    images: int
    seconds: float
    """Of training steps alone: no evaluation, no saving."""
    images_per_second: float
    mean_iou: float | None
    """At the end, on the validation split."""
    output: str


class StockTask(SegmentationTask):
    """The same task with stock's model and loss; everything else is inherited."""

    def build(self) -> PreTrainedModel:
        """Stock's model with the weights that ours would start from."""
        with tempfile.TemporaryDirectory() as folder:  # names differ in memory, not on disk
            super().build().save_pretrained(folder)
            return transformers.SegformerForSemanticSegmentation.from_pretrained(folder)

    def losses(self, model: Any, batch: Batch) -> dict[str, Tensor]:
        """Stock's mean cross entropy, times the number of pixels that it is the mean of."""
        pixel_values = self.preprocessing.normalise(batch["pixel_values"])
        pixel_values = pixel_values.contiguous()  # NCHW, as processors give it
        mean = model(pixel_values=pixel_values, labels=batch["labels"].long()).loss
        return {name: mean * weight for name, weight in self.weights(batch).items()}


def check(recipe: str, overrides: Sequence[str], output: Path) -> None:
    """Says what is wrong before anything is started.

    Raises:
        UserError: the recipe is wrong, or the folder is in use.
    """
    for override in overrides:
        if override.partition("=")[0] in ("output", "resume", "train.steps"):
            raise UserError(f"{override}: `benchmark training` chooses this itself; leave it out")
    if load_recipe(recipe, overrides).loss != PLAIN_LOSS:
        raise UserError("loss: stock's model has plain cross entropy only; leave `loss` out")
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise UserError(f"--output {output}: not an empty folder; remove it or choose another")


def compare(
    recipe: str, overrides: Sequence[str], *, minutes: float, output: Path
) -> tuple[Trained, Trained]:
    """Trains ours, then stock; their run folders are `output`/ours and `output`/stock.

    Raises:
        UserError: as `check`.
        SystemExit: with a side's exit status, if that is not 0; it has said why.
    """
    check(recipe, overrides, output)
    task: dict[str, Any] = {"recipe": recipe, "overrides": list(overrides)}
    trained = []
    for side in ("ours", "stock"):
        print(f"{side}: training for {minutes:.3g} minutes", file=sys.stderr, flush=True)
        task |= {"side": side, "minutes": minutes, "output": str(output / side)}
        # What `fit` prints is for people, as is what comes on stderr; ours may be JSON.
        done = children.start("benchmarks.training", task, stdout=_STDERR)
        if done.returncode:
            raise SystemExit(done.returncode)
        trained.append(_trained(output, side))
        # As long as ours took: steps are counted beforehand, and a machine may change its pace.
        minutes = trained[0].seconds / 60
    return trained[0], trained[1]


def train_side(task: dict[str, Any]) -> None:
    """The child's part: calibrates and trains one side."""
    from finetune import train

    if task["side"] == "stock":
        tasks.TRAINERS["segmentation"] = StockTask  # in this process, which does nothing else
    train.quiet_libraries(main_process=False)
    output = Path(task["output"])
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output.parent) as folder:
        # Both sides begin with nothing decoded, or the second would profit from the first.
        os.environ["FINETUNE_CACHE"] = f"{folder}/decoded"
        recipe = _recipe(task)
        epoch = -(-SegmentationTask(recipe).num_train_samples // recipe.train.global_batch)
        steps = min(epoch, WARM_UP_STEPS) // LOG_STEPS * LOG_STEPS + LOG_STEPS + CALIBRATION_STEPS
        trial = _recipe(
            task,
            f"output={folder}/run",
            f"train.steps={steps}",
            f"train.eval_every={steps}",
            f"train.log_every={LOG_STEPS}",
        )
        speed = _images_per_second(train.fit(trial).output)
        train.quiet_libraries(main_process=True)
        steps = max(1, round(task["minutes"] * 60 * speed / trial.train.global_batch))
        train.fit(_recipe(task, f"output={output}", f"train.steps={steps}"))


def _recipe(task: dict[str, Any], *chosen: str) -> Recipe:
    return load_recipe(task["recipe"], [*task["overrides"], *chosen])


def _images_per_second(output: Path) -> float:
    logged = [row for row in rows(output / "metrics.jsonl") if "seconds" in row]
    batch = load_recipe(output / "recipe.yaml").train.global_batch
    first, last = logged[-1 - CALIBRATION_STEPS // LOG_STEPS], logged[-1]
    return (last["step"] - first["step"]) * batch / (last["seconds"] - first["seconds"])


def _trained(output: Path, side: str) -> Trained:
    recipe = load_recipe(output / side / "recipe.yaml")
    written = rows(output / side / "metrics.jsonl")
    seconds = max(row["seconds"] for row in written if "seconds" in row)
    mean_iou = [row["eval/mean_iou"] for row in written if "eval/mean_iou" in row][-1]
    images = recipe.train.steps * recipe.train.global_batch
    return Trained(side, images, seconds, images / seconds, mean_iou, recipe.output)


def print_training(sides: Sequence[Trained]) -> None:
    """One row a side."""
    table = columns_of("training", "images", "minutes", "images/s", "mean IoU", "run folder")
    for side in sides:
        table.add_row(
            "this" if side.side == "ours" else side.side,
            f"{side.images:,}",
            f"{side.seconds / 60:.1f}",
            f"{side.images_per_second:.1f}",
            "-" if side.mean_iou is None else f"{side.mean_iou:.1%}",
            side.output,
        )
    Console().print(table)


if __name__ == "__main__":
    sys.exit(children.main(train_side))
