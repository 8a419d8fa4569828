"""What several processes must agree on: threads, batch statistics, signals, mistakes.

Everything works with one process too, and on CPU processes over gloo as on GPUs over NCCL.
"""

import contextlib
import ctypes
import functools
import os
import signal
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from finetune.errors import UserError

T = TypeVar("T")


def usable_cores() -> int:
    """Cores that this process may run on (a container or taskset may have taken some)."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def set_threads(threads: int | None) -> None:
    """Gives this process its share of the cores, or `threads`.

    Launchers export OMP_NUM_THREADS=1 unless told otherwise, which trains on one thread without a
    word.
    """
    local_processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    torch.set_num_threads(threads or max(1, usable_cores() // local_processes))


def keep_freed_memory() -> None:
    """Lets glibc keep what is freed instead of giving it back to the system.

    On a CPU every step frees and takes the same hundreds of megabytes; each time they come back
    as untouched pages, one fault every 4 KiB: a third of a training step of B0 at 256 x 320.
    Where the C library is another, nothing happens.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return
    m_trim_threshold, m_mmap_max = -1, -4  # malloc.h
    mallopt(m_trim_threshold, -1)  # never shrink the heap
    mallopt(m_mmap_max, 0)  # and take everything from it


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory did not suffice; torch says so of the CPU's by a plain RuntimeError."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or (
        "DefaultCPUAllocator" in str(error)
    )


def device() -> torch.device:
    """The GPU if torch can use one that adds in float64, else the CPU.

    Not `torch.accelerator.current_accelerator()`, which is what torch was built for, there or not;
    and Apple's GPUs know no float64, in which the loss and its weight are added up.
    """
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def all_sum(tensor: Tensor) -> Tensor:
    """The sum over all processes, in place."""
    if dist.is_initialized():
        dist.all_reduce(tensor)
    return tensor


def agree(problem: str = "", *, stop: bool = False) -> bool:
    """Tells every process what any of them met, so that none waits for one that has left.

    Costs one small message between CPUs; no device is waited for.

    Args:
        problem: what is wrong in this process, for the user; "" if nothing is.
        stop: whether this process was told to stop.

    Returns:
        Whether any process was told to stop.

    Raises:
        UserError: on every process, with the first problem that any of them has.
    """
    problems = [problem]
    if dist.is_initialized():
        flags = torch.tensor([int(bool(problem)), int(stop)])
        dist.all_reduce(flags, dist.ReduceOp.MAX, group=_cpu_group())
        stop = bool(flags[1])
        if flags[0]:
            problems = [""] * dist.get_world_size()
            dist.all_gather_object(problems, problem, group=_cpu_group())
    for problem in filter(None, problems):
        raise UserError(problem)
    return stop


def on_main(work: Callable[[], T]) -> T | None:
    """Runs `work` on rank 0 while the others wait; its UserError is raised on every rank.

    Returns:
        What `work` returned, on rank 0; None elsewhere.
    """
    if not dist.is_initialized():
        return work()
    result, problem = None, ""
    if dist.get_rank() == 0:
        try:
            result = work()
        except UserError as error:
            problem = str(error)
        except Exception as error:  # a defect: the others must not wait for this process
            with contextlib.suppress(UserError):
                agree(f"rank 0 failed: {error!r}")
            raise
    agree(problem)
    return result


@functools.cache
def _cpu_group() -> dist.ProcessGroup | None:
    """A group for messages between CPUs, beside NCCL's; made by all processes together."""
    return None if dist.get_backend() == "gloo" else dist.new_group(backend="gloo")


class StopSignals:
    """Turns SIGINT and SIGTERM into a flag that the loop looks at between two steps.

    A context manager. The first signal asks for a stop, with the state saved; one more SIGINT,
    three seconds later or more, gives up at once (launchers and terminals deliver the first one
    twice). Outside the main thread, where Python allows no handlers, it does nothing.
    """

    PATIENCE = 3.0  # seconds

    def __init__(self) -> None:
        self.received: int | None = None
        self._at = 0.0
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> "StopSignals":
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self.received is None:
            self.received, self._at = number, now
        elif number == signal.SIGINT and now - self._at > self.PATIENCE:
            raise KeyboardInterrupt


def synchronise_batch_norm(module: nn.Module) -> None:
    """Lets batch norms see the whole batch of all processes, as the original's SyncBN does.

    One process keeps its batch norms. On GPUs they become torch's SyncBatchNorm, on CPUs, where
    that raises, `CPUSyncBatchNorm`; parameters, buffers and their names stay.
    """
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return
    on_cpu = next(module.parameters()).device.type == "cpu"
    for parent in list(module.modules()):
        for name, norm in parent.named_children():
            if type(norm) is not nn.BatchNorm2d:
                continue
            if on_cpu:
                norm.__class__ = CPUSyncBatchNorm  # same state, another forward
            else:
                setattr(parent, name, nn.SyncBatchNorm.convert_sync_batchnorm(norm))


class CPUSyncBatchNorm(nn.BatchNorm2d):
    """Batch norm whose training statistics are taken over all (gloo) processes."""

    affine_in_eval = True  # the head may fold it, as it does a plain one

    def forward(self, x: Tensor) -> Tensor:
        """Normalises x (B, C, H, W)."""
        if not self.training:
            return super().forward(x)
        channels = x.shape[1]
        count = x.new_tensor([x.numel() / channels], dtype=torch.float64)
        sums = torch.cat([x.double().sum((0, 2, 3)), x.double().square().sum((0, 2, 3)), count])
        sums = _AllSum.apply(sums)
        total, mean = sums[-1], sums[:channels] / sums[-1]
        var = sums[channels:-1] / total - mean.square()  # biased: what training normalises with
        with torch.no_grad():
            unbiased = var * total / (total - 1)
            for running, batch in ((self.running_mean, mean), (self.running_var, unbiased)):
                assert running is not None, "BatchNorm2d tracks by default"
                assert self.momentum is not None, "BatchNorm2d's default is a number"
                running.lerp_(batch.to(running.dtype), self.momentum)
            assert self.num_batches_tracked is not None
            self.num_batches_tracked.add_(1)
        scale = self.weight * (var + self.eps).rsqrt()
        shift = self.bias - mean * scale
        return x * scale.to(x.dtype)[:, None, None] + shift.to(x.dtype)[:, None, None]


class _AllSum(torch.autograd.Function):
    """The sum over all processes; its gradient is the sum of theirs."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        return all_sum(tensor.clone())

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return all_sum(gradient.clone())
