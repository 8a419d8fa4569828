"""Verbs about a saved model: evaluate, predict, convert and export."""

import json
import os
import sys
import time
from pathlib import Path
from typing import Annotated

import typer
from typer import Argument, Option

from finetune.cli.app import (
    AsJson,
    Device,
    ModelArgument,
    Overrides,
    Threads,
    app,
    complete_recipe,
    sides_of,
)
from finetune.errors import UserError


@app.command(name="eval")
def evaluate(
    model: ModelArgument,
    recipe: Annotated[
        str, Option(help="Its validation split is scored.", autocompletion=complete_recipe)
    ],
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Score a saved model: IoU and accuracy per class, by the folder's own protocol.

    Example: finetune eval runs/camvid/best --recipe camvid data.path=CamVid
    """
    from finetune.programs import evaluate as evaluation
    from finetune.recipe import load_recipe
    from finetune.run.screen import quiet_libraries

    quiet_libraries(main_process=True)
    loaded = load_recipe(recipe, overrides or [])
    sections = [text.partition("=")[0].partition(".") for text in overrides or ()]
    overridden = [key for section, _, key in sections if section == "evaluation"]
    done = evaluation.evaluate(model, loaded, overridden)
    evaluation.show(done, model, loaded, as_json=as_json)


@app.command()
def predict(
    model: ModelArgument,
    inputs: Annotated[
        list[str],
        Argument(
            metavar="INPUT...",
            help="Images, videos, folders, globs, and data sets as hub:OWNER/NAME, with or without "
            "@REVISION.",
        ),
    ],
    output: Annotated[
        Path, Option("--output", "-o", help="A new folder, or that of an earlier call.")
    ],
    write: Annotated[
        str,
        Option(
            help="Outputs besides the class ids, separated by commas: overlay, palette, "
            "confidence, areas; for annotation tools coco, coco-polygons, cvat, label-studio, "
            "labelme; or none."
        ),
    ] = "overlay,areas",
    batch_size: Annotated[
        int | None, Option(min=1, help="Images of one size per batch. Default: by size, up to 8.")
    ] = None,
    workers: Annotated[
        int | None,
        Option(min=1, help="Threads that decode and write. Default: one a core, up to 8."),
    ] = None,
    device: Device = None,
    dtype: Annotated[str, Option(help="float32, bfloat16 or float16, by autocast.")] = "float32",
    window: Annotated[
        str | None, Option(help="Sliding window, as 1024 or 512x1024. Default: the model folder's.")
    ] = None,
    stride: Annotated[
        str | None, Option(help="Stride of the window. Default: three quarters of it.")
    ] = None,
    scales: Annotated[
        str | None, Option(help="Scales to average, such as 0.75,1,1.25: slower, better.")
    ] = None,
    flip: Annotated[
        bool | None, Option(help="Average with the mirrored image. Default: the model folder's.")
    ] = None,
    split: Annotated[str | None, Option(help="Split of a data set with several.")] = None,
    image_column: Annotated[
        str | None, Option(help="Image column of a data set. Default: found by its name.")
    ] = None,
    max_pixels: Annotated[
        int | None, Option(min=1, help="Pixels of the largest image read. Default: 178,956,970.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Predict masks for images, videos and data sets. A stopped call resumes where it stopped.

    Example: finetune predict runs/camvid/best photos clip.mp4 -o out

    Example: accelerate launch --num_processes 2 -m finetune.cli predict MODEL photos -o out

    OUT/ids holds PNGs of class ids. OUT/overlay, OUT/palette, OUT/confidence and OUT/video hold
    pictures and overlay videos. areas.csv and areas.json hold the pixels and the share of each
    class. predict.json describes the call.

    Annotation tools take back coco.json (RLE), coco-polygons.json, cvat.xml, label-studio.json with
    label_config.xml (of its project), or the JSON files in OUT/labelme. A class called
    background is not written there, except in coco.json: tools annotate objects.

    Exit status: 0 done, 2 if an image cannot be read (the message names it, the others are done) or
    after a mistake, 130 after Ctrl-C. Finished files are whole, and the same command resumes.
    """
    import torch

    from finetune.inference import Segmenter
    from finetune.machine import keep_freed_memory, set_threads
    from finetune.programs.predict import predict as program
    from finetune.run.screen import quiet_libraries

    rank = int(os.environ.get("RANK", "0"))
    quiet_libraries(main_process=rank == 0)
    set_threads(None)
    keep_freed_memory()
    if device is None and torch.cuda.is_available():
        device = f"cuda:{int(os.environ.get('LOCAL_RANK', '0')) % torch.cuda.device_count()}"
    protocol = {
        "window": window and sides_of("--window", window),
        "stride": stride and sides_of("--stride", stride),
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
        print("\nstopped; finished files are whole, and the same command resumes", file=sys.stderr)
        raise typer.Exit(130) from None
    seconds = max(time.monotonic() - begun, 1e-9)
    if rank == 0 and as_json:
        print(json.dumps({"output": str(output), **vars(done), "seconds": seconds}))
    elif rank == 0:
        program.show(done, output, seconds)
    raise typer.Exit(2 if done.failed else 0)


def _factors(text: str) -> tuple[float, ...]:
    try:
        found = tuple(float(part) for part in text.split(","))
    except ValueError:
        found = ()
    if not found or not all(0 < factor <= 8 for factor in found):
        raise UserError(f"--scales {text}: write factors above 0 and up to 8, such as 0.75,1,1.25")
    return found


@app.command()
def convert(
    checkpoint: Annotated[
        str, Argument(metavar="CHECKPOINT", help="A .pth or .safetensors file, a folder or Hub id.")
    ],
    output: Annotated[Path, Argument(metavar="OUT", help="The folder to write; new or empty.")],
    heads: Annotated[
        str | None, Option(metavar="N,N,N,N", help="Heads per stage, for unpublished sizes.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Convert published weights to a stock folder that gives the same logits.

    Reads .pth files of NVlabs (segmentors, and mit_b*: the encoder with ImageNet's classifier) and
    of mmsegmentation. Reads mmsegmentation's head only if stock's can express it, and otherwise
    says why it cannot. Reads folders and files in transformers' layout. Runs no code from a file.
    Prints its assumptions and the known licence.

    Example: finetune convert segformer.b0.512x512.ade.160k.pth b0-ade20k

    model.init in a recipe reads the same files.
    """
    from finetune.programs import convert as program
    from finetune.run.screen import quiet_libraries

    quiet_libraries(main_process=True)
    numbers = None
    if heads is not None:
        if not all(text.strip().isdecimal() for text in heads.split(",")):
            raise UserError(f"--heads {heads}: write one number for each stage, such as 1,2,5,8")
        numbers = [int(text) for text in heads.split(",")]
    done = program.convert(checkpoint, output, heads=numbers)
    print(done.to_json() if as_json else done.to_text())


@app.command()
def export(
    model: ModelArgument,
    overrides: Overrides = None,
    output: Annotated[
        Path | None, Option("--output", "-o", help="The folder to write into. Default: MODEL.")
    ] = None,
    labels: Annotated[
        bool,
        Option(
            "--labels", help="Also onnx/model_labels.onnx: class ids at the size of pixel_values."
        ),
    ] = False,
    int8: Annotated[
        bool, Option("--int8", help="Also onnx/model_quantized.onnx: 8 bit; needs --recipe.")
    ] = False,
    fp16: Annotated[
        bool, Option("--fp16", help="Also onnx/model_fp16.onnx: half the size; slow on most CPUs.")
    ] = False,
    pt2: Annotated[
        bool, Option("--pt2", help="Also model.pt2, for torch.export.load without finetune.")
    ] = False,
    web: Annotated[
        Path | None,
        Option(metavar="DIR", help="Folder for a page with the model, for static servers."),
    ] = None,
    web_runtime: Annotated[
        Path | None,
        Option(
            help="Folder dist of the npm package onnxruntime-web. A copy goes beside the page, "
            "which then needs no network. Default: the page loads it from jsDelivr."
        ),
    ] = None,
    recipe: Annotated[
        str | None,
        Option(
            help="A recipe: its validation split gives the mIoU of each form, its training split "
            "the ranges of --int8; key=value overrides it.",
            autocompletion=complete_recipe,
        ),
    ] = None,
    calibration: Annotated[
        int | None, Option(min=1, help="--int8: number of training images. Default: 64.")
    ] = None,
    table: Annotated[bool, Option(help="Measure size, latency and mIoU of each form.")] = True,
    size: Annotated[str, Option(help="The table's picture: 512, or height x width.")] = "512",
    compiled: Annotated[
        bool, Option("--compile", help="Add compiled PyTorch to the table. Takes minutes.")
    ] = False,
    threads: Threads = None,
    as_json: AsJson = False,
) -> None:
    """Write a model as ONNX for transformers.js, ONNX Runtime and browsers, and check each file.

    Example: finetune export runs/camvid/best

    Example: finetune export runs/camvid/best --int8 --web page --recipe camvid data.path=CamVid

    onnx/model.onnx goes beside config.json and preprocessor_config.json, where transformers.js
    looks for it; -o copies these as well. The file takes (batch, channels, height, width) of any
    size and gives logits at a quarter of the size. Its metadata holds classes, colours, mean, std
    and sizes as JSON. Each file is compared with PyTorch at several sizes before it is written. The
    verb needs the packages of the extra `export` (onnx, onnxruntime, onnxscript).
    """
    from finetune.machine import set_threads
    from finetune.programs.export import comparison as tables
    from finetune.programs.export import export as program
    from finetune.recipe import load_recipe
    from finetune.run.screen import quiet_libraries

    quiet_libraries(main_process=True)
    if overrides and recipe is None:
        raise UserError("key=value overrides a recipe: name it with --recipe")
    set_threads(threads)
    loaded = None if recipe is None else load_recipe(recipe, overrides or [])
    shape = sides_of("--size", size, (64, 16384))
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
    finally:  # written files are listed, even if the table fails
        tables.show(model, files, rows, page=web, as_json=as_json)
