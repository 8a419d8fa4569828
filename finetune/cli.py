"""The `finetune` command: one thin function a verb."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

import finetune
from finetune.errors import UserError

if TYPE_CHECKING:
    from finetune.data.recognise import Layout

app = typer.Typer(
    help="Fine-tune SegFormer from a recipe; what is saved is a stock Hugging Face model.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

RecipeArgument = Annotated[
    str, typer.Argument(metavar="RECIPE", help="A YAML file, or the name of a shipped recipe.")
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="[key=value]...", help="Overrides, such as train.steps=100."),
]


def version(wanted: bool) -> None:
    """Prints the version and leaves."""
    if wanted:
        print(f"finetune {finetune.__version__}")
        raise typer.Exit


@app.callback()
def options(
    _: Annotated[
        bool, typer.Option("--version", callback=version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Fine-tune SegFormer from a recipe; what is saved is a stock Hugging Face model."""


@app.command()
def train(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    processes: Annotated[
        int | None,
        typer.Option(min=1, help="Processes on this machine; default: one a GPU, else one."),
    ] = None,
) -> None:
    """Train on all local devices. Goes on where an earlier run of the same recipe stopped.

    Example: finetune train camvid data.path=CamVid train.steps=2000

    Exit status: 0 done, 2 a mistake that the message names, 130 / 143 stopped by Ctrl-C / SIGTERM
    with the state saved, 1 a defect of this package.
    """
    import torch

    from finetune.recipe import load_recipe
    from finetune.train import quiet_libraries, run

    overrides = overrides or []
    if processes is None:
        processes = max(1, torch.cuda.device_count())
    if processes == 1:
        raise typer.Exit(run(recipe, overrides))
    if 0 < torch.cuda.device_count() < processes:
        raise UserError(f"--processes {processes}: here are {torch.cuda.device_count()} GPUs")
    quiet_libraries(main_process=False)  # rank 0 will say what there is to warn of
    load_recipe(recipe, overrides).batch_split(processes)
    raise typer.Exit(_launch(["--recipe", recipe, *overrides], processes))


@app.command()
def recipes() -> None:
    """List the recipes that come with the package."""
    from finetune.recipe import shipped_recipes

    table = Table("recipe", "what it is", box=None, pad_edge=False)
    for path in shipped_recipes():
        table.add_row(path.stem, path.read_text(encoding="utf-8").split("\n")[0].lstrip("# "))
    Console().print(table)


@app.command()
def show(
    recipe: Annotated[
        str | None,
        typer.Argument(metavar="RECIPE", help="A YAML file, or the name of a shipped recipe."),
    ] = None,
    overrides: Overrides = None,
    keys: Annotated[
        bool, typer.Option("--keys", help="List every key with type, default and meaning.")
    ] = False,
) -> None:
    """Print a recipe resolved: every value that a run of it would use.

    Example: finetune show ade20k model.variant=b2
    """
    from finetune.recipe import describe_keys, load_recipe

    if keys:
        table = Table("key", "type", "default", "meaning", box=None, pad_edge=False)
        for row in describe_keys():
            table.add_row(*(text.replace("[", "\\[") for text in row))
        Console().print(table)
    elif recipe is None:
        raise UserError("name a recipe, or ask for --keys; `finetune recipes` lists the recipes")
    else:
        print(load_recipe(recipe, overrides or []).to_yaml(), end="")


@app.command()
def init(
    folder: Annotated[
        Path | None, typer.Argument(metavar="[DIR]", help="Where images and masks are.")
    ] = None,
    source: Annotated[
        str | None,
        typer.Option(
            "--from",
            help="Instead of a folder: hub:OWNER/NAME, also with @REVISION, or an address such as "
            "hub:s3://bucket/set.",
        ),
    ] = None,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="The recipe to write; must not exist.")
    ] = Path("recipe.yaml"),
    choice: Annotated[
        int | None, typer.Option(help="Which one, of several that the folder may be.")
    ] = None,
) -> None:
    """Write a recipe for a folder of images and masks that trains as it stands.

    Recognises Ultralytics' data.yaml, COCO's JSON, the official folders of ADE20K, Cityscapes, VOC,
    COCO-Stuff and CamVid, two folders or endings with the same names, one file a class too, and
    Parquet or Arrow that `datasets` wrote. Says what it saw and assumed; both are comments in the
    recipe. What lies elsewhere is known by its columns and its first rows alone.

    Example: finetune init my_data -o my_recipe.yaml

    Example: finetune init --from hub:EduardoPacheco/FoodSeg103 -o food.yaml
    """
    from finetune.init import draft, draft_from_table

    if source is None and folder is not None:
        done = draft(folder, output, lambda layouts: _chosen(layouts, folder, choice))
    elif source is not None and folder is None and source.startswith("hub:"):
        path, _, revision = source.removeprefix("hub:").partition(
            "@" if "://" not in source else " "
        )
        done = draft_from_table(path, output, revision=revision or None)
    else:
        raise UserError("name a folder, or --from hub:OWNER/NAME, and not both")
    for title, found in (("Seen", done.found), ("Assumed", done.assumed)):
        print(f"{title}:")
        for line in found:
            print(f"  {line}")
    print(f"\nWritten: {output}. Next: finetune train {output}")


