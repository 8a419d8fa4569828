"""The demo: its models, and the server of its page.

    finetune demo runs/camvid/best

The same file is the app.py of a Space. This package lies beside it, and a README.md whose `models:`
are shown. FINETUNE_MODELS overrides them: Hub ids or folders, separated by commas.
"""

import contextlib
import errno
import logging
import os
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from importlib.resources import files
from pathlib import Path

import gradio as gr
from huggingface_hub import SpaceCard

from finetune.errors import UserError
from finetune.inference import Segmenter
from finetune.machine import set_threads
from finetune.pictures.reading import image_size
from finetune.programs.demo.answers import MAX_PIXELS, Model
from finetune.programs.demo.blocks import build
from finetune.publish.markdown import escaped
from finetune.weights.cards import licence_of

MAX_MEGABYTES = 32
"""Largest upload."""
KEPT_SECONDS = 900
"""Time for which a picture's files stay on the server."""
_SWEEP_SECONDS = 60
_NUM_SESSIONS = 100  # sessions whose last values Gradio keeps: small, since files are apart


def load(names: Sequence[str], *, device: str | None = None) -> list[Model]:
    """Loads models by folder or Hub id; the end of the path becomes a model's name.

    Raises:
        UserError: a model cannot be read.
    """
    set_threads(None)
    called = [
        "/".join(Path(name).resolve().parts[-2:]) if Path(name).exists() else name for name in names
    ]
    if len(set(called)) < len(called):
        called = list(names)
    return [
        Model(shown, Segmenter.load(name, device=device))
        for shown, name in zip(called, names, strict=True)
    ]


def describe(models: Sequence[Model], names: Sequence[str]) -> str:
    """The line below the heading: the models' classes, where pictures go, and whose weights."""
    counts = dict.fromkeys(f"{len(model.segmenter.names)} classes" for model in models)
    facts = (
        f"SegFormer, {' and '.join(counts)}. Pictures (up to {MAX_MEGABYTES} MB, "
        f"{MAX_PIXELS // 1_000_000} million pixels) go to the machine that serves this page and "
        f"nowhere else, and are deleted there after {KEPT_SECONDS // 60} minutes."
    )
    return "\n\n".join([facts, *dict.fromkeys(filter(None, map(licence_of, names)))])


def serve(
    page: gr.Blocks, cache: Path, *, host: str | None = None, port: int | None = None
) -> None:
    """Serves the page until the process is interrupted.

    Args:
        page: from `build`.
        cache: from `private_cache`; its old files are deleted.
        host: the address to listen on. Default: Gradio's, loopback or $GRADIO_SERVER_NAME.
        port: default: the first free one from 7860 on.

    Raises:
        UserError: the server cannot listen there.
    """
    if host is not None:
        check_address(host, port or 0)
    for key in ("no_proxy", "NO_PROXY"):  # Gradio sends a request to its own server
        known = [os.environ.get(key), "127.0.0.1", "localhost", host]
        os.environ[key] = ",".join(filter(None, known))
    try:
        _, address, _ = page.launch(
            server_name=f"[{host}]" if host and ":" in host else host,
            server_port=port,
            prevent_thread_lock=True,
            quiet=True,
            inline=False,
            share=False,
            max_file_size=MAX_MEGABYTES * 2**20,
            state_session_capacity=_NUM_SESSIONS,
            enable_monitoring=False,
            footer_links=[],
            run_history=False,
            ssr_mode=False,
            pwa=False,
            mcp_server=False,
            # Named fonts would be loaded from the network.
            theme=gr.themes.Default(
                primary_hue="blue",
                neutral_hue="slate",
                font=["system-ui", "sans-serif"],
                font_mono=["ui-monospace", "monospace"],
            ).set(body_text_color_subdued="*neutral_500"),  # Gradio's is too faint on white
            css=(files("finetune.programs.demo") / "page.css").read_text("utf-8"),
        )
    except OSError as error:
        where = "7860 to 7959" if port is None else str(port)
        raise UserError(f"--port {where}: in use; name another") from error
    logging.getLogger("uvicorn.error").addFilter(_is_news)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # the `finally` blocks run
    print(f"Open {address} in a browser; Ctrl-C ends the demo.", flush=True)
    if host not in (None, "127.0.0.1", "::1", "localhost"):
        print("Everybody who reaches this machine can use the demo.", flush=True)
    try:
        while True:
            time.sleep(_SWEEP_SECONDS)
            sweep(page, cache, KEPT_SECONDS)
    finally:
        logging.disable()  # connections that browsers keep open are cut
        page.server.force_exit = True
        page.close(verbose=False)


