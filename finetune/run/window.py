"""The losses of the steps since the last line of metrics.jsonl."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from finetune.errors import UserError
from finetune.run.processes import all_sum
from finetune.run.screen import say


def summed(weights: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Each term's weight, summed over a step's micro-batches and all processes in one message."""
    names = list(weights[0])
    total = torch.stack([torch.stack([turn[name] for name in names]) for turn in weights]).sum(0)
    return dict(zip(names, all_sum(total), strict=True))


class Window:
    """The sums and weights of the loss's terms, step by step.

    They stay on the device, since to read them would wait for it. Each process sums its own until
    `gather`.

    Attributes:
        steps: steps since the window was opened.
        since: training seconds at its opening.
    """

    def __init__(self) -> None:
        self.open(0.0)

    def open(self, seconds: float) -> None:
        """Begins a new window."""
        self.steps, self.since = 0, seconds
        self._own: Tensor | float = 0.0  # sums of this process, not yet gathered
        self._sums: Tensor | float = 0.0  # of all processes, one number for each term
        self._weights: Tensor | float = 0.0

    def add(self, losses: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> None:
        """Adds this process's sums of a micro-batch, term by term.

        The last micro-batch of a step brings the `weights` of the whole step over all processes;
        those of the others are empty.
        """
        # By name, so that each sum meets its own weight.
        own = torch.stack([losses[name].detach().double() for name in sorted(losses)])
        self._own = self._own + own
        if weights:
            divisors = torch.stack([weights[name] for name in sorted(weights)])
            self._weights = self._weights + divisors.double()
            self.steps += 1

    def gather(self, step: int, checkpoints: Path, precision: str) -> float:
        """Sums over the processes and returns the mean loss; every process calls it.

        Raises:
            UserError: the loss is NaN or infinite; the arguments complete the message.
        """
        if isinstance(self._own, Tensor):
            self._sums, self._own = self._sums + all_sum(self._own), 0.0
        if self.steps and not torch.as_tensor(self._weights).any():
            say(f"warning: no pixel of the last {self.steps} steps has a label: nothing is learnt")
        if math.isfinite(loss := self.loss):
            return loss
        remedy = "Lower train.lr or set train.clip_norm=1"
        if precision == "fp16":
            remedy += " or train.precision=bf16"
        if any(checkpoints.glob("step-*")):
            remedy += f", with another output. The checkpoints in {checkpoints} were saved before"
        raise UserError(f"the loss is {loss} near step {step}. {remedy}.")

    @property
    def loss(self) -> float:
        """The mean loss of the gathered steps, the sum of its terms' means; 0 without steps."""
        sums, weights = torch.as_tensor(self._sums), torch.as_tensor(self._weights)
        return float((sums / weights.where(weights > 0, 1)).sum())

    def state_dict(self) -> dict[str, Any]:
        """The window's state for a checkpoint, after `gather`."""
        return {
            "steps": self.steps,
            "since": self.since,
            "sums": torch.as_tensor(self._sums).tolist(),
            "weights": torch.as_tensor(self._weights).tolist(),
        }

    def load_state_dict(self, state: Mapping[str, Any], device: torch.device) -> None:
        """Restores a saved window."""
        self.steps, self.since = state["steps"], state["since"]
        self._own = 0.0
        self._sums, self._weights = (
            torch.tensor(state[key], dtype=torch.float64, device=device)
            for key in ("sums", "weights")
        )