@app.command()
def doctor(
    target: Annotated[
        str,
        typer.Argument(
            metavar="RECIPE|DIR",
            help="A YAML file, the name of a shipped recipe, or a folder of images and masks.",
        ),
    ],
    overrides: Overrides = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help="Folder for doctor.json and doctor.html. Default: runs/doctor-NAME.",
        ),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print what doctor.json holds, nothing else.")
    ] = False,
    workers: Annotated[
        int | None,
        typer.Option(min=1, help="Threads that read. Default: one a core, at most 8."),
    ] = None,
    distance: Annotated[
        int,
        typer.Option(
            min=0,
            max=63,
            help="Near duplicates: how many of the 64 bits of two perceptual hashes may differ.",
        ),
    ] = 8,
    choice: Annotated[
        int | None, typer.Option(help="Which one, of several that a folder may be.")
    ] = None,
) -> None:
    """Read a whole data set and say what is wrong with it, by file, before training does.

    Finds files that are damaged, empty, of unequal size or without a partner; mask values that no
    rule covers, or that look like slips; classes never seen, or seen in validation only; images
    that stand in two splits, exactly or nearly, or twice with different masks. Counts classes,
    ignored pixels and sizes, and suggests class weights, mean and standard deviation.

    Example: finetune doctor camvid data.path=CamVid -o out

    Example: finetune doctor my_data

    A folder without a recipe is understood as `finetune init` does; key=value corrects that.

    Exit status: 0 clean, 2 with problems (doctor.json and doctor.html are written either way) or
    after a mistake that the message names, 130 stopped by Ctrl-C. Warnings alone are clean.
    """
    from finetune.doctor import examine, screen

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
        print("\nstopped; nothing is written", file=sys.stderr)
        raise typer.Exit(130) from None
    files = done.write(output or Path("runs") / f"doctor-{done.name}")
    if as_json:
        print(files[0].read_text(encoding="utf-8"), end="")
    else:
        screen.show(done.to_json(), files)
    raise typer.Exit(0 if done.clean else 2)


@app.command()
def pack(
    recipe: RecipeArgument,
    output: Annotated[Path, typer.Argument(metavar="OUT", help="The folder to write.")],
    overrides: Overrides = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Threads; default: one a usable core.")
    ] = None,
) -> None:
    """Write a recipe's data as sharded Parquet: to stream it, from a disk or a bucket.

    Masks become PNG of class ids, images stay the bytes that they are. OUT/recipe.yaml trains on
    it. A call that was stopped goes on where it was.

    Example: finetune pack ade20k packed data.path=ADEChallengeData2016
    """
    from finetune import pack as program
    from finetune.recipe import load_recipe

    begun = time.monotonic()
    done = program.pack(load_recipe(recipe, overrides or []), output, workers=workers)
    speed = sum(done.samples.values()) / max(time.monotonic() - begun, 1e-9)
    for split, count in done.samples.items():
        print(f"{split}: {count} images, {done.bytes[split] / 1e6:.1f} MB")
    kept = f", {done.kept} files were there already" if done.kept else ""
    print(
        f"Written: {output} ({speed:.0f} images/s{kept}). Next: finetune train {output}/recipe.yaml"
    )


