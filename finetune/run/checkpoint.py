"""Checkpoints of complete training states, written atomically and verified before use.

A checkpoint is a folder `step-00000120/` with a file `<name>.pt` of `torch.save` for each named
state, and `manifest.json` with the size and checksum of each file. Only files in the manifest are
opened, and `torch.load(weights_only=True)` runs no code in them.

After a kill, a full disk or a power cut, each folder `step-*` is whole, or `latest` reports the
damage and takes the one before. Hidden folders are unfinished: `.step-*.tmp` is being written,
`.*.trash` is being deleted, `.*.old` is waiting for its replacement (see `swap_folder`).
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
import warnings
from collections import OrderedDict
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, TypedDict, cast

import numpy as np
import torch
from torch import Tensor

from finetune.disk import discard, measure, recover, swap_folder, sync_folder
from finetune.errors import UserError
from finetune.run.processes import agree

FORMAT = 2
MANIFEST = "manifest.json"

# Classes in the pickles of numpy's arrays and numbers, in addition to those that torch allows.
NUMPY_GLOBALS: list[Any] = [
    *(np.ndarray, np.dtype, np.zeros(1).__reduce__()[0], np.float64().__reduce__()[0]),
    *{type(np.dtype(code)) for code in np.typecodes["AllInteger"] + np.typecodes["AllFloat"] + "?"},
]

REMEDIES = {
    errno.ENOSPC: "free some space there, or let `output` point to another disk",
    errno.EDQUOT: "your quota is used up: free some space, or let `output` point elsewhere",
    errno.EACCES: "make the folder writable, or let `output` point elsewhere",
    errno.EPERM: "make the folder writable, or let `output` point elsewhere",
    errno.EROFS: "the file system is read-only: let `output` point elsewhere",
}


class Meta(TypedDict):
    """The caller's facts about a checkpoint."""

    samples_seen: int
    world_size: int
    threads: int
    recipe_hash: str


class FileEntry(TypedDict):
    """The manifest's entry for one file."""

    size: int
    sha256: str


class Manifest(Meta):
    """`manifest.json`; `sha256` is the checksum of the rest of the manifest."""

    format: int
    step: int
    files: dict[str, FileEntry]
    sha256: str


class DamagedError(UserError):
    """A checkpoint that has changed since it was written; names the folder and the file."""

    def __init__(self, folder: Path, what: str) -> None:
        super().__init__(f"checkpoint {folder} is damaged: {what}")


# --- Saving -----------------------------------------------------------------------------------


def save(
    root: Path,
    step: int,
    states: Mapping[str, Any],
    *,
    meta: Meta,
    rank: int = 0,
    agree: Callable[[str], object] = agree,
) -> Path:
    """Writes one checkpoint; every rank calls it, on one shared file system.

    Rank 0 writes every state. Other ranks write only the state `rng`: rank r writes it as
    `rng-0000r`, and `load` gives it back as `rng`.

    Args:
        root: The folder of the checkpoints; made if it is missing.
        step: Optimiser steps done. A checkpoint of the same step is replaced.
        states: Trees of dict, list, tuple, int, float (NaN and infinities too), bool, str, None,
            numpy arrays and tensors on any device; tied tensors stay tied.
        meta: Goes into the manifest as it is.
        rank: The rank of this process.
        agree: Every rank calls it after each phase with its error, or "". It returns when all have
            called it, and raises a UserError on every rank if any rank had an error. So no rank
            goes on with a checkpoint that another could not write.

    Returns:
        The checkpoint's folder.

    Raises:
        UserError: A file cannot be written; names the file and the remedy. Older checkpoints are
            untouched, and no half-written files stay.
        TypeError: A state holds another type; names its place.
    """
    folder = root / f"step-{step:08d}"
    temp = root / f".{folder.name}.tmp"
    entries: dict[str, FileEntry] = {}

    def prepare() -> None:
        if rank == 0:
            root.mkdir(parents=True, exist_ok=True)
            _sweep(root)
            temp.mkdir()

    def write() -> None:
        for name, state in states.items():
            if name == "rng" or rank == 0:
                _refuse_others(state, name)
                file = _rng_file(rank) if name == "rng" else f"{name}.pt"
                entries[file] = _write_file(temp / file, partial(torch.save, state))

    def commit() -> None:
        if rank != 0:
            return
        for other in range(1, meta["world_size"] if "rng" in states else 1):
            size, checksum = measure(temp / _rng_file(other))
            entries[_rng_file(other)] = {"size": size, "sha256": checksum}
        manifest = {"format": FORMAT, "step": step, **meta, "files": entries}
        manifest["sha256"] = _checksum(manifest)
        text = json.dumps(manifest, indent=2).encode()
        _write_file(temp / MANIFEST, lambda out: out.write(text))
        sync_folder(temp)
        swap_folder(temp, folder)

    try:
        for phase in (prepare, write, commit):
            problem = ""
            try:
                phase()
            except OSError as error:
                problem = _cannot_write(error, folder)
            agree(problem)
    except BaseException:
        if rank == 0:
            shutil.rmtree(temp, ignore_errors=True)
        raise
    return folder


