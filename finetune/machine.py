"""The machine: cores, memory, devices, and fair comparisons of times."""

import ctypes
import gc
import os
import platform
import re
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch


def usable_cores() -> int:
    """Number of cores that this process may run on; containers and taskset limit it."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def processor() -> str:
    """The processor's name."""
    try:
        found = re.search(r"model name\s*: (.+)", Path("/proc/cpuinfo").read_text())
    except OSError:
        found = None
    return found[1] if found else platform.processor() or platform.machine()


def set_threads(threads: int | None) -> None:
    """Gives this process its share of the cores, or `threads`.

    Launchers export OMP_NUM_THREADS=1 by default, and a CPU training then uses one thread.
    """
    local_processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    torch.set_num_threads(threads or max(1, usable_cores() // local_processes))


def keep_freed_memory() -> None:
    """Makes glibc keep freed memory instead of returning it to the system.

    Every training step on a CPU frees and allocates the same hundreds of megabytes. If the system
    gets them back, each step pays one page fault every 4 KiB: a third of a training step of B0 at
    256 x 320. Nothing happens with another C library.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return
    m_trim_threshold, m_mmap_max = -1, -4  # malloc.h
    mallopt(m_trim_threshold, -1)  # never shrink the heap
    mallopt(m_mmap_max, 0)  # and take everything from it


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out; torch raises a plain RuntimeError for the CPU's."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or (
        "DefaultCPUAllocator" in str(error)
    )


def device() -> torch.device:
    """The GPU if torch can use one with float64, else the CPU.

    `torch.accelerator.current_accelerator()` also names devices that are not present. Apple's GPUs
    lack float64, in which the loss and its weight are added up.
    """
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


class Work(Protocol):
    """One side of a comparison."""

    @property
    def run(self) -> Callable[..., Any]:
        """The function to time; it takes the inputs."""

    @property
    def reset(self) -> Callable[[], None]:
        """The function that undoes a run, outside of the timing."""


def take_turns(
    works: Mapping[str, Work], inputs: Sequence[Any], *, rounds: int, device: str
) -> dict[str, float]:
    """Median seconds of each side, run in turn (A B A B), so that disturbances hit both.

    Each side first runs once untimed, a few times if it is short. A run is timed from an empty
    device queue to an empty device queue.
    """
    seconds: dict[str, list[float]] = {side: [] for side in works}
    warm_up = 3 if rounds > 9 else 1
    gc.collect()
    for _ in range(warm_up + rounds):
        for side, work in works.items():
            work.reset()
            wait_for(device)
            start = time.perf_counter()
            work.run(*inputs)
            wait_for(device)
            seconds[side].append(time.perf_counter() - start)
    return {side: statistics.median(times[warm_up:]) for side, times in seconds.items()}


def wait_for(device: str) -> None:
    """Waits until a GPU has finished."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)