@app.command(name="eval")
def evaluate(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A model folder or Hub id.")],
    recipe: Annotated[str, typer.Option(help="The recipe whose validation split is scored.")],
    overrides: Overrides = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object, no table.")] = False,
) -> None:
    """Score a saved model: IoU and accuracy per class, in the folder's own protocol.

    Example: finetune eval runs/camvid/best --recipe camvid data.path=CamVid
    """
    from finetune import evaluation
    from finetune.recipe import load_recipe
    from finetune.train import quiet_libraries

    quiet_libraries(main_process=True)
    loaded = load_recipe(recipe, overrides or [])
    sections = [text.partition("=")[0].partition(".") for text in overrides or ()]
    overridden = [key for section, _, key in sections if section == "evaluation"]
    done = evaluation.evaluate(model, loaded, overridden)
    evaluation.show(done, model, loaded, as_json=as_json)


@app.command()
def predict(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A model folder or Hub id.")],
    inputs: Annotated[
        list[str],
        typer.Argument(
            metavar="INPUT...",
            help="Images, videos, folders, globs, data sets as hub:OWNER/NAME[@REVISION].",
        ),
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="A new folder, or one to go on in.")
    ],
    write: Annotated[
        str,
        typer.Option(
            help="What to write beside the class ids, separated by commas: overlay, palette, "
            "confidence, coco, areas; or none."
        ),
    ] = "overlay,areas",
    batch_size: Annotated[
        int | None,
        typer.Option(min=1, help="Images of one size at once. Default: by their size, up to 8."),
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(min=1, help="Threads that decode and write. Default: one a core, at most 8."),
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="cpu, cuda or cuda:N. Default: this process's GPU, or cpu.")
    ] = None,
    dtype: Annotated[
        str, typer.Option(help="float32, bfloat16 or float16, by autocast.")
    ] = "float32",
    window: Annotated[
        str | None,
        typer.Option(help="Sliding window, as 1024 or 512x1024. Default: as the model's folder."),
    ] = None,
    stride: Annotated[
        str | None, typer.Option(help="Of the window. Default: three quarters of it.")
    ] = None,
    scales: Annotated[
        str | None, typer.Option(help="Several scales, such as 0.75,1,1.25: slower, better.")
    ] = None,
    flip: Annotated[
        bool | None, typer.Option(help="Show images mirrored as well. Default: as the folder.")
    ] = None,
    split: Annotated[str | None, typer.Option(help="Of a data set that has several.")] = None,
    image_column: Annotated[
        str | None, typer.Option(help="Of a data set. Default: known by its name.")
    ] = None,
    max_pixels: Annotated[
        int | None,
        typer.Option(min=1, help="Images with more are refused. Default: 178,956,970."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object, no bar.")] = False,
) -> None:
    """Predict masks for images, videos and data sets. Goes on where an earlier call stopped.

    Example: finetune predict runs/camvid/best photos clip.mp4 -o out

    Example: accelerate launch --num_processes 2 -m finetune.cli predict MODEL photos -o out

    OUT/ids holds PNGs of class ids; overlay, palette and confidence pictures; areas.csv and
    areas.json pixels and share of each class; coco.json COCO's RLE; video overlay videos;
    predict.json what was done.

    Exit status: 0 done, 2 if an image cannot be read (it is named, the rest is done) or after a
    mistake, 130 stopped by Ctrl-C; what is done is whole, and the same command goes on.
    """
    import torch

    from finetune import predict as program
    from finetune.inference import Segmenter
    from finetune.parallel import keep_freed_memory, set_threads
    from finetune.train import quiet_libraries

    rank = int(os.environ.get("RANK", "0"))
    quiet_libraries(main_process=rank == 0)
    set_threads(None)
    keep_freed_memory()
    if device is None and torch.cuda.is_available():
        device = f"cuda:{int(os.environ.get('LOCAL_RANK', '0')) % torch.cuda.device_count()}"
    protocol = {
        "window": window and _sides("--window", window),
        "stride": stride and _sides("--stride", stride),
        "scales": scales and _factors(scales),
        "flip": flip,
    }
    changes = {key: value for key, value in protocol.items() if value is not None}
    segmenter = Segmenter.load(model, device=device, dtype=dtype, **changes)
    begun = time.monotonic()
    try:
        done = program.predict(
            segmenter,
            inputs,
            output,
            model=model,
            writes=[] if write == "none" else [part.strip() for part in write.split(",")],
            batch_size=batch_size,
            workers=workers,
            split=split,
            image_column=image_column,
            max_pixels=max_pixels,
            show_progress=not as_json,
        )
    except KeyboardInterrupt:
        print("\nstopped; what is done is whole, and the same command goes on", file=sys.stderr)
        raise typer.Exit(130) from None
    seconds = max(time.monotonic() - begun, 1e-9)
    if rank == 0 and as_json:
        facts = {"output": str(output), **vars(done), "seconds": seconds}
        print(json.dumps(facts))
    elif rank == 0:
        program.show(done, output, seconds)
    raise typer.Exit(2 if done.failed else 0)


def _sides(option: str, text: str) -> tuple[int, int]:
    """Height and width, from "512" or "512x1024"."""
    parts = text.lower().split("x")
    if not all(part.isdecimal() and int(part) > 0 for part in parts) or len(parts) > 2:
        raise UserError(
            f"{option} {text}: must be a size such as 1024, or height x width: 512x1024"
        )
    return int(parts[0]), int(parts[-1])


def _factors(text: str) -> tuple[float, ...]:
    try:
        found = tuple(float(part) for part in text.split(","))
    except ValueError:
        found = ()
    if not found or not all(0 < factor <= 8 for factor in found):
        raise UserError(f"--scales {text}: must be factors such as 0.75,1,1.25")
    return found


@app.command()
def convert(
    checkpoint: Annotated[
        str,
        typer.Argument(
            metavar="CHECKPOINT", help="A .pth or .safetensors file, a model folder or a Hub id."
        ),
    ],
    output: Annotated[
        Path, typer.Argument(metavar="OUT", help="The folder to write; new or empty.")
    ],
    heads: Annotated[
        str | None,
        typer.Option(
            metavar="N,N,N,N",
            help="Heads of attention a stage, for files of sizes that were never published.",
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object, no text.")] = False,
) -> None:
    """Turn weights of others into a stock folder that gives the same logits.

    Reads .pth of NVlabs (segmentors, and mit_b*: the encoder with ImageNet's classifier) and of
    mmsegmentation (its encoder; its head only where stock's can express it, else this says why
    not), and folders and files in transformers' layout. Nothing in a file is run. Says what it
    assumed, and which licence it knows of.

    Example: finetune convert segformer.b0.512x512.ade.160k.pth b0-ade20k

    model.init in a recipe reads the same files.
    """
    from finetune import convert as program
    from finetune.train import quiet_libraries

    quiet_libraries(main_process=True)
    numbers = None
    if heads is not None:
        if not all(text.strip().isdecimal() for text in heads.split(",")):
            raise UserError(f"--heads {heads}: a number a stage is wanted, such as 1,2,5,8")
        numbers = [int(text) for text in heads.split(",")]
    done = program.convert(checkpoint, output, heads=numbers)
    print(done.to_json() if as_json else done.to_text())


@app.command()
def export(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A model folder or Hub id.")],
    overrides: Overrides = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="The folder to write into. Default: MODEL itself."),
    ] = None,
    labels: Annotated[
        bool,
        typer.Option(
            "--labels",
            help="onnx/model_labels.onnx too: class ids, at the size of pixel_values (the size "
            "that was shown to the model, not the picture's own).",
        ),
    ] = False,
    int8: Annotated[
        bool,
        typer.Option(
            "--int8",
            help="onnx/model_quantized.onnx too: 8 bit, calibrated on training images of --recipe.",
        ),
    ] = False,
    fp16: Annotated[
        bool,
        typer.Option(
            "--fp16", help="onnx/model_fp16.onnx too: half the size; slower on most CPUs."
        ),
    ] = False,
    pt2: Annotated[
        bool, typer.Option("--pt2", help="model.pt2 too, for torch.export.load without finetune.")
    ] = False,
    web: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="A page for any static file server, with the model."),
    ] = None,
    web_runtime: Annotated[
        Path | None,
        typer.Option(
            help="Folder dist of the npm package onnxruntime-web, to be copied beside the page, "
            "which then needs no network. Default: the page loads it from jsDelivr."
        ),
    ] = None,
    recipe: Annotated[
        str | None,
        typer.Option(
            help="The recipe whose validation split gives the mIoU of each form, and whose "
            "training split the ranges of --int8; key=value overrides it."
        ),
    ] = None,
    calibration: Annotated[
        int | None,
        typer.Option(min=1, help="--int8: number of training images. Default: 64."),
    ] = None,
    table: Annotated[
        bool, typer.Option(help="Measure size, latency and mIoU of each form.")
    ] = True,
    size: Annotated[
        str, typer.Option(help="Of the table's picture: 512, or height x width.")
    ] = "512",
    compiled: Annotated[
        bool, typer.Option("--compile", help="PyTorch compiled in the table too. Takes minutes.")
    ] = False,
    threads: Annotated[
        int | None, typer.Option(min=1, help="CPU threads. Default: all usable cores.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object, no table.")] = False,
) -> None:
    """Write a model as ONNX, for transformers.js, ONNX Runtime and browsers; checked file by file.

    Example: finetune export runs/camvid/best

    Example: finetune export runs/camvid/best --int8 --web page --recipe camvid data.path=CamVid

    onnx/model.onnx goes beside config.json and preprocessor_config.json, where transformers.js
    looks for it; with -o these are copied. It takes (batch, channels, height, width) of any size
    and gives logits at a quarter of it. Classes, colours, mean, std and sizes stand in its
    metadata, as JSON. Each file is compared with PyTorch at several sizes before it is written.
    Needs the packages of the extra `export` (onnx, onnxruntime, onnxscript).
    """
    from finetune import export as program
    from finetune.export import table as tables
    from finetune.parallel import set_threads
    from finetune.recipe import load_recipe
    from finetune.train import quiet_libraries

    quiet_libraries(main_process=True)
    if overrides and recipe is None:
        raise UserError("key=value overrides a recipe: name it with --recipe")
    set_threads(threads)
    loaded = None if recipe is None else load_recipe(recipe, overrides or [])
    shape = tables.size_of(size)
    options = program.Options(
        labels=labels,
        int8=int8,
        fp16=fp16,
        pt2=pt2,
        calibration=calibration,
        web=web,
        web_runtime=web_runtime,
        scores=table,
    )
    segmenter, files = program.export(model, output, options, loaded)
    rows = []
    try:
        if table:
            rows = tables.measure(segmenter, files, loaded, size=shape, compiled=compiled)
    finally:  # what is written is listed, come what may of the table
        tables.show(model, files, rows, page=web, as_json=as_json)


