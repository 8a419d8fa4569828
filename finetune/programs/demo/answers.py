"""The page's answer to a picture: files that the browser draws from, and words."""

import time
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from finetune.errors import UserError
from finetune.inference import Segmentation, Segmenter
from finetune.machine import is_out_of_memory
from finetune.pictures.encoding import as_png
from finetune.pictures.references import Encoded

MAX_PIXELS = 25_000_000
"""Pixels of the largest picture; phones take 12 and 24 million."""
SHOWN = 2048
"""Longer side of the drawn picture, in pixels; masks are downloaded in full."""
_NUM_SPOKEN = 6  # classes that a screen reader names


@dataclass(frozen=True)
class Model:
    """A model and its name on the page."""

    name: str
    segmenter: Segmenter


def answer(models: Sequence[Model], picture: Encoded, folder: Path) -> dict[str, Any]:
    """The classes that models find in a picture.

    Args:
        models: one, or two to compare.
        picture: the uploaded file.
        folder: empty; files for the browser go there.

    Returns:
        A dict for JSON, with files as `Path`. For a bad picture it holds only `problem`, a text.
        Otherwise it holds `name`, `size` (width, height), `drawn` (the size of the drawn picture),
        `picture`, `results` (one per model, see `_result`) and `agreement`: the share of pixels on
        which two models with the same classes agree, or None.
    """
    found: list[Segmentation] = []
    seconds: list[float] = []
    try:
        for model in models:
            pixels = model.segmenter.read_picture(picture, max_pixels=MAX_PIXELS)
            begun = time.perf_counter()
            found.append(model.segmenter(pixels, max_pixels=MAX_PIXELS))
            seconds.append(time.perf_counter() - begun)
    except UserError as error:
        return {"problem": _words(error, picture.name)}
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        return {"problem": f"{picture.name} needs too much memory. Try a smaller picture."}
    height, width = found[0].mask.shape
    scale = min(1.0, SHOWN / max(height, width))
    drawn = max(1, round(width * scale)), max(1, round(height * scale))
    shown = Image.fromarray(found[0].image).resize(drawn, Image.Resampling.BOX)
    shown.save(folder / "picture.jpg", quality=92, subsampling=0)
    return {
        "name": picture.name,
        "size": [width, height],
        "drawn": list(drawn),
        "picture": folder / "picture.jpg",
        "results": [
            _result(model.name, one, took, drawn, folder / str(number))
            for number, (model, one, took) in enumerate(zip(models, found, seconds, strict=True))
        ],
        "agreement": _agreement(found),
    }


def _result(
    model: str, found: Segmentation, seconds: float, drawn: tuple[int, int], folder: Path
) -> dict[str, Any]:
    """One model's part of the answer.

    Returns:
        `model`; `seconds`; `classes` that occur, the largest first: `id`, `name`, `color`,
        `pixels` and `share`; `summary`, the same in a sentence; `mask`, a PNG of class ids, 16 bit
        where 8 are too few; `ids` and `confidence`, the drawn maps, row by row and compressed
        (zlib): ids of `id_bytes` each, little-endian, and one byte of confidence, where 255 means
        1.
    """
    folder.mkdir()
    mask = found.mask
    assert found.confidence is not None, "it is asked for"
    (folder / "mask.png").write_bytes(as_png(mask))
    sure = np.rint(found.confidence.astype(np.float32) * 255).astype(np.uint8)
    little_endian = mask.dtype.newbyteorder("<")
    for name, values in (("ids", mask), ("confidence", sure)):
        small = np.asarray(Image.fromarray(values).resize(drawn, Image.Resampling.NEAREST))
        dtype = little_endian if name == "ids" else np.uint8
        (folder / name).write_bytes(zlib.compress(small.astype(dtype).tobytes(), 1))
    areas = sorted(enumerate(found.areas().items()), key=lambda item: -item[1][1]["pixels"])
    classes = [
        {"id": number, "name": name, "color": list(found.colors[number]), **area}
        for number, (name, area) in areas
        if area["pixels"]
    ]
    return {
        "model": model,
        "seconds": seconds,
        "classes": classes,
        "summary": _summary(classes),
        "mask": folder / "mask.png",
        "ids": folder / "ids",
        "id_bytes": mask.dtype.itemsize,
        "confidence": folder / "confidence",
    }


def _summary(classes: Sequence[dict[str, Any]]) -> str:
    """The screen reader's text for the picture: "road 45 %, sky 20 %"."""
    said = [f"{one['name']} {_percent(one['share'])}" for one in classes[:_NUM_SPOKEN]]
    more = len(classes) - len(said)
    return ", ".join(said) + (f", and {more} more" if more else "")


def _percent(share: float) -> str:
    return f"{share:.0%}".replace("%", " %") if share >= 0.005 else "less than 1 %"


def _agreement(found: Sequence[Segmentation]) -> float | None:
    if len(found) < 2 or found[0].names != found[1].names:
        return None
    return float((found[0].mask == found[1].mask).mean())


def _words(error: UserError, name: str) -> str:
    """The message for visitors; messages about files speak of a data set that is not theirs."""
    if error.kind == "too-large":
        limit = f"{MAX_PIXELS // 1_000_000} million pixels"
        return f"{name} is too large: this page takes up to {limit}. Make it smaller and try again."
    if error.kind in ("unreadable-file", "empty-file"):
        return f"{name} cannot be read as a still picture. JPEG, PNG, WebP and TIFF can."
    return str(error)
