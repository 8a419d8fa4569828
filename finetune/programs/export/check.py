"""Compares an exported file with its model, at sizes that it was not exported with."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from finetune.errors import UserError
from finetune.inference import Segmenter
from finetune.segformer.configuration import smallest_side
from finetune.segformer.functional import upsampled_argmax

MAX_DIFFERENCE = 1e-4
"""Largest difference of logits, relative to the largest logit."""
MIN_EQUAL = 0.9999
"""Smallest share of equal pixels."""


@dataclass(frozen=True)
class Check:
    """The difference between a file and the model, over all sizes.

    Attributes:
        sizes: (B, H, W) of the inputs.
        difference: the largest of logits, relative to the largest logit; None for labels.
        equal: share of pixels with the same class, among those where the model prefers one class to
            the next by more than the allowed difference of logits.
        classes: number of classes that the model finds; masks of one class prove little.
        finite: whether all logits were numbers.
    """

    sizes: tuple[tuple[int, int, int], ...]
    difference: float | None
    equal: float
    classes: int = 0
    finite: bool = True

    @property
    def holds(self) -> bool:
        """Whether the file matches the model."""
        close = self.equal > MIN_EQUAL and (self.difference or 0.0) <= MAX_DIFFERENCE
        return self.finite and close


def sizes_of(side: int) -> tuple[tuple[int, int, int], ...]:
    """Batches (B, H, W) for the check: odd sizes, two images at once, the smallest size.

    Args:
        side: the smallest that the model takes.
    """
    base = [(1, 64, 64), (2, 61, 99), (1, 97, 130), (2, 128, 75), (1, 0, 0), (1, 161, 255)]
    return tuple((b, max(h, side), max(w, side + (w > 0))) for b, h, w in base)


def check(
    run: Callable[[Tensor], Tensor],
    segmenter: Segmenter,
    sizes: Sequence[tuple[int, int, int]] | None = None,
) -> Check:
    """Compares a file with the model in PyTorch.

    Args:
        run: the file: (B, C, H, W) float32 to logits (B, K, h, w), or to labels (B, H, W).
        segmenter: the model.
        sizes: batches; None: those of `sizes_of`.

    Raises:
        UserError: a size is below the model's smallest; or the model's own logits are not numbers.
    """
    side = smallest_side(segmenter.model.config)
    sizes = tuple(sizes or sizes_of(side))
    worst, finite, same, counted, classes = None, True, 0, 0, set[int]()
    generator = torch.Generator().manual_seed(0)
    # Most models give noise one class.
    draws: tuple[Callable[..., Tensor], ...] = (torch.rand, _areas)
    for (batch, height, width), draw in product(sizes, draws):
        if min(height, width) < side:
            raise UserError(
                f"{height} x {width} pixels are too small: each side must have at least {side}"
            )
        # Integers through the model's own mean and deviation, as in use.
        how = segmenter.preprocessing
        values = draw((batch, how.num_channels, height, width), generator=generator) * how.full
        pixels = values.round().to(torch.uint8 if how.full == 255 else torch.int32)
        shown = how.normalise(pixels.permute(0, 2, 3, 1)).contiguous()
        with torch.no_grad():
            logits = segmenter.model(shown).logits
        if not logits.isfinite().all():
            raise UserError(
                f"model {segmenter.model.name_or_path}: its own logits hold NaN or infinity, so "
                "its weights are broken; export an earlier checkpoint"
            )
        expected = upsampled_argmax(logits, (height, width))
        found = run(shown)
        if found.is_floating_point():
            finite = finite and bool(found.isfinite().all())
            scale = logits.abs().max().clamp(min=torch.finfo(logits.dtype).tiny)
            difference = float((found - logits).abs().max() / scale)
            # NaN counts as the worst difference.
            worst = difference if worst is None or not difference <= worst else worst
            found = upsampled_argmax(found, (height, width))
        clear = _is_clear(logits, (height, width))
        same += int((found == expected)[clear].sum())
        counted += int(clear.sum())
        classes.update(expected.unique().tolist())
    return Check(sizes, worst, same / counted if counted else 1.0, len(classes), finite)


def _areas(shape: tuple[int, ...], generator: Generator) -> Tensor:
    """Pictures (B, C, H, W) of 0..1 with smooth areas of all colours, from darkest to lightest."""
    coarse = torch.rand(*shape[:2], 4, 5, generator=generator).mul(2).sub(0.5).clamp(0, 1)
    return F.interpolate(coarse, size=shape[2:], mode="bilinear", align_corners=False)


def _is_clear(logits: Tensor, size: tuple[int, int]) -> Tensor:
    """Pixels that keep their class if every logit is off by the allowed difference."""
    large = F.interpolate(logits, size=size, mode="bilinear", align_corners=False)
    if large.shape[1] == 1:  # stock's binary head: compared with 0
        return large[:, 0].abs() > MAX_DIFFERENCE * logits.abs().max()
    best = large.topk(2, dim=1).values
    return best[:, 0] - best[:, 1] > 2 * MAX_DIFFERENCE * logits.abs().max()


def load(path: Path) -> Callable[[Tensor], Tensor]:
    """An exported file as a function of (B, C, H, W) float32."""
    if path.suffix == ".pt2":
        return torch.export.load(path).module()
    return partial(run_in, session(path))


def session(path: Path) -> Any:
    """Opens an ONNX file in ONNX Runtime, on the CPU, with as many threads as torch has."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


class StandIn(nn.Module):
    """A function in place of the model.

    Args:
        run: Takes (B, C, H, W) float32 and gives logits (B, K, H / 4, W / 4).
        config: The model's.
    """

    dtype = torch.float32

    def __init__(self, run: Callable[[Tensor], Tensor], config: Any):
        super().__init__()
        self.run, self.config = run, config
        self.place = nn.Parameter(torch.zeros(0))  # callers ask a parameter for the device

    def forward(self, pixel_values: Tensor) -> SimpleNamespace:
        """Logits of (B, C, H, W), under the name of the model's output."""
        return SimpleNamespace(logits=self.run(pixel_values))


def run_in(opened: Any, pixel_values: Tensor) -> Tensor:
    """The output of a session for (B, C, H, W) float32."""
    values = np.ascontiguousarray(pixel_values.numpy())
    return torch.from_numpy(opened.run(None, {"pixel_values": values})[0])
