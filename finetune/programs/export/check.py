"""Whether a file gives what the model gives, at sizes that it was not exported with."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
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
"""Of logits, relative to the largest."""
MIN_EQUAL = 0.9999
"""Of pixels."""


@dataclass(frozen=True)
class Check:
    """How far a file is from the model, over all sizes.

    Attributes:
        sizes: (B, H, W) of what was shown to both.
        difference: the largest of logits, relative to the largest logit; None for labels.
        equal: share of pixels with the same class, of those where the model prefers one class to
            the next by more than what logits may differ by.
        classes: how many the model finds; a comparison of masks of one class says little.
        finite: whether all logits were numbers.
    """

    sizes: tuple[tuple[int, int, int], ...]
    difference: float | None
    equal: float
    classes: int = 0
    finite: bool = True

    def worse_of(self, other: "Check") -> "Check":
        """What holds of two files that ought to be one, at the same sizes."""
        differences = [d for d in (self.difference, other.difference) if d is not None]
        return Check(
            self.sizes,
            max(differences, default=None),
            min(self.equal, other.equal),
            max(self.classes, other.classes),
            self.finite and other.finite,
        )

    @property
    def holds(self) -> bool:
        """Whether the file passes for the model."""
        close = self.equal > MIN_EQUAL and (self.difference or 0.0) <= MAX_DIFFERENCE
        return self.finite and close


def sizes_of(side: int) -> tuple[tuple[int, int, int], ...]:
    """Batches (B, H, W) that an export is tried on: odd ones, two at once, the smallest.

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
        sizes: batches; None: `sizes_of` it.

    Raises:
        UserError: one of the sizes is below the model's smallest; or the model's own logits are no
            numbers.
    """
    side = smallest_side(segmenter.model.config)
    sizes = tuple(sizes or sizes_of(side))
    worst, finite, same, counted, classes = None, True, 0, 0, set[int]()
    generator = torch.Generator().manual_seed(0)
    for (batch, height, width), draw in product(sizes, (_noise, _areas)):
        if min(height, width) < side:
            raise UserError(
                f"{height} x {width} pixels are too small: each side must have at least {side}"
            )
        # Integers through the model's own mean and deviation: what it will be shown.
        how = segmenter.preprocessing
        values = draw((batch, how.num_channels, height, width), generator) * how.full
        pixels = values.round().to(torch.uint8 if how.full == 255 else torch.int32)
        shown = how.normalise(pixels.permute(0, 2, 3, 1)).contiguous()
        with torch.no_grad():
            logits = segmenter.model(shown).logits
        if not logits.isfinite().all():
            raise UserError(
                f"model {segmenter.model.name_or_path}: its own logits hold NaN or infinity; its "
                "weights are broken, take those of an earlier checkpoint"
            )
        expected = upsampled_argmax(logits, (height, width))
        found = run(shown)
        if found.is_floating_point():
            finite = finite and bool(found.isfinite().all())
            scale = logits.abs().max().clamp(min=torch.finfo(logits.dtype).tiny)
            difference = float((found - logits).abs().max() / scale)
            # NaN is further off than anything.
            worst = difference if worst is None or not difference <= worst else worst
            found = upsampled_argmax(found, (height, width))
        clear = _is_clear(logits, (height, width))
        same += int((found == expected)[clear].sum())
        counted += int(clear.sum())
        classes.update(expected.unique().tolist())
    return Check(sizes, worst, same / counted if counted else 1.0, len(classes), finite)


def _noise(shape: tuple[int, ...], generator: Generator) -> Tensor:
    """Pictures (B, C, H, W) of 0..1 without anything in them: most models give them one class."""
    return torch.rand(shape, generator=generator)


def _areas(shape: tuple[int, ...], generator: Generator) -> Tensor:
    """Pictures (B, C, H, W) of 0..1 with smooth areas of all colours, the darkest and lightest."""
    coarse = torch.rand(*shape[:2], 4, 5, generator=generator).mul(2).sub(0.5).clamp(0, 1)
    return F.interpolate(coarse, size=shape[2:], mode="bilinear", align_corners=False)


def _is_clear(logits: Tensor, size: tuple[int, int]) -> Tensor:
    """Where logits that are off by what is allowed, each its own way, give the same class."""
    large = F.interpolate(logits, size=size, mode="bilinear", align_corners=False)
    if large.shape[1] == 1:  # stock's binary head: against 0
        return large[:, 0].abs() > MAX_DIFFERENCE * logits.abs().max()
    best = large.topk(2, dim=1).values
    return best[:, 0] - best[:, 1] > 2 * MAX_DIFFERENCE * logits.abs().max()


def session(path: Path | bytes, threads: int | None = None) -> Any:
    """An ONNX file opened in ONNX Runtime, on the CPU.

    Args:
        path: the file or its bytes.
        threads: None: as many as torch has.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or torch.get_num_threads()
    options.log_severity_level = 3
    source = path if isinstance(path, bytes) else str(path)
    return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])


class InOnnxRuntime(nn.Module):
    """An ONNX file with logits in the place of the model, for whatever calls the model.

    Args:
        opened: from `session`.
        config: the model's.
    """

    dtype = torch.float32

    def __init__(self, opened: Any, config: Any):
        super().__init__()
        self.session, self.config = opened, config
        self.place = nn.Parameter(torch.zeros(0))  # callers ask a parameter for the device

    def forward(self, pixel_values: Tensor) -> SimpleNamespace:
        """Logits of (B, C, H, W) under the name that the model's have."""
        return SimpleNamespace(logits=run_in(self.session, pixel_values))


def run_in(opened: Any, pixel_values: Tensor) -> Tensor:
    """What a session gives for (B, C, H, W) float32."""
    values = np.ascontiguousarray(pixel_values.numpy())
    return torch.from_numpy(opened.run(None, {"pixel_values": values})[0])
