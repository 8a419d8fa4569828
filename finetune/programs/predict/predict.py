"""`finetune predict`: masks for any number of pictures, on any number of processes.

    outcome = predict(Segmenter.load("runs/camvid/best"), ["photos"], Path("out"))

Threads decode and write while the model works. Pictures of one size go through it together. The
files of a picture show that it is done (see `outputs`), so a stopped call resumes, even after a
crash of the machine.
"""

import errno
import os
import sys
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from itertools import islice
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch.distributed as dist
from torch import Tensor
from tqdm import tqdm

from finetune.data.threads import in_order
from finetune.errors import UserError
from finetune.inference import Segmenter
from finetune.inference.large import large_view, mask_bands
from finetune.inference.models import digest_of
from finetune.machine import is_out_of_memory, usable_cores
from finetune.pictures.drawing import as_rgb
from finetune.pictures.geotiff import TiffRows
from finetune.pictures.opening import pixel_limit
from finetune.pictures.reading import image_size
from finetune.programs.predict.inputs import Item, collect
from finetune.programs.predict.outputs import WRITES, Outputs, Prediction
from finetune.programs.predict.video import num_frames, predict_video
from finetune.run.screen import progress_bar

LARGE = 2**25
"""Pixels from which a picture is decoded only when its turn has come, to save memory."""
MAX_WORKERS = 8
MAX_BATCH = 8
BATCH_PIXELS, BATCH_PIXELS_GPU = 2**20, 2**23
"""Default pixels per batch; larger batches take longer per picture."""

_ODD_NAMES = (errno.ENAMETOOLONG, errno.EISDIR, errno.ENOTDIR, errno.EINVAL, errno.EILSEQ)
"""Errors that one picture's name causes, and not the disk."""

_Writing: TypeAlias = "tuple[Item, Future[dict[str, Any]]]"


@dataclass(frozen=True)
class Outcome:
    """The result of a call."""

    made: int
    """Pictures and videos that this process made."""
    there: int
    """Pictures and videos of its share that were there before."""
    failed: tuple[str, ...]
    """One message for each picture that cannot be predicted; it names the file."""
    frames: int
    """Frames of the videos made."""
    missing: int
    """Pictures that are not done yet: other processes' share."""


@dataclass(frozen=True)
class _Read:
    """A picture on its way to the model."""

    item: Item
    size: tuple[int, int]
    views: list[np.ndarray]
    shown: np.ndarray | None


def predict(
    segmenter: Segmenter,
    inputs: Sequence[str],
    output: Path,
    *,
    model: str = "",
    writes: Sequence[str] = ("overlay", "areas"),
    batch_size: int | None = None,
    workers: int | None = None,
    split: str | None = None,
    image_column: str | None = None,
    max_pixels: int | None = None,
    show_progress: bool = False,
) -> Outcome:
    """Predicts all inputs, or this process's share of them.

    Every process of a launch calls it; RANK and WORLD_SIZE, which launchers set, decide the shares.
    The processes of one launcher end together, and the first writes the tables.

    Args:
        segmenter: The model.
        inputs: See `finetune.programs.predict.inputs.collect`.
        output: A new or empty folder, or that of an earlier call.
        model: Its name in predict.json.
        writes: Some of `WRITES`, besides the ids.
        batch_size: Pictures of one size per batch; None: by their size, up to `MAX_BATCH`.
        workers: Threads that decode and write; None: one per usable core, up to `MAX_WORKERS`.
        split: Of data sets.
        image_column: Of data sets.
        max_pixels: Of a picture; None: Pillow's limit.
        show_progress: Draw a bar on stderr.

    Returns:
        The outcome. It lists pictures that cannot be read; they do not stop the others.

    Raises:
        UserError: An input names nothing, or the folder is another model's or cannot be written.
        KeyboardInterrupt: After Ctrl-C; finished files are whole.
    """
    if "none" in writes:
        raise UserError("--write none: goes alone; leave out none, or the others")
    if unknown := sorted(set(writes) - set(WRITES)):
        raise UserError(f"--write {unknown[0]}: choose from {', '.join(WRITES)}, or none alone")
    rank, world_size = (int(os.environ.get(k, d)) for k, d in (("RANK", "0"), ("WORLD_SIZE", "1")))
    found = collect(inputs, output, split=split, image_column=image_column)
    workers = workers or min(MAX_WORKERS, usable_cores())
    identity = {
        "weights": digest_of(segmenter.model),
        "preprocessing": {
            "protocol": segmenter.preprocessing.protocol.model_dump(mode="json"),
            "image_mean": segmenter.preprocessing.image_mean,
            "image_std": segmenter.preprocessing.image_std,
        },
        "dtype": str(segmenter.dtype or "float32").removeprefix("torch."),
    }
    names, colors = segmenter.names, segmenter.colors
    with (
        _joined(world_size),
        Outputs(output, model, identity, writes, names, colors, rank=rank) as outputs,
        pixel_limit(max_pixels),
    ):
        # The share: every world_size-th of the inputs, beginning with the rank-th.
        videos = found.videos[rank::world_size]
        total = len(range(rank, len(found), world_size))
        total += sum(max(1, num_frames(video.where)) for video in videos)
        outputs.check((*islice(found, rank, None, world_size), *videos))
        show = show_progress and rank == 0
        bar = progress_bar(total=total, desc="predicting", unit="image", show=show)
        with closing(bar):
            work = _Work(segmenter, outputs, bar, batch_size, workers, max_pixels)
            work.pictures(islice(found, rank, None, world_size))
            work.videos(videos)
        together = dist.is_initialized()
        if together:
            dist.barrier()  # no process ends before all are done: launchers end the others then
        shared: list[Any] = [None]
        if rank == 0 or not together:
            shared = [outputs.summarise({item.name for item in found.everything()})]
        if together:
            dist.broadcast_object_list(shared)
    summary = shared[0]
    assert summary is not None, "rank 0 has it"
    failed = tuple(summary["failed"].values())
    return Outcome(work.made, work.there, failed, work.frames, summary["missing"])