class _Hashed:
    """A file for `torch.save`, which takes the checksum of what it is given."""

    def __init__(self, file: Any):
        self.file, self.digest, self.size = file, hashlib.sha256(), 0
        self.flush = file.flush
        self.error: OSError | None = None

    def write(self, data: Any) -> int:
        self.digest.update(data)
        self.size += len(data)
        try:
            return self.file.write(data)
        except OSError as error:
            self.error = error  # torch.save goes on to an error of its own
            raise


def _write_file(path: Path, write: Callable[[Any], object]) -> FileEntry:
    """Calls `write` on a new file and syncs it to disk; removes the file after an error."""
    hashed: _Hashed | None = None
    try:
        with open(path, "wb") as file:
            hashed = _Hashed(file)
            write(hashed)
            file.flush()
            os.fsync(file.fileno())
    except (OSError, RuntimeError) as found:
        path.unlink(missing_ok=True)
        error = found if hashed is None else hashed.error or found
        if not isinstance(error, OSError):
            raise
        error.filename = error.filename or str(path)  # the error of a write has no file name
        raise error from None
    return {"size": hashed.size, "sha256": hashed.digest.hexdigest()}


def _refuse_others(value: Any, path: str) -> None:
    """Raises a TypeError for values that `load` would refuse; torch.save pickles everything."""
    if type(value) in (dict, OrderedDict):
        for key, item in value.items():
            _refuse_others(key, path)
            _refuse_others(item, f"{path}.{key}")
    elif type(value) in (list, tuple, torch.Size):
        for index, item in enumerate(value):
            _refuse_others(item, f"{path}.{index}")
    elif isinstance(value, np.ndarray | np.generic):
        if value.dtype.kind not in "biufc":
            raise TypeError(f"{path}: a checkpoint cannot hold numpy's {value.dtype}")
    elif type(value) not in (type(None), bool, int, float, str) and not isinstance(value, Tensor):
        raise TypeError(f"{path}: a checkpoint cannot hold {type(value).__name__}")


def _cannot_write(error: OSError, folder: Path) -> str:
    remedy = REMEDIES.get(error.errno or 0, "check the disk, or let `output` point elsewhere")
    return (
        f"cannot write checkpoint {folder}: {error.strerror or error} "
        f"({error.filename or folder}); {remedy}. The checkpoints before it are whole"
    )


# --- Loading ----------------------------------------------------------------------------------


def latest(root: Path) -> Path | None:
    """The newest checkpoint under `root` that verifies, or None.

    It warns of a damaged checkpoint, with its folder and file, and tries the one before.

    Raises:
        UserError: Another version of this package wrote the newest one.
    """
    for folder in _checkpoints(root):
        try:
            verify(folder)
        except DamagedError as damage:
            warnings.warn(f"{damage}; taking the one before it", stacklevel=2)
        else:
            return folder
    return None


