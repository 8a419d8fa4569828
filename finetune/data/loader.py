"""Recipe to batches: opens a split, and serves it to one process of several.

What happens to a sample is a function of the recipe's seed and the sample's position in the global
sequence alone; the sequence is a function of the seed and the epoch. So neither the number of
workers, nor that of processes, nor a resume changes what is trained on. Batches are bytes:
`pixel_values` uint8 (B, H, W, C) and `labels` (B, H, W), uint8 or, beyond 255 classes, int64.
"""

import signal
from collections.abc import Generator, Iterator
from typing import Any, TypedDict

import cv2
import datasets
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from finetune.augment import TrainTransform
from finetune.data import folders
from finetune.data.labels import Labels
from finetune.data.shapes import shapes
from finetune.errors import UserError
from finetune.inference import Protocol
from finetune.recipe import DataSection

# The source named in a recipe -> what opens one split of it.
LAYOUTS = {
    "camvid": folders.camvid,
    "ade20k": folders.ade20k,
    "cityscapes": folders.cityscapes,
}


class Batch(TypedDict):
    """What a loader yields."""

    pixel_values: Tensor
    labels: Tensor
    ids: list[str]


def open_split(data: DataSection, labels: Labels, split: str) -> datasets.Dataset:
    """One split as a `datasets.Dataset` of Samples; see `finetune.data.folders` for its errors."""
    if data.source == "shapes":
        train = split == data.train_split
        return shapes(
            "train" if train else "val",
            num_samples=data.train_samples if train else data.val_samples,
            size=data.size,
            seed=0,  # the set is one fixed set, whatever the training's seed
        )
    assert data.path is not None, "load_recipe asks for it"
    if data.source == "folder":
        return folders.image_folder(
            data.path,
            split,
            labels,
            images=data.images,
            masks=data.masks,
            image_suffix=data.image_suffix,
            mask_suffix=data.mask_suffix,
        )
    return LAYOUTS[data.source](data.path, split, labels)


class GlobalOrder(Sampler[list[tuple[int, int]]]):
    """The micro-batches of one process, as lists of (position, index).

    Positions count samples over the whole training, across epochs, which follow each other without
    a gap: step s takes positions s G to (s + 1) G - 1, whatever the number of processes.

    Args:
        num_samples: size of the training set.
        seed: of the order.
        micro_batch: samples a process takes at once.
        accumulation: micro-batches of a process a step.
        rank: of this process.
        world_size: number of processes.
        first_step: where to begin.
        last_step: where to end, exclusive.
    """

    def __init__(
        self,
        num_samples: int,
        *,
        seed: int,
        micro_batch: int,
        accumulation: int,
        rank: int,
        world_size: int,
        first_step: int,
        last_step: int,
    ):
        self.num_samples = num_samples
        self.seed = seed
        self.micro_batch = micro_batch
        self.accumulation = accumulation
        self.rank = rank
        self.world_size = world_size
        self.first_step = first_step
        self.last_step = last_step
        self._epoch = -1
        self._order = np.empty(0, np.int64)

    def __len__(self) -> int:
        return (self.last_step - self.first_step) * self.accumulation

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for turn in range(self.first_step * self.accumulation, self.last_step * self.accumulation):
            first = (turn * self.world_size + self.rank) * self.micro_batch
            yield [(position, self._index(position)) for position in self._positions(first)]

    def _positions(self, first: int) -> range:
        return range(first, first + self.micro_batch)

    def _index(self, position: int) -> int:
        epoch, place = divmod(position, self.num_samples)
        if epoch != self._epoch:
            rng = np.random.default_rng([self.seed, epoch])
            self._epoch, self._order = epoch, rng.permutation(self.num_samples)
        return int(self._order[place])


