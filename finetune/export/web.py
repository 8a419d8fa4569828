"""A folder for any static file server: drop a picture, see the mask and its legend.

The model runs in the browser, in onnxruntime-web; nothing is sent anywhere. The page takes logits
and finds the classes row by row, because upsampled logits (a gigabyte at 150 classes and two
megapixels) are more than a browser gives. What it does to pixels is what `finetune.inference` does.
"""

import json
import shutil
import warnings
from importlib.resources import files
from pathlib import Path

from finetune.errors import UserError
from finetune.export.graph import facts
from finetune.inference import Segmenter
from finetune.tracking import write_whole

RUNTIME_VERSION = "1.30.0"
"""Of onnxruntime-web; tests/export/package.json has the same, which the page is tested with."""
RUNTIME = f"https://cdn.jsdelivr.net/npm/onnxruntime-web@{RUNTIME_VERSION}/dist/"
"""Where pages load it from unless told otherwise."""
RUNTIME_FILES = ("ort.wasm.bundle.min.mjs", "ort-wasm-simd-threaded.wasm")

_SOURCES = {"index.html": "page.html"} | {
    name: name for name in ("page.js", "worker.js", "pixels.js")
}
_MARK = b'<meta name="generator" content="finetune">'


def check_page(folder: Path, segmenter: Segmenter, runtime: Path | None = None) -> None:
    """Raises a UserError if `write_page` could not write there, or not for this model."""
    index = folder / "index.html"
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--web {folder}: is a file; name a folder")
    others = folder.is_dir() and any(folder.iterdir())
    if others and not (index.is_file() and _MARK in index.read_bytes()):
        raise UserError(f"--web {folder}: holds other files; name a new folder")
    channels = segmenter.preprocessing.num_channels
    if channels != 3:
        raise UserError(f"--web: browsers show RGB, the model reads {channels} channels")
    missing = [name for name in RUNTIME_FILES if runtime and not (runtime / name).is_file()]
    if missing:
        raise UserError(
            f"--web-runtime {runtime}: has no {missing[0]}; name the folder dist of the npm "
            "package onnxruntime-web"
        )
    how = segmenter.preprocessing.protocol
    if how.window is not None or how.flip or how.scales != (1.0,):
        warnings.warn(
            f"the page shows pictures to the model whole and once ({how.describe()} elsewhere)",
            stacklevel=2,
        )


def write_page(
    folder: Path, segmenter: Segmenter, model: Path, runtime: Path | None = None
) -> None:
    """Writes index.html and what it loads.

    Args:
        folder: new, empty, or a page of ours.
        segmenter: says how pictures are shown to the model.
        model: its ONNX file with logits.
        runtime: onnxruntime-web's folder `dist`, of which a copy goes beside the page, which then
            needs no network; None: the page loads it from jsDelivr.

    Raises:
        UserError: it cannot be written.
    """
    check_page(folder, segmenter, runtime)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if runtime is not None:
            (folder / "ort").mkdir(exist_ok=True)
            for name in RUNTIME_FILES:
                shutil.copyfile(runtime / name, folder / "ort" / name)
    except OSError as error:
        raise UserError(f"--web {folder}: cannot be written ({error.strerror})") from error
    known = {**facts(segmenter, "logits"), "runtime": RUNTIME if runtime is None else "./ort/"}
    write_whole(folder / "model.onnx", model.read_bytes())
    write_whole(folder / "model.json", json.dumps(known, indent=1) + "\n")
    for target, source in reversed(_SOURCES.items()):  # index.html last: it is what is opened
        write_whole(folder / target, (files("finetune.export") / source).read_bytes())
