"""Decoded samples, kept in one file a split (`finetune.data.slots`).

Decoding the JPEG and PNG files takes longer than augmenting them. Decoded samples are kept here;
the file fills as training goes, and outlives it. A sample without a valid slot is decoded, as
without a cache. If source files have changed, the next run begins the file anew, under another
inode. `_make_room` decides what is let in, and removes files that no process has open.

`datasets`' Arrow files are no substitute: a split is written from front to back by one process
before the first sample is read, and a sample takes three times as long to look up.
"""

import hashlib
import os
import shutil
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal

import cv2
import datasets
import numpy as np
import PIL

from finetune.data.samples import ReadSamples, image_dtypes, reader_of, upright_sizes
from finetune.data.slots import (
    RESERVE,
    Pair,
    Slots,
    SourceFiles,
    begin,
    fingerprint_of,
    gigabytes,
    layout,
)
from finetune.errors import UserError

if os.name == "posix":
    import fcntl

Mode = Literal["auto", "disk", "none"]

_FORMAT = 5
_SUFFIX = ".samples"
_NUM_LOOKED_AT = 16  # rows of a table


class CachedSamples:
    """The Samples of a split of files, by index; each is decoded once if there is a cache.

    What comes from the cache are read-only views of the map.

    The mode "none" decodes every time, "auto" keeps a set that fits, "disk" keeps any.

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
            self.slots = self._open(samples, mode)
        except _TooLargeError as error:
            if mode == "disk":
                remedy = "Make room, or set data.cache=auto."
                raise UserError(f"data.cache=disk: {error}. {remedy}") from error
            self.refusal = str(error)
        except (OSError, ValueError) as error:
            problem = f"{cache_folder()} cannot be used ({error})"
            if mode == "disk":
                remedy = "Set FINETUNE_CACHE to another folder, or set data.cache=none."
                raise UserError(f"data.cache=disk: {problem}. {remedy}") from error
            warnings.warn(f"decoded images are not kept: {problem}", stacklevel=2)

    def __len__(self) -> int:
        return len(self._ids)

    def __getitem__(self, index: int) -> dict[str, Any]:
        image, mask = self._pair(index, self._images[index], self._masks[index])
        return {"image": image, "mask": mask, "id": self._ids[index]}

    def _pair(self, index: int, image: str, mask: str) -> Pair:
        # Asked before the files are read: of one that changes meanwhile, the old time is recorded.
        fingerprint = fingerprint_of(_files(self.reader, image, mask)) if self.slots else None
        if self.slots is None or fingerprint is None:
            return self.reader.read(image, mask)
        pair = self.slots.get(index, fingerprint)
        if pair is None:
            pair = self.reader.read(image, mask)
            self.slots.put(index, fingerprint, *pair)
        return pair

    def _open(self, samples: datasets.Dataset, mode: Mode) -> Slots:
        """Opens the split's file; begins it anew if it is missing, damaged or outdated."""
        if os.name != "posix":
            raise OSError("this system has no shared locks")
        folder, reader = cache_folder(), self.reader
        folder.mkdir(parents=True, exist_ok=True)
        mask_dtype = reader.labels.dtype
        files = [_files(reader, *pair) for pair in zip(self._images, self._masks, strict=True)]
        key = _key(self._images, self._masks, files, reader)
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
        sizes, depth = upright_sizes(samples), image_dtypes(samples)[0].itemsize  # all have one
        header, size = layout(key, sizes, mask_dtype.itemsize, depth, reader.num_channels)
        with _locked(folder):
            newer = there()
            if newer is not None and (slots is None or newer.generation != slots.generation):
                return newer  # another process has begun it in the meantime
            del slots, newer
            _make_room(path, size, mode)
            begin(path, header, size)
            return Slots(path, key, mask_dtype, reader.num_channels)


def describe(*splits: CachedSamples) -> str:
    """One line: where decoded images are, how large that gets, and how to have it otherwise."""
    size = sum(split.slots.size for split in splits if split.slots)
    parts = []
    if size:
        kept = f"decoded images are kept in {cache_folder()}, {gigabytes(size)} when complete"
        parts.append(f"{kept} (data.cache=none keeps none)")
    for refusal in {split.refusal for split in splits if split.refusal}:
        parts.append(f"images are decoded in every epoch: {refusal} (data.cache=disk keeps them)")
    return "; ".join(parts)


def cache_folder() -> Path:
    """`$FINETUNE_CACHE`, or `finetune/decoded` in the user's cache folder."""
    own = os.environ.get("FINETUNE_CACHE")
    shared = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    path = os.path.expanduser(own or os.path.join(shared, "finetune", "decoded"))
    if path.startswith("~"):  # a user without a home
        path = os.path.join(tempfile.gettempdir(), "finetune", "decoded")
    return Path(path).absolute()


class _TooLargeError(Exception):
    """The set is larger than the limits allow."""


def _files(reader: ReadSamples, image: str, mask: str) -> SourceFiles:
    return reader.pictures.files(image), reader.form.files(mask)


def _key(
    images: Sequence[str], masks: Sequence[str], files: Sequence[SourceFiles], reader: ReadSamples
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
        kept = f"{gigabytes(promised)} are kept for other runs that go on"
        raise _TooLargeError(f"{need}, and {kept}: more than {name}, {gigabytes(limit)}")


def _check_limit(folder: Path, size: int, mode: Mode) -> tuple[str, int, str]:
    """What a set takes, what all may take, and what that is.

    Raises:
        _TooLargeError: The set alone is too large.
    """
    taken = sum(file.stat().st_blocks * 512 for file in folder.glob(f"*{_SUFFIX}"))
    free = shutil.disk_usage(folder).free + taken
    need = f"the images decoded take {gigabytes(size)}"
    if mode == "disk":
        limit, name = free - RESERVE, f"the free disk at {folder} less {gigabytes(RESERVE)}"
    else:
        limit, name = free // 4, f"a quarter of the free disk at {folder}"
        if size > (half := _memory() // 2):
            raise _TooLargeError(f"{need}, more than half of the memory, {gigabytes(half)}")
    if size > limit:
        raise _TooLargeError(f"{need}, more than {name}, {gigabytes(max(limit, 0))}")
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
