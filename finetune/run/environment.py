"""The environment of a run, to repeat it: versions, hardware, commit, command line."""

from __future__ import annotations

import platform
import re
import subprocess
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from finetune.machine import processor, usable_cores

PACKAGES = ("torch", "transformers", "datasets", "accelerate", "albumentations", "finetune")

SECRET_VALUE = re.compile(r"hf_((oauth|jwt)_[\w.-]{8,}|[A-Za-z0-9]{8,})")
SECRET_NAME = re.compile(r"(token|secret|password|api[-_]?key)$", re.IGNORECASE)


def environment(*, world_size: int) -> dict[str, Any]:
    """The environment of this run of `world_size` processes, ready for JSON."""
    return {
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in PACKAGES},
        "platform": platform.platform(),
        "cpus": usable_cores(),
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


def _version(package: str) -> str | None:
    module = sys.modules.get(package)  # finetune may run from a checkout
    try:
        return getattr(module, "__version__", None) or metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _devices() -> list[str]:
    if torch.cuda.is_available():
        return [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    if torch.backends.mps.is_available():
        return ["Apple GPU (mps)"]
    return [processor()]


def _git(folder: Path) -> dict[str, Any]:
    """Commit of the checkout that tracks this package, and whether its files have changed.

    An installed package may lie inside another project's checkout, for example in a virtual
    environment. So the commit counts only if git tracks this file.
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
