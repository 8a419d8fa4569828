"""Verbs about data: write a recipe for it, find its faults, review its labels, pack it."""

import re
import shlex
import sys
import time
from collections.abc import Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from typer import Argument, Option

from finetune.cli.app import (
    AsJson,
    Choice,
    Device,
    Overrides,
    RecipeArgument,
    app,
    complete_recipe,
)
from finetune.errors import UserError

if TYPE_CHECKING:
    from finetune.discover.recognise import Layout


@app.command()
def init(
    folder: Annotated[
        Path | None, Argument(metavar="[DIR]", help="Folder of images and masks.")
    ] = None,
    source: Annotated[
        str | None,
        Option("--from", help="hub:OWNER/NAME, hub:OWNER/NAME@REVISION or hub:s3://bucket/set."),
    ] = None,
    output: Annotated[
        Path, Option("--output", "-o", help="The recipe to write; must not exist.")
    ] = Path("recipe.yaml"),
    choice: Choice = None,
) -> None:
    """Write a ready-to-train recipe for a folder of images and masks.

    Recognises Ultralytics' data.yaml, COCO's JSON, the official folders of ADE20K, Cityscapes, VOC,
    COCO-Stuff and CamVid, two folders or name endings with the same names, one file per class, and
    Parquet or Arrow files of `datasets`. Prints its findings and assumptions, and writes them into
    the recipe as comments. Reads only the columns and the first rows of a remote data set.

    Example: finetune init my_data -o my_recipe.yaml

    Example: finetune init --from hub:EduardoPacheco/FoodSeg103 -o food.yaml
    """
    from finetune.programs.init import draft, draft_from_table
    from finetune.recipe import SCHEMA_FILE

    if source is None and folder is not None:
        two_values = choice == 1 or sys.stdin.isatty()  # a terminal asks, as it is a doubt
        done = draft(
            folder,
            output,
            lambda layouts: _chosen(layouts, folder, choice),
            _accept,
            two_values=two_values,
        )
    elif source is not None and folder is None and re.match("hub:[^@]", source):
        path = source.removeprefix("hub:")
        path, _, revision = (path, "", "") if "://" in path else path.partition("@")
        done = draft_from_table(path, output, revision=revision or None)
    else:
        raise UserError("name either a folder or --from hub:OWNER/NAME")
    blocks = ("Seen", done.found), ("Assumed", done.assumed), ("Doubtful", done.doubts)
    for title, found in blocks:
        if found:
            print(f"{title}:", *found, sep="\n  ")
    print(f"\nBeside the recipe: {SCHEMA_FILE}, by which editors complete and check it.")
    print(f"Written: {output}. Next: finetune train {_typed(output)}")


@app.command()
def doctor(
    target: Annotated[
        str,
        Argument(
            metavar="RECIPE|DIR",
            help="A YAML file, a shipped recipe, or a folder of images and masks.",
        ),
    ],
    overrides: Overrides = None,
    output: Annotated[
        Path | None,
        Option(
            "--output", "-o", help="Folder of doctor.json and .html. Default: runs/doctor-NAME."
        ),
    ] = None,
    as_json: AsJson = False,
    workers: Annotated[
        int | None, Option(min=1, help="Reading threads. Default: one per core, at most 8.")
    ] = None,
    distance: Annotated[
        int, Option(min=0, max=63, help="Bits of 64 in which hashes of near duplicates may differ.")
    ] = 8,
    choice: Choice = None,
) -> None:
    """Read a whole data set and list its faults by file, before a training meets them.

    Finds files that are damaged, empty, of unequal size or without a partner. Finds mask values
    without a rule, and values that look like slips. Finds classes that never occur or occur in
    validation only. Finds images that are in two splits, exactly or nearly, or that have two
    different masks. Counts classes, ignored pixels and sizes, and suggests class weights, mean and
    standard deviation.

    Example: finetune doctor camvid data.path=CamVid -o out

    Example: finetune doctor my_data

    A folder without a recipe gets the layout and labels of `finetune init`; key=value changes them.

    Exit status: 0 without problems (warnings are allowed), 2 with problems or after a mistake that
    the message names, 130 after Ctrl-C. doctor.json and doctor.html are written with and without
    problems.
    """
    from finetune.disk import check_folder
    from finetune.programs.doctor import screen
    from finetune.programs.doctor.doctor import examine

    if choice is not None and not Path(target).expanduser().is_dir():
        raise UserError(f"--choice {choice}: goes with a folder, and {target} is none; take it out")
    check_folder(output or Path("runs"))  # before minutes of reading
    try:
        done = examine(
            target,
            overrides or [],
            choose=lambda layouts: _chosen(layouts, target, choice),
            workers=workers,
            distance=distance,
            show_progress=not as_json,
        )
    except KeyboardInterrupt:
        print("\nstopped; nothing was written", file=sys.stderr)
        raise typer.Exit(130) from None
    files = done.write(output or Path("runs") / f"doctor-{done.name}")
    if as_json:
        print(files[0].read_text(encoding="utf-8"), end="")
    else:
        screen.show(done.to_json(), files)
    raise typer.Exit(0 if done.clean else 2)


