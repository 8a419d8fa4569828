"""The order of samples: the sample at each place of the global sequence."""

from collections.abc import Iterator
from dataclasses import KW_ONLY, dataclass

import numpy as np
from torch.utils.data import Sampler

_SHIFT = 2**32
"""Keeps the draw of the cut apart from those of blocks."""


@dataclass(eq=False)
class _Turns:
    """Steps `first_step` to `last_step` - 1 of one process, in turns of `micro_batch` samples.

    A step has `accumulation` turns. Positions count samples over the whole training. Epochs follow
    each other without a gap: step s takes positions s G to (s + 1) G - 1, on any number of
    processes.
    """

    num_samples: int
    _: KW_ONLY
    seed: int
    micro_batch: int
    accumulation: int
    rank: int
    world_size: int
    first_step: int
    last_step: int

    def positions(self, turn: int) -> range:
        """The positions of a turn, counted from the first step of the training."""
        first = (turn * self.world_size + self.rank) * self.micro_batch
        return range(first, first + self.micro_batch)


@dataclass(eq=False)
class GlobalOrder(_Turns, Sampler[list[tuple[int, int]]]):
    """The micro-batches of one process, as lists of (position, index)."""

    def __post_init__(self) -> None:
        self._epoch = -1
        self._order = np.empty(0, np.int64)

    def __len__(self) -> int:
        return (self.last_step - self.first_step) * self.accumulation

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for turn in range(self.first_step * self.accumulation, self.last_step * self.accumulation):
            yield [(position, self._index(position)) for position in self.positions(turn)]

    def _index(self, position: int) -> int:
        epoch, place = divmod(position, self.num_samples)
        if epoch != self._epoch:
            rng = np.random.default_rng([self.seed, epoch])
            self._epoch, self._order = epoch, rng.permutation(self.num_samples)
        return int(self._order[place])


@dataclass(frozen=True)
class Lane:
    """A stretch of an epoch's ring of samples that one worker reads."""

    seed: int
    epoch: int
    first: int
    last: int


@dataclass(eq=False)
class StreamOrder(_Turns):
    """The lane that each loader worker of each process reads, a function of the step alone.

    `seed` draws the order of files and within blocks. Without `workers` the process itself reads.
    """

    workers: int

    @property
    def global_batch(self) -> int:
        """Samples per step."""
        return self.micro_batch * self.accumulation * self.world_size

    @property
    def steps_per_epoch(self) -> int:
        """Whole global batches per epoch, one or more."""
        return self.num_samples // self.global_batch

    def turns(self, worker: int) -> Iterator[tuple[int, Lane, int]]:
        """The micro-batches of a worker: position of the first sample, lane, start in the lane.

        The loader takes micro-batches from its workers in turn, beginning with the first.
        """
        workers = max(self.workers, 1)
        per_epoch = self.steps_per_epoch * self.accumulation
        first = self.first_step * self.accumulation + worker
        for turn in range(first, self.last_step * self.accumulation, workers):
            epoch, place = divmod(turn, per_epoch)
            lane = self._lane(epoch, place % workers, workers, per_epoch)
            yield self.positions(turn).start, lane, place // workers * self.micro_batch

    def _lane(self, epoch: int, number: int, workers: int, per_epoch: int) -> Lane:
        """Lane `number` of this process: its micro-batches number, number + workers, ..."""
        turns = [len(range(i, per_epoch, workers)) for i in range(number + 1)]
        first = (self.rank * per_epoch + sum(turns[:-1])) * self.micro_batch
        last = first + turns[-1] * self.micro_batch
        # The sequence is a ring that is cut elsewhere in each epoch, so that every sample is left
        # out equally often, even if there is one file only.
        shift = 0
        if self.num_samples % self.global_batch:
            rng = np.random.default_rng([self.seed, epoch, _SHIFT])
            shift = int(rng.integers(self.num_samples))
        return Lane(self.seed, epoch, first + shift, last + shift)
