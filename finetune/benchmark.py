"""How fast the model is against stock transformers': one process, taking turns, medians.

Only the ratio means anything on a shared machine; it is of two medians taken in turns.
"""

import json
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass

import torch
import transformers
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from finetune.parallel import device, set_threads
from finetune.segformer import VARIANTS, SegformerConfig, SegformerForSemanticSegmentation


@dataclass(frozen=True)
class Comparison:
    """The forward pass of one variant on both sides."""

    variant: str
    size: tuple[int, int]
    batch: int
    num_labels: int
    device: str
    threads: int
    torch: str
    transformers: str
    seconds: float
    stock_seconds: float
    speedup: float
    largest_difference: float
    """Largest difference of a logit, relative to the largest logit."""


def compare_forward(
    variant: str,
    *,
    size: tuple[int, int] = (512, 512),
    batch: int = 1,
    num_labels: int = 150,
    rounds: int = 15,
    threads: int | None = None,
) -> Comparison:
    """Times the forward pass in float32 against stock on the same random weights.

    Args:
        variant: a key of `VARIANTS`.
        size: height and width.
        batch: images at once.
        num_labels: classes.
        rounds: timed passes a side, after three that warm up.
        threads: on the CPU; None: all usable cores.
    """
    set_threads(threads)
    where = device()
    torch.manual_seed(0)
    config = SegformerConfig(**VARIANTS[variant], id2label={i: str(i) for i in range(num_labels)})
    ours = SegformerForSemanticSegmentation(config)
    with tempfile.TemporaryDirectory() as folder:  # names differ in memory, not on disk
        ours.save_pretrained(folder)
        stock = transformers.SegformerForSemanticSegmentation.from_pretrained(folder)
    sides: list[nn.Module] = [ours, stock]
    for side in sides:
        side.to(where).eval()
    image = torch.randn(batch, 3, *size, device=where)
    mine, theirs = [], []
    with torch.no_grad():
        logits, expected = ours(image).logits, stock(image).logits
        difference = (logits - expected).abs().max() / expected.abs().max()
        for turn in range(-3, rounds):
            seconds, stock_seconds = _time(ours, image), _time(stock, image)
            if turn >= 0:
                mine.append(seconds)
                theirs.append(stock_seconds)
    seconds, stock_seconds = statistics.median(mine), statistics.median(theirs)
    return Comparison(
        variant=variant,
        size=size,
        batch=batch,
        num_labels=num_labels,
        device=torch.cuda.get_device_name() if where.type == "cuda" else where.type,
        threads=torch.get_num_threads(),
        torch=torch.__version__,
        transformers=transformers.__version__,
        seconds=seconds,
        stock_seconds=stock_seconds,
        speedup=stock_seconds / seconds,
        largest_difference=difference.item(),
    )


def show(results: list[Comparison], *, as_json: bool) -> None:
    """Prints a table of ratios, or one JSON object a line."""
    if as_json:
        for result in results:
            print(json.dumps(asdict(result)))
        return
    first = results[0]
    table = Table("variant", "stock / this", "largest difference", box=None, pad_edge=False)
    for result in results:
        table.add_row(result.variant, f"{result.speedup:.2f}", f"{result.largest_difference:.1e}")
    console = Console()
    console.print(
        f"forward pass, {first.batch} x {first.size[0]} x {first.size[1]}, {first.num_labels} "
        f"classes, float32, {first.device}, {first.threads} threads, torch {first.torch}, "
        f"transformers {first.transformers}",
        highlight=False,
    )
    console.print(table)


def _time(work: Callable[[Tensor], object], image: Tensor) -> float:
    start = time.perf_counter()
    work(image)
    if image.device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start
