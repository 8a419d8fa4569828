"""Decoded samples, kept in one memory-mapped file a split that all processes share.

Decoding the JPEG and PNG files takes longer than augmenting them. Decoded samples are kept here;
the file fills as training goes, and outlives it. The rules:

- A slot is filled with pixels first, then, in one write, with a record: the checksum of the pixels,
  size and time of the source files, and a checksum of its own. A process that is killed in between
  leaves an empty slot; two processes that fill one slot at once write the same bytes.
- A slot counts if its record is whole, the source files are the recorded ones and the pixels have
  their checksum (computed once a process). Other samples are decoded, as without a cache. A slot
  of an older source file is never overwritten, since another process may be reading it: the next
  run begins the file anew, under another inode.
- Pixels are written by pwrite, never through the map: a full disk is then an error that can be
  caught, and ends caching with one warning. A store into the map would kill the process.
- `_make_room` decides what is let in, and removes files that no process has open.

`datasets`' Arrow files are no substitute: a split is written from front to back by one process
before the first sample is read, and a sample takes three times as long to look up.
"""

import errno
import hashlib
import mmap
import multiprocessing
import os
import shutil
import struct
import tempfile
import warnings
import weakref
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal

import cv2
import datasets
import numpy as np
import PIL

from finetune.data.samples import ReadSamples, image_dtypes, reader_of, upright_sizes
from finetune.errors import UserError

if os.name == "posix":
    import fcntl

Mode = Literal["auto", "disk", "none"]
Pair = tuple[np.ndarray, np.ndarray]
"""Image uint8 or uint16 (H, W, C) and mask of class ids (H, W)."""
Fingerprint = tuple[int, int, int, int]
"""Size and time (ns) of the files of the image, then of the mask."""
SourceFiles = tuple[list[Path], list[Path]]
"""Those of the image, those of the mask."""

RESERVE = 2**30
"""Bytes of the disk that are left to checkpoints and everybody else."""

_FORMAT = 4
_SUFFIX = ".samples"
_ALIGNMENT = 64  # of slots, in bytes
_NUM_LOOKED_AT = 16  # rows of a table
_NUM_THREADS = 8  # asking for the times of files waits for the disk
_HEADER = struct.Struct("<32sQQQI")  # key, bytes a value of images, slots, file size, checksum
_TABLE = np.dtype([("start", "<u8"), ("height", "<u4"), ("width", "<u4")])
_RECORD = struct.Struct("<4qII")  # fingerprint, checksum of the pixels, of this record


class CachedSamples:
    """The Samples of a split of files, by index; each is decoded once if there is a cache.

    What comes from the cache are read-only views of the map.

    Args:
        samples: From `finetune.data.samples.as_samples`.
        mode: "none" decodes every time, "auto" keeps a set that fits, "disk" keeps any.

    Raises:
        UserError: A file's header is bad; or the mode is "disk" and the disk is too small, or the
            folder of no use.
    """

    def __init__(self, samples: datasets.Dataset, mode: Mode) -> None:
        self.reader = reader_of(samples)
        rows = samples.with_format(None)
        # Lists: a row of a datasets.Dataset takes as long as a tenth of the augmentation.
        self._images, self._masks = list(rows["image"]), list(rows["mask"])
        self._ids = list(rows["id"])
        self.slots: Slots | None = None
        self.refusal = ""
        """Why "auto" keeps nothing, if the set does not fit."""
        if mode == "none":
            return
        try:
            self.slots = _open_slots(samples, mode)
        except _TooLargeError as error:
            if mode == "disk":
                raise UserError(f"data.cache=disk: {error}. Make room, or take auto.") from error
            self.refusal = str(error)
        except (OSError, ValueError) as error:
            problem = f"{cache_folder()} cannot be used ({error})"
            if mode == "disk":
                raise UserError(
                    f"data.cache=disk: {problem}. Set FINETUNE_CACHE to another folder, or take "
                    "data.cache=none."
                ) from error
            warnings.warn(f"decoded images are not kept: {problem}", stacklevel=2)

    def __len__(self) -> int:
        return len(self._ids)

    def __getitem__(self, index: int) -> dict[str, Any]:
        image, mask = self._pair(index, self._images[index], self._masks[index])
        return {"image": image, "mask": mask, "id": self._ids[index]}

    def _pair(self, index: int, image: str, mask: str) -> Pair:
        # Asked before the files are read: of one that changes meanwhile, the old time is recorded.
        fingerprint = _fingerprint(_files(self.reader, image, mask)) if self.slots else None
        if self.slots is None or fingerprint is None:
            return self.reader.read(image, mask)
        pair = self.slots.get(index, fingerprint)
        if pair is None:
            pair = self.reader.read(image, mask)
            self.slots.put(index, fingerprint, *pair)
        return pair


