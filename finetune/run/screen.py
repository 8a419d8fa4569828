"""What a run shows while it goes on."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from tqdm.auto import tqdm
from transformers.utils import logging as transformers_logging


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


def say(text: str) -> None:
    """A line for a person, once for all processes, above a progress bar."""
    if text and os.environ.get("RANK", "0") == "0":
        tqdm.write(text, file=sys.stderr)


def quiet_libraries(main_process: bool) -> None:
    """One line a warning, from one process; no progress bars of other libraries."""
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()

    def show(message: Warning | str, *_: Any, **__: Any) -> None:
        if main_process:
            tqdm.write(f"warning: {message}", file=sys.stderr)

    warnings.showwarning = show


def show_table(title: str, table: Table) -> None:
    """A table with its title, above a progress bar."""
    with tqdm.external_write_mode(sys.stdout):
        console = Console()
        console.print(f"\n{title}", style="bold", highlight=False, markup=False)
        console.print(table)


def show_end(
    output: Path, name: str, *, steps: int, images: int, rows: Sequence[Mapping[str, Any]], key: str
) -> None:
    """The last screen of a run: what there is, and what to type next.

    Args:
        output: the run folder.
        name: of the run.
        steps: of the whole run.
        images: of the whole run.
        rows: of metrics.jsonl.
        key: the metric that chose the best model.
    """
    evaluations = [row for row in rows if key in row]
    best = max(evaluations, key=lambda row: row[key] or 0.0)
    seconds = max((row.get("seconds") or 0.0 for row in rows), default=0.0)
    # Runnable as they stand, also from an environment that is not activated.
    command = "finetune" if shutil.which("finetune") else f"{sys.executable} -m finetune.cli"
    python = "python" if shutil.which("finetune") else sys.executable
    scores = (
        "-" if (value := row[key]) is None else f"{value:.4f}" for row in (evaluations[-1], best)
    )
    with tqdm.external_write_mode(sys.stdout):
        print(
            f"""
{name}: {steps} steps, {images} images, {seconds / 60:.1f} minutes
  {key.removeprefix("eval/")}: {next(scores)} at the end, {next(scores)} at its best (step \
{best["step"]})

  pictures   {output / "panel.png"}
  report     {output / "report.html"}
  model      {output / "best"}   (a stock Hugging Face folder; the last one: {output / "last"})

Next:
  {command} eval {shlex.quote(f"{output}/best")} --recipe {shlex.quote(f"{output}/recipe.yaml")}
  {python} -c "from transformers import pipeline; \
print(pipeline('image-segmentation', '{output / "best"}')('picture.jpg'))"
"""
        )
