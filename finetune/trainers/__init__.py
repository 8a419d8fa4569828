"""What differs between tasks, behind one Protocol: all that `finetune.train.fit` knows of one."""

from collections.abc import Callable, Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from rich.table import Table
from torch import Tensor
from transformers import PreTrainedModel

from finetune.data.loader import Batch


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
        """Images in an epoch."""

    @property
    def num_val_samples(self) -> int:
        """Images of an evaluation."""

    def check(self) -> None:
        """Looks at the training and validation data, before anything is built."""

    def build(self) -> PreTrainedModel:
        """The model, with fresh weights or those that the recipe starts from."""

    def train_batches(
        self, *, rank: int, world_size: int, first_step: int, pin_memory: bool
    ) -> Generator[Batch, None, None]:
        """The micro-batches of one process from a step on."""

    def sampler_state(self, world_size: int) -> dict[str, int]:
        """What the order of samples depends on besides the recipe and the step."""

    def load_sampler_state(self, saved: dict[str, int], *, world_size: int, step: int) -> str:
        """Looks at what was saved: what to say of it, or a UserError if it cannot go on from it."""

    def loss(self, model: Any, batch: Batch) -> tuple[Tensor, Tensor]:
        """The sum of the losses and the weight that it is to be divided by, two scalars."""

    def stray(self) -> str:
        """What the device has found wrong with the data since it was asked last; "" if nothing."""

    def evaluate(
        self, model: Any, *, rank: int, world_size: int, stop: Callable[[], bool]
    ) -> Evaluation | None:
        """Scores the validation split over all processes; None if any of them was told to stop."""

    def save(self, folder: Path, model: PreTrainedModel, evaluation: Evaluation, step: int) -> None:
        """Writes a stock model folder."""

    def examples(self, model: Any, path: Path) -> None:
        """Writes a PNG of a few validation samples and what the model makes of them."""
