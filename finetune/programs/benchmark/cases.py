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
        dtype = None if self.dtype == "float32" else DTYPES[self.dtype]
        return torch.autocast(torch.device(self.device).type, dtype, enabled=dtype is not None)


def _nothing(*inputs: Tensor) -> None:
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
    prepare: Callable[..., object] = _nothing
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
        **VARIANTS[case.variant] | {"num_labels": case.num_labels},
        semantic_loss_ignore_index=IGNORE,
    )
    model: nn.Module = SegformerForSemanticSegmentation(config)
    if name == "stock":
        with tempfile.TemporaryDirectory() as folder:  # names differ in memory, not on disk
            model.save_pretrained(folder)  # type: ignore[operator]
            model = transformers.SegformerForSemanticSegmentation.from_pretrained(folder)
    model = model.to(case.device).eval()
    if compiled and name == "stock":
        with torch.no_grad():
            model(torch.zeros(1, 3, 64, 64, device=case.device))  # its first call cannot compile
    if compiled:
        model.compile(fullgraph=name == "ours", dynamic=False)
    return model


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


def images_and_labels(case: Case) -> tuple[Tensor, ...]:
    """The inputs of a training step."""
    return *images(case), labels(case)


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

    def compare(pixels: Tensor, target: Tensor) -> dict[str, Tensor]:
        model.eval()
        value = loss(pixels, target).detach()
        model.train()
        return {"loss": value}

    def products(pixels: Tensor, target: Tensor) -> None:
        with case.autocast():
            model(pixels)

    def run(pixels: Tensor, target: Tensor) -> None:
        loss(pixels, target).backward()

    return Work(run, compare, model.zero_grad, products)


def eval_image(case: Case, side: str) -> Work:
    """Images to class maps of their own size."""
    classes, logits = argmax_of(side), forward(case, side).run

    @torch.no_grad()
    def run(pixels: Tensor) -> Tensor:
        return classes(logits(pixels), size_of(pixels))

    return Work(run, lambda pixels: {"classes": run(pixels)}, products=logits)


# ----------------------------------------------------------------------------------------- pieces


def logits_and_labels(case: Case) -> tuple[Tensor, ...]:
    """Logits at 1/4 in the case's type, as a model gives them, and labels."""
    generator = torch.Generator().manual_seed(0)
    height, width = (-(-side // 4) for side in case.size)
    logits = torch.randn(case.batch, case.num_labels, height, width, generator=generator)
    return logits.to(case.device, DTYPES[case.dtype]), labels(case)


def loss(case: Case, side: str) -> Work:
    """The loss and its gradient from small logits and full-size labels."""
    name, _, compiled = side.partition("_")

    def ours(logits: Tensor, target: Tensor) -> Tensor:
        return upsampled_cross_entropy(logits, target, ignore_index=IGNORE)

    def stock(logits: Tensor, target: Tensor) -> Tensor:
        large = F.interpolate(logits, size=size_of(target), mode="bilinear", align_corners=False)
        return F.cross_entropy(large, target, ignore_index=IGNORE)

    value = ours if name == "ours" else stock
    if compiled:
        value = torch.compile(value, fullgraph=name == "ours", dynamic=False)

    def run(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        logits = laid_out(logits, name).detach().requires_grad_()
        with case.autocast():
            total = value(logits, target)
        return total.detach(), torch.autograd.grad(total, logits)[0]

    return Work(
        run,
        lambda *inputs: dict(zip(("loss", "gradient"), run(*inputs), strict=True)),
        prepare=lambda logits, target: laid_out(logits, name),
    )


@functools.lru_cache(maxsize=2)
def laid_out(logits: Tensor, side: str) -> Tensor:
    """The logits in each side's memory format, made once: ours channels last, stock's NCHW."""
    order = torch.channels_last if side == "ours" else torch.contiguous_format
    return logits.contiguous(memory_format=order)


def size_of(images: Tensor) -> tuple[int, int]:
    """Height and width."""
    return images.shape[-2], images.shape[-1]


def argmax_of(side: str) -> Callable[[Tensor, tuple[int, int]], Tensor]:
    """A side's function from small logits and a size to class maps of that size."""
    if side.startswith("ours"):
        return upsampled_argmax

    def stock(logits: Tensor, size: tuple[int, int]) -> Tensor:
        return F.interpolate(logits, size=size, mode="bilinear", align_corners=False).argmax(1)

    return stock


BENCHMARKS = {
    "forward": Benchmark(forward, images, ("b0", "b2", "b5"), rounds=15),
    "train-step": Benchmark(train_step, images_and_labels, ("b0", "b2"), 9, batch=2, passes=3),
    "eval-image": Benchmark(eval_image, images, ("b2",), rounds=5, size=(1024, 2048)),
    "loss": Benchmark(loss, logits_and_labels, (None,), rounds=15),
}
