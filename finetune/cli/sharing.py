"""The verbs that share a model: push and demo."""

import importlib.util
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer
from typer import Argument, Option

from finetune.cli.app import AsJson, Device, ModelArgument, Overrides, app
from finetune.errors import UserError


@app.command()
def push(
    run: Annotated[
        Path, Argument(metavar="RUN", help="A run folder (its best/ is pushed) or a model folder.")
    ],
    repo: Annotated[str, Argument(metavar="REPO", help="OWNER/NAME on the Hub.")],
    overrides: Overrides = None,
    private: Annotated[
        bool, Option("--private/--public", help="Visibility of a new repository.")
    ] = True,
    dry_run: Annotated[
        bool, Option("--dry-run", help="Write the folder, byte for byte, and send nothing.")
    ] = False,
    output: Annotated[
        Path | None, Option("--output", "-o", help="Folder of a dry run. Default: RUN/push.")
    ] = None,
    onnx: Annotated[
        bool, Option("--onnx", help="Add onnx/model.onnx, as `finetune export` writes it.")
    ] = False,
    space: Annotated[
        bool, Option("--space", help="Add a Gradio Space with the demo, as REPO-demo.")
    ] = False,
    with_code: Annotated[
        bool,
        Option(
            "--with-code",
            help="Add the fast model's code, for users who choose trust_remote_code; others still "
            "get transformers' own.",
        ),
    ] = False,
    message: Annotated[
        str | None, Option(help="Commit message. Default: name, step and mean IoU.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Push a model to the Hub, with a card that shows its evidence.

    Example: finetune push runs/camvid me/camvid-b0 --dry-run

    Example: finetune push runs/camvid me/camvid-b0 --public --onnx data.path=CamVid

    The card has the metrics in its header, the classes in their colours, results by class, the best
    and worst predictions beside the truth, protocol, recipe, hardware, limits and licences. The
    model is run on 64 images of the recipe's validation split. The picture shows four of them with
    their names: think of that before --public. key=value names their folder, as in
    data.path=CamVid; without it the card shows the training's own picture. Paths of this machine
    and files that do not belong to the model are not sent.

    Log in with `hf auth login`, or set HF_TOKEN. A dry run needs neither token nor network.

    Exit status: 0 done, 2 after a mistake that the message names, 130 after Ctrl-C; the same
    command resumes.
    """
    from finetune.machine import set_threads
    from finetune.programs.push import push as program
    from finetune.programs.push.evidence import folders
    from finetune.run.screen import quiet_libraries

    quiet_libraries(main_process=True)
    set_threads(None)
    if output is not None and not dry_run:
        raise UserError("-o names the folder of a dry run: add --dry-run, or leave -o out")
    if dry_run and output is None:
        output = (folders(run)[1] or run) / "push"
    try:
        done = program.push(
            run,
            repo,
            private=private,
            onnx=_exporter() if onnx else None,
            space=space,
            with_code=with_code,
            dry_run=output,
            message=message,
            overrides=overrides or [],
        )
    except KeyboardInterrupt:
        print("\nstopped; the same command resumes", file=sys.stderr, flush=True)
        # sys.exit would wait for the client's threads, and they wait for a silent connection.
        os._exit(130)
    if as_json:
        print(done.to_json())
    else:
        program.show(done)


def _exporter() -> Callable[[Path], object]:
    """`finetune export` of a folder. A missing package is an error here, before the push begins."""
    from finetune.programs.export.export import export, need_packages

    need_packages()
    return lambda folder: export(str(folder))


@app.command()
def demo(
    model: ModelArgument,
    second: Annotated[
        str | None, Argument(metavar="[MODEL2]", help="A second model, shown beside the first.")
    ] = None,
    host: Annotated[
        str, Option(help="Address to listen on; 0.0.0.0 lets other machines use the page.")
    ] = "127.0.0.1",
    port: Annotated[
        int | None, Option(min=1, max=65535, help="Default: the first free port from 7860 on.")
    ] = None,
    example: Annotated[
        list[Path] | None, Option(help="A picture to offer; may be given several times.")
    ] = None,
    device: Device = None,
) -> None:
    """Show a model on a web page: drop or take a picture, see its classes, areas and confidence.

    Example: finetune demo runs/camvid/best --example street.jpg

    Example: finetune demo runs/camvid/best runs/camvid-b2/best

    Choosing a class shows it alone; mask and overlay can be downloaded. The page needs no network,
    and pictures go to this process only. One picture is segmented at a time, the others wait in a
    queue. The verb needs Gradio, the extra `demo` of this package.

    Exit status: 2 after a mistake that the message names, 130 after Ctrl-C.
    """
    if importlib.util.find_spec("gradio") is None:
        raise UserError("`finetune demo` needs Gradio: pip install 'segformer-finetune[demo]'")
    try:
        from finetune.programs.demo import demo as program
        from finetune.run.screen import quiet_libraries

        quiet_libraries(main_process=True)
        names = [model] if second is None else [model, second]
        program.run(names, host=host, port=port, examples=example or (), device=device)
    except KeyboardInterrupt:
        raise typer.Exit(130) from None
