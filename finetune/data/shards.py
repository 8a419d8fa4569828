"""Parquet files read from anywhere, a few rows at a time: the ground of streaming.

Footers say which row group a row is in, so any range of rows of a sequence of files can be read
without the rows before it. A sequence of samples can be cut and resumed at any place.
"""

import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import fsspec
import pyarrow.parquet as pq

from finetune.errors import UserError, first_line

_NUM_THREADS = 16  # footers wait for the network
_NUM_TRIES = 4  # per connection, 2 + 4 + 8 seconds apart
_NUM_ROWS = 32  # decoded at once
_BUFFER = 2**22  # bytes of a column read at once


@dataclass(frozen=True)
class Shard:
    """A Parquet file: its address, and the rows of each of its row groups."""

    address: str
    row_groups: tuple[int, ...]

    @property
    def num_rows(self) -> int:
        """Rows of all groups."""
        return sum(self.row_groups)

    @property
    def name(self) -> str:
        """The file's name without its type."""
        return Path(self.address).stem


@dataclass(frozen=True)
class Row:
    """A row and its place."""

    shard: Shard
    number: int
    values: dict[str, Any]

    def __str__(self) -> str:
        return f"{self.shard.address}, row {self.number}"


def read_footers(addresses: Sequence[str]) -> list[Shard]:
    """Reads the footers of Parquet files.

    Raises:
        UserError: One cannot be reached, or is not Parquet.
    """

    def footer(address: str) -> Shard:
        with _opened(address) as file:
            return Shard(address, _row_groups(file))

    with ThreadPoolExecutor(_NUM_THREADS) as pool:
        return list(pool.map(footer, addresses))


def read_features(shard: Shard) -> datasets.Features:
    """The kinds of columns of a file, as `datasets` sees them.

    Raises:
        UserError: It cannot be reached.
    """
    with _opened(shard.address) as file:
        return datasets.Features.from_arrow_schema(file.schema_arrow)


def read_rows(
    shards: Sequence[Shard], columns: Sequence[str], first: int, last: int
) -> Iterator[Row]:
    """Rows first to last - 1 of some files, read one after the other.

    Raises:
        UserError: A file cannot be read.
    """
    for shard in shards:
        if first < shard.num_rows and last > 0:
            yield from _insistently(shard, columns, max(first, 0), min(last, shard.num_rows))
        first -= shard.num_rows
        last -= shard.num_rows


def _insistently(shard: Shard, columns: Sequence[str], first: int, last: int) -> Iterator[Row]:
    """Reads on where a connection broke. Local files are tried once."""
    failures = 0
    while first < last:
        try:
            for row in _rows_of(shard, columns, first, last):
                first, failures = row.number + 1, 0
                yield row
        except _NotAsFoundError:
            raise
        except UserError:
            failures += 1
            if "://" not in shard.address or failures == _NUM_TRIES:
                raise
            time.sleep(2**failures)


def _rows_of(shard: Shard, columns: Sequence[str], first: int, last: int) -> Iterator[Row]:
    with _opened(shard.address) as file:
        if _row_groups(file) != shard.row_groups:
            raise _NotAsFoundError(
                f"{shard.address}: its row groups have changed since the start. Start again, or "
                "restore the file."
            )
        if missing := set(columns) - set(file.schema_arrow.names):
            raise _NotAsFoundError(
                f"{shard.address}: has no column {missing.pop()!r}, but other files of the set "
                "have it. Add the column, or remove the file."
            )
        start = 0
        for group, size in enumerate(shard.row_groups):
            if first < start + size and start < last:
                number = start
                for batch in file.iter_batches(_NUM_ROWS, row_groups=[group], columns=[*columns]):
                    low, high = max(first - number, 0), min(last - number, len(batch))
                    if low < high:
                        for i, values in enumerate(batch.slice(low, high - low).to_pylist()):
                            yield Row(shard, number + low + i, values)
                    number += len(batch)
            start += size


def _row_groups(file: pq.ParquetFile) -> tuple[int, ...]:
    return tuple(file.metadata.row_group(i).num_rows for i in range(file.metadata.num_row_groups))


class _NotAsFoundError(UserError):
    """A file has changed: trying again would not help."""


@contextmanager
def _opened(address: str) -> Iterator[pq.ParquetFile]:
    """An open file; errors inside the block name it."""
    try:
        file_system, path = fsspec.core.url_to_fs(address)
        # Parquet's reader asks for large pieces itself: reading ahead is waste.
        options = {} if "file" in file_system.protocol else {"cache_type": "none"}
        with file_system.open(path, "rb", **options) as file:
            # Buffered, because a column of a row group may be gigabytes.
            yield pq.ParquetFile(file, buffer_size=_BUFFER)
    except UserError:
        raise
    except Exception as error:  # each file system raises its own
        raise UserError(f"{address}: cannot be read as Parquet ({first_line(error)}).") from error
