"""What a run tells about itself: `metrics.jsonl`, `environment.json` and a progress bar."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import platform
import re
import subprocess
import sys
import warnings
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm

from finetune.errors import UserError

PACKAGES = ("torch", "transformers", "datasets", "accelerate", "albumentations", "finetune")

SECRET_VALUE = re.compile(r"hf_((oauth|jwt)_[\w.-]{8,}|[A-Za-z0-9]{8,})")
SECRET_NAME = re.compile(r"(token|secret|password|api[-_]?key)$", re.IGNORECASE)


class MetricsLog:
    """`metrics.jsonl`: one JSON object a line, appended and flushed at once.

    Args:
        path: The file; it and its folder are made by the first `write`.
    """

    def __init__(self, path: Path):
        self.path = path

    def write(self, row: Mapping[str, Any]) -> None:
        """Append one row, for example `{"step": 120, "train/loss": 0.31}`.

        Numpy and torch values become plain numbers and lists; NaN and infinities become null.

        Raises:
            UserError: The file cannot be written.
        """
        line = json.dumps(_plain(row), allow_nan=False) + "\n"
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            # Opened anew for each of these few lines: nothing to close, and `cut` may rename.
            with open(self.path, "a", encoding="utf-8") as file:
                file.write(line)
        except OSError as error:
            raise UserError(
                f"cannot write {self.path}: {error.strerror}; free some space, make the folder "
                "writable, or let `output` point elsewhere"
            ) from error

    def cut(self, step: int) -> None:
        """Forget what came after `step`, and what a kill left half-written, before a resume."""
        if self.path.exists():
            rows = [row for row in read(self.path) if row["step"] <= step]
            write_whole(self.path, "".join(json.dumps(row) + "\n" for row in rows))


def read(path: Path) -> list[dict[str, Any]]:
    """The rows of a `metrics.jsonl`.

    A last line that was cut off by a kill is left out; any other line that is not a row is left
    out with a warning that names it.
    """
    rows = []
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        if isinstance(row, dict) and isinstance(row.get("step"), int):
            rows.append(row)
        elif number < len(lines):
            warnings.warn(f"{path}, line {number}: not a row of metrics, left out", stacklevel=2)
    return rows


def write_whole(path: Path, content: str | bytes) -> None:
    """Write a small file aside and rename it into place: readers see the old one or the new."""
    name = path.name
    if len(os.fsencode(name)) > 240:  # of 255 that a name may have
        name = hashlib.blake2b(os.fsencode(name), digest_size=16).hexdigest()
    temp = path.with_name(f".{name}.tmp")
    try:
        temp.write_bytes(content.encode() if isinstance(content, str) else content)
        temp.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):  # on a read-only disk even this fails
            temp.unlink(missing_ok=True)
        raise UserError(
            f"cannot write {path}: {error.strerror}; free some space or make the folder writable"
        ) from error


def environment(*, world_size: int) -> dict[str, Any]:
    """What one needs to know to repeat a run, ready for JSON.

    Args:
        world_size: The number of processes that train together.
    """
    usable = (
        os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
    )
    return {
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in PACKAGES},
        "platform": platform.platform(),
        "cpus": len(usable),
        "threads": torch.get_num_threads(),
        "devices": _devices(),
        "world_size": world_size,
        **_git(Path(__file__).parent),
        "command": masked(sys.argv),
    }


def masked(arguments: Sequence[str]) -> list[str]:
    """A command line without its secrets: `hf_...`, `--token X`, `--token=X`, `hub.token=X`."""
    safe: list[str] = []
    for argument in arguments:
        name, equals, _ = argument.partition("=")
        if equals and SECRET_NAME.search(name):
            safe.append(f"{name}=***")
        elif safe and safe[-1].startswith("-") and SECRET_NAME.search(safe[-1]):
            safe.append("***")
        else:
            safe.append(SECRET_VALUE.sub("***", argument))
    return safe


def progress_bar(
    *, total: int, desc: str, unit: str, show: bool, initial: int = 0, leave: bool = True
) -> tqdm:
    """A bar that is alive on a terminal and in a notebook, and a line every half minute in a log.

    Only a terminal knows a way up: elsewhere a bar below another would add line after line, so
    that the later one takes the earlier one's line while it lasts.
    """
    terminal, notebook = sys.stderr.isatty(), "ipykernel" in sys.modules
    return tqdm(
        total=total,
        initial=initial,
        desc=desc,
        unit=unit,
        disable=not show,
        leave=leave,
        mininterval=0.5 if terminal or notebook else 30,
        position=None if terminal else 0,
    )


def _plain(value: Any) -> Any:
    """Numpy and torch to what JSON knows; what is not finite to None."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if hasattr(value, "tolist"):  # arrays, tensors and their scalars
        return _plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _version(package: str) -> str | None:
    module = sys.modules.get(package)  # finetune itself may run from a checkout, not installed
    try:
        return getattr(module, "__version__", None) or metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _devices() -> list[str]:
    if torch.cuda.is_available():
        return [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    if torch.backends.mps.is_available():
        return ["Apple GPU (mps)"]
    try:
        model = re.search(r"model name\s*: (.+)", Path("/proc/cpuinfo").read_text())
    except OSError:
        model = None
    return [model.group(1) if model else platform.processor() or platform.machine()]


def _git(folder: Path) -> dict[str, Any]:
    """Commit of the checkout that tracks this package, and whether its files were changed since.

    An installed package may lie inside somebody else's checkout (a virtual environment in a
    project): that commit would say nothing about it, so git must know this very file.
    """

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(folder), *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", Path(__file__).name)
        commit = git("rev-parse", "HEAD")
        modified = bool(git("status", "--porcelain", "--untracked-files=no"))
    except (OSError, subprocess.CalledProcessError):
        return {"git_commit": None, "git_modified": None}
    return {"git_commit": commit, "git_modified": modified}
