"""What several processes must agree on: sums, mistakes, batch statistics.

Everything works with one process too, and on CPU processes over gloo as on GPUs over NCCL.
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


def same_everywhere(ask: Callable[[], Mapping[str, int]], device: torch.device) -> None:
    """Each process looks for itself: a mistake of one is raised on all, and all see the same.

    Args:
        ask: what this process sees of the data, in numbers.
        device: where processes add up.

    Raises:
        UserError: `ask` raised one somewhere, or the processes see different data.
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
        problem = "the processes find different data: let no file come or go while they start"
    agree(problem)


def join(precision: Literal["fp32", "bf16", "fp16"], threads: int | None) -> Accelerator:
    """Joins the processes of a launch, each with its share of the cores.

    Args:
        precision: `train.precision`.
        threads: `train.threads`.

    Raises:
        UserError: the device does not know the precision, or the launch did not join its processes.
    """
    set_threads(threads)
    cpu = default_device().type == "cpu"
    # accelerate sets threads on the CPU where this is missing, and fails where it cannot count.
    os.environ.setdefault("OMP_NUM_THREADS", str(torch.get_num_threads()))
    if precision == "fp16" and cpu:
        raise UserError("train.precision=fp16 needs a GPU; on a CPU take fp32 or bf16")
    launched = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")  # the launcher always sets it
    wanted = {"fp32": "no"}.get(precision, precision)
    if launched not in ("no", wanted):
        warnings.warn(
            f"the launcher asked for {launched}, the recipe for train.precision={precision}: the "
            "recipe decides",
            stacklevel=2,
        )
    # accelerate remembers the precision of a process's first Accelerator for ever; in a notebook
    # the next recipe may want another. The processes stay joined.
    AcceleratorState._reset_state(reset_partial_state=False)
    accelerator = Accelerator(
        cpu=cpu,
        mixed_precision=wanted,
        kwargs_handlers=[DistributedDataParallelKwargs(gradient_as_bucket_view=True)],
    )
    accelerator.gradient_accumulation_steps = 1  # the loop does it; the environment may say other
    started = int(os.environ.get("WORLD_SIZE", "1"))
    if accelerator.num_processes != started:
        raise UserError(
            f"started as {started} processes, but accelerate joined {accelerator.num_processes}: "
            "they would train apart. Use `finetune train`, torchrun, or `accelerate launch "
            "--multi_gpu --num_processes N`."
        )
    set_threads(threads)  # again: accelerate has an idea of its own
    if cpu:
        keep_freed_memory()
    return accelerator


@functools.cache
def _cpu_group() -> dist.ProcessGroup | None:
    """A group for messages between CPUs, beside NCCL's; made by all processes together."""
    return None if dist.get_backend() == "gloo" else dist.new_group(backend="gloo")


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
