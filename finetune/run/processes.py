"""Communication between processes: sums, errors, batch statistics.

It works with one process too, on CPUs over gloo and on GPUs over NCCL.
"""

import contextlib
import functools
import os
import warnings
from collections.abc import Callable, Mapping
from typing import Any, Literal, TypeVar

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedDataParallelKwargs
from torch import Tensor, nn

from finetune.errors import UserError
from finetune.machine import device as default_device
from finetune.machine import keep_freed_memory, set_threads

T = TypeVar("T")


def all_sum(tensor: Tensor) -> Tensor:
    """The sum over all processes, in place."""
    if dist.is_initialized():
        dist.all_reduce(tensor)
    return tensor


def agree(problem: str = "", *, stop: bool = False) -> bool:
    """Shares errors and stops between processes, so that none waits for one that has left.

    It costs one small message between CPUs and waits for no device. `problem` is this process's
    error message, "" if there is none; `stop`, whether it was told to stop.

    Returns:
        Whether any process was told to stop.

    Raises:
        UserError: on every process, with the first problem of any process.
    """
    problems = [problem]
    if dist.is_initialized():
        flags = torch.tensor([int(bool(problem)), int(stop)])
        dist.all_reduce(flags, dist.ReduceOp.MAX, group=_cpu_group())
        stop = bool(flags[1])
        if flags[0]:
            problems = [""] * dist.get_world_size()
            dist.all_gather_object(problems, problem, group=_cpu_group())
    if first := next(filter(None, problems), ""):
        raise UserError(first)
    return stop


def on_main(work: Callable[[], T]) -> T | None:
    """Runs `work` on rank 0 while the others wait; its UserError is raised on every rank.

    Returns:
        The result of `work` on rank 0; None on other ranks.
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


def same_everywhere(ask: Callable[[], Mapping[str, int]], device: torch.device) -> None:
    """Checks that all processes see the same data, by numbers that describe the view of each.

    Raises:
        UserError: `ask` raised one on any process, or the processes see different data.
    """
    problem, seen = "", [0]
    try:
        seen = [*ask().values()]
    except UserError as error:
        problem = str(error)
    agree(problem)
    sums = all_sum(torch.tensor(seen, dtype=torch.int64, device=device))
    world_size = dist.get_world_size() if dist.is_initialized() else 1
    if sums.tolist() != [value * world_size for value in seen]:
        problem = "the processes find different data: change no files while they start"
    agree(problem)


def join(precision: Literal["fp32", "bf16", "fp16"], threads: int | None) -> Accelerator:
    """Joins the processes of a launch, each with its share of the cores.

    `precision` and `threads` are the recipe's.

    Raises:
        UserError: the device lacks the precision, or the launch did not join its processes.
    """
    set_threads(threads)
    cpu = default_device().type == "cpu"
    # Without this variable accelerate sets threads on the CPU, and fails if it cannot count cores.
    os.environ.setdefault("OMP_NUM_THREADS", str(torch.get_num_threads()))
    if precision == "fp16" and cpu:
        raise UserError("train.precision=fp16 needs a GPU; on a CPU, set fp32 or bf16")
    launched = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")  # the launcher always sets it
    wanted = {"fp32": "no"}.get(precision, precision)
    if launched not in ("no", wanted):
        warnings.warn(
            f"the launcher asks for {launched}, but train.precision={precision} decides",
            stacklevel=2,
        )
    # accelerate keeps the precision of a process's first Accelerator, but the next recipe in a
    # notebook may have another. The processes stay joined.
    AcceleratorState._reset_state(reset_partial_state=False)
    accelerator = Accelerator(
        cpu=cpu,
        mixed_precision=wanted,
        kwargs_handlers=[DistributedDataParallelKwargs(gradient_as_bucket_view=True)],
    )
    accelerator.gradient_accumulation_steps = 1  # the loop accumulates; ignore the environment
    started = int(os.environ.get("WORLD_SIZE", "1"))
    if accelerator.num_processes != started:
        raise UserError(
            f"{started} processes were started, but accelerate joined "
            f"{accelerator.num_processes}: they would train apart. Use `finetune train`, torchrun, "
            "or `accelerate launch --multi_gpu --num_processes N`."
        )
    set_threads(threads)  # again: accelerate changes it
    if cpu:
        keep_freed_memory()
    return accelerator


@functools.cache
def _cpu_group() -> dist.ProcessGroup | None:
    """A group for messages between CPUs, in addition to NCCL's; all processes create it."""
    return None if dist.get_backend() == "gloo" else dist.new_group(backend="gloo")


def synchronise_batch_norm(module: nn.Module) -> None:
    """Makes batch norms use the batch of all processes, like the original's SyncBN.

    A single process keeps its batch norms. On GPUs they become torch's SyncBatchNorm, on CPUs,
    which it does not support, `CPUSyncBatchNorm`. Parameters, buffers and their names stay.
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

    affine_in_eval = True  # the head may fold it like a plain batch norm

    def forward(self, x: Tensor) -> Tensor:
        """Normalises x (B, C, H, W)."""
        if not self.training:
            return super().forward(x)
        channels = x.shape[1]
        count = x.new_tensor([x.numel() / channels], dtype=torch.float64)
        sums = torch.cat([x.double().sum((0, 2, 3)), x.double().square().sum((0, 2, 3)), count])
        sums = _AllSum.apply(sums)
        total, mean = sums[-1], sums[:channels] / sums[-1]
        var = sums[channels:-1] / total - mean.square()  # biased, as batch norm uses in training
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
    """The sum over all processes; its gradient is the sum of all gradients."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        return all_sum(tensor.clone())

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return all_sum(gradient.clone())