def describe(*splits: CachedSamples) -> str:
    """One line: where decoded images are, how large that gets, and how to have it otherwise."""
    size = sum(split.slots.size for split in splits if split.slots)
    parts = []
    if size:
        parts.append(
            f"decoded images are kept in {cache_folder()}, {_gigabytes(size)} when all are there "
            "(data.cache=none: never)"
        )
    for refusal in {split.refusal for split in splits if split.refusal}:
        parts.append(f"decoded anew in every epoch: {refusal} (data.cache=disk: kept all the same)")
    return "; ".join(parts)


def cache_folder() -> Path:
    """`$FINETUNE_CACHE`, or `finetune/decoded` in the user's cache folder."""
    own = os.environ.get("FINETUNE_CACHE")
    shared = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    path = os.path.expanduser(own or os.path.join(shared, "finetune", "decoded"))
    if path.startswith("~"):  # a user without a home
        path = os.path.join(tempfile.gettempdir(), "finetune", "decoded")
    return Path(path).absolute()


# -------------------------------------------------------------------------------------- one file


class Slots:
    """An open file of decoded samples, locked as in use. Goes along with fork and spawn.

    Header, table of places and sizes, records, pixels (each mask before its image). The file has
    its full length from the start; empty slots take no room on the disk.

    Args:
        path: The file.
        key: The identity it must have.
        mask_dtype: Of the masks.
        channels: Of the images.

    Raises:
        OSError: It cannot be opened.
        ValueError: It is damaged, of another format or another identity.
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
            raise ValueError(f"{path}: cut short")
        found, depth, count, self.size, checksum = _HEADER.unpack(header)
        status = os.fstat(self._descriptor)
        self.generation = status.st_ino  # while it is open, no other file can have the number
        if found != key or status.st_size != self.size:
            raise ValueError(f"{path}: of another set, or cut short")
        table = os.pread(self._descriptor, count * _TABLE.itemsize, _HEADER.size)
        if zlib.crc32(table, zlib.crc32(header[:-4])) != checksum:
            raise ValueError(f"{path}: damaged")
        self.image_dtype = np.dtype(f"u{depth}")
        self._table = np.frombuffer(table, _TABLE)
        self._records = _HEADER.size + len(table)
        self._map = mmap.mmap(self._descriptor, self.size, access=mmap.ACCESS_READ)

    def __reduce__(self) -> tuple[Any, ...]:
        arguments = (self.path, self.key, self.mask_dtype, self.channels)
        return _reopen, (*arguments, self.generation, self._stopped)

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
                raise OSError(errno.ENOSPC, f"less than {_gigabytes(RESERVE)} are free")
            self._write(mask, start)
            self._write(image, _aligned(start + mask.nbytes))
            whole = content + zlib.crc32(content, index).to_bytes(4, "little")
            self._write(whole, self._records + index * _RECORD.size)
        except OSError as error:
            if not self._stopped.value:
                self._stopped.value = 1
                warnings.warn(
                    f"no more decoded images are kept: {self.path.parent} ({error.strerror}). "
                    "Those that are missing are decoded every time; data.cache=none keeps none",
                    stacklevel=2,
                )

    def is_outdated(self, files: Sequence[SourceFiles]) -> bool:
        """Whether a slot is damaged, or filled from files that have changed since."""

        def is_outdated(index: int) -> bool:
            # Twice: one that another process is writing may be seen in part.
            record = self._record(index) or self._record(index)
            if record is None:
                return any(self._record_bytes(index))
            return record[0] != _fingerprint(files[index])

        parts = [range(first, len(files), _NUM_THREADS) for first in range(_NUM_THREADS)]
        with ThreadPoolExecutor(_NUM_THREADS) as pool:
            return any(pool.map(lambda part: any(map(is_outdated, part)), parts))

    def _record(self, index: int) -> tuple[Fingerprint, int] | None:
        """Fingerprint and checksum of a filled slot."""
        data = self._record_bytes(index)
        *fingerprint, pixels, own = _RECORD.unpack(data)
        if own != zlib.crc32(data[:-4], index):
            return None
        image_size, image_time, mask_size, mask_time = fingerprint
        return (image_size, image_time, mask_size, mask_time), pixels

    def _record_bytes(self, index: int) -> bytes:
        # Not through the map: on a full tmpfs even reading a hole of it kills the process.
        return os.pread(self._descriptor, _RECORD.size, self._records + index * _RECORD.size)

    def _write(self, data: Any, position: int) -> None:
        view = memoryview(data).cast("B")
        while view:  # a disk that gets full takes a part, and refuses the rest
            written = os.pwrite(self._descriptor, view, position)
            view, position = view[written:], position + written


def _reopen(
    path: Path, key: bytes, mask_dtype: np.dtype, channels: int, generation: int, stopped: Any
) -> Slots | None:
    """The same file in another process; None if it has been replaced."""
    with suppress(OSError, ValueError):
        slots = Slots(path, key, mask_dtype, channels)
        slots._stopped = stopped
        return slots if slots.generation == generation else None
    return None


def _files(reader: ReadSamples, image: str, mask: str) -> SourceFiles:
    return reader.pictures.files(image), reader.form.files(mask)


def _fingerprint(files: SourceFiles) -> Fingerprint | None:
    """Of several files the sums; None if one is gone, which reading it says better."""
    sums: list[int] = []
    try:
        for paths in files:
            stats = [os.stat(path) for path in paths]
            sums += [sum(s.st_size for s in stats), sum(s.st_mtime_ns for s in stats) % 2**63]
    except OSError:
        return None
    image_size, image_time, mask_size, mask_time = sums
    return image_size, image_time, mask_size, mask_time


# ------------------------------------------------------------------------------------ the folder


class _TooLargeError(Exception):
    """The set is larger than the limits allow."""


def _open_slots(samples: datasets.Dataset, mode: Mode) -> Slots:
    """Opens the file of a split, and begins it if it is not there, damaged or outdated."""
    if os.name != "posix":
        raise OSError("this system has no shared locks")
    folder = cache_folder()
    folder.mkdir(parents=True, exist_ok=True)
    reader, rows = reader_of(samples), samples.with_format(None)
    images, masks = list(rows["image"]), list(rows["mask"])
    mask_dtype = reader.labels.dtype
    files = [_files(reader, *pair) for pair in zip(images, masks, strict=True)]
    key = _key(images, masks, files, reader)
    path = folder / f"{key.hex()[:32]}{_SUFFIX}"

    def there() -> Slots | None:
        with suppress(FileNotFoundError, ValueError):
            slots = Slots(path, key, mask_dtype, reader.num_channels)
            os.utime(path)  # used last
            return slots
        return None

    with _locked(folder):
        slots = there()
    if slots is not None and not slots.is_outdated(files):
        return slots
    if not files[0][0]:
        _check_limit(folder, _estimate(samples), mode)
    # Without the lock: a large set on a slow disk takes minutes, and nobody else is to wait.
    sizes, depth = upright_sizes(samples), image_dtypes(samples)[0].itemsize  # all have one depth
    header, size = _layout(key, sizes, mask_dtype.itemsize, depth, reader.num_channels)
    with _locked(folder):
        newer = there()
        if newer is not None and (slots is None or newer.generation != slots.generation):
            return newer  # of another process, as this one found out that there is none
        del slots, newer
        _make_room(path, size, mode)
        _begin(path, header, size)
        return Slots(path, key, mask_dtype, reader.num_channels)


def _key(
    images: Sequence[str],
    masks: Sequence[str],
    files: Sequence[SourceFiles],
    reader: ReadSamples,
) -> bytes:
    """What a set is: its files, what its mask values mean, and who decodes."""
    labels = reader.labels
    versions = (_FORMAT, PIL.__version__, cv2.__version__)
    meaning = (labels.num_labels, labels.rules, labels.ignores_unknown, labels.tolerance)
    forms = (reader.form, reader.pictures, reader.num_channels)
    digest = hashlib.sha256(repr((versions, meaning, forms)).encode())
    for image, mask, (image_files, mask_files) in zip(images, masks, files, strict=True):
        paths = [os.path.abspath(path) for path in (*image_files, *mask_files)]
        # What is no path says what the picture is.
        paths += [ref for ref in (image, mask) if Path(ref) not in (*image_files, *mask_files)]
        digest.update(os.fsencode("\0".join(paths)) + b"\0\0")
    return digest.digest()


def _layout(
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


def _begin(path: Path, header: bytes, size: int) -> None:
    """Writes an empty file aside and renames it: whoever reads the old one keeps that."""
    new = path.with_suffix(".new")
    with open(new, "wb") as file:
        file.write(header)
        file.truncate(size)
    os.replace(new, path)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """One process at a time looks for a file, begins one or removes others."""
    descriptor = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _make_room(path: Path, size: int, mode: Mode) -> None:
    """Lets a new file of `size` in, if need be in place of others, the least recently used first.

    All files together may grow to a quarter of what the disk would have free without them ("disk":
    to all but RESERVE). And a set that is kept without being asked for must fit into half of the
    memory: a larger one is read from the disk again and again, at 30 times the bytes of its JPEGs,
    which few disks deliver as fast as cores decode. Files in use stay.

    Raises:
        _TooLargeError: It does not fit.
    """
    files = {file: file.stat() for file in path.parent.glob(f"*{_SUFFIX}")}
    need, limit, name = _check_limit(path.parent, size, mode)
    others = sorted(files.keys() - {path}, key=lambda file: files[file].st_mtime_ns)
    promised = sum(files[file].st_size for file in others)
    for file in others:
        if size + promised <= limit:
            return
        if _removed(file):
            promised -= files[file].st_size
    if size + promised > limit:
        raise _TooLargeError(
            f"{need}, and {_gigabytes(promised)} are kept for other runs that go on: more than "
            f"{name}, {_gigabytes(limit)}"
        )


def _check_limit(folder: Path, size: int, mode: Mode) -> tuple[str, int, str]:
    """What a set takes, what all may take, and what that is.

    Raises:
        _TooLargeError: The set alone is too large.
    """
    taken = sum(file.stat().st_blocks * 512 for file in folder.glob(f"*{_SUFFIX}"))
    free = shutil.disk_usage(folder).free + taken
    need = f"the images decoded take {_gigabytes(size)}"
    if mode == "disk":
        limit, name = free - RESERVE, f"the free disk at {folder} less {_gigabytes(RESERVE)}"
    else:
        limit, name = free // 4, f"a quarter of the free disk at {folder}"
        if size > (half := _memory() // 2):
            raise _TooLargeError(f"{need}, more than half of the memory, {_gigabytes(half)}")
    if size > limit:
        raise _TooLargeError(f"{need}, more than {name}, {_gigabytes(max(limit, 0))}")
    return need, limit, name


def _estimate(samples: datasets.Dataset) -> int:
    """Bytes that a table takes decoded, by some of its rows: each header costs a whole row."""
    spread = np.linspace(0, len(samples) - 1, min(_NUM_LOOKED_AT, len(samples)))
    reader, some = reader_of(samples), samples.select(sorted({int(i) for i in spread}))
    pixels = sum(height * width for height, width in upright_sizes(some))
    return pixels * (reader.num_channels + 1) * len(samples) // len(some)


def _removed(file: Path) -> bool:
    """Removes a file unless somebody uses it."""
    try:
        descriptor = os.open(file, os.O_RDWR)  # NFS locks nothing that cannot be written
    except OSError:  # somebody else's
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        file.unlink()
        return True
    except OSError:
        return False
    finally:
        os.close(descriptor)


def _memory() -> int:
    """Bytes of memory that this machine, or this container, has."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for limit in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        with suppress(OSError, ValueError):  # not there, or "max"
            total = min(total, int(Path(limit).read_text()))
    return total


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 5e7 else f"{size / 1e6:.1f} MB"
