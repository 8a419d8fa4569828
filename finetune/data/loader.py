"""Samples to batches: serves a split to one process of several.

The augmentation of a sample is a function of the recipe's seed and the sample's position in the
global sequence; the sequence is a function of the seed and the epoch. So workers, processes and
resumes do not change the training data. (Streams have an order of their own, see
`finetune.data.stream`.) Batches are bytes: `pixel_values` uint8 (B, H, W, C) and `labels`
(B, H, W), uint8 or, beyond 255 classes, int64. Images of 16 bit are int32, because torch can do
next to nothing with uint16.
"""

import functools
import itertools
import math
import multiprocessing.util
import os
import signal
from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, TypeAlias, TypedDict

import cv2
import datasets
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset

from finetune.augment import TrainTransform
from finetune.data.cache import CachedSamples
from finetune.data.order import GlobalOrder, Lane, StreamOrder
from finetune.data.samples import check_one_depth
from finetune.data.stream import Streamed
from finetune.errors import UserError
from finetune.machine import keep_freed_memory
from finetune.recipe import InferenceProtocol

# Data sets that loaders read by index.
Samples: TypeAlias = datasets.Dataset | CachedSamples

# Images (one, or one per scale), mask, id.
_Arrays: TypeAlias = tuple[list[np.ndarray], np.ndarray, str]


class Batch(TypedDict):
    """A batch as a loader yields it."""

    pixel_values: Tensor
    other_scales: list[Tensor]
    """`pixel_values` of the scales after the first, in an evaluation at several scales."""
    labels: Tensor
    ids: list[str]


@dataclass(frozen=True)
class Augmented:
    """Crops the sample at a position of the global sequence, as the seed and the position draw."""

    transform: TrainTransform
    seed: int

    one_size: ClassVar = True

    def __call__(self, sample: dict[str, Any], position: int) -> _Arrays:
        """The crop, the mask and the id."""
        # The seed is unique for (seed, position); numpy and Python hash it into streams.
        seed = self.seed << 64 | position
        image, mask = self.transform(sample["image"], sample["mask"], seed)
        return [image], mask, sample["id"]


@dataclass(frozen=True)
class Whole:
    """Prepares a sample for evaluation: resizes the image by the protocol, keeps the mask."""

    protocol: InferenceProtocol

    one_size: ClassVar = False

    def __call__(self, sample: dict[str, Any], position: int = 0) -> _Arrays:
        """The image in each scale, the mask and the id."""
        return self.protocol.resize(sample["image"]), sample["mask"], sample["id"]


@dataclass(eq=False)
class Indexed(Dataset[Any]):
    """Batches of a split that is read by index."""

    samples: Samples
    prepare: Augmented | Whole

    def __getitems__(self, places: list[tuple[int, int]]) -> list[Batch] | UserError:
        """The samples of a list of (position, index). Called by torch."""
        arrays = (self.prepare(self.samples[index], position) for position, index in places)
        return _batches(arrays, len(places), one_size=self.prepare.one_size)


@dataclass(eq=False)
class TrainStream(IterableDataset[Any]):
    """The augmented batches of one worker, read from front to back."""

    samples: Streamed
    prepare: Augmented
    order: StreamOrder

    def __iter__(self) -> "Iterator[list[Batch] | UserError]":
        size = self.order.micro_batch
        opened: tuple[Lane, int] | None = None  # the place of the source
        source: Iterator[dict[str, Any]] = iter(())
        for position, lane, start in self.order.turns(_worker()):
            if opened != (lane, start):
                source = self.samples.shuffled(lane, start)
            opened = lane, start + size
            positions = range(position, position + size)
            arrays = (self.prepare(next(source), position) for position in positions)
            yield _batches(arrays, size, one_size=True)


