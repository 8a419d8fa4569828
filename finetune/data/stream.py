"""Streaming: Samples straight out of Parquet files, for data sets that no disk holds.

An epoch is one sequence: the files in an order drawn for it. It is cut into lanes, one for each
loader worker of all processes. A lane is one stretch of the sequence, read from front to back and
shuffled within blocks of `BLOCK`.

- No row is read twice, except in the row groups at the ends of lanes.
- A worker holds one open file and one block of encoded pictures.
- The place of a lane at any step follows from arithmetic, so a resume in mid-epoch needs no state.
- Samples that do not fill the last global batch are left out, other ones in each epoch.
"""

import functools
import hashlib
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from finetune.data.columns import Columns, picture_of
from finetune.data.masks import picture_masks
from finetune.data.order import Lane
from finetune.data.samples import ReadSamples, check_one_depth
from finetune.data.shards import Row, Shard, read_features, read_rows
from finetune.errors import UserError
from finetune.labels.translation import Labels
from finetune.pictures.references import Picture

BLOCK = 256
"""Samples that are permuted together."""


class Streamed:
    """A split as Parquet files. Training reads it in stretches; an index reads one sample.

    Raises:
        UserError: A column is missing or of another kind, or the split has no rows.
    """

    def __init__(
        self, shards: Sequence[Shard], labels: Labels, columns: Columns, *, num_channels: int = 3
    ) -> None:
        self.shards = list(shards)
        self.columns = columns
        self._names = [name for name in (columns.image, columns.mask, columns.id) if name]
        self.num_samples = sum(shard.num_rows for shard in shards)
        if not self.num_samples:
            raise UserError(f"data.path: the split's {len(shards)} Parquet files hold no rows.")
        columns.check(read_features(self.shards[0]), self.shards[0].address)
        pictures = _Handed()
        form = picture_masks(labels, pictures)
        self._reader = ReadSamples(labels, form, pictures, num_channels)

    def __len__(self) -> int:
        return self.num_samples

    @property
    def identity(self) -> int:
        """48 bits of the files' names and rows, which identify the set that an order belongs to."""
        content = repr([(shard.name, shard.row_groups) for shard in self.shards])
        return int(hashlib.sha256(content.encode()).hexdigest()[:12], 16)

    @functools.cached_property
    def dtype(self) -> np.dtype:
        """The images' type: uint8 for RGB, otherwise the first image's, which all must have."""
        if self._reader.num_channels == 3:
            return np.dtype(np.uint8)
        row = next(read_rows(self.shards, self._names, 0, 1))
        return self._read(row)[0].dtype

    def check(self) -> None:
        """Reads the first and the last sample. Each may cost a row group over a network.

        Raises:
            UserError: One of them is faulty.
        """
        for index in (0, len(self) - 1):
            self[index]

    def __getitem__(self, index: int) -> dict[str, Any]:
        return next(self.samples(self.shards, index, index + 1))

    def samples(self, shards: Sequence[Shard], first: int, last: int) -> Iterator[dict[str, Any]]:
        """Samples first to last - 1 of the files, read in this order."""
        return map(self._sample, read_rows(shards, self._names, first, last))

    def shuffled(self, lane: Lane, start: int) -> Iterator[dict[str, Any]]:
        """The samples of a lane from `start` on, each block in an order drawn for it."""
        rng = np.random.default_rng([lane.seed, lane.epoch])
        shards = [self.shards[i] for i in rng.permutation(len(self.shards))]
        begin = lane.first + start // BLOCK * BLOCK
        rows = read_rows(shards * 2, self._names, begin, lane.last)  # a ring
        for first in range(begin, lane.last, BLOCK):
            block = list(itertools.islice(rows, BLOCK))
            order = np.random.default_rng([lane.seed, lane.epoch, first]).permutation(len(block))
            skipped = max(lane.first + start - first, 0)
            yield from (self._sample(block[i]) for i in order[skipped:])

    def _read(self, row: Row) -> tuple[np.ndarray, np.ndarray]:
        names = (self.columns.image, self.columns.mask)
        return self._reader.read(*(picture_of(row.values[n], f"{row}, {n}") for n in names))

    def _sample(self, row: Row) -> dict[str, Any]:
        image, mask = self._read(row)
        check_one_depth([self.dtype, image.dtype], ["the first image of the split", str(row)])
        name = f"{row.shard.name}-{row.number}"
        if self.columns.id is not None:
            name = row.values[self.columns.id]
            if name is None:
                raise UserError(f"{row}, {self.columns.id}: the id is missing. Write one.")
        return {"image": image, "mask": mask, "id": str(name)}


class _Handed:
    """Pictures whose references are the pictures themselves."""

    def open(self, reference: Picture) -> Picture:
        return reference

    def name(self, reference: Picture) -> str:
        return str(reference)

    def files(self, reference: Picture) -> list[Path]:
        return []
