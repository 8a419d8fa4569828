"""The compared cases: each benchmark is the same work on both sides, on the same numbers.

"ours" is this package. "stock" is the code that a user of transformers, torch and evaluate would
write. A side ending in "_compiled" runs under `torch.compile`.
"""

import functools
import tempfile
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import transformers
from torch import Tensor, nn

from finetune.segformer import VARIANTS, SegformerConfig, SegformerForSemanticSegmentation
from finetune.segformer.functional import upsampled_argmax, upsampled_cross_entropy

IGNORE = 255
"""The ignored label, on both sides."""

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Case:
    """One row of the table: the work, its inputs and its settings."""

    what: str
    variant: str | None
    size: tuple[int, int]
    """Height and width of the image, or of the labels for `loss` and `metric`."""
    batch: int
    num_labels: int
    dtype: str
    """Type of the products under autocast; the weights are float32."""
    device: str

    def autocast(self) -> AbstractContextManager:
        """The autocast context of both sides; off in float32."""
        kind = torch.device(self.device).type
        dtype = DTYPES[self.dtype]
        if dtype == torch.float32:
            return torch.autocast(kind, enabled=False)
        return torch.autocast(kind, dtype)


def _nothing() -> None:
    pass


def _nothing_of(*inputs: Tensor) -> None:
    pass


@dataclass(frozen=True)
class Work:
    """One side of a case, loaded."""

    run: Callable[..., Any]
    """The timed work, on the case's inputs."""
    compare: Callable[..., Mapping[str, Any]]
    """The results that must be equal on both sides, by name: tensors or numbers."""
    reset: Callable[[], None] = _nothing
    """Undoes the effects of a run, outside the timing."""
    products: Callable[..., object] | None = None
    """The forward pass of the model alone; its arithmetic sets the limit.

    The upsampling of both losses counts as memory traffic, however it is written.
    """
    prepare: Callable[..., object] = _nothing_of
    """Lays the inputs out as the side's model gives them; neither timed nor counted."""


@dataclass(frozen=True)
class Benchmark:
    """A kind of case."""

    load: Callable[[Case, str], Work]
    inputs: Callable[[Case], tuple[Tensor, ...]]
    variants: tuple[str | None, ...]
    """The default variants; None where there is no model."""
    rounds: int
    size: tuple[int, int] = (512, 512)
    batch: int = 1
    compiles: bool = True
    """Whether --compile changes anything."""
    passes: int = 1
    """Arithmetic in forward passes; a backward pass counts as two."""


# ----------------------------------------------------------------------------------------- models


def load_model(case: Case, side: str) -> nn.Module:
    """The model of one side, in float32; both sides have the same fresh weights."""
    assert case.variant is not None, "plan() gives one"
    name, _, compiled = side.partition("_")
    torch.manual_seed(0)
    config = SegformerConfig(
        **VARIANTS[case.variant],
        id2label={i: str(i) for i in range(case.num_labels)},
        label2id={str(i): i for i in range(case.num_labels)},
        semantic_loss_ignore_index=IGNORE,
    )
    model: nn.Module = SegformerForSemanticSegmentation(config)
    if name == "stock":
        with tempfile.TemporaryDirectory() as folder:  # names differ in memory, not on disk
            model.save_pretrained(folder)  # type: ignore[operator]
            model = transformers.SegformerForSemanticSegmentation.from_pretrained(folder)
    model = model.to(case.device).eval()
    if not compiled:
        return model
    if name == "stock":
        with torch.no_grad():
            model(torch.zeros(1, 3, 64, 64, device=case.device))  # its first call cannot compile
    return torch.compile(model, fullgraph=name == "ours", dynamic=False)  # type: ignore[return-value]


