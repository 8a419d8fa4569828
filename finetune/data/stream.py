"""Streaming: Samples straight out of Parquet files, for sets that no disk holds.

An epoch is one sequence: the files in an order drawn for it, one after the other. It is cut into
as many lanes as loader workers read at once, over all processes: each lane is one stretch of the
sequence, read from front to back and shuffled within blocks of `BLOCK`. So no row is read twice
(but for the row groups at the ends of lanes), every worker holds one file open and one block of
encoded pictures, and where a lane is at any step follows from arithmetic: nothing has to be saved
to go on in mid-epoch. What does not fill a last global batch is left out, at most one batch less
one sample, equally on every process, and other samples in each epoch.
"""

import functools
import hashlib
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from finetune.data.files import Picture
from finetune.data.labels import Labels
from finetune.data.masks import picture_masks
from finetune.data.samples import ReadSamples, check_one_depth
from finetune.data.shards import Row, Shard, read_features, read_rows
from finetune.data.tables import Columns, picture_of
from finetune.errors import UserError

BLOCK = 256
"""Samples that are permuted together."""
_SHIFT = 2**32
"""Tells the draw of the cut from those of blocks."""


class Streamed:
    """A split as Parquet files. Samples by index, for a look at a few; else in stretches.

    Args:
        shards: Its files.
        labels: What mask values mean.
        columns: Which columns hold what.
        num_channels: Of the images.

    Raises:
        UserError: A column is not what it must be, or the split has no rows.
    """

    def __init__(
        self,
        shards: Sequence[Shard],
        labels: Labels,
        columns: Columns,
        *,
        num_channels: int = 3,
    ) -> None:
        self.shards = list(shards)
        self.columns = columns
        self.num_samples = sum(shard.num_rows for shard in shards)
        if not self.num_samples:
            raise UserError(f"data.path: {len(self.shards)} Parquet files without a row.")
        columns.check(read_features(self.shards[0]), self.shards[0].address)
        pictures = _Handed()
        form = picture_masks(labels, pictures)
        self._reader = ReadSamples(labels, form, pictures, num_channels)

    def __len__(self) -> int:
        return self.num_samples

    @property
    def identity(self) -> int:
        """48 bits of the files' names and rows: of what an order of samples is an order."""
        content = repr([(shard.name, shard.row_groups) for shard in self.shards])
        return int(hashlib.sha256(content.encode()).hexdigest()[:12], 16)

    @functools.cached_property
    def dtype(self) -> np.dtype:
        """Of the images: RGB in bytes, or as the first one has it; the others must have it too."""
        if self._reader.num_channels == 3:
            return np.dtype(np.uint8)
        row = next(read_rows(self.shards, self._names(), 0, 1))
        return self._read(row)[0].dtype

    def check(self) -> None:
        """Reads the first sample and the last: each may cost a row group, over a network.

        Raises:
            UserError: What is wrong with one.
        """
        for index in (0, len(self) - 1):
            self[index]

    def __getitem__(self, index: int) -> dict[str, Any]:
        return next(self.samples(self.shards, index, index + 1))

    def samples(self, shards: Sequence[Shard], first: int, last: int) -> Iterator[dict[str, Any]]:
        """Samples first to last - 1 of the sequence that the files make in this order."""
        return map(self._sample, read_rows(shards, self._names(), first, last))

    def shuffled(self, lane: "Lane", start: int) -> Iterator[dict[str, Any]]:
        """The samples of a lane from its start-th on, each block in an order drawn for it."""
        rng = np.random.default_rng([lane.seed, lane.epoch])
        shards = [self.shards[i] for i in rng.permutation(len(self.shards))]
        begin = lane.first + start // BLOCK * BLOCK
        rows = read_rows(shards * 2, self._names(), begin, lane.last)  # a ring
        for first in range(begin, lane.last, BLOCK):
            block = list(itertools.islice(rows, BLOCK))
            order = np.random.default_rng([lane.seed, lane.epoch, first]).permutation(len(block))
            skipped = max(lane.first + start - first, 0)
            yield from (self._sample(block[i]) for i in order[skipped:])

    def _read(self, row: Row) -> tuple[np.ndarray, np.ndarray]:
        columns = self.columns
        pictures = (
            picture_of(row.values[name], f"{row}, {name}") for name in (columns.image, columns.mask)
        )
        return self._reader.read(*pictures)

    def _sample(self, row: Row) -> dict[str, Any]:
        image, mask = self._read(row)
        check_one_depth([self.dtype, image.dtype], ["the first image of the split", str(row)])
        name = f"{row.shard.name}-{row.number}"
        if self.columns.id is not None:
            name = row.values[self.columns.id]
            if name is None:
                raise UserError(f"{row}, {self.columns.id}: is empty; a sample needs a name.")
        return {"image": image, "mask": mask, "id": str(name)}

    def _names(self) -> list[str]:
        columns = self.columns
        return [columns.image, columns.mask, *([columns.id] if columns.id else [])]