class TrainSamples(Dataset[Any]):
    """Augmented samples, addressed by (position, index)."""

    def __init__(self, samples: datasets.Dataset, transform: TrainTransform, seed: int):
        self.samples = samples
        self.transform = transform
        self.seed = seed

    def __getitem__(self, address: tuple[int, int]) -> tuple[np.ndarray, np.ndarray, str]:
        position, index = address
        sample = self.samples[index]
        # One number that no other (seed, position) gives; numpy and Python hash it into streams.
        seed = self.seed << 64 | position
        image, mask = self.transform(sample["image"], sample["mask"], seed)
        return image, mask, sample["id"]


class EvalSamples(Dataset[Any]):
    """Whole samples: the image as the protocol resizes it, the mask at its own size."""

    def __init__(self, samples: datasets.Dataset, protocol: Protocol):
        self.samples = samples
        self.protocol = protocol

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray, str]:
        sample = self.samples[index]
        return self.protocol.resize(sample["image"]), sample["mask"], sample["id"]


def train_loader(
    samples: datasets.Dataset,
    transform: TrainTransform,
    order: GlobalOrder,
    *,
    workers: int,
    pin_memory: bool,
) -> Generator[Batch, None, None]:
    """The micro-batches of one process, in order; a bad file is a UserError that names it.

    Close it when done: workers end with it.
    """
    return _serve(
        TrainSamples(samples, transform, order.seed), order, workers, pin_memory, one_size=True
    )


def eval_loader(
    samples: datasets.Dataset,
    protocol: Protocol,
    *,
    batch_size: int,
    rank: int,
    world_size: int,
    workers: int,
    pin_memory: bool,
) -> Generator[Batch, None, None]:
    """Every image of a split once, over all processes.

    Batches are cut by index and only then shared, so that each forward pass has the same
    composition on any number of processes: the same bits come out. Images of different sizes in
    one batch are served one size after the other.
    """
    chunks = [
        list(range(first, min(first + batch_size, len(samples))))
        for first in range(0, len(samples), batch_size)
    ]
    return _serve(
        EvalSamples(samples, protocol),
        chunks[rank::world_size],
        workers,
        pin_memory,
        one_size=False,
    )


def _serve(
    dataset: Dataset[Any], order: Any, workers: int, pin_memory: bool, *, one_size: bool
) -> Generator[Batch, None, None]:
    cv2.setNumThreads(0)  # one process, one thread: workers must not fight with the model
    loader = DataLoader(
        _Guarded(dataset),
        batch_sampler=order,
        num_workers=workers,
        collate_fn=_collate,
        pin_memory=pin_memory,
        worker_init_fn=_start_worker,
        generator=torch.Generator(),  # else each new iterator draws from the training's own
    )
    for batches in loader:
        if isinstance(batches, UserError):
            raise batches
        assert not one_size or len(batches) == 1, "training crops have one size"
        yield from batches


class _Guarded(Dataset[Any]):
    """Hands a UserError over as a value: the loader would wrap it into a worker's traceback."""

    def __init__(self, dataset: Dataset[Any]):
        self.dataset = dataset

    def __getitem__(self, address: Any) -> Any:
        try:
            return self.dataset[address]
        except UserError as error:
            return error


def _start_worker(worker: int) -> None:
    # A terminal and some schedulers signal the whole group: what is to be done about it is the
    # training process's business, which ends its workers by an event.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    cv2.setNumThreads(0)
    torch.set_num_threads(1)


def _collate(samples: list[Any]) -> list[Batch] | UserError:
    """Stacks what has one size, in the order of first appearance."""
    groups: dict[tuple[Any, ...], list[Any]] = {}
    for sample in samples:
        if isinstance(sample, UserError):
            return sample
        image, mask, _ = sample
        groups.setdefault((image.shape, mask.shape), []).append(sample)
    return [_stack(group) for group in groups.values()]


def _stack(group: list[tuple[np.ndarray, np.ndarray, str]]) -> Batch:
    images, masks, ids = zip(*group, strict=True)
    labels = np.stack(masks)
    return {
        "pixel_values": torch.from_numpy(np.stack(images)),
        # torch can neither compare nor count uint16
        "labels": torch.from_numpy(labels if labels.dtype == np.uint8 else labels.astype(np.int64)),
        "ids": list(ids),
    }
