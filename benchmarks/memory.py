"""Starts `python -m finetune.programs.benchmark JSON`: work that needs a process of its own."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

import finetune
from finetune.programs.benchmark.cases import BENCHMARKS, Case
from finetune.programs.benchmark.meters import peak_bytes


def start(task: dict[str, Any], **options: Any) -> subprocess.CompletedProcess[str]:
    """Runs `__main__` in a fresh Python, on this very package, until it ends."""
    paths = [str(Path(finetune.__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    command = [sys.executable, "-m", "finetune.programs.benchmark", json.dumps(task)]
    return subprocess.run(command, env=environment, text=True, check=False, **options)


def peak_of(case: Case, side: str) -> int | None:
    """Bytes above the loaded model that one run of one side takes; None if it was too much."""
    task = {"do": "memory", "case": asdict(case), "side": side, "threads": torch.get_num_threads()}
    done = start(task, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    if done.returncode == 0:
        return int(done.stdout.splitlines()[-1])
    too_much = any(error in done.stderr for error in ("OutOfMemoryError", "DefaultCPUAllocator"))
    if done.returncode == -signal.SIGKILL or too_much:  # Linux kills what takes too much
        return None
    raise RuntimeError(f"measuring the memory of {case.what}, {side}:\n{done.stderr}")


def measure_memory(task: dict[str, Any]) -> int:
    """The child's part: load, run once on something tiny so that every library is there, measure.

    A compiled side is warmed up at its full size: it would be compiled again for another. Memory
    that is freed goes back to the system here, unlike in the timed process (see `finetune.machine.
    keep_freed_memory`): what is kept for later would count as used.
    """
    torch.set_num_threads(task["threads"])
    values, side = task["case"], task["side"]
    case = Case(**{**values, "size": tuple(values["size"])})
    benchmark = BENCHMARKS[case.what]
    work = benchmark.load(case, side)
    tiny = case if side.endswith("_compiled") else replace(case, size=(64, 64), batch=1)
    work.run(*benchmark.inputs(tiny))
    work.reset()
    inputs = benchmark.inputs(case)
    work.prepare(*inputs)
    return peak_bytes(lambda: work.run(*inputs), case.device)