@dataclass(frozen=True)
class Lane:
    """A stretch of an epoch's ring of samples that one worker reads."""

    seed: int
    epoch: int
    first: int
    last: int


@dataclass(frozen=True)
class StreamOrder:
    """What each loader worker of each process reads, as a function of the step alone.

    Args:
        num_samples: Of the split.
        seed: Of the order of files, and within blocks.
        micro_batch: Samples a process takes at once.
        accumulation: Micro-batches of a process a step.
        rank: Of this process.
        world_size: Number of processes.
        workers: Loader processes of each; 0 reads in the process itself.
        first_step: Where to begin.
        last_step: Where to end, exclusive.
    """

    num_samples: int
    seed: int
    micro_batch: int
    accumulation: int
    rank: int
    world_size: int
    workers: int
    first_step: int
    last_step: int

    @property
    def global_batch(self) -> int:
        """Samples of a step."""
        return self.micro_batch * self.accumulation * self.world_size

    @property
    def steps_per_epoch(self) -> int:
        """Whole global batches, one or more."""
        return self.num_samples // self.global_batch

    def turns(self, worker: int) -> Iterator[tuple[int, Lane, int]]:
        """Of one worker: position of a micro-batch's first sample, its lane, its start therein.

        The loader takes micro-batches from its workers in turn, beginning with the first.
        """
        workers = max(self.workers, 1)
        per_epoch = self.steps_per_epoch * self.accumulation
        first = self.first_step * self.accumulation + worker
        for turn in range(first, self.last_step * self.accumulation, workers):
            epoch, place = divmod(turn, per_epoch)
            lane = self._lane(epoch, place % workers, workers, per_epoch)
            position = (turn * self.world_size + self.rank) * self.micro_batch
            yield position, lane, place // workers * self.micro_batch

    def _lane(self, epoch: int, number: int, workers: int, per_epoch: int) -> Lane:
        """Lane `number` of this process: its micro-batches number, number + workers, ..."""
        turns = [len(range(i, per_epoch, workers)) for i in range(number + 1)]
        first = (self.rank * per_epoch + sum(turns[:-1])) * self.micro_batch
        last = first + turns[-1] * self.micro_batch
        # The sequence is a ring, which is cut elsewhere in each epoch: so each sample is left out
        # as often as any other, also where there is one file only.
        shift = 0
        if self.num_samples % self.global_batch:
            rng = np.random.default_rng([self.seed, epoch, _SHIFT])
            shift = int(rng.integers(self.num_samples))
        return Lane(self.seed, epoch, first + shift, last + shift)


class _Handed:
    """Pictures whose references are the pictures themselves."""

    def open(self, reference: Picture) -> Picture:
        return reference

    def name(self, reference: Picture) -> str:
        return str(reference)

    def files(self, reference: Picture) -> list[Path]:
        return []
