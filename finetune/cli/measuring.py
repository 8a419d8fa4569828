"""The verb that measures speed and memory."""

import importlib
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Annotated

from rich.console import Console
from typer import Argument, Option

from finetune.cli.app import Device, Threads, app, sides_of
from finetune.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
"""The folder that holds the package: that of a checkout, or of installed packages."""


def beside(name: str) -> ModuleType | None:
    """A module of `benchmarks/`, which lies beside the package in a checkout; None in a wheel."""
    if not all((ROOT / file).is_file() for file in (f"benchmarks/{name}.py", "pyproject.toml")):
        return None
    if str(ROOT) not in sys.path:  # an installed `benchmarks` of others must not come first
        sys.path.insert(0, str(ROOT))
    return importlib.import_module(f"benchmarks.{name}")


@app.command()
def benchmark(
    what: Annotated[
        list[str] | None,
        Argument(
            metavar="[WHAT|key=value]...",
            help="forward, train-step, eval-image, loss, metric, loader, predict or training; "
            "default: all but the last two. key=value overrides the recipe of training.",
        ),
    ] = None,
    variant: Annotated[
        list[str] | None,
        Option(help="b0 to b5, repeatable. Default: b0 b2 b5 forward, b0 b2 step, b2 eval."),
    ] = None,
    size: Annotated[
        str | None, Option(help="512, or height x width. Default: 512; eval-image 1024x2048.")
    ] = None,
    batch: Annotated[
        int | None, Option(min=1, help="Images per batch. Default: 1; train-step 2.")
    ] = None,
    num_labels: Annotated[int, Option(help="Classes, 2 to 255.")] = 150,
    dtype: Annotated[
        str, Option(help="float32, bfloat16 or float16; by autocast, on both sides.")
    ] = "float32",
    device: Device = None,
    threads: Threads = None,
    rounds: Annotated[
        int | None, Option(min=1, help="Timed runs per side. Default: 5 to 15.")
    ] = None,
    compiled: Annotated[
        bool, Option("--compile", help="Measure ours compiled too; stock only compiled. Slow.")
    ] = False,
    vs: Annotated[str, Option(help="stock, or none: measure this package alone.")] = "stock",
    memory: Annotated[
        bool, Option(help="Measure peak memory, each side in its own process.")
    ] = True,
    keep_freed_memory: Annotated[
        bool, Option(help="Let glibc keep freed memory, as training does; on both sides.")
    ] = False,
    data: Annotated[
        Path | None, Option(help="loader, predict: a folder of images. Default for loader: drawn.")
    ] = None,
    model: Annotated[Path | None, Option(help="predict: a model folder, on both sides.")] = None,
    recipe: Annotated[str | None, Option(help="training: the recipe, on both sides.")] = None,
    minutes: Annotated[
        float, Option(min=0.01, help="training: for each side, without evaluation.")
    ] = 20.0,
    output: Annotated[
        Path, Option(help="training: where the run folders ours and stock go.")
    ] = Path("runs/benchmark-training"),
    as_json: Annotated[bool, Option("--json", help="One JSON object per line.")] = False,
) -> None:
    """Measure time and memory against stock transformers: the figures of docs/speed.md.

    Example: finetune benchmark forward --variant b0 --threads 2

    Example: finetune benchmark training --recipe camvid data.path=CamVid --minutes 20

    Both sides run in turns in one process, with the same weights and inputs. The tables show
    medians, and the largest difference of the results over the largest value. "of peak" is the
    model's arithmetic per second, as a share of the rate of the largest matrix products here (on a
    GPU, or as a share of its bandwidth). training runs the whole loop for equal minutes with our
    model and with stock's. Memory, the peak, metric, loader, predict and training need a checkout
    of the source; a wheel measures only the time of the model and its loss.
    """
    from finetune.programs.benchmark import benchmark as program
    from finetune.programs.benchmark import printing as table
    from finetune.run.screen import quiet_libraries
    from finetune.segformer import SegformerConfig
    from finetune.segformer.configuration import smallest_side

    quiet_libraries(main_process=True)
    overrides = [text for text in what or () if "=" in text]
    names = [text for text in what or () if "=" not in text] or program.table(beside)
    limits = smallest_side(SegformerConfig()), 16384
    options = program.Options(
        variants=variant or (),
        size=None if size is None else sides_of("--size", size, limits),
        batch=batch,
        num_labels=num_labels,
        dtype=dtype,
        device=device,
        threads=threads,
        rounds=rounds,
        compile=compiled,
        vs=vs,
        memory=memory,
        keep_freed_memory=keep_freed_memory,
        data=data,
        model=model,
    )
    train_both = "training" in names
    if train_both and recipe is None:
        raise UserError("benchmark training: the recipe is missing; name it with --recipe")
    if not train_both and (overrides or recipe is not None):
        raise UserError("--recipe and key=value go with `benchmark training`; take them out")
    cases = program.plan([name for name in names if name != "training"], options, beside)
    training = None if recipe is None else program.from_checkout("training", beside)
    if training is not None:
        training.check(recipe, overrides, output)
    results = []
    try:
        for case in cases:
            label = " ".join(filter(None, [case.what, case.variant]))
            with Console(stderr=True).status(f"measuring {label}"):
                results.append(program.measure(case, options, beside))
            if as_json:
                print(json.dumps(results[-1].to_dict()), flush=True)
    finally:  # finished results are shown, even after an error
        if results and not as_json:
            table.print_tables(results)
    if training is not None:
        both = training.compare(recipe, overrides, minutes=minutes, output=output)
        if as_json:
            print(json.dumps({"what": "training", **{side.side: vars(side) for side in both}}))
        else:
            training.print_training(both)
