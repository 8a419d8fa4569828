"""Output of a run on the screen: progress bars, lines, tables, closing screen."""

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
    """A progress bar on a terminal or in a notebook, or a line every half minute in a log.

    Only a terminal can move the cursor up. Elsewhere a second bar would add a line at each update,
    so it takes the line of the first bar while it lasts.
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


def show_progress(bar: tqdm, line: Mapping[str, Any]) -> None:
    """Shows a training row of metrics.jsonl on a bar, with its next refresh."""
    shown = {
        "loss": f"{line['train/loss']:.4f}",
        "lr": f"{line['train/lr']:.2e}",
        "img/s": f"{line['train/images_per_second']:.1f}",
    }
    bar.set_postfix(shown, refresh=False)


def say(text: str) -> None:
    """Prints a line above a progress bar, once for all processes."""
    if text and os.environ.get("RANK", "0") == "0":
        tqdm.write(text, file=sys.stderr)


def printable(text: str) -> str:
    """Names on one line: a file name may hold any character, even terminal escape sequences."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def quiet_libraries(main_process: bool) -> None:
    """Shows warnings in one line, from one process, and hides other libraries' progress bars."""
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()

    def show(message: Warning | str, *_: Any, **__: Any) -> None:
        if main_process:
            tqdm.write(f"warning: {message}", file=sys.stderr)

    warnings.showwarning = show


def show_table(title: str, table: Table) -> None:
    """Prints a table with its title above a progress bar."""
    with tqdm.external_write_mode(sys.stdout):
        console = Console()
        console.print(f"\n{title}", style="bold", highlight=False, markup=False)
        console.print(table)


def show_end(
    output: Path,
    name: str,
    *,
    steps: int,
    images: int,
    rows: Sequence[Mapping[str, Any]],
    key: str,
    pipeline: str,
) -> None:
    """Prints the closing screen of a run: its results, its files and the next commands.

    Steps and images are those of the whole run; `rows` are those of metrics.jsonl. The metric `key`
    selects the best model; `pipeline` is transformers' name of the task.
    """
    evaluations = [row for row in rows if key in row]
    best = max(evaluations, key=lambda row: row[key] or 0.0)
    seconds = max((row.get("seconds") or 0.0 for row in rows), default=0.0)
    # Full paths, so that the commands also run without an activated environment.
    command = "finetune" if shutil.which("finetune") else f"{sys.executable} -m finetune.cli"
    python = "python" if shutil.which("finetune") else sys.executable
    last, top = ("-" if row[key] is None else f"{row[key]:.4f}" for row in (evaluations[-1], best))
    with tqdm.external_write_mode(sys.stdout):
        print(
            f"""
{name}: {steps} steps, {images} images, {seconds / 60:.1f} minutes
  {key.removeprefix("eval/")}: {last} at the end, {top} at its best (step \
{best["step"]})

  pictures   {output / "panel.png"}
  report     {output / "report.html"}
  model      {output / "best"}   (a stock Hugging Face folder; the last one: {output / "last"})

Next:
  {command} eval {shlex.quote(f"{output}/best")} --recipe {shlex.quote(f"{output}/recipe.yaml")}
  {python} -c "from transformers import pipeline; \
print(pipeline('{pipeline}', '{output / "best"}')('picture.jpg'))"
"""
        )
