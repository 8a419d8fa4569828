"""A folder for any static file server: drop a picture, see the mask and its legend.

The model runs in the browser, in onnxruntime-web; nothing is sent anywhere. The page takes logits
and finds the classes row by row, because upsampled logits (a gigabyte at 150 classes and two
megapixels) are more than a browser gives. It treats pixels as `finetune.inference` does.
"""

import json
import shutil
import warnings
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path

from finetune.disk import whole_folder
from finetune.errors import UserError
from finetune.inference import Segmenter
from finetune.programs.export.graph import facts

RUNTIME_VERSION = "1.30.0"
"""Version of onnxruntime-web, tested with the page, see tests/programs/export/package.json."""
RUNTIME = f"https://cdn.jsdelivr.net/npm/onnxruntime-web@{RUNTIME_VERSION}/dist/"
"""The address that pages load it from by default."""
RUNTIME_FILES = ("ort.wasm.bundle.min.mjs", "ort-wasm-simd-threaded.wasm")

_SOURCES = {"index.html": "page.html"} | {
    name: name for name in ("page.js", "worker.js", "pixels.js")
}
_OWN = {*_SOURCES, "model.json", "model.onnx", "ort"}
_MARK = b'<meta name="generator" content="finetune">'


def check_page(folder: Path, segmenter: Segmenter, runtime: Path | None = None) -> None:
    """Raises a UserError if `write_page` cannot write there, or not for this model.

    It warns if the page cannot follow the protocol in the model folder.
    """
    _check_folder(folder)
    channels = segmenter.preprocessing.num_channels
    if channels != 3:
        raise UserError(f"--web: browsers show RGB, but the model reads {channels} channels")
    missing = [name for name in RUNTIME_FILES if runtime and not (runtime / name).is_file()]
    if missing:
        raise UserError(
            f"--web-runtime {runtime}: has no {missing[0]}; name the folder dist of the npm "
            "package onnxruntime-web"
        )
    how = segmenter.preprocessing.protocol
    if how.window is not None or how.flip or how.scales != (1.0,):
        warnings.warn(
            f"the page runs each picture once at full size (elsewhere: {how.describe()})",
            stacklevel=2,
        )


def check_apart(folder: Path, others: Mapping[str, Path]) -> None:
    """Raises a UserError if a page's folder overlaps with one of `others`, named by option."""
    page = folder.resolve()
    for option, other in others.items():
        there = other.resolve()
        if page == there or page in there.parents or there in page.parents:
            raise UserError(
                f"--web {folder}: overlaps with {option} {other}; choose another folder, since the "
                "page replaces its folder as a whole"
            )


def _check_folder(folder: Path) -> None:
    """Raises a UserError unless the folder is new, empty, or a page of ours."""
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--web {folder}: is a file; name a folder")
    if folder.resolve() in (Path.cwd(), *Path.cwd().parents):
        raise UserError(f"--web {folder}: holds the working directory; name a new folder")
    try:
        names = {path.name for path in folder.iterdir()} if folder.exists() else set()
        index = folder / "index.html"
        ours = index.is_file() and _MARK in index.read_bytes()
    except OSError as error:
        raise UserError(f"--web {folder}: cannot be read ({error.strerror})") from error
    if names and not ours:
        raise UserError(f"--web {folder}: holds other files; name a new folder")
    if strange := sorted(names - _OWN):
        raise UserError(
            f"--web {folder}: holds {strange[0]}, which is not a file of the page; move it away, "
            "or name a new folder"
        )


def write_page(
    folder: Path, segmenter: Segmenter, model: Path, runtime: Path | None = None
) -> None:
    """Writes index.html and the files that it loads.

    Args:
        folder: new, empty, or a page of ours, which stays until the new one is complete.
        segmenter: holds the preprocessing.
        model: its ONNX file with logits.
        runtime: onnxruntime-web's folder `dist`; a copy goes beside the page, which then needs no
            network. None: the page loads it from jsDelivr.

    Raises:
        UserError: it cannot be written.
    """
    _check_folder(folder)
    known = {**facts(segmenter, "logits"), "runtime": RUNTIME if runtime is None else "./ort/"}
    with whole_folder(folder, "the page of --web") as new:
        if runtime is not None:
            (new / "ort").mkdir()
            for name in RUNTIME_FILES:
                shutil.copyfile(runtime / name, new / "ort" / name)
        shutil.copyfile(model, new / "model.onnx")
        (new / "model.json").write_text(json.dumps(known, indent=1) + "\n", encoding="utf-8")
        for name, source in _SOURCES.items():
            content = (files("finetune.programs.export") / source).read_bytes()
            if name == "index.html":  # the policy: the page loads itself and the runtime alone
                content = content.replace(b" RUNTIME", b"" if runtime else b" " + RUNTIME.encode())
            (new / name).write_bytes(content)
