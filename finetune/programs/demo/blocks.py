"""The demo's page: a picture goes in, and `viewer.*` draws the answer."""

import re
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.resources import files
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.components.image_editor import WebcamOptions
from gradio.data_classes import FileData, ImageData

from finetune.pictures.references import Encoded
from finetune.programs.demo.answers import Model, answer
from finetune.publish.markdown import escaped

MAX_WAITING = 100
"""Longest queue of pictures; one is segmented at a time."""


def build(
    models: Sequence[Model], *, examples: Sequence[Path] = (), title: str = "", remark: str = ""
) -> gr.Blocks:
    """Builds the page.

    Args:
        models: one, or two to compare; if there are none, `remark` says why.
        examples: pictures to try.
        title: the heading. Default: the models' names.
        remark: a line below the heading, in Markdown.
    """
    heading = title or " and ".join(model.name for model in models)
    with gr.Blocks(title=heading, analytics_enabled=False) as page:
        gr.Markdown(f"# {escaped(heading)}\n\n{remark}")
        if not models:
            return page
        with gr.Row():
            with gr.Column(scale=1, min_width=280):
                picture = gr.Image(
                    label="Picture",
                    sources=["upload", "webcam", "clipboard"],
                    type="filepath",
                    height=260,
                    buttons=[],
                    # A phone's back camera, and a picture that is not mirrored.
                    webcam_options=WebcamOptions(
                        mirror=False,
                        constraints={"video": {"facingMode": {"ideal": "environment"}}},
                    ),
                    alt_text="the picture that is segmented",
                    elem_id="picture",
                )
                # Gradio's own method opens the file, and answers a text file with a traceback. A
                # class derived from Image is no way out: Gradio writes a .pyi beside the module of
                # such classes.
                picture.preprocess = _upload  # type: ignore[assignment, method-assign]
                # Gradio's own method fetches any address that a client sends in place of a file.
                moved = picture.async_move_resource_to_block_cache
                picture.async_move_resource_to_block_cache = (  # type: ignore[method-assign]
                    lambda url_or_file_path: moved(_no_address(url_or_file_path))
                )
                if examples:
                    offered = gr.Dataset(
                        components=[picture],
                        samples=[[str(path)] for path in examples],
                        samples_per_page=len(examples),
                        type="index",
                        label="Examples",
                        elem_id="examples",
                    )
                    # gr.Examples would make the input anew, without the two methods above.
                    offered.click(
                        lambda index: offered.samples[index][0]["path"],
                        offered,
                        picture,
                        queue=False,
                        show_progress="hidden",
                        api_visibility="private",
                    )
            with gr.Column(scale=3, min_width=300):
                source = files("finetune.programs.demo")
                viewer = gr.HTML(
                    html_template=(source / "viewer.html").read_text("utf-8"),
                    css_template=(source / "viewer.css").read_text("utf-8"),
                    js_on_load=(source / "viewer.js").read_text("utf-8"),
                    apply_default_css=False,
                    elem_id="viewer",
                    examples=[path.stem for path in examples],
                )

        # Gradio's threads come and go, and each would keep memory and helper threads of torch.
        worker = ThreadPoolExecutor(1)

        def segment(chosen: Encoded | None) -> dict[str, Any] | None:
            """The classes of a picture's pixels, their areas, and files with the mask."""
            if chosen is None:
                return None
            folder = Path(tempfile.mkdtemp(dir=viewer.GRADIO_CACHE))
            return _with_files(worker.submit(answer, models, chosen, folder).result())

        picture.change(segment, picture, viewer, api_name="segment", show_progress="minimal")
    # Calls that bypass the queue would run at the same time.
    return page.queue(api_open=False, max_size=MAX_WAITING, default_concurrency_limit=1)


def _upload(payload: ImageData | None) -> Encoded | None:
    """The uploaded file, not yet decoded."""
    if payload is None:
        return None
    name = Path(payload.orig_name or "").name[-80:] or "the picture"
    if payload.path is None:
        raise gr.Error("The picture must be uploaded as a file.", print_exception=False)
    try:
        return Encoded(name, Path(payload.path).read_bytes())
    except OSError:
        raise gr.Error(
            f"{name} is not here any more. Choose it again.", print_exception=False
        ) from None


def _no_address(path: Any) -> Any:
    if re.match(r"\w+://", str(path)):
        raise gr.Error("Upload the picture; addresses are not fetched.", print_exception=False)
    return path


def _with_files(value: Any) -> Any:
    """The value with each path in the form in which Gradio writes files to JSON."""
    if isinstance(value, dict):
        return {key: _with_files(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_with_files(one) for one in value]
    return FileData(path=str(value)).model_dump() if isinstance(value, Path) else value
