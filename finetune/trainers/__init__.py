"""What differs between tasks, behind one Protocol: all that `finetune.train.fit` knows of one."""

from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import torch
from rich.table import Table
from torch import Tensor
from transformers import PreTrainedModel

Batch: TypeAlias = Mapping[str, Any]
"""What a task's loader yields; `fit` hands it back to the task and never looks inside."""


@dataclass(frozen=True)
class Share:
    """One process's part of the work.

    Attributes:
        rank: of this process.
        world_size: number of processes.
        device: where batches are to lie.
    """

    rank: int = 0
    world_size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))


@dataclass(frozen=True)
class Evaluation:
    """One evaluation: the row for metrics.jsonl ("eval/..." keys) and the table for a person."""

    metrics: dict[str, Any]
    table: Table


class Task(Protocol):
    """What `fit` needs of a task. Methods raise UserError for what the user can mend."""

    best_metric: str
    """The key of `Evaluation.metrics` by which the best model is chosen; higher is better."""

    @property
    def num_train_samples(self) -> int:
        """Samples in an epoch."""

    def check(self) -> None:
        """Looks at the training and validation data, before anything is built."""

    def build(self) -> PreTrainedModel:
        """The model, with fresh weights or those that the recipe starts from."""

    def batches(self, share: Share, first_step: int) -> Generator[Batch, None, None]:
        """The micro-batches of one process from a step on, on its device."""

    def weights(self, batch: Batch) -> dict[str, Tensor]:
        """The weight of each term of the loss, a scalar: of the labels alone, before a forward."""

    def losses(self, model: Any, batch: Batch) -> dict[str, Tensor]:
        """The sum of each term over the batch, a scalar; `fit` divides it by the global weight."""

    def problem(self) -> str:
        """What the device found wrong with the data since the last call; "" if nothing."""

    def evaluate(self, model: Any, share: Share, stop: Callable[[], bool]) -> Evaluation | None:
        """Scores the validation split over all processes; None if any of them was told to stop."""

    def save(self, folder: Path, model: PreTrainedModel, evaluation: Evaluation, step: int) -> None:
        """Writes a stock model folder."""

    def examples(self, model: Any, path: Path) -> None:
        """Writes a PNG of a few validation samples and what the model makes of them."""

    def state_dict(self) -> dict[str, Any]:
        """What it owns besides the model, the same on every process; numbers only."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes it back; called before `batches`, which refuses what cannot go on from it."""
