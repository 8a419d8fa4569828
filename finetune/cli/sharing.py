"""Verbs that show a model to others."""

import importlib.util
from pathlib import Path
from typing import Annotated

import typer

from finetune.cli.app import app
from finetune.errors import UserError


@app.command()
def demo(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A model folder or Hub id.")],
    second: Annotated[
        str | None, typer.Argument(metavar="[MODEL2]", help="Another, to see both side by side.")
    ] = None,
    host: Annotated[
        str, typer.Option(help="Address to listen on; 0.0.0.0 lets other machines use the page.")
    ] = "127.0.0.1",
    port: Annotated[
        int | None,
        typer.Option(min=1, max=65535, help="Default: the first free one from 7860 on."),
    ] = None,
    example: Annotated[
        list[Path] | None, typer.Option(help="A picture to offer; may be given several times.")
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="cpu, cuda or cuda:N. Default: a GPU if there is one.")
    ] = None,
) -> None:
    """Show a model on a page: drop a picture or take one, see its classes, areas and confidence.

    Example: finetune demo runs/camvid/best --example street.jpg

    Example: finetune demo runs/camvid/best runs/camvid-b2/best

    Choosing a class shows it alone; mask and overlay can be downloaded. The page needs no network,
    and pictures go to this process and nowhere else. One is segmented at a time, others wait in a
    queue. It needs Gradio, the extra `demo` of this package.

    Exit status: 2 after a mistake that the message names, 130 stopped by Ctrl-C.
    """
    if importlib.util.find_spec("gradio") is None:
        raise UserError("`finetune demo` needs Gradio: pip install 'finetune[demo]'")
    try:
        from finetune.demo import app as program
        from finetune.train import quiet_libraries

        quiet_libraries(main_process=True)
        names = [model] if second is None else [model, second]
        program.run(names, host=host, port=port, examples=example or (), device=device)
    except KeyboardInterrupt:
        raise typer.Exit(130) from None
