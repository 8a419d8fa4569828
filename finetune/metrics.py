"""Mean intersection over union, from a confusion matrix that is summed over the whole set.

It gives the same numbers as Hugging Face's `evaluate.load("mean_iou")`, without a download and
without files. A batch costs one bincount on its device.

    metric = MeanIoU(num_labels=150)
    for batch in loader:
        metric.add_batch(predictions=predict(batch), references=batch["labels"])
    print(metric.compute()["mean_iou"])
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import evaluate
import numpy as np
import torch
from datasets import Features, Value
from datasets import Sequence as SequenceFeature
from torch import Tensor

# One map of class ids, or a batch of them: an array or tensor of integers in any shape, a nested
# list, or a list of maps whose sizes differ.
Maps = Any


class MeanIoU(evaluate.Metric):
    """Streaming mean IoU with the keys of Hugging Face's mean_iou.

    It behaves like an `evaluate.Metric`, with two differences: `compute` keeps the counts
    (`reset` clears them), and `merge` adds the counts of several processes.

    A model with a single logit per pixel (`num_labels=1`) still has two classes to count,
    background and thing: pass `num_labels=2`.

    Args:
        num_labels: The number of classes K; ids are 0..K-1.
        ignore_index: The reference id that is left out of every count.
    """

    def __init__(self, num_labels: int, ignore_index: int = 255):
        self.num_labels = num_labels
        self.ignore_index = ignore_index
        # int64 (K * K,), on the device of the first batch; None before it.
        self._counts: Tensor | None = None
        super().__init__()

    def _info(self) -> evaluate.MetricInfo:
        maps = SequenceFeature(SequenceFeature(Value("int64")))
        return evaluate.MetricInfo(
            description="Mean intersection over union of predicted and true class maps.",
            citation="",
            inputs_description="",  # evaluate appends this to the docstrings of the methods below
            features=Features({"predictions": maps, "references": maps}),
        )

    def _build_data_dir(self) -> str:
        # evaluate would make a cache folder here; our counts live in memory.
        return ""

    def __bool__(self) -> bool:
        # evaluate's __len__ counts Arrow rows, always 0 here, so that `if metric:` would be false.
        return True

    def add(self, *, prediction: Maps, reference: Maps) -> None:
        """Counts one picture; see `add_batch`."""
        self.add_batch(predictions=[prediction], references=[reference])

    def add_batch(self, *, predictions: Maps, references: Maps) -> None:
        """Counts a batch. Predictions at ignored pixels may be anything.

        Args:
            predictions: Integer class ids 0..K-1; array, tensor on any device, or list, of any
                shape; or a list of maps of different sizes.
            references: The true ids, 0..K-1 or `ignore_index`, in the same shape.

        Raises:
            ValueError: The shapes differ, the ids are not integers, or an id is out of range; the
                counts are left as they were.
        """
        num_labels = self.num_labels
        predicted, truth = map(_as_int, _flatten_pair(predictions, references))
        ignored = truth == self.ignore_index
        # No boolean indexing: it would copy, and on a GPU wait for the size of its result.
        truth = truth.masked_fill(ignored, 0)
        predicted = predicted.masked_fill(ignored, 0)
        if truth.numel():
            extremes = torch.stack([*truth.aminmax(), *predicted.aminmax()]).tolist()
            _check_range("reference", truth, extremes[:2], num_labels, self.ignore_index)
            _check_range("prediction", predicted, extremes[2:], num_labels)
        # In int32 a bincount takes half the time it takes in int64, and K * K still fits.
        pairs = truth.to(torch.int32).mul_(num_labels).add_(predicted.to(torch.int32))
        pairs.masked_fill_(ignored, num_labels**2)  # one bin beyond the last, dropped below
        self._add_counts(torch.bincount(pairs, minlength=num_labels**2 + 1)[:-1])

    def _add_counts(self, counts: Tensor) -> None:
        if self._counts is None:
            self._counts = counts
        else:
            self._counts += counts.to(self._counts.device)

    @property
    def confusion(self) -> np.ndarray:
        """Counted pixels as an int64 (K, K) array: rows are the truth, columns the prediction."""
        if self._counts is None:
            return np.zeros((self.num_labels, self.num_labels), dtype=np.int64)
        return self._counts.reshape(self.num_labels, self.num_labels).cpu().numpy().copy()

    def merge(self, other: MeanIoU | np.ndarray | Tensor) -> None:
        """Adds another metric's counts, as if its batches had been added here.

        Args:
            other: A metric with as many classes, or its `confusion` (integer, K x K).
        """
        matrix = other.confusion if isinstance(other, MeanIoU) else other
        counts = torch.as_tensor(matrix).detach()
        if counts.shape != (self.num_labels, self.num_labels) or counts.is_floating_point():
            raise ValueError(
                f"cannot merge counts of shape {tuple(counts.shape)} ({counts.dtype}) into a "
                f"metric of {self.num_labels} labels: it takes an integer K x K matrix"
            )
        self._add_counts(counts.to(torch.int64).flatten().clone())

    def reset(self) -> None:
        """Clears the counts."""
        self._counts = None

    def compute(
        self, *, predictions: Maps | None = None, references: Maps | None = None
    ) -> dict[str, Any]:
        """The scores of all counts, after adding the given batch if there is one.

        Returns:
            `mean_iou`, `mean_accuracy`, `overall_accuracy` (numpy float64) and
            `per_category_iou`, `per_category_accuracy` (numpy float64 (K,)). The IoU of a class is
            NaN if it occurs in neither truth nor prediction, its accuracy if it does not occur in
            the truth. Means leave NaN out; a mean of NaN alone is NaN.
        """
        if predictions is not None or references is not None:
            self.add_batch(predictions=predictions, references=references)
        confusion = self.confusion.astype(np.float64)
        hits = confusion.diagonal()
        seen = confusion.sum(axis=1)
        union = seen + confusion.sum(axis=0) - hits
        with np.errstate(invalid="ignore"):  # 0 / 0 is the NaN of an absent class
            iou = hits / union
            accuracy = hits / seen
            overall = hits.sum() / seen.sum()
        return {
            "mean_iou": _nanmean(iou),
            "mean_accuracy": _nanmean(accuracy),
            "overall_accuracy": overall,
            "per_category_iou": iou,
            "per_category_accuracy": accuracy,
        }


def _nanmean(values: np.ndarray) -> np.float64:
    """np.nanmean without its warning when all values are NaN."""
    present = values[~np.isnan(values)]
    return np.float64(present.mean() if present.size else np.nan)


def _flatten_pair(predictions: Maps, references: Maps) -> tuple[Tensor, Tensor]:
    """Both as integer (N,) tensors on the predictions' device, shapes checked map by map."""
    if _is_list_of_maps(predictions) or _is_list_of_maps(references):
        if len(predictions) != len(references):
            raise ValueError(f"{len(predictions)} predictions for {len(references)} references")
        pairs = [_flatten_pair(p, r) for p, r in zip(predictions, references, strict=True)]
        if not pairs:
            return torch.empty(0, dtype=torch.int32), torch.empty(0, dtype=torch.int32)
        device = pairs[0][0].device
        columns = zip(*pairs, strict=True)
        predicted, truth = (torch.cat([_as_int(m).to(device) for m in maps]) for maps in columns)
        return predicted, truth
    predicted, truth = _as_tensor(predictions, "predictions"), _as_tensor(references, "references")
    if predicted.shape != truth.shape:
        raise ValueError(
            f"predictions of shape {tuple(predicted.shape)} do not match references of shape "
            f"{tuple(truth.shape)}"
        )
    return predicted.reshape(-1), truth.reshape(-1).to(predicted.device)


