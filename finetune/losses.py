"""Terms of a loss: each gives a sum over the batch, and the weight to divide the sum by.

The weight depends on the labels alone. So the loop adds it up over micro-batches and processes
before the forward pass, and each term becomes its mean over the global batch.
"""

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from finetune.segformer.functional import CrossEntropySums, cross_entropy_sums

Sums = CrossEntropySums
"""Loss, weight, and the number of labels that are neither a class nor ignored."""


class Term(Protocol):
    """One term of a loss.

    Evaluations call `sums` on bands of rows and add up the results. So a loss that needs whole
    images, such as Dice, also needs another way through `segmentation_scores.evaluation_of`.
    """

    def weight(self, labels: Tensor) -> Tensor:
        """The divisor, a float64 scalar that depends on the labels (B, H, W) alone."""

    def sums(self, logits: Tensor, labels: Tensor) -> Sums:
        """The sum over the batch, the same weight, and the number of invalid labels.

        The sums of images must add up to that of the batch.
        """


class CrossEntropy:
    """Cross entropy of logits that are upsampled to the size of the labels.

    Args:
        num_labels: K.
        ignore_index: the label of pixels that do not count.
        class_weights: the weight of a pixel of each class; None: 1.
        label_smoothing: share of the target that is spread over all classes.
        focal_gamma: exponent of the focal factor (1 - p)^gamma; 0: none.
    """

    def __init__(
        self,
        num_labels: int,
        ignore_index: int,
        *,
        class_weights: Sequence[float] | None = None,
        label_smoothing: float = 0.0,
        focal_gamma: float = 0.0,
    ):
        self.num_labels = num_labels
        self.ignore_index = ignore_index
        self.label_smoothing = label_smoothing
        self.focal_gamma = focal_gamma
        self._class_weights = None if class_weights is None else torch.tensor(class_weights)

    def weight(self, labels: Tensor) -> Tensor:
        """The sum of the weights of the labels (B, H, W), uint8 or int64, that count; float64."""
        counted = (labels != self.ignore_index) & (labels >= 0) & (labels < self.num_labels)
        if self._class_weights is None:
            return counted.sum(dtype=torch.float64)
        table = self._table(labels.device)
        return table[labels.where(counted, 0).long()].where(counted, 0).sum(dtype=torch.float64)

    def sums(self, logits: Tensor, labels: Tensor) -> Sums:
        """The sum of the pixels' losses, its weight, and the number of invalid labels.

        Logits are (B, K, h, w), labels uint8 or int64 (B, H, W).
        """
        return cross_entropy_sums(
            logits,
            labels,
            ignore_index=self.ignore_index,
            weight=None if self._class_weights is None else self._table(logits.device),
            label_smoothing=self.label_smoothing,
            focal_gamma=self.focal_gamma,
        )

    def _table(self, device: torch.device) -> Tensor:
        assert self._class_weights is not None
        if self._class_weights.device != device:  # once: a task trains on one device
            self._class_weights = self._class_weights.to(device)
        return self._class_weights


LOSSES: dict[str, Callable[..., Term]] = {"cross_entropy": CrossEntropy}
"""The terms by the name that a recipe gives them."""