@contextmanager
def _joined(world_size: int) -> Iterator[None]:
    """Connects the processes of one launcher; processes started otherwise need no connection."""
    if world_size == 1 or "MASTER_ADDR" not in os.environ or dist.is_initialized():
        yield
        return
    dist.init_process_group("gloo", timeout=timedelta(days=30))  # one process may need hours more
    try:
        yield
    finally:
        dist.destroy_process_group()


def show(done: Outcome, output: Path, seconds: float) -> None:
    """Prints the outcome of a call that took `seconds`."""
    images = f"{done.made} predicted" + (f", {done.there} were there" if done.there else "")
    speed = f"{(done.made + done.frames) / seconds:.1f} images/s"
    print(f"{images} ({speed}). Written: {output}")
    if done.missing:
        print(f"{done.missing} more are left to other processes, or not done yet")
    if done.failed:  # each was named when it failed
        where = output / "predict.json"
        print(f"error: {len(done.failed)} cannot be predicted; listed in {where}", file=sys.stderr)


@dataclass
class _Work:
    """One process's work and its results."""

    segmenter: Segmenter
    outputs: Outputs
    bar: "tqdm[Any]"
    batch_size: int | None
    num_workers: int
    max_pixels: int | None
    made: int = 0
    there: int = 0
    frames: int = 0

    def pictures(self, items: Iterable[Item]) -> None:
        waiting: deque[_Writing] = deque()
        with ThreadPoolExecutor(self.num_workers) as writers:
            try:
                read = in_order(self._read, self._todo(items), self.num_workers)
                for batch in self._batches(read):
                    for prediction in self._predicted(batch):
                        self.outputs.begin(prediction.item)
                        future = writers.submit(self.outputs.write, prediction)
                        waiting.append((prediction.item, future))
                    while len(waiting) > 2 * MAX_BATCH + self.num_workers:
                        self._enter(waiting.popleft())
                while waiting:
                    self._enter(waiting.popleft())
            finally:  # the writers finish their files, which are entered if all went well
                writers.shutdown(wait=True, cancel_futures=True)
                for item, writing in waiting:
                    if writing.done() and not writing.cancelled() and not writing.exception():
                        self._enter((item, writing))

    def videos(self, items: Iterable[Item]) -> None:
        for item in self._todo(items):
            try:
                if self.segmenter.preprocessing.num_channels != 3:
                    raise UserError(f"{item.where}: videos are RGB, the model's images are not")
                self.frames += predict_video(
                    self.segmenter, item, self.outputs, self._at_once, self.bar.update
                )
            except UserError as error:
                self._fail(item, str(error))
            else:
                self.made += 1

    def _todo(self, items: Iterable[Item]) -> Iterator[Item]:
        for item in items:
            if self.outputs.is_done(item):
                self.there += 1
                if not self.bar.disable:
                    self.bar.initial += 1  # the speed leaves it out
                self.bar.update()
            else:
                yield item

    def _read(self, item: Item) -> _Read:
        """Reads in a thread. Without views, it is left to `_prepared`: large, or unreadable."""
        with suppress(UserError):
            height, width = image_size(item.open())
            if height * width <= LARGE:
                return self._prepared(item)
        return _Read(item, (0, 0), [], None)

    def _prepared(self, item: Item) -> _Read:
        pixels = self.segmenter.read_picture(item.open(), max_pixels=self.max_pixels)
        views = self.segmenter.preprocessing.protocol.resize(pixels)
        shown = as_rgb(pixels) if "overlay" in self.outputs.writes else None
        return _Read(item, (pixels.shape[0], pixels.shape[1]), views, shown)

    def _at_once(self, size: tuple[int, ...]) -> int:
        """Pictures per batch, for the size at which the model sees them."""
        if self.batch_size is not None:
            return self.batch_size
        limit = BATCH_PIXELS if self.segmenter.device.type == "cpu" else BATCH_PIXELS_GPU
        return max(1, min(MAX_BATCH, limit // (size[0] * size[1])))

    def _batches(self, read: Iterable[_Read]) -> Iterator[list[_Read]]:
        """Batches of pictures of one size, in order of arrival; at most four batches wait."""
        groups: dict[Any, list[_Read]] = {}
        for one in read:
            if not one.views:  # one large picture is in memory at a time, or none
                try:
                    if (rows := large_view(self.segmenter, one.item.open())) is not None:
                        self._large(one.item, rows)
                    else:
                        yield [self._prepared(one.item)]
                except UserError as error:
                    self._fail(one.item, str(error))
                continue
            key = one.size, one.views[0].dtype
            group = groups.setdefault(key, [])
            group.append(one)
            if len(group) >= self._at_once(one.views[0].shape[:2]):
                yield groups.pop(key)
            elif sum(map(len, groups.values())) > 4 * MAX_BATCH:
                yield groups.pop(max(groups, key=lambda key: len(groups[key])))
        yield from groups.values()

    def _large(self, item: Item, rows: TiffRows) -> None:
        """Predicts a TIFF larger than memory, of which only ids and areas are written."""
        if left := sorted({*self.outputs.writes} - {"areas"}):
            size = f"{rows.shape[1]} x {rows.shape[0]} pixels"
            tqdm.write(f"{item.where}: {size}: ids alone, without {', '.join(left)}", sys.stderr)
        self.outputs.begin(item)
        bands = mask_bands(self.segmenter, rows)
        self.outputs.enter(self.outputs.write_large(item, bands, rows.shape[:2]))
        self.made += 1
        self.bar.update()

    def _predicted(self, batch: list[_Read]) -> list[Prediction]:
        confidence = "confidence" in self.outputs.writes
        try:
            views: list[Tensor] = self.segmenter.stacked([read.views for read in batch])
            masks, chances = self.segmenter.masks(views, batch[0].size, confidence=confidence)
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
        else:
            return [
                Prediction(read.item, masks[i], None if chances is None else chances[i], read.shown)
                for i, read in enumerate(batch)
            ]
        if len(batch) == 1:  # the batch that did not fit is released
            height, width = batch[0].size
            self._fail(
                batch[0].item,
                f"{batch[0].item.where}: {width} x {height} pixels do not fit into the memory of "
                f"{self.segmenter.device}; add --window, such as --window 1024",
            )
            return []
        half = len(batch) // 2
        return self._predicted(batch[:half]) + self._predicted(batch[half:])

    def _enter(self, waiting: "_Writing") -> None:
        item, writing = waiting
        try:
            row = writing.result()
        except UserError as error:
            if getattr(error.__cause__, "errno", None) not in _ODD_NAMES:
                raise
            self._fail(item, f"{item.where}: {error}")
            return
        self.outputs.enter(row)
        self.made += 1
        self.bar.update()

    def _fail(self, item: Item, reason: str) -> None:
        self.outputs.fail(item, reason.removeprefix(f"{item.where}: "))
        self.bar.update()
        tqdm.write(f"not predicted: {reason}", file=sys.stderr)
