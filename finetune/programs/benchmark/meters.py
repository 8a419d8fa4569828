"""Measuring: differences, the peak of memory, and how far the machine could go."""

import contextlib
import ctypes
import functools
import gc
import platform
import re
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import transformers
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from finetune.machine import wait_for
from finetune.programs.benchmark.cases import DTYPES

PRODUCT_SIDES = {"cpu": (1024, 2048), "cuda": (4096, 8192)}
"""Of the square matrices by whose products the peak is measured."""

_STATUS = Path("/proc/self/status")
_CLEAR_REFS = Path("/proc/self/clear_refs")


def machine(device: str, *, keeps_memory: bool) -> dict[str, Any]:
    """What a figure means nothing without."""
    kind = torch.device(device).type
    return {
        "device": device,
        "device_name": torch.cuda.get_device_name(device) if kind == "cuda" else _processor(),
        "threads": torch.get_num_threads(),
        "keeps_freed_memory": keeps_memory,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def _processor() -> str:
    try:
        found = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    except OSError:
        found = None
    return found[1] if found else platform.processor() or platform.machine()


# ------------------------------------------------------------------------------------ differences


def differences(mine: Mapping[str, Any], theirs: Mapping[str, Any]) -> dict[str, float]:
    """The largest difference over the largest value; of class maps, the share that differs."""
    return {name: _difference(mine[name], theirs[name]) for name in theirs}


def _difference(mine: Any, theirs: Any) -> float:
    mine, theirs = torch.as_tensor(mine), torch.as_tensor(theirs)
    if not theirs.is_floating_point():
        return float((mine != theirs).float().mean())
    mine, theirs = mine.double(), theirs.double()
    return float((mine - theirs).abs().max() / theirs.abs().max().clamp(min=1e-300))


# ----------------------------------------------------------------------------------------- memory


def peak_bytes(work: Callable[[], object], device: str) -> int:
    """How far memory rises above where it stands while `work` runs.

    On a CPU resident memory, which the system counts; it needs a process that has done nothing
    larger before, because memory once freed may be kept and taken again unseen.
    """
    gc.collect()
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        work()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    with contextlib.suppress(AttributeError, OSError, TypeError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)
    try:
        _CLEAR_REFS.write_text("5")  # the high-water mark starts anew
    except OSError:
        return _peak_bytes_since_start(work)
    before = _status("VmRSS")
    work()
    return _status("VmHWM") - before


def _status(field: str) -> int:
    found = re.search(rf"{field}:\s*(\d+) kB", _STATUS.read_text())
    assert found is not None, "Linux has had it for ever"
    return int(found[1]) * 1024


def _peak_bytes_since_start(work: Callable[[], object]) -> int:
    """Without /proc the mark is that of the whole process: a little less than the truth."""
    import resource  # not on Windows

    unit = 1 if sys.platform == "darwin" else 1024
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    work()
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * unit


# ---------------------------------------------------------------------------- distance to the limit


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
