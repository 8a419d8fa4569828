"""The Protocol of a task, through which `finetune.train.fit` trains it."""

from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import torch
from rich.table import Table
from torch import Tensor
from transformers import PreTrainedModel

from finetune.inference import Segmenter

Batch: TypeAlias = Mapping[str, Any]
"""An item of a task's loader; `fit` passes it back to the task and never reads it."""


@dataclass(frozen=True)
class Share:
    """One process's part of the work.

    Attributes:
        rank: the rank of this process.
        world_size: number of processes.
        device: the device of its batches.
    """

    rank: int = 0
    world_size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))


@dataclass(frozen=True)
class Evaluation:
    """An evaluation: the row for metrics.jsonl ("eval/..." keys) and the table for the screen.

    The row begins with the task's `best_metric`, and holds a mapping of names to scores at each key
    "eval/per_class_...". Report and card show what they find there.
    """

    metrics: dict[str, Any]
    table: Table


class Task(Protocol):
    """The interface of a task for `fit` and for programs that score a model.

    Methods raise UserError for the user's mistakes.
    """

    best_metric: str
    """The key of `Evaluation.metrics` that selects the best model; higher is better."""

    pipeline: str
    """The name of the task in transformers' `pipeline`."""

    @property
    def train_samples(self) -> Any:
        """The training split: a sequence of Samples. It is opened at the first use."""

    @property
    def val_samples(self) -> Any:
        """The validation split."""

    @property
    def num_train_samples(self) -> int:
        """Samples in an epoch."""

    def check(self) -> None:
        """Checks the training and validation data, before anything is built."""

    def check_split(self, samples: Any) -> None:
        """Checks one of the splits."""

    def check_model(self, segmenter: Segmenter, what: str) -> None:
        """Checks that a loaded model, which a message calls `what`, has the recipe's classes."""

    def build(self) -> PreTrainedModel:
        """The model, with fresh weights or the recipe's starting weights."""

    def batches(self, share: Share, first_step: int) -> Generator[Batch, None, None]:
        """The micro-batches of one process from a step on, on the process's device."""

    def weights(self, batch: Batch) -> dict[str, Tensor]:
        """The weight of each term of the loss, a scalar that depends on the labels alone."""

    def losses(self, model: Any, batch: Batch) -> dict[str, Tensor]:
        """The sum of each term over the batch, a scalar; `fit` divides it by the global weight."""

    def problem(self) -> str:
        """Invalid data that the device has found since the last call, as a message, or ""."""

    def evaluate(self, model: Any, share: Share, stop: Callable[[], bool]) -> Evaluation | None:
        """Scores the validation split over all processes; None if any of them was told to stop."""

    def save(self, folder: Path, model: PreTrainedModel, evaluation: Evaluation, step: int) -> None:
        """Writes a stock model folder."""

    def examples(self, model: Any, path: Path) -> None:
        """Writes a PNG of a few validation samples with predictions."""

    def state_dict(self) -> dict[str, Any]:
        """The task's own state, without the model: numbers, the same on every process."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores the state, before `batches`, which raises if it cannot resume from it."""
