"""Taking turns: how times are compared here, since on a shared machine only ratios count."""

import gc
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import torch


class Work(Protocol):
    """One side of a comparison."""

    @property
    def run(self) -> Callable[..., Any]:
        """The timed work, on the inputs."""

    @property
    def reset(self) -> Callable[[], None]:
        """Undoes what a run leaves behind, outside of the timing."""


def take_turns(
    works: Mapping[str, Work], inputs: Sequence[Any], *, rounds: int, device: str
) -> dict[str, float]:
    """Median seconds of each side: A B A B, so that what disturbs one disturbs the other.

    Before the first round that counts, each side has run one more that does not, a few if short.
    """
    seconds: dict[str, list[float]] = {side: [] for side in works}
    warm_up = min(3, rounds) if rounds > 9 else 1
    gc.collect()
    for turn in range(-warm_up, rounds):
        for side, work in works.items():
            elapsed = seconds_of(work, inputs, device)
            if turn >= 0:
                seconds[side].append(elapsed)
    return {side: statistics.median(times) for side, times in seconds.items()}


def seconds_of(work: Work, inputs: Sequence[Any], device: str) -> float:
    """Seconds of one run, the device's queue empty before and after."""
    work.reset()
    wait_for(device)
    start = time.perf_counter()
    work.run(*inputs)
    wait_for(device)
    return time.perf_counter() - start


def wait_for(device: str) -> None:
    """Lets a GPU finish."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)
