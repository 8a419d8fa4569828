"""`predict`: from image files to masks, our way and as a loop over stock's pipeline.

Ours is `finetune predict` as it stands: it decodes, predicts, writes a PNG of class ids a picture
and enters it in its journal, in a fresh folder a turn. Stock's is `for file in files: pipe(file)`
with the same folder, whose masks (a picture a class) are thrown away.
"""

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
import transformers
from torch import Tensor

from finetune.benchmark.cases import Case, Work
from finetune.data.files import IMAGE_SUFFIXES, read_mask
from finetune.errors import UserError
from finetune.inference import Segmenter
from finetune.predict import predict

PICTURES = 32
"""Of the folder, that a turn takes."""
_COMPARED = 4


def picture_files(folder: Path) -> list[Path]:
    """Those of a turn.

    Raises:
        UserError: There are none.
    """
    found = (path for path in folder.glob("*") if path.suffix.lower() in IMAGE_SUFFIXES)
    if not (files := sorted(found)[:PICTURES]):
        raise UserError(f"--data {folder}: holds no images ({', '.join(IMAGE_SUFFIXES)})")
    return files


@contextmanager
def predicting(case: Case, model: Path, folder: Path) -> Iterator[tuple[dict[str, Work], int]]:
    """Both sides, and the number of pictures of a turn.

    Raises:
        UserError: The folder holds no images, or the model cannot be read.
    """
    files = [str(path) for path in picture_files(folder)]
    with TemporaryDirectory() as temporary:
        works = {
            "ours": _ours(case, model, files, Path(temporary)),
            "stock": _stock(case, model, files),
        }
        yield works, len(files)


def _ours(case: Case, model: Path, files: list[str], temporary: Path) -> Work:
    segmenter = Segmenter.load(model, device=case.device, dtype=case.dtype)
    turns = itertools.count()

    def run(some: list[str] = files) -> Path:
        output = temporary / str(next(turns))
        predict(segmenter, some, output, writes=[])
        return output

    def compare() -> dict[str, Tensor]:
        ids = run(files[:_COMPARED]) / "ids"
        masks = [read_mask(ids / f"{Path(file).stem}.png") for file in files[:_COMPARED]]
        return {"classes": _joined(masks)}

    return Work(run, compare)


def _stock(case: Case, model: Path, files: list[str]) -> Work:
    pipe = transformers.pipeline(
        "image-segmentation",
        model=transformers.SegformerForSemanticSegmentation.from_pretrained(model),
        image_processor=transformers.AutoImageProcessor.from_pretrained(model),
        device=case.device,
    )
    ids: Any = pipe.model.config.label2id

    def run() -> None:
        for file in files:
            with case.autocast():
                pipe(file)

    def compare() -> dict[str, Tensor]:
        return {"classes": _joined([_ids_of(pipe(file), ids) for file in files[:_COMPARED]])}

    return Work(run, compare)


def _ids_of(parts: Any, ids: dict[str, int]) -> np.ndarray:
    mask = np.zeros(np.asarray(parts[0]["mask"]).shape, np.int64)
    for part in parts:
        mask[np.asarray(part["mask"]) > 0] = ids[part["label"]]
    return mask


def _joined(masks: list[np.ndarray]) -> Tensor:
    return torch.from_numpy(np.concatenate([mask.ravel() for mask in masks]).astype(np.int64))