def images(case: Case) -> tuple[Tensor, ...]:
    """Contiguous NCHW images, as an image processor gives them; both sides get the same tensor."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randn(case.batch, 3, *case.size, generator=generator)
    return (pixels.to(case.device),)


def labels(case: Case) -> Tensor:
    """int64 (B, H, W): squares of a sixteenth of the side, a tenth of them ignored."""
    generator = torch.Generator().manual_seed(1)
    cells = torch.randint(case.num_labels, (case.batch, 1, 16, 16), generator=generator)
    cells[torch.rand(cells.shape, generator=generator) < 0.1] = IGNORE
    return F.interpolate(cells.float(), size=case.size)[:, 0].long().to(case.device)


def forward(case: Case, side: str) -> Work:
    """Images to logits at 1/4, in eval mode."""
    model = load_model(case, side)

    @torch.no_grad()
    def run(pixels: Tensor) -> Tensor:
        with case.autocast():
            return model(pixels).logits

    return Work(run, lambda pixels: {"logits": run(pixels)}, products=run)


def train_step(case: Case, side: str) -> Work:
    """Forward, loss and backward in train mode, through the model's own `labels=`; no optimiser.

    Dropout differs between the sides, so their losses are compared in eval mode.
    """
    model = load_model(case, side).train()

    def loss(pixels: Tensor, target: Tensor) -> Tensor:
        with case.autocast():
            return model(pixel_values=pixels, labels=target).loss

    def run(pixels: Tensor, target: Tensor) -> None:
        loss(pixels, target).backward()

    def compare(pixels: Tensor, target: Tensor) -> dict[str, Tensor]:
        model.eval()
        value = loss(pixels, target).detach()
        model.train()
        return {"loss": value}

    def products(pixels: Tensor, target: Tensor) -> None:
        with case.autocast():
            model(pixels)

    return Work(run, compare, lambda: model.zero_grad(set_to_none=True), products)


def eval_image(case: Case, side: str) -> Work:
    """Images to class maps of their own size."""
    model = load_model(case, side)
    classes = _classes(side)

    @torch.no_grad()
    def logits(pixels: Tensor) -> Tensor:
        with case.autocast():
            return model(pixels).logits

    @torch.no_grad()
    def run(pixels: Tensor) -> Tensor:
        return classes(logits(pixels), _size(pixels))

    return Work(run, lambda pixels: {"classes": run(pixels)}, products=logits)


# ----------------------------------------------------------------------------------------- pieces


def logits_and_labels(case: Case) -> tuple[Tensor, ...]:
    """Logits at 1/4 in the case's type, as a model gives them, and labels."""
    generator = torch.Generator().manual_seed(0)
    height, width = (-(-side // 4) for side in case.size)
    logits = torch.randn(case.batch, case.num_labels, height, width, generator=generator)
    return logits.to(case.device, DTYPES[case.dtype]), labels(case)


def regions_and_labels(case: Case) -> tuple[Tensor, ...]:
    """As `logits_and_labels`, but with regions, as in the logits of a trained model.

    Seeds of 16 logits; our argmax skips the inside of a region, 77 % here.
    """
    logits, target = logits_and_labels(case)
    seeds = F.avg_pool2d(logits, 16, ceil_mode=True) * 16
    smooth = F.interpolate(seeds, size=logits.shape[2:], mode="bilinear", align_corners=False)
    return smooth, target


def loss(case: Case, side: str) -> Work:
    """The loss and its gradient from small logits and full-size labels."""
    name, _, compiled = side.partition("_")

    def ours(logits: Tensor, target: Tensor) -> Tensor:
        return upsampled_cross_entropy(logits, target, ignore_index=IGNORE)

    def stock(logits: Tensor, target: Tensor) -> Tensor:
        large = F.interpolate(logits, size=_size(target), mode="bilinear", align_corners=False)
        return F.cross_entropy(large, target, ignore_index=IGNORE)

    value = ours if name == "ours" else stock
    if compiled:
        value = torch.compile(value, fullgraph=name == "ours", dynamic=False)

    def run(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        logits = _laid_out(logits, name).detach().requires_grad_()
        with case.autocast():
            total = value(logits, target)
        return total.detach(), torch.autograd.grad(total, logits)[0]

    return Work(
        run,
        lambda *inputs: dict(zip(("loss", "gradient"), run(*inputs), strict=True)),
        prepare=lambda logits, target: _laid_out(logits, name),
    )


def metric(case: Case, side: str) -> Work:
    """The batch's mean IoU from small logits and full-size labels."""
    classes = _classes(side)
    score = _mean_iou if side == "ours" else _stock_mean_iou

    @torch.no_grad()
    def run(logits: Tensor, target: Tensor) -> float:
        return score(classes(_laid_out(logits, side), _size(target)), target, case.num_labels)

    return Work(
        run,
        lambda *inputs: {"mean_iou": run(*inputs)},
        prepare=lambda logits, target: _laid_out(logits, side),
    )


@functools.lru_cache(maxsize=2)
def _laid_out(logits: Tensor, side: str) -> Tensor:
    """The logits in each side's memory format, made once: ours channels last, stock's NCHW."""
    return logits.contiguous(
        memory_format=torch.channels_last if side == "ours" else torch.contiguous_format
    )


def _size(images: Tensor) -> tuple[int, int]:
    return images.shape[-2], images.shape[-1]


def _classes(side: str) -> Callable[[Tensor, tuple[int, int]], Tensor]:
    if side.startswith("ours"):
        return upsampled_argmax

    def stock(logits: Tensor, size: tuple[int, int]) -> Tensor:
        return F.interpolate(logits, size=size, mode="bilinear", align_corners=False).argmax(1)

    return stock


def _mean_iou(predicted: Tensor, truth: Tensor, num_labels: int) -> float:
    from finetune.metrics import MeanIoU  # imports `evaluate`, which takes seconds

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
    import datasets  # imported here: these two take seconds
    import evaluate

    maps = datasets.Sequence(datasets.Sequence(datasets.Value("uint16")))

    class Script(evaluate.Metric):
        """Mean IoU from three histograms per image."""

        def _info(self) -> evaluate.MetricInfo:
            return evaluate.MetricInfo(
                description="mean IoU",
                citation="",
                inputs_description="class ids",
                features=datasets.Features({"predictions": maps, "references": maps}),
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


BENCHMARKS = {
    "forward": Benchmark(forward, images, ("b0", "b2", "b5"), rounds=15),
    "train-step": Benchmark(
        train_step,
        lambda case: (*images(case), labels(case)),
        ("b0", "b2"),
        rounds=9,
        batch=2,
        passes=3,
    ),
    "eval-image": Benchmark(eval_image, images, ("b2",), rounds=5, size=(1024, 2048)),
    "loss": Benchmark(loss, logits_and_labels, (None,), rounds=15),
    "metric": Benchmark(metric, regions_and_labels, (None,), rounds=15, compiles=False),
}
