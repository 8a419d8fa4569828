"""How far the machine could go: the arithmetic and the bytes a second of its best work."""

import functools
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from finetune.machine import wait_for
from finetune.programs.benchmark.cases import DTYPES

PRODUCT_SIDES = {"cpu": (1024, 2048), "cuda": (4096, 8192)}
"""Sides of the square matrices by whose products the peak is measured."""


def distance_to_limit(
    flop: int,
    work: Callable[[], object],
    *,
    seconds: Mapping[str, float],
    peak: float,
    device: str,
) -> dict[str, float]:
    """Arithmetic a second over the machine's peak; on a GPU bytes a second over its peak too.

    Args:
        flop: of the products of a run.
        work: one run of "ours", whose bytes are counted on a GPU (a CPU's caches serve most of
            them, and a compiler saves most of them).
        seconds: what it takes, by side; the fastest counts for the arithmetic.
        peak: the machine's arithmetic a second.
        device: where.
    """
    fastest = min(seconds.values())
    limit = {
        "gflop": flop / 1e9,
        "gflop_per_second": flop / fastest / 1e9,
        "peak_gflop_per_second": peak / 1e9,
        "share_of_peak": flop / fastest / peak,
    }
    if torch.device(device).type == "cuda":
        moved, bandwidth = count_bytes(work), peak_bytes_per_second(device)
        limit["gigabytes"] = moved / 1e9
        limit["peak_gigabytes_per_second"] = bandwidth / 1e9
        limit["share_of_bandwidth"] = moved / seconds["ours"] / bandwidth
    return limit


def peak_flop_per_second(dtype: str, device: str) -> float:
    """The best of a few large square products, by the BLAS and, on a CPU, as 1 x 1 convolutions.

    (On an AVX-512 processor of AMD's oneDNN's convolution beats the BLAS by a factor of two.)
    """
    on_gpu = torch.device(device).type == "cuda"
    best = 0.0
    for side in PRODUCT_SIDES[torch.device(device).type]:
        x = torch.randn(side, side, device=device, dtype=DTYPES[dtype])
        weight = torch.randn(side, side, device=device, dtype=DTYPES[dtype])
        ways: list[Callable[[Tensor, Tensor], Tensor]] = [F.linear]
        if not on_gpu:
            ways.append(lambda x, weight: F.conv2d(x.T[None, :, :, None], weight[:, :, None, None]))
        for way in ways:
            for _ in range(5):
                wait_for(device)
                start = time.perf_counter()
                with torch.no_grad():
                    way(x, weight)
                wait_for(device)
                best = max(best, 2 * side**3 / (time.perf_counter() - start))
    return best


class _ByteCounter(TorchDispatchMode):
    """Sums what each operation reads and writes; a view moves nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if not func.is_view:
            leaves = tree_leaves((args, kwargs, result))
            self.total += sum(leaf.nbytes for leaf in leaves if isinstance(leaf, Tensor))
        return result


def count_bytes(work: Callable[[], object]) -> int:
    """Bytes that the operations of one run read and write, if no cache kept any."""
    with _ByteCounter() as counter:
        work()
    return counter.total


@functools.cache
def peak_bytes_per_second(device: str) -> float:
    """Read and written by a copy of one gigabyte."""
    source = torch.empty(1 << 28, device=device)
    target = torch.empty_like(source)
    best = 0.0
    for _ in range(6):
        wait_for(device)
        start = time.perf_counter()
        target.copy_(source)
        wait_for(device)
        best = max(best, 2 * source.nbytes / (time.perf_counter() - start))
    return best