def _is_list_of_maps(maps: Maps) -> bool:
    if not isinstance(maps, list | tuple):
        return False
    return not maps or not all(isinstance(item, int) for item in maps)


def _as_tensor(ids: Maps, what: str) -> Tensor:
    if isinstance(ids, Tensor):
        tensor = ids.detach()
    else:  # torch takes native byte order (16-bit PNG are big-endian) and writable arrays
        array = np.asarray(ids)
        tensor = torch.as_tensor(np.array(array, dtype=array.dtype.newbyteorder("=")))
    if tensor.is_floating_point() or tensor.is_complex():
        raise ValueError(f"{what} must be integer class ids, got {tensor.dtype}")
    return tensor


def _as_int(ids: Tensor) -> Tensor:
    """Ids as int32, or int64 if they need it: torch cannot compare uint16 or uint32.

    Wide ids keep their width until their range is checked, or 2**32 would pass for class 0.
    """
    wide = ids.dtype in (torch.int64, torch.uint32, torch.uint64)
    return ids.to(torch.int64 if wide else torch.int32)


def _check_range(
    what: str,
    ids: Tensor,
    extremes: Sequence[int],
    num_labels: int,
    ignore_index: int | None = None,
) -> None:
    """Raises a ValueError that names the ids out of range, if there are any."""
    if extremes[0] >= 0 and extremes[1] < num_labels:
        return
    bad = ids[(ids < 0) | (ids >= num_labels)].unique().tolist()
    shown = ", ".join(map(str, bad[:5])) + (", ..." if len(bad) > 5 else "")
    if ignore_index is None:
        raise ValueError(f"{what} id {shown} is not a class (0..{num_labels - 1})")
    raise ValueError(
        f"{what} id {shown} is neither a class (0..{num_labels - 1}) nor the ignored id "
        f"{ignore_index}: check the number of labels and how they are mapped"
    )
