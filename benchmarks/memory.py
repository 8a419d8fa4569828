"""The peak of memory of one side, in a fresh process: `python -m benchmarks.memory JSON`."""

import contextlib
import ctypes
import gc
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from benchmarks import children
from finetune.programs.benchmark.cases import BENCHMARKS, Benchmark, Case

_STATUS = Path("/proc/self/status")
_CLEAR_REFS = Path("/proc/self/clear_refs")


def peak_of(case: Case, side: str) -> int | None:
    """Bytes above the loaded model that one run of one side takes; None if it was too much."""
    task = {"case": asdict(case), "side": side, "threads": torch.get_num_threads()}
    done = children.start("benchmarks.memory", task, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    if done.returncode == 0:
        return int(done.stdout.splitlines()[-1])
    too_much = any(error in done.stderr for error in ("OutOfMemoryError", "DefaultCPUAllocator"))
    if done.returncode == -signal.SIGKILL or too_much:  # Linux kills what takes too much
        return None
    raise RuntimeError(f"measuring the memory of {case.what}, {side}:\n{done.stderr}")


def measure_memory(task: dict[str, Any]) -> None:
    """The child's part: prints the peak of one run.

    A tiny run comes first, so that every library is loaded. A compiled side is warmed up at its
    full size: it would be compiled again for another. Memory that is freed goes back to the system
    here, unlike in the timed process (see `finetune.machine.keep_freed_memory`): what is kept for
    later would count as used.
    """
    torch.set_num_threads(task["threads"])
    values, side = task["case"], task["side"]
    case = Case(**{**values, "size": tuple(values["size"])})
    benchmark = _benchmark_of(case.what)
    work = benchmark.load(case, side)
    tiny = case if side.endswith("_compiled") else replace(case, size=(64, 64), batch=1)
    work.run(*benchmark.inputs(tiny))
    work.reset()
    inputs = benchmark.inputs(case)
    work.prepare(*inputs)
    print(peak_bytes(lambda: work.run(*inputs), case.device))


def _benchmark_of(name: str) -> Benchmark:
    if name in BENCHMARKS:
        return BENCHMARKS[name]
    from benchmarks.metric import BENCHMARK  # imports evaluate and datasets, which take memory

    return BENCHMARK


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


if __name__ == "__main__":
    sys.exit(children.main(measure_memory))
