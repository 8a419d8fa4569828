"""Size, latency and mIoU of each form, beside those of PyTorch."""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from finetune.inference import Segmenter
from finetune.machine import take_turns
from finetune.programs.export.check import StandIn, load
from finetune.programs.export.export import Exported
from finetune.recipe import Recipe
from finetune.run.log import plain
from finetune.segformer.functional import upsampled_argmax
from finetune.trainers import Share, Task
from finetune.trainers.tasks import task_of

ROUNDS = 15
EAGER, COMPILED, LABELS = "PyTorch", "PyTorch compiled", "PyTorch, labels"


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
    model, paths = segmenter.model, {file.form: file.path for file in files}
    sides = {EAGER: _Side(lambda shown: model(shown).logits)}
    if compiled:
        made = torch.compile(model, fullgraph=True, dynamic=False)
        sides[COMPILED] = _Side(lambda shown: made(shown).logits)
    if "labels" in paths:
        sides[LABELS] = _Side(lambda shown: upsampled_argmax(model(shown).logits, size))
    sides.update({form: _Side(load(path)) for form, path in paths.items()})
    generator = torch.Generator().manual_seed(0)
    picture = torch.randn(1, model.config.num_channels, *size, generator=generator)
    seconds = take_turns(sides, (picture,), rounds=ROUNDS, device="cpu")
    scores: dict[str, float] = {}
    if recipe is not None:
        task = task_of(recipe, segmenter.preprocessing)
        scores[EAGER] = _mean_iou(task, model)
        for form in [form for form in paths if form not in ("labels", "pt2")]:
            scores[form] = _mean_iou(task, StandIn(load(paths[form]), model.config))
    sizes = {file.form: file.bytes for file in files}
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    rows = []
    for form, value in seconds.items():
        base = seconds[LABELS if form.endswith("labels") else EAGER]
        megabytes = sizes.get(form, weights) / 1e6
        rows.append(Row(form, megabytes, value, value / base, scores.get(form)))
    return rows


def _mean_iou(task: Task, model: Any) -> float:
    """The mIoU by training's own evaluation, with a file in place of the model."""
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
        print(json.dumps(plain({**values, "web": page and str(page)}), allow_nan=False))
        return
    console = Console()
    for file in files:
        off = file.check.difference
        logits = "" if off is None else f"logits within {off:.0e}, "
        console.print(
            f"{file.path}: {file.bytes / 1e6:.1f} MB; at {len(file.check.sizes)} sizes {logits}"
            f"{file.check.equal:.2%} of the pixels as PyTorch's",
            highlight=False,
            markup=False,
            soft_wrap=True,
        )
    if rows:
        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
        table.add_column("form")
        for title in ("MB", "ms", "of PyTorch", "mIoU"):
            table.add_column(title, justify="right", no_wrap=True)
        for row in rows:
            score = "-" if row.mean_iou is None else f"{row.mean_iou:.2%}"
            figures = f"{row.megabytes:.1f}", f"{row.seconds * 1e3:.0f}", f"{row.ratio:.2f}"
            table.add_row(row.form, *figures, score)
        console.print()
        console.print(table)
    if page is not None:
        print(f"\nPage: {page}. Try it: python -m http.server -d {page}")
