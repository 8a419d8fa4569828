"""One memory-mapped file of decoded samples, which all processes share.

- A slot is filled with pixels first, then, in one write, with a record: size and time of the source
  files, the checksum of the pixels, and a checksum of its own. A process that is killed in between
  leaves an empty slot; two processes that fill one slot at once write the same bytes.
- A slot counts if its record is whole, the source files are the recorded ones and the pixels have
  their checksum (computed once a process). A slot of an older source file is never overwritten,
  since another process may be reading it.
- Pixels are written by pwrite, never through the map: a full disk is then an error that can be
  caught, and ends caching with one warning. A store into the map would kill the process.
"""

import errno
import mmap
import multiprocessing
import os
import struct
import warnings
import weakref
import zlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

if os.name == "posix":
    import fcntl

Pair = tuple[np.ndarray, np.ndarray]
"""Image uint8 or uint16 (H, W, C) and mask of class ids (H, W)."""
Fingerprint = tuple[int, ...]
"""Size and time (ns) of the files of the image, then of the mask."""
SourceFiles = tuple[list[Path], list[Path]]
"""Those of the image, those of the mask."""

RESERVE = 2**30
"""Bytes of the disk that are left to checkpoints and everybody else."""

_ALIGNMENT = 64  # of slots, in bytes
_NUM_THREADS = 8  # asking for the times of files waits for the disk
_HEADER = struct.Struct("<32sQQQI")  # key, bytes a value of images, slots, file size, checksum
_TABLE = np.dtype([("start", "<u8"), ("height", "<u4"), ("width", "<u4")])
_RECORD = struct.Struct("<4qII")  # fingerprint, checksum of the pixels, of this record


class Slots:
    """An open file of decoded samples, locked as in use. Goes along with fork and spawn.

    Header, table of places and sizes, records, pixels (each mask before its image). The file has
    its full length from the start; empty slots take no room on the disk.

    Raises:
        OSError: The file cannot be opened.
        ValueError: It is damaged, of another format, or has another `key`.
    """

    def __init__(self, path: Path, key: bytes, mask_dtype: np.dtype, channels: int) -> None:
        self.path, self.key, self.mask_dtype, self.channels = path, key, mask_dtype, channels
        self._stopped = multiprocessing.RawValue("b", 0)  # shared with workers: one warning in all
        self._verified: set[int] = set()
        self._descriptor = os.open(path, os.O_RDWR)
        weakref.finalize(self, os.close, self._descriptor)
        fcntl.flock(self._descriptor, fcntl.LOCK_SH)
        header = os.pread(self._descriptor, _HEADER.size, 0)
        if len(header) < _HEADER.size:
            raise ValueError(f"{path}: is cut short")
        found, depth, count, self.size, checksum = _HEADER.unpack(header)
        status = os.fstat(self._descriptor)
        self.generation = status.st_ino  # while it is open, no other file can have the number
        if found != key or status.st_size != self.size:
            raise ValueError(f"{path}: belongs to another set, or is cut short")
        table = os.pread(self._descriptor, count * _TABLE.itemsize, _HEADER.size)
        if zlib.crc32(table, zlib.crc32(header[:-4])) != checksum:
            raise ValueError(f"{path}: is damaged")
        self.image_dtype = np.dtype(f"u{depth}")
        self._table = np.frombuffer(table, _TABLE)
        self._records = _HEADER.size + len(table)
        self._map = mmap.mmap(self._descriptor, self.size, access=mmap.ACCESS_READ)

    def __reduce__(self) -> tuple[Any, ...]:
        own = (self.path, self.key, self.mask_dtype, self.channels)
        return _reopen, (self.generation, self._stopped, *own)

    def get(self, index: int, fingerprint: Fingerprint) -> Pair | None:
        """The image and the mask of a slot, if they were decoded from these very files."""
        record = self._record(index)
        if record is None or record[0] != fingerprint:
            return None
        start, height, width = self._table[index].item()
        area = height * width
        mask = np.frombuffer(self._map, self.mask_dtype, area, start)
        after = _aligned(start + mask.nbytes)
        image = np.frombuffer(self._map, self.image_dtype, area * self.channels, after)
        if index not in self._verified:
            if zlib.crc32(image.data, zlib.crc32(mask.data)) != record[1]:
                return None
            self._verified.add(index)
        return image.reshape(height, width, self.channels), mask.reshape(height, width)

    def put(
        self, index: int, fingerprint: Fingerprint, image: np.ndarray, mask: np.ndarray
    ) -> None:
        """Fills a slot that is empty or damaged; a sample of another size is not kept."""
        start, height, width = self._table[index].item()
        record = self._record(index)
        outdated = record is not None and record[0] != fingerprint
        fits = (image.shape, image.dtype) == ((height, width, self.channels), self.image_dtype)
        if self._stopped.value or outdated or not fits:
            return
        image, mask = np.ascontiguousarray(image), np.ascontiguousarray(mask, self.mask_dtype)
        content = struct.pack("<4qI", *fingerprint, zlib.crc32(image.data, zlib.crc32(mask.data)))
        try:
            disk = os.fstatvfs(self._descriptor)
            if disk.f_bavail * disk.f_frsize < RESERVE:
                raise OSError(errno.ENOSPC, f"less than {gigabytes(RESERVE)} are free")
            self._write(mask, start)
            self._write(image, _aligned(start + mask.nbytes))
            whole = content + zlib.crc32(content, index).to_bytes(4, "little")
            self._write(whole, self._records + index * _RECORD.size)
        except OSError as error:
            if not self._stopped.value:
                self._stopped.value = 1
                warnings.warn(
                    f"no more decoded images are kept in {self.path.parent}: {error.strerror}. "
                    "The missing ones are decoded every time; data.cache=none keeps none",
                    stacklevel=2,
                )

    def is_outdated(self, files: Sequence[SourceFiles]) -> bool:
        """Whether a slot is damaged, or its files have changed since it was filled."""

        def is_outdated(index: int) -> bool:
            # Twice: one that another process is writing may be seen in part.
            record = self._record(index) or self._record(index)
            if record is None:
                return any(self._record_bytes(index))
            return record[0] != fingerprint_of(files[index])

        parts = [range(first, len(files), _NUM_THREADS) for first in range(_NUM_THREADS)]
        with ThreadPoolExecutor(_NUM_THREADS) as pool:
            return any(pool.map(lambda part: any(map(is_outdated, part)), parts))

    def _record(self, index: int) -> tuple[Fingerprint, int] | None:
        """Fingerprint and checksum of a filled slot."""
        data = self._record_bytes(index)
        *fingerprint, pixels, own = _RECORD.unpack(data)
        return (tuple(fingerprint), pixels) if own == zlib.crc32(data[:-4], index) else None

    def _record_bytes(self, index: int) -> bytes:
        # Not through the map: on a full tmpfs even reading a hole of it kills the process.
        return os.pread(self._descriptor, _RECORD.size, self._records + index * _RECORD.size)

    def _write(self, data: Any, position: int) -> None:
        view = memoryview(data).cast("B")
        while view:  # a disk that gets full takes a part, and refuses the rest
            written = os.pwrite(self._descriptor, view, position)
            view, position = view[written:], position + written


