"""Writer and reader of `metrics.jsonl`."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from finetune.disk import write_whole
from finetune.errors import UserError


class MetricsLog:
    """`metrics.jsonl`: one JSON object a line, appended and flushed at once.

    The first `write` makes the file and its folder.
    """

    def __init__(self, path: Path):
        self.path = path

    def write(self, row: Mapping[str, Any]) -> None:
        """Appends one row, for example `{"step": 120, "train/loss": 0.31}`.

        Numpy and torch values become plain numbers and lists; NaN and infinities become null.

        Raises:
            UserError: The file cannot be written.
        """
        line = json.dumps(plain(row), allow_nan=False) + "\n"
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            # The file is opened for each line, so that it needs no close and `cut` may rename it.
            with open(self.path, "a", encoding="utf-8") as file:
                file.write(line)
        except OSError as error:
            raise UserError(
                f"cannot write {self.path}: {error.strerror}; free some space, make the folder "
                "writable, or let `output` point elsewhere"
            ) from error

    def cut(self, step: int) -> None:
        """Removes rows after `step` and a half-written last line, before a resume."""
        if self.path.exists():
            rows = [row for row in read(self.path) if row["step"] <= step]
            write_whole(self.path, "".join(json.dumps(row) + "\n" for row in rows))


def read(path: Path) -> list[dict[str, Any]]:
    """The rows of a `metrics.jsonl`.

    A last line that a kill has cut off is left out. Other lines that are not rows are left out with
    a warning that names them.
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


def rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a metrics.jsonl; none if the file does not exist yet."""
    return read(path) if path.exists() else []


def plain(value: Any) -> Any:
    """Turns numpy and torch values into JSON's types, and non-finite numbers into None."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if hasattr(value, "tolist"):  # arrays, tensors and their scalars
        return plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
