"""Verbs about recipes and training."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import FrameType
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from typer import Argument, Option

from finetune.cli.app import RECIPE, Overrides, RecipeArgument, app
from finetune.errors import UserError


@app.command()
def train(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    processes: Annotated[
        int | None, Option(min=1, help="Processes on this machine. Default: one per GPU, else one.")
    ] = None,
) -> None:
    """Train on all local devices. A stopped run of the same recipe resumes where it stopped.

    Example: finetune train camvid data.path=CamVid train.steps=2000

    Exit status: 0 done, 2 after a mistake that the message names, 130 / 143 after Ctrl-C / SIGTERM
    with the state saved (143 at train.max_minutes, too), 1 a defect of this package.
    """
    import torch

    from finetune.recipe import load_recipe
    from finetune.run.screen import quiet_libraries
    from finetune.train import run

    overrides = overrides or []
    devices = torch.cuda.device_count()
    if processes is None:
        processes = max(1, devices)
    if processes == 1:
        raise typer.Exit(run(recipe, overrides))
    if 0 < devices < processes:
        raise UserError(f"--processes {processes}: this machine has {devices} GPUs; ask for fewer")
    quiet_libraries(main_process=False)  # rank 0 prints the warnings
    load_recipe(recipe, overrides).batch_split(processes)
    raise typer.Exit(_launch(["--recipe", recipe, *overrides], processes))


@app.command()
def recipes() -> None:
    """List the recipes that come with the package.

    Example: finetune recipes

    A name in the list stands for a recipe in every verb: `finetune show camvid` prints one,
    `finetune train camvid data.path=CamVid` runs it.
    """
    from finetune.recipe import shipped_recipes

    table = Table("recipe", "what it is", box=None, pad_edge=False)
    for path in shipped_recipes():
        table.add_row(path.stem, path.read_text(encoding="utf-8").split("\n")[0].lstrip("# "))
    Console().print(table)


@app.command()
def show(
    recipe: Annotated[str | None, RECIPE] = None,
    overrides: Overrides = None,
    keys: Annotated[
        bool, Option("--keys", help="List every key with type, default and meaning.")
    ] = False,
    schema: Annotated[
        bool, Option("--schema", help="Print the JSON Schema of recipe files, for editors.")
    ] = False,
) -> None:
    """Print a resolved recipe: every value that a run would use.

    Example: finetune show ade20k model.variant=b2
    """
    from finetune.recipe import describe_keys, load_recipe, recipe_schema

    if [recipe is not None, keys, schema].count(True) != 1:
        raise UserError(
            "name a recipe, or --keys or --schema alone; `finetune recipes` lists the recipes"
        )
    if schema:
        print(json.dumps(recipe_schema(), indent=1))
    elif keys:
        table = Table("key", "type", "default", "meaning", box=None, pad_edge=False)
        for row in describe_keys():
            table.add_row(*(text.replace("[", "\\[") for text in row))
        Console().print(table)
    elif recipe is not None:
        print(load_recipe(recipe, overrides or []).to_yaml(), end="")


@app.command()
def report(run: Annotated[Path, Argument(metavar="RUN", help="A run folder.")]) -> None:
    """Write RUN/report.html anew: curves, scores, pictures and recipe on a page that opens offline.

    A run writes the page at its end. This verb writes it for a run that still trains or was
    stopped.

    Example: finetune report runs/camvid
    """
    from finetune.run.report import html_report

    print(html_report(run))


def _launch(arguments: list[str], processes: int) -> int:
    """Runs `finetune.train` once per device and returns the ranks' status.

    The ranks have sessions of their own: Ctrl-C reaches them once, from here, and not from the
    terminal as well. This process waits while they save. If one rank fails, the others are ended,
    since they would wait for it for ever.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    world = str(processes)
    shared = {"WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world}
    shared |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    ranks: list[subprocess.Popen[bytes]] = []
    received: list[int] = []

    def pass_on(number: int, frame: FrameType | None) -> None:
        received.append(number)
        for process in ranks:
            process.send_signal(number)

    signal.signal(signal.SIGINT, pass_on)
    signal.signal(signal.SIGTERM, pass_on)
    for rank in range(processes):
        if received:  # before all ranks are started
            break
        own = {"RANK": str(rank), "LOCAL_RANK": str(rank)}
        command = [sys.executable, "-m", "finetune.train", *arguments]
        environment = {**os.environ, **shared, **own}
        ranks.append(subprocess.Popen(command, env=environment, start_new_session=True))
    while any(process.poll() is None for process in ranks):
        if any(process.poll() for process in ranks):
            time.sleep(5)  # for messages, and for ranks that end by themselves
            for process in ranks:
                process.terminate()
            deadline = time.monotonic() + 30
            while any(process.poll() is None for process in ranks) and time.monotonic() < deadline:
                time.sleep(0.2)
            for process in ranks:
                process.kill()
        time.sleep(0.2)
    # A UserError is raised on every rank; a crash elsewhere must not hide behind a 143. A rank that
    # a signal ended before it could save has the signal's negative number.
    statuses = [128 - p.returncode if p.returncode < 0 else p.returncode for p in ranks]
    statuses += [128 + number for number in received[:1] if not ranks]
    return next((status for status in (2, 1, 130, 143) if status in statuses), int(any(statuses)))