def _reopen(generation: int, stopped: Any, *arguments: Any) -> Slots | None:
    """The same file in another process; None if it has been replaced."""
    with suppress(OSError, ValueError):
        slots = Slots(*arguments)
        slots._stopped = stopped
        return slots if slots.generation == generation else None
    return None


def fingerprint_of(files: SourceFiles) -> Fingerprint | None:
    """The sums over several files; None if one is gone, which reading it says better."""
    found: Fingerprint = ()
    try:
        for paths in files:
            stats = [os.stat(path) for path in paths]
            found += sum(s.st_size for s in stats), sum(s.st_mtime_ns for s in stats) % 2**63
    except OSError:
        return None
    return found


def layout(
    key: bytes, sizes: Sequence[tuple[int, int]], mask_depth: int, depth: int, channels: int
) -> tuple[bytes, int]:
    """Header and table of a new file, and its length; depths are in bytes a value."""
    position = _aligned(_HEADER.size + len(sizes) * (_TABLE.itemsize + _RECORD.size))
    table = np.empty(len(sizes), _TABLE)
    for index, (height, width) in enumerate(sizes):
        table[index] = position, height, width
        image = _aligned(position + height * width * mask_depth)
        position = _aligned(image + height * width * channels * depth)
    fields = struct.pack("<32sQQQ", key, depth, len(sizes), position)
    checksum = zlib.crc32(table.tobytes(), zlib.crc32(fields))
    return fields + checksum.to_bytes(4, "little") + table.tobytes(), position


def _aligned(position: int) -> int:
    return -(-position // _ALIGNMENT) * _ALIGNMENT


def begin(path: Path, header: bytes, size: int) -> None:
    """Writes an empty file aside and renames it: whoever reads the old one keeps that."""
    new = path.with_suffix(".new")
    with open(new, "wb") as file:
        file.write(header)
        file.truncate(size)
    os.replace(new, path)


def gigabytes(size: int) -> str:
    """A number of bytes, for messages."""
    return f"{size / 1e9:.1f} GB" if size >= 5e7 else f"{size / 1e6:.1f} MB"