def _is_news(record: logging.LogRecord) -> bool:
    """Whether a record is worth showing; an upload broken off by its visitor is not."""
    return record.exc_info is None or type(record.exc_info[1]).__name__ != "ClientDisconnect"


def sweep(page: gr.Blocks, cache: Path, seconds: float) -> None:
    """Deletes files of pictures older than `seconds`, and folders that become empty.

    Gradio's `delete_cache` does not know of uploads that broke off. It also ends for good if a file
    arrives while it looks.

    Args:
        page: its examples stay.
        cache: from `private_cache`.
        seconds: the age of a file.
    """
    blocks = page.blocks.values()
    kept = {Path(path) for block in blocks for path in getattr(block, "keep_in_cache", ())}
    for folder, _, names in os.walk(cache, topdown=False):
        for path in (Path(folder, name) for name in names):
            with contextlib.suppress(OSError):  # gone meanwhile, or a folder that holds files
                if path in kept or time.time() - path.lstat().st_ctime <= seconds:
                    continue
                path.unlink()
                for parent in path.parents:
                    if parent == cache:
                        break
                    parent.rmdir()


def check_address(host: str, port: int) -> None:
    """Raises a UserError if the server cannot listen there; port 0 is any."""
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        causes = {
            errno.EADDRINUSE: f"--port {port}: in use; name another, or leave it out",
            errno.EACCES: f"--port {port}: only the system may listen there; name one from 1024 on",
        }
        other = f"--host {host}: not an address of this machine ({error.strerror or error})"
        raise UserError(causes.get(error.errno or 0, other)) from error


def check_examples(examples: Sequence[Path]) -> None:
    """Raises a UserError if an example is not a picture."""
    for path in examples:
        if not path.is_file():
            raise UserError(f"--example {path}: there is no such file")
        try:
            image_size(path)
        except UserError as error:  # its message speaks of a data set's files
            raise UserError(f"--example {path}: not a picture that can be read") from error


@contextlib.contextmanager
def private_cache() -> Iterator[Path]:
    """A private folder for uploads and answers, deleted at the end."""
    with tempfile.TemporaryDirectory(prefix="finetune-demo-", ignore_cleanup_errors=True) as cache:
        os.environ["GRADIO_TEMP_DIR"] = os.path.realpath(cache)  # resolved, as in Gradio's paths
        yield Path(os.environ["GRADIO_TEMP_DIR"])


@contextlib.contextmanager
def ended_at_once() -> Iterator[None]:
    """Ends the process as soon as Ctrl-C or SIGTERM ends the page.

    Python would wait for the segmenting thread, which takes minutes for a large picture.
    """
    try:
        yield
    except (KeyboardInterrupt, SystemExit) as stop:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(130 if isinstance(stop, KeyboardInterrupt) else int(stop.code or 0))


def run(
    names: Sequence[str],
    *,
    host: str | None,
    port: int | None,
    examples: Sequence[Path] = (),
    device: str | None = None,
) -> None:
    """Runs `finetune demo`.

    Raises:
        UserError: a model or an example cannot be read, or the server cannot listen there.
    """
    if host is not None:
        check_address(host, port or 0)
    check_examples(examples)
    models = load(names, device=device)
    with ended_at_once(), private_cache() as cache:
        page = build(models, examples=examples, remark=describe(models, names))
        serve(page, cache, host=host, port=port)


def of_space(folder: Path) -> gr.Blocks:
    """The page of a Space. It reports a model that cannot be read, since its owner looks there.

    Args:
        folder: holds README.md, and perhaps `examples/`.
    """
    header = SpaceCard.load(folder / "README.md").data
    named = map(str.strip, os.environ.get("FINETUNE_MODELS", "").split(","))
    names = list(filter(None, named)) or list(header.get("models") or [])
    models = []
    try:
        if not names:
            raise UserError("README.md names no model: its header needs `models:`")
        models = load(names[:2])
        remark = describe(models, names[:2])
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        remark = (
            f"The model cannot be read: {escaped(error)}\n\nIf it is private, give this Space a "
            "secret HF\\_TOKEN that may read it."
        )
    examples = sorted(path for path in (folder / "examples").glob("*") if path.is_file())
    return build(models, examples=examples, title=header.get("title") or "", remark=remark)


def main() -> None:
    """Runs the app of a Space."""
    with ended_at_once(), private_cache() as cache:
        serve(of_space(Path(__file__).resolve().parent), cache)


if __name__ == "__main__":
    main()
