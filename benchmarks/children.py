"""Child processes of `finetune benchmark`: a module of this folder, run with one argument, JSON."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from finetune.errors import UserError


def start(module: str, task: dict[str, Any], **options: Any) -> subprocess.CompletedProcess[str]:
    """Runs `module` in a fresh Python, from this very checkout, until it ends."""
    paths = [str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    command = [sys.executable, "-m", module, json.dumps(task)]
    return subprocess.run(command, env=environment, text=True, check=False, **options)


def main(work: Callable[[dict[str, Any]], None]) -> int:
    """The child's part: does `work` on the task of the argument; returns the exit status."""
    try:
        work(json.loads(sys.argv[1]))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0