def verify(folder: Path) -> Manifest:
    """Reads the manifest and checks every file against it; raises as `load`."""
    manifest = _read_manifest(folder)
    for file, entry in manifest["files"].items():
        _check(folder, file, entry)
    return manifest


def load(folder: Path, rank: int = 0) -> tuple[Manifest, dict[str, Any]]:
    """Reads a checkpoint, with tensors on the CPU.

    The random state of `rank` is returned as `rng`; it is absent if the rank did not exist when the
    checkpoint was written.

    Raises:
        DamagedError: A file is missing or has changed since it was written.
        UserError: Another version of this package wrote it.
    """
    manifest = _read_manifest(folder)
    states = {}
    for file, entry in manifest["files"].items():
        name = file.removesuffix(".pt")
        if name.startswith("rng-"):
            if file != _rng_file(rank):
                continue
            name = "rng"
        _check(folder, file, entry)
        try:
            with torch.serialization.safe_globals(NUMPY_GLOBALS):
                states[name] = torch.load(folder / file, map_location="cpu", weights_only=True)
        except Exception as error:  # a forged file may raise anything
            raise DamagedError(folder, f"{file} holds no state") from error
    return manifest, states


def _read_manifest(folder: Path) -> Manifest:
    try:
        manifest = json.loads((folder / MANIFEST).read_bytes())
        version, checksum = manifest["format"], manifest.pop("sha256")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DamagedError(folder, f"{MANIFEST} is missing or cut off") from error
    if isinstance(version, int) and version != FORMAT:
        remedy = "go on with the version that wrote it, or let `output` name a new folder"
        if version > FORMAT:
            remedy = "upgrade finetune to go on from it"
        raise UserError(
            f"checkpoint {folder} has format {version}, but this version of finetune reads "
            f"{FORMAT}: {remedy}"
        )
    if checksum != _checksum(manifest):
        raise DamagedError(folder, f"{MANIFEST} does not match its checksum")
    return cast(Manifest, {**manifest, "sha256": checksum})


def _check(folder: Path, file: str, entry: FileEntry) -> None:
    try:
        size, checksum = measure(folder / file)
    except OSError as error:
        raise DamagedError(folder, f"{file}: {error.strerror}") from error
    if size != entry["size"]:
        raise DamagedError(folder, f"{file} has {size} of {entry['size']} bytes")
    if checksum != entry["sha256"]:
        raise DamagedError(folder, f"{file} does not match its checksum")


# --- Folders ----------------------------------------------------------------------------------


def prune(root: Path, keep: int) -> None:
    """Deletes old checkpoints; keeps the newest `keep` and the newest that verifies."""
    folders = _checkpoints(root)
    survivors = set(folders[:keep])
    for folder in folders:
        with contextlib.suppress(UserError):
            verify(folder)
            survivors.add(folder)
            break
    for folder in folders:
        if folder not in survivors:
            discard(folder)


def _sweep(root: Path) -> None:
    """Removes what killed writers left."""
    for old in root.glob(".step-*.old"):
        recover(root / old.name.removeprefix(".").removesuffix(".old"))
    for leftover in [*root.glob(".step-*.tmp"), *root.glob(".step-*.trash")]:
        shutil.rmtree(leftover)


def _checkpoints(root: Path) -> list[Path]:
    """Folders with a checkpoint's name, newest first.

    If the replacement of a checkpoint was killed, the old one counts, under its `.old` name.
    """
    pattern = "step-" + "[0-9]" * 8
    by_name = {folder.name: folder for folder in root.glob(pattern)}
    for old in root.glob(f".{pattern}.old"):
        by_name.setdefault(old.name[1 : -len(".old")], old)
    return [by_name[name] for name in sorted(by_name, reverse=True)]


def _rng_file(rank: int) -> str:
    return f"rng-{rank:05d}.pt"


def _checksum(manifest: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()
