"""Complete training states: written aside, renamed into place whole, verified before use.

One checkpoint is a folder `step-00000120/` with a file `<name>.pt` for each named state, as
`torch.save` writes it, and `manifest.json` with the sizes and checksums of them all. Only files
that the manifest names are opened, and `torch.load(weights_only=True)` runs nothing in them.

After a kill, a full disk or a power cut, each folder `step-*` is whole, or `latest` says what is
wrong with it and takes the one before. Hidden neighbours are unfinished: `.step-*.tmp` is being
written, `.*.trash` is being deleted, `.*.old` is waiting for its replacement (see `swap_folder`).
"""

from __future__ import annotations

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

FORMAT = 2
MANIFEST = "manifest.json"

# What numpy's arrays and numbers are pickled with, beside what torch allows.
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
    """What the caller says about a checkpoint."""

    samples_seen: int
    world_size: int
    threads: int
    recipe_hash: str


class FileEntry(TypedDict):
    """One file of a checkpoint, as the manifest knows it."""

    size: int
    sha256: str


class Manifest(Meta):
    """`manifest.json`; `sha256` is the checksum of the rest of the manifest itself."""

    format: int
    step: int
    files: dict[str, FileEntry]
    sha256: str


class DamagedError(UserError):
    """A checkpoint that is not what was written; the message names the folder and the file."""


# --- Saving -----------------------------------------------------------------------------------


def _alone(problem: str) -> None:
    if problem:
        raise UserError(problem)


def save(
    root: Path,
    step: int,
    states: Mapping[str, Any],
    *,
    meta: Meta,
    rank: int = 0,
    agree: Callable[[str], object] = _alone,
) -> Path:
    """Write one checkpoint; every rank calls it, on one shared file system.

    Rank 0 writes every state. The state named `rng` is each rank's own: rank r keeps it as
    `rng-0000r` and gets it back as `rng` from `load`; of the other states, the other ranks' are
    not looked at.

    Args:
        root: The folder of the checkpoints; made if it is missing.
        step: Optimiser steps done. A checkpoint of the same step is replaced.
        states: Trees of dict, list, tuple, int, float (NaN and infinities too), bool, str, None,
            numpy arrays and tensors on any device; tied tensors stay tied.
        meta: Goes into the manifest as it is.
        rank: The rank of this process.
        agree: Called by every rank after each phase with what went wrong there, or "". It returns
            when all have called it, and raises a UserError on every rank if anything went wrong
            on any: no rank goes on with a checkpoint that another could not write.

    Returns:
        The checkpoint's folder.

    Raises:
        UserError: It cannot be written; names the file and the remedy. Older checkpoints are
            untouched, and nothing half-written stays.
        TypeError: A state holds something else; names where.
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
        if "rng" in states:
            for other in range(1, meta["world_size"]):
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
    """A file for `torch.save`: passes an OSError on, which a path given to torch does not."""

    def __init__(self, file: Any):
        self.file, self.digest, self.size = file, hashlib.sha256(), 0

    def write(self, data: Any) -> int:
        self.digest.update(data)
        self.size += len(data)
        return self.file.write(data)

    def flush(self) -> None:
        self.file.flush()


def _write_file(path: Path, write: Callable[[Any], object]) -> FileEntry:
    """Let `write` fill a file, for good; a file that fails half-way is removed."""
    try:
        with open(path, "wb") as file:
            hashed = _Hashed(file)
            write(hashed)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        path.unlink(missing_ok=True)
        error.filename = error.filename or str(path)  # a failing write does not say which file
        raise
    return {"size": hashed.size, "sha256": hashed.digest.hexdigest()}


def _refuse_others(value: Any, path: str) -> None:
    """Raises a TypeError for what `load` would refuse: torch.save pickles everything."""
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
    remedy = REMEDIES.get(error.errno or 0, "look after the disk, or let `output` point elsewhere")
    return (
        f"cannot write checkpoint {folder}: {error.strerror or error} "
        f"({error.filename or folder}); {remedy}. The checkpoints before it are whole"
    )


# --- Loading ----------------------------------------------------------------------------------


def latest(root: Path) -> Path | None:
    """The newest checkpoint under `root` that verifies, or None.

    A damaged one is reported as a warning that names the folder and the file, and the one before
    it is tried.

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
    """Read the manifest and check every file against it.

    Raises:
        DamagedError: A file is missing or is not what was written.
        UserError: Another version of this package wrote it.
    """
    manifest = _read_manifest(folder)
    for file, entry in manifest["files"].items():
        _check(folder, file, entry)
    return manifest


def load(folder: Path, rank: int = 0) -> tuple[Manifest, dict[str, Any]]:
    """Read a checkpoint back, tensors on the CPU.

    Args:
        folder: What `save` or `latest` returned.
        rank: Whose random state to return as `rng`. There is none for a rank that did not exist
            when the checkpoint was written.

    Raises:
        DamagedError: A file that is read is missing or is not what was written.
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
        except Exception as error:  # a file that was made to look right may fail in any way
            raise DamagedError(f"checkpoint {folder} is damaged: {file} holds no state") from error
    return manifest, states


def _read_manifest(folder: Path) -> Manifest:
    try:
        manifest = json.loads((folder / MANIFEST).read_bytes())
        version, checksum = manifest["format"], manifest.pop("sha256")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DamagedError(
            f"checkpoint {folder} is damaged: {MANIFEST} is missing or cut"
        ) from error
    if isinstance(version, int) and version != FORMAT:
        remedy = (
            "upgrade finetune to go on from it"
            if version > FORMAT
            else "go on with the version that wrote it, or let `output` name a new folder"
        )
        raise UserError(
            f"checkpoint {folder} has format {version}, this version of finetune reads {FORMAT}: "
            f"{remedy}"
        )
    if checksum != _checksum(manifest):
        raise DamagedError(f"checkpoint {folder} is damaged: {MANIFEST} is not what was written")
    return cast(Manifest, {**manifest, "sha256": checksum})


def _check(folder: Path, file: str, entry: FileEntry) -> None:
    try:
        size, checksum = measure(folder / file)
    except OSError as error:
        raise DamagedError(f"checkpoint {folder} is damaged: {file}: {error.strerror}") from error
    if size != entry["size"]:
        raise DamagedError(
            f"checkpoint {folder} is damaged: {file} has {size} of {entry['size']} bytes"
        )
    if checksum != entry["sha256"]:
        raise DamagedError(f"checkpoint {folder} is damaged: {file} does not match its checksum")


# --- Folders ----------------------------------------------------------------------------------


def prune(root: Path, keep: int) -> None:
    """Delete all checkpoints but the newest `keep`, and but the newest that verifies."""
    folders = _checkpoints(root)
    survivors = set(folders[:keep])
    for folder in folders:
        try:
            verify(folder)
        except UserError:
            continue
        survivors.add(folder)
        break
    for folder in folders:
        if folder not in survivors:
            discard(folder)


def _sweep(root: Path) -> None:
    """Clean up after killed writers."""
    for old in root.glob(".step-*.old"):
        recover(root / old.name.removeprefix(".").removesuffix(".old"))
    for leftover in [*root.glob(".step-*.tmp"), *root.glob(".step-*.trash")]:
        shutil.rmtree(leftover)


def _checkpoints(root: Path) -> list[Path]:
    """Folders that carry a checkpoint's name, newest first.

    One that was being replaced when its writer was killed is still there under its waiting name.
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