@dataclass(eq=False)
class EvalStream(IterableDataset[Any]):
    """The whole batches of one worker, a share of the batches that are cut by index."""

    samples: Streamed
    prepare: Whole
    batch_size: int
    share: tuple[int, int, int]
    """Rank, number of processes, workers of each."""

    def __iter__(self) -> "Iterator[list[Batch] | UserError]":
        rank, world_size, workers = self.share
        workers = max(workers, 1)
        parts, part = world_size * workers, rank * workers + _worker()
        count = len(self.samples)
        firsts = range(0, count, self.batch_size)
        share = firsts[len(firsts) * part // parts : len(firsts) * (part + 1) // parts]
        last = min(share.stop, count)
        source = self.samples.samples(self.samples.shards, share.start, last)
        for first in share:
            size = min(self.batch_size, count - first)
            arrays = map(self.prepare, itertools.islice(source, size))
            yield _batches(arrays, size, one_size=False)


def train_loader(
    samples: Samples | Streamed,
    transform: TrainTransform,
    order: GlobalOrder | StreamOrder,
    *,
    workers: int,
    pin_memory: bool,
) -> Generator[Batch, None, None]:
    """The micro-batches of one process, in order; a bad file is a UserError that names it.

    Close the generator when done: its workers end with it. The order of a stream is a `StreamOrder`
    of as many workers. `pin_memory` is for batches that a GPU will copy.
    """
    prepare = Augmented(transform, order.seed)
    if isinstance(samples, Streamed):
        assert isinstance(order, StreamOrder)
        assert order.workers == workers
        return _serve(_loader(TrainStream(samples, prepare, order), workers, pin_memory))
    return _serve(batches_of(samples, prepare, order, workers=workers, pin_memory=pin_memory))


def eval_loader(
    samples: Samples | Streamed,
    protocol: InferenceProtocol,
    *,
    batch_size: int,
    rank: int,
    world_size: int,
    workers: int,
    pin_memory: bool,
) -> Generator[Batch, None, None]:
    """Every image of a split once, over all processes.

    Batches are cut by index and then shared, so that each forward pass has the same images on any
    number of processes, and gives the same bits. If a batch has images of several sizes, each size
    is served as a batch.
    """
    prepare = Whole(protocol)
    if isinstance(samples, Streamed):
        stream = EvalStream(samples, prepare, batch_size, (rank, world_size, workers))
        return _serve(_loader(stream, workers, pin_memory))
    places = [(index, index) for index in range(len(samples))]
    chunks = [places[first : first + batch_size] for first in range(0, len(places), batch_size)]
    own = chunks[rank::world_size]
    return _serve(batches_of(samples, prepare, own, workers=workers, pin_memory=pin_memory))


def batches_of(
    samples: Samples,
    prepare: Augmented | Whole,
    order: Any,
    *,
    workers: int,
    pin_memory: bool,
    persistent_workers: bool = False,
) -> DataLoader[Any]:
    """A loader of lists of batches, one list for each list of (position, index) in `order`.

    Samples of one size are one batch. A bad file is a UserError in place of a list. By default
    workers end with the first pass.
    """
    options = {"batch_sampler": order, "persistent_workers": persistent_workers}
    return _loader(Indexed(samples, prepare), workers, pin_memory, **options)


def _loader(
    batches: Dataset[Any], workers: int, pin_memory: bool, **options: Any
) -> DataLoader[Any]:
    cv2.setNumThreads(0)  # one process, one thread: workers must not fight with the model
    leaving = multiprocessing.RawValue("b", 0)
    # Runs first when this process ends; then multiprocessing terminates and joins the workers.
    multiprocessing.util.Finalize(None, setattr, (leaving, "value", 1), exitpriority=0)
    if "batch_sampler" not in options:
        options["batch_size"] = None
    return DataLoader(
        batches,
        num_workers=workers,
        collate_fn=_as_it_is,
        pin_memory=pin_memory,
        worker_init_fn=functools.partial(_start_worker, leaving),
        generator=torch.Generator(),  # else each new iterator draws from the training's own
        **options,
    )


def _serve(loader: DataLoader[Any]) -> Generator[Batch, None, None]:
    # A training is one pass through its order, so workers stay until its end.
    for batches in loader:
        if isinstance(batches, UserError):
            raise batches
        yield from batches


def _as_it_is(batches: Any) -> Any:
    return batches


def _batches(samples: Iterable[_Arrays], count: int, *, one_size: bool) -> list[Batch] | UserError:
    """Batches of one size each, in the order in which the sizes appear.

    A UserError is returned as a value, because the loader would wrap it into a worker's traceback.
    """
    try:
        if one_size:
            return [_batch(samples, count)]
        groups: dict[tuple[Any, ...], list[_Arrays]] = {}
        for images, mask, name in samples:
            groups.setdefault((images[0].shape, mask.shape), []).append((images, mask, name))
        return [_batch(group, len(group)) for group in groups.values()]
    except UserError as error:
        return error


def _batch(samples: Iterable[_Arrays], count: int) -> Batch:
    """Puts samples of one size into a batch, one by one.

    Each is copied while the processor's cache still holds it: a fourth of the time of stacking all
    at the end.
    """
    batch: Batch | None = None
    for turn, (images, mask, name) in enumerate(samples):
        if batch is None:
            # torch can neither compare nor count uint16
            depth, first = images[0].dtype, name
            image_type = torch.uint8 if depth == np.uint8 else torch.int32
            label_type = torch.uint8 if mask.dtype == np.uint8 else torch.int64
            views = [_empty((count, *image.shape), image_type) for image in images]
            batch = {
                "pixel_values": views[0],
                "other_scales": views[1:],
                "labels": _empty((count, *mask.shape), label_type),
                "ids": [],
            }
        check_one_depth((depth, images[0].dtype), (first, name))
        for view, image in zip(views, images, strict=True):
            view.numpy()[turn] = image
        batch["labels"].numpy()[turn] = mask
        batch["ids"].append(name)
    assert batch is not None, "a batch sampler gives no empty lists"
    return batch


def _empty(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """New memory; in a worker it is shared with the training, as in `default_collate`."""
    if torch.utils.data.get_worker_info() is None:
        return torch.empty(shape, dtype=dtype)
    storage = torch.UntypedStorage._new_shared(math.prod(shape) * dtype.itemsize)
    return torch.empty(0, dtype=dtype).set_(storage).view(shape)


def _worker() -> int:
    info = torch.utils.data.get_worker_info()
    return 0 if info is None else info.id


def _start_worker(leaving: Any, worker: int) -> None:
    # A terminal and some schedulers signal the whole group. The training process decides what to
    # do: it ends its workers by an event or, if it fails before, by SIGTERM.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: os._exit(1) if leaving.value else None)
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
    keep_freed_memory()  # every sample takes and frees the same few megabytes
