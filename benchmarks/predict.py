"""`predict`: from image files to masks, our way and as a loop over stock's pipeline.

Ours is `finetune predict` as it stands: it decodes, predicts, writes a PNG of class ids a picture
and enters it in its journal, in a fresh folder a turn. Stock's is `for file in files: pipe(file)`
with the same folder, whose masks (a picture a class) are thrown away. Each has a process of its own
and what it does there with freed memory: `finetune predict` keeps it, a loop in a script does not.
"""

import itertools
import multiprocessing
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
import transformers
from torch import Tensor

from finetune.errors import UserError
from finetune.inference import Segmenter
from finetune.machine import keep_freed_memory, set_threads, take_turns
from finetune.pictures.reading import image_size, read_mask
from finetune.pictures.references import IMAGE_SUFFIXES
from finetune.programs.benchmark.benchmark import Options, Result, ratios, worst_differences
from finetune.programs.benchmark.cases import Case, Work
from finetune.programs.benchmark.meters import machine
from finetune.programs.predict.predict import predict

PICTURES = 32
"""Of the folder, that a turn takes."""
ROUNDS = 5
_COMPARED = 4


def picture_files(options: Options) -> list[Path]:
    """Those of a turn.

    Raises:
        UserError: There are none, or an option is missing.
    """
    if options.data is None or options.model is None:
        raise UserError("predict: needs --model and --data, a folder of images")
    found = (path for path in options.data.glob("*") if path.suffix.lower() in IMAGE_SUFFIXES)
    if not (files := sorted(found)[:PICTURES]):
        raise UserError(f"--data {options.data}: holds no images ({', '.join(IMAGE_SUFFIXES)})")
    return files


def case_of(options: Options, device: str) -> Case:
    """The one case of `predict`; its pictures have their own size.

    Raises:
        UserError: There are none, or an option is missing.
    """
    size = image_size(picture_files(options)[0])
    return Case(
        "predict", None, size, options.batch or 1, options.num_labels, options.dtype, device
    )


def measure(case: Case, options: Options) -> Result:
    """Both sides, in turns."""
    assert options.model is not None, "`picture_files` asks for it"
    files = [str(path) for path in picture_files(options)]
    rounds = options.rounds or ROUNDS
    with predicting(case, options.model, files) as works:
        if options.vs == "none":
            del works["stock"]
        difference = worst_differences(works, ())
        seconds = take_turns(works, (), rounds=rounds, device=case.device)
        facts = machine(case.device, keeps_memory=options.keep_freed_memory)
    seconds = {side: value / len(files) for side, value in seconds.items()}
    return Result(case, rounds, facts, seconds, ratios(seconds), difference)


@contextmanager
def predicting(case: Case, model: Path, files: list[str]) -> Iterator[dict[str, Work]]:
    """Both sides.

    Raises:
        UserError: The model cannot be read.
    """
    Segmenter.load(model)  # which says what is wrong with it
    context = multiprocessing.get_context("spawn")
    near, far = context.Pipe()
    with TemporaryDirectory() as temporary:
        arguments = (far, case, str(model), temporary, torch.get_num_threads())
        child = context.Process(target=_serve, args=arguments, daemon=True)
        child.start()
        far.close()  # so that its end is an error here, and no wait
        try:
            yield {"ours": _ours(files, near), "stock": _stock(case, model, files)}
        finally:
            with suppress(OSError):
                near.send(None)
            child.join()


def _ours(files: list[str], connection: Connection) -> Work:
    def asked(some: list[str]) -> Path:
        connection.send(some)
        return connection.recv()

    def compare() -> dict[str, Tensor]:
        ids = asked(files[:_COMPARED]) / "ids"
        masks = [read_mask(ids / f"{Path(file).stem}.png") for file in files[:_COMPARED]]
        return {"classes": _joined(masks)}

    return Work(lambda: asked(files), compare)


def _serve(connection: Connection, case: Case, model: str, folder: str, threads: int) -> None:
    """Predicts the files that it is sent, and says where, until there are no more."""
    set_threads(threads)
    keep_freed_memory()
    segmenter = Segmenter.load(model, device=case.device, dtype=case.dtype)
    for turn in itertools.count():
        files = connection.recv()
        if files is None:
            return
        output = Path(folder) / str(turn)
        predict(segmenter, files, output, writes=[])
        connection.send(output)


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