@app.command()
def benchmark(
    what: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[WHAT|key=value]...",
            help="forward, train-step, eval-image, loss, metric, loader, predict or training; "
            "default: all but the last two. key=value overrides the recipe of training.",
        ),
    ] = None,
    variant: Annotated[
        list[str] | None,
        typer.Option(help="b0 to b5, repeatable. Default: b0 b2 b5 forward, b0 b2 step, b2 eval."),
    ] = None,
    size: Annotated[
        str | None,
        typer.Option(help="512, or height x width. Default: 512; eval-image 1024x2048."),
    ] = None,
    batch: Annotated[
        int | None, typer.Option(min=1, help="Images at once. Default: 1; train-step 2.")
    ] = None,
    num_labels: Annotated[int, typer.Option(help="Classes, 2 to 255.")] = 150,
    dtype: Annotated[
        str, typer.Option(help="float32, bfloat16 or float16; by autocast, on both sides.")
    ] = "float32",
    device: Annotated[
        str | None, typer.Option(help="cpu, cuda or cuda:N. Default: the GPU if there is one.")
    ] = None,
    threads: Annotated[
        int | None, typer.Option(min=1, help="CPU threads. Default: all usable cores.")
    ] = None,
    rounds: Annotated[
        int | None, typer.Option(min=1, help="Timed runs a side. Default: 5 to 15.")
    ] = None,
    compiled: Annotated[
        bool,
        typer.Option("--compile", help="This also compiled, stock only compiled. Takes minutes."),
    ] = False,
    vs: Annotated[str, typer.Option(help="stock, or none: measure this package alone.")] = "stock",
    memory: Annotated[
        bool, typer.Option(help="Measure the peak of memory, each side in its own process.")
    ] = True,
    keep_freed_memory: Annotated[
        bool, typer.Option(help="Let glibc keep freed memory, as training does; on both sides.")
    ] = False,
    data: Annotated[
        Path | None,
        typer.Option(help="loader, predict: a folder of images. Default of loader: drawn ones."),
    ] = None,
    model: Annotated[
        Path | None, typer.Option(help="predict: a model folder, on both sides.")
    ] = None,
    recipe: Annotated[str | None, typer.Option(help="training: the recipe, on both sides.")] = None,
    minutes: Annotated[
        float, typer.Option(min=0.01, help="training: of each side, evaluation not counted.")
    ] = 20.0,
    output: Annotated[
        Path, typer.Option(help="training: where the run folders ours and stock go.")
    ] = Path("runs/benchmark-training"),
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line.")] = False,
) -> None:
    """Measure time and memory against stock transformers: the figures of the README.

    Example: finetune benchmark forward --variant b0 --threads 2

    Example: finetune benchmark training --recipe camvid data.path=CamVid --minutes 20

    Both sides run in one process in turns, with the same weights and inputs; medians, and the
    largest difference of the results over the largest value. "of peak": arithmetic of the model a
    second, of what the largest matrix products reach here (on a GPU, or of its bandwidth).
    training runs the whole loop for equal minutes with our model and with stock's.
    """
    from finetune import benchmark as program
    from finetune.benchmark import table, training
    from finetune.train import quiet_libraries

    quiet_libraries(main_process=True)
    overrides = [text for text in what or () if "=" in text]
    names = [text for text in what or () if "=" not in text] or list(program.TABLE)
    options = program.Options(
        variants=variant or (),
        size=size,
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
    if train_both != (recipe is not None) or (overrides and not train_both):
        raise UserError("--recipe and key=value go with `benchmark training`, which needs --recipe")
    cases = program.plan([name for name in names if name != "training"], options)
    if recipe is not None:
        training.check(recipe, overrides, output)
    results = []
    try:
        for case in cases:
            label = " ".join(filter(None, [case.what, case.variant]))
            with Console(stderr=True).status(f"measuring {label}"):
                results.append(program.measure(case, options))
            if as_json:
                table.print_json(results[-1])
    finally:  # what has been measured is shown, whatever came after
        if results and not as_json:
            table.print_tables(results)
    if recipe is not None:
        both = training.compare(recipe, overrides, minutes=minutes, output=output)
        (table.print_json if as_json else table.print_training)(both)


def _chosen(layouts: "Sequence[Layout]", folder: Path | str, choice: int | None) -> "Layout":
    """The only layout, or one of several: by number, by asking on a terminal, or a mistake."""
    if len(layouts) == 1 and choice in (None, 1):
        return layouts[0]
    lines = [f"  {i}. {'; '.join(layout.found)}" for i, layout in enumerate(layouts, 1)]
    options = "\n".join(lines)
    number = choice
    if number is None and sys.stdin.isatty():
        print(f"{folder} may be one of these:\n{options}", file=sys.stderr)
        number = typer.prompt("Which one", type=int, err=True)
    if number is None or not 1 <= number <= len(layouts):
        raise UserError(f"{folder} may be one of these; say which with --choice:\n{options}")
    return layouts[number - 1]


def main() -> None:
    """The program: a UserError becomes one message and exit status 2."""
    try:
        app()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


def _launch(arguments: list[str], processes: int) -> int:
    """Runs `finetune.train` once a device and returns the ranks' status.

    The ranks are in sessions of their own, so that Ctrl-C reaches them once, from here, and not
    from the terminal as well; then this waits for as long as they save. If one fails, the others
    would wait for it for ever: they are ended.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    ranks: list[subprocess.Popen[bytes]] = []
    received: list[int] = []

    def pass_on(number: int, frame: FrameType | None) -> None:
        received.append(number)
        for process in ranks:
            if process.poll() is None:
                process.send_signal(number)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, pass_on)
    for rank in range(processes):
        environment = {
            **os.environ,
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(processes),
            "LOCAL_WORLD_SIZE": str(processes),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
        }
        command = [sys.executable, "-m", "finetune.train", *arguments]
        if received:  # before all are started
            break
        ranks.append(subprocess.Popen(command, env=environment, start_new_session=True))
    while any(process.poll() is None for process in ranks):
        if any(process.poll() for process in ranks):
            time.sleep(5)  # for messages, and for the others to end by themselves
            for process in ranks:
                process.terminate()
            _wait_or_kill(ranks)
        time.sleep(0.2)
    # A UserError is raised on every rank; a crash elsewhere must not hide behind a 143.
    # One that a signal ended before it could save anything has its number, negative.
    statuses = [128 - p.returncode if p.returncode < 0 else p.returncode for p in ranks]
    statuses += [128 + number for number in received[:1] if not ranks]
    return next((status for status in (2, 1, 130, 143) if status in statuses), int(any(statuses)))


def _wait_or_kill(ranks: list[subprocess.Popen[bytes]]) -> None:
    deadline = time.monotonic() + 30
    for process in ranks:
        try:
            process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()


if __name__ == "__main__":
    main()
