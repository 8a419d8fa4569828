"""Size, latency and mIoU of each form, beside those of PyTorch."""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from finetune.errors import UserError
from finetune.inference import Segmenter
from finetune.machine import take_turns
from finetune.programs.export.check import InOnnxRuntime, run_in, session
from finetune.programs.export.export import Exported
from finetune.recipe import Recipe
from finetune.segformer.functional import upsampled_argmax
from finetune.trainers import Share, Task
from finetune.trainers.tasks import task_of

ROUNDS = 15
EAGER, COMPILED = "PyTorch", "PyTorch compiled"


@dataclass(frozen=True)
class Row:
    """One form.

    Attributes:
        form: PyTorch, or a key of `finetune.programs.export.export.FILES`.
        megabytes: size of the file; for PyTorch, of the weights.
        seconds: median for one picture; to class ids for `labels`, else to logits.
        ratio: over PyTorch's eager time in the same run, for the same result.
        mean_iou: on the recipe's validation split; None without a recipe, and for forms with the
            same logits as a form that is scored.
    """

    form: str
    megabytes: float
    seconds: float
    ratio: float
    mean_iou: float | None


@dataclass(frozen=True)
class _Side:
    run: Callable[[Tensor], Any]

    def reset(self) -> None:
        """Does nothing: a run leaves no state behind."""


def size_of(text: str) -> tuple[int, int]:
    """Height and width from `512` or `512x1024`.

    Raises:
        UserError: the text is neither.
    """
    sides = text.split("x")
    if len(sides) > 2 or not all(side.isascii() and side.isdigit() for side in sides):
        raise UserError(f"--size {text!r}: say 512, or height x width as in 512x1024")
    if not all(64 <= int(side) <= 16384 for side in sides):
        raise UserError(f"--size {text!r}: sides must be 64 to 16384 pixels")
    return int(sides[0]), int(sides[-1])


@torch.no_grad()
def measure(
    segmenter: Segmenter,
    files: Sequence[Exported],
    recipe: Recipe | None,
    *,
    size: tuple[int, int],
    compiled: bool,
) -> list[Row]:
    """Each form's row, PyTorch first.

    Args:
        segmenter: the model, on the CPU.
        files: its forms.
        recipe: for mIoU, or None.
        size: of the timed picture.
        compiled: whether PyTorch is compiled too.
    """
    model = segmenter.model
    eager = {
        "logits": _Side(lambda shown: model(shown).logits),
        "labels": _Side(lambda shown: upsampled_argmax(model(shown).logits, size)),
    }
    sides = {EAGER: eager["logits"]}
    if compiled:
        made = torch.compile(model, fullgraph=True, dynamic=False)
        sides[COMPILED] = _Side(lambda shown: made(shown).logits)
    if any(file.form == "labels" for file in files):
        sides[f"{EAGER}, labels"] = eager["labels"]
    sides.update({file.form: _Side(_runner(file)) for file in files})
    generator = torch.Generator().manual_seed(0)
    shape = (1, model.config.num_channels, *size)
    with torch.no_grad():
        seconds = take_turns(
            sides, (torch.randn(shape, generator=generator),), rounds=ROUNDS, device="cpu"
        )
    task = None if recipe is None else task_of(recipe, segmenter.preprocessing)
    sizes = {file.form: file.bytes for file in files}
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    rows = []
    for form, value in seconds.items():
        base = seconds.get(f"{EAGER}, labels" if form.endswith("labels") else EAGER, 0.0)
        megabytes = sizes.get(form, weights) / 1e6
        score = None if task is None else _mean_iou(form, segmenter, task, files)
        rows.append(Row(form, megabytes, value, value / base, score))
    return rows


def _runner(file: Exported) -> Callable[[Tensor], Tensor]:
    if file.form == "pt2":
        return torch.export.load(file.path).module()
    opened = session(file.path)
    return lambda shown: run_in(opened, shown)


def _mean_iou(
    form: str, segmenter: Segmenter, task: Task, files: Sequence[Exported]
) -> float | None:
    """The mIoU by training's own evaluation, with the file in place of the model."""
    path = {file.form: file.path for file in files}.get(form)
    if form == EAGER:
        model: Any = segmenter.model
    elif path is None or form in ("labels", "pt2"):
        return None
    else:
        model = InOnnxRuntime(session(path), segmenter.model.config)
    done = task.evaluate(model, Share(), stop=lambda: False)
    assert done is not None, "nobody can stop it"
    return done.metrics[task.best_metric]


def show(
    model: str,
    files: Sequence[Exported],
    rows: Sequence[Row],
    *,
    page: Path | None,
    as_json: bool,
) -> None:
    """Prints the written files and their figures, as a table or as one JSON object."""
    if as_json:
        written = [
            {"form": file.form, "path": str(file.path), "bytes": file.bytes, **asdict(file.check)}
            for file in files
        ]
        values = {"model": model, "files": written, "table": [asdict(row) for row in rows]}
        print(json.dumps(_plain({**values, "web": page and str(page)}), allow_nan=False))
        return
    console = Console()
    for file in files:
        sizes = f"{len(file.check.sizes)} sizes"
        off = (
            "" if file.check.difference is None else f"logits within {file.check.difference:.0e}, "
        )
        console.print(
            f"{file.path}: {file.bytes / 1e6:.1f} MB; at {sizes} {off}"
            f"{file.check.equal:.2%} of the pixels as PyTorch's",
            highlight=False,
            markup=False,
            soft_wrap=True,
        )
    if rows:
        table = Table(box=None, pad_edge=False, padding=(1, 2, 0, 0), header_style="bold")
        table.add_column("form")
        for title in ("MB", "ms", "of PyTorch", "mIoU"):
            table.add_column(title, justify="right", no_wrap=True)
        table.padding = (0, 2, 0, 0)
        for row in rows:
            score = "-" if row.mean_iou is None else f"{row.mean_iou:.2%}"
            table.add_row(
                row.form,
                f"{row.megabytes:.1f}",
                f"{row.seconds * 1e3:.0f}",
                f"{row.ratio:.2f}",
                score,
            )
        console.print()
        console.print(table)
    if page is not None:
        print(f"\nPage: {page}. Try it: python -m http.server -d {page}")


def _plain(value: Any) -> Any:
    """The value with null for NaN and infinity, which JSON does not have."""
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