@app.command()
def review(
    model: Annotated[
        str | None,
        Argument(metavar="[MODEL]", help="A model folder or Hub id; not with --folds."),
    ] = None,
    overrides: Overrides = None,
    recipe: Annotated[
        str | None,
        Option(help="Its validation split is reviewed.", autocompletion=complete_recipe),
    ] = None,
    output: Annotated[
        Path | None,
        Option(
            "--output",
            "-o",
            help="A new folder, or that of an earlier call. Default: runs/review-NAME.",
        ),
    ] = None,
    folds: Annotated[
        int | None,
        Option(
            min=2,
            help="Review the training split instead: train so many models, each without one part "
            "of it, and review that part.",
        ),
    ] = None,
    train: Annotated[
        bool,
        Option(
            "--train",
            help="Review the training split with MODEL, which may have learnt its errors.",
        ),
    ] = False,
    show: Annotated[int, Option(min=1, help="Regions on the page, and exported.")] = 100,
    export: Annotated[
        str | None,
        Option(
            metavar="FORM",
            help="Also write the regions as objects of the predicted class, for annotation tools: "
            "coco, coco-polygons, cvat, label-studio or labelme.",
        ),
    ] = None,
    device: Device = None,
    as_json: AsJson = False,
) -> None:
    """List the labels that a trained model doubts, the most doubtful first.

    Example: finetune review runs/camvid/best --recipe camvid data.path=CamVid

    Example: finetune review --recipe camvid data.path=CamVid --folds 3

    A region is listed where the model predicts another class than the mask holds. Its score grows
    with the model's log-odds for that class, with the area, and for classes that the model seldom
    mixes up. The model should not have seen the labels: it reviews the validation split, or with
    --folds each part of the training split by a model that was trained on the others. Those models
    are ordinary runs in OUT/fold-0, OUT/fold-1, ...; the same command goes on with them.

    OUT/review.html shows image, labels and prediction of the first regions. review.csv and
    review.json hold all regions, review.json with their outlines. No mask is changed.

    Exit status: 0 done, whatever was found; 2 after a mistake that the message names; 130 after
    Ctrl-C, and the same command resumes; 143 if train.max_minutes stopped a training.
    """
    from finetune.disk import check_folder
    from finetune.machine import set_threads
    from finetune.programs.review import export as tools
    from finetune.programs.review import review as program
    from finetune.programs.review.listing import Part
    from finetune.recipe import load_recipe
    from finetune.train import fit, quiet_libraries

    if model is not None and "=" in model and not Path(model).exists():
        overrides, model = [model, *(overrides or [])], None
    if recipe is None:
        raise UserError("--recipe is missing: name the recipe whose labels are reviewed")
    if (model is None) == (folds is None):
        raise UserError("name either MODEL, or --folds N to train models for this review")
    if train and folds is not None:
        raise UserError("--folds reviews the training split already; take --train out")
    if export is not None:
        tools.check_form(export)
    quiet_libraries(main_process=True)
    loaded = load_recipe(recipe, overrides or [])
    output = output or Path("runs") / f"review-{loaded.name}"
    check_folder(output)
    if folds is None:
        parts = [Part(str(model), loaded, on_train=train)]
    else:
        parts = program.fold_parts(loaded, folds, output)
    program.check_output(output, parts)
    try:
        for part in parts if folds is not None else ():
            with redirect_stdout(sys.stderr):  # which --json keeps clean
                if not fit(part.recipe).finished:
                    raise typer.Exit(143)
        set_threads(loaded.train.threads)
        done = program.review(parts, output, device=device, show_progress=not as_json)
        files = program.write(done, output, show)
        others = [] if export is None else tools.export(done, output, export, show)
    except KeyboardInterrupt:
        print("\nstopped; the same command resumes", file=sys.stderr)
        raise typer.Exit(130) from None
    if as_json:
        print(files[2].read_text(encoding="utf-8"), end="")
    else:
        program.show(done.to_json(), [*files, *others])


@app.command()
def pack(
    recipe: RecipeArgument,
    output: Annotated[Path, Argument(metavar="OUT", help="The folder to write.")],
    overrides: Overrides = None,
    workers: Annotated[
        int | None, Option(min=1, help="Threads. Default: one per usable core.")
    ] = None,
) -> None:
    """Write a recipe's data as sharded Parquet, for streaming from a disk or a bucket.

    Masks become PNGs of class ids; images keep their bytes. OUT/recipe.yaml trains on the result. A
    stopped call resumes where it stopped.

    Example: finetune pack ade20k packed data.path=ADEChallengeData2016
    """
    from finetune.programs import pack as program
    from finetune.recipe import load_recipe

    begun = time.monotonic()
    done = program.pack(load_recipe(recipe, overrides or []), output, workers=workers)
    speed = sum(done.samples.values()) / max(time.monotonic() - begun, 1e-9)
    for split, count in done.samples.items():
        print(f"{split}: {count} images, {done.bytes[split] / 1e6:.1f} MB")
    kept = f", {done.kept} files were there already" if done.kept else ""
    following = f"finetune train {_typed(output / 'recipe.yaml')}"
    print(f"Written: {output} ({speed:.0f} images/s{kept}). Next: {following}")


def _chosen(layouts: "Sequence[Layout]", folder: Path | str, choice: int | None) -> "Layout":
    """The only layout, layout number `choice`, or the terminal's answer; else a UserError."""
    if len(layouts) == 1 and choice in (None, 1):
        return layouts[0]
    lines = [f"  {i}. {'; '.join(layout.found)}" for i, layout in enumerate(layouts, 1)]
    options = "\n".join(lines)
    if choice is None and sys.stdin.isatty():
        print(f"Several layouts fit {folder}:\n{options}", file=sys.stderr)
        choice = typer.prompt("Which one", type=int, err=True)
    if choice is not None and not 1 <= choice <= len(layouts):
        fits = "only layout 1 fits" if len(layouts) == 1 else f"these layouts fit:\n{options}"
        raise UserError(f"--choice {choice}: {fits}")
    if choice is None:
        raise UserError(f"several layouts fit {folder}; choose one with --choice:\n{options}")
    return layouts[choice - 1]


def _accept(doubts: "Sequence[str]") -> None:
    """Asks a person about implausible labels; elsewhere they are only shown."""
    if not sys.stdin.isatty():
        return
    print("Doubtful:", *doubts, sep="\n  ", file=sys.stderr)
    if not typer.confirm("Write the recipe all the same?", default=True, err=True):
        raise UserError("the recipe is not written; look at the masks, or at `finetune doctor`")


def _typed(path: Path) -> str:
    """A path as a person types it; a name that begins with a dash would be an option."""
    return shlex.quote(f"./{path}" if str(path).startswith("-") else str(path))
