"""Complete training states: written aside, renamed into place whole, verified before use.

One checkpoint is a folder `step-00000120/` with, for each named state, `<name>.json` (the
structure: dicts, lists, numbers, strings) and `<name>.safetensors` (the tensors that the structure
refers to), and `manifest.json` with the sizes and checksums of them all. Nothing is ever pickled
or unpickled, and only files that the manifest names are opened.

Whatever happens in between (kill, full disk, power cut), a folder named `step-*` is whole, or
`latest` says what is wrong with it and takes the one before. Hidden neighbours are unfinished
business: `.step-*.tmp` is being written, `.*.trash` is being deleted, `.*.old` is waiting for its
replacement (see `swap_folder`).
"""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import shutil
import warnings
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypedDict, cast

import numpy as np
import safetensors.torch
import torch
from torch import Tensor

from finetune.disk import discard, measure, recover, swap_folder, sync_folder
from finetune.errors import UserError

FORMAT = 1
MANIFEST = "manifest.json"

# Dtypes as the safetensors format spells them: https://github.com/huggingface/safetensors#format
DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint64: "U64",
    torch.uint32: "U32",
    torch.uint16: "U16",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}

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
            if name == "rng":
                entries.update(_write_state(temp, _rng_name(rank), state))
            elif rank == 0:
                entries.update(_write_state(temp, name, state))

    def commit() -> None:
        if rank != 0:
            return
        if "rng" in states:
            for other in range(1, meta["world_size"]):
                for file in _files_of(_rng_name(other)):
                    size, checksum = measure(temp / file)
                    entries[file] = {"size": size, "sha256": checksum}
        manifest = {"format": FORMAT, "step": step, **meta, "files": entries}
        manifest["sha256"] = _checksum(manifest)
        _write_file(temp / MANIFEST, [json.dumps(manifest, indent=2).encode()])
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


def _write_state(folder: Path, name: str, state: Any) -> dict[str, FileEntry]:
    encoder = _Encoder(name)
    structure = json.dumps(encoder.encode(state), indent=1, allow_nan=False).encode()
    structure_file, tensor_file = _files_of(name)
    return {
        structure_file: _write_file(folder / structure_file, [structure]),
        tensor_file: _write_file(folder / tensor_file, _safetensors(encoder.tensors)),
    }


def _safetensors(tensors: dict[str, Tensor]) -> Iterable[Any]:
    """The bytes of a safetensors file, tensor by tensor.

    Not `safetensors.torch.save_file`: it refuses tensors that share memory, holds a second copy of
    all of them, and reports a full disk as a string without an errno.
    """
    # Widest first keeps every tensor aligned in the file, as readers that map it expect.
    ordered = sorted(tensors.items(), key=lambda item: -item[1].element_size())
    header: dict[str, Any] = {}
    end = 0
    for name, tensor in ordered:
        start, end = end, end + tensor.numel() * tensor.element_size()
        header[name] = {
            "dtype": DTYPES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    yield len(text).to_bytes(8, "little") + text
    for _, tensor in ordered:
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        yield flat.view(torch.uint8).numpy().data  # as bytes: numpy has no bfloat16


def _write_file(path: Path, chunks: Iterable[Any]) -> FileEntry:
    """Write chunks of bytes to disk for good; a file that fails half-way is removed."""
    digest, size = hashlib.sha256(), 0
    try:
        with open(path, "wb") as file:
            for chunk in chunks:
                file.write(chunk)
                digest.update(chunk)
                size += len(chunk)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        path.unlink(missing_ok=True)
        error.filename = error.filename or str(path)  # a failing write does not say which file
        raise
    return {"size": size, "sha256": digest.hexdigest()}


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
        UserError: A newer version of this package wrote the newest one.
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
        UserError: A newer version of this package wrote it.
    """
    manifest = _read_manifest(folder)
    for file, entry in manifest["files"].items():
        _read_checked(folder, file, entry)
    return manifest


def load(folder: Path, rank: int = 0) -> tuple[Manifest, dict[str, Any]]:
    """Read a checkpoint back, tensors on the CPU.

    Args:
        folder: What `save` or `latest` returned.
        rank: Whose random state to return as `rng`. There is none for a rank that did not exist
            when the checkpoint was written.

    Raises:
        DamagedError: A file that is read is missing or is not what was written.
        UserError: A newer version of this package wrote it.
    """
    manifest = _read_manifest(folder)
    files = manifest["files"]
    states = {}
    for name in (file.removesuffix(".json") for file in files if file.endswith(".json")):
        if name.startswith("rng-") and name != _rng_name(rank):
            continue
        structure_file, tensor_file = _files_of(name)
        structure = json.loads(_read_checked(folder, structure_file, files[structure_file]))
        tensors = safetensors.torch.load(_read_checked(folder, tensor_file, files[tensor_file]))
        states["rng" if name.startswith("rng-") else name] = _decode(structure, tensors)
    return manifest, states


def _read_manifest(folder: Path) -> Manifest:
    try:
        manifest = json.loads((folder / MANIFEST).read_bytes())
        version, checksum = manifest["format"], manifest.pop("sha256")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DamagedError(
            f"checkpoint {folder} is damaged: {MANIFEST} is missing or cut"
        ) from error
    if isinstance(version, int) and version > FORMAT:
        raise UserError(
            f"checkpoint {folder} has format {version}, this version of finetune reads up to "
            f"{FORMAT}: upgrade finetune to go on from it"
        )
    if checksum != _checksum(manifest):
        raise DamagedError(f"checkpoint {folder} is damaged: {MANIFEST} is not what was written")
    return cast(Manifest, {**manifest, "sha256": checksum})


def _read_checked(folder: Path, file: str, entry: FileEntry) -> bytes:
    try:
        data = (folder / file).read_bytes()
    except OSError as error:
        raise DamagedError(f"checkpoint {folder} is damaged: {file}: {error.strerror}") from error
    if len(data) != entry["size"]:
        raise DamagedError(
            f"checkpoint {folder} is damaged: {file} has {len(data)} of {entry['size']} bytes"
        )
    if hashlib.sha256(data).hexdigest() != entry["sha256"]:
        raise DamagedError(f"checkpoint {folder} is damaged: {file} does not match its checksum")
    return data


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


def _rng_name(rank: int) -> str:
    return f"rng-{rank:05d}"


def _files_of(name: str) -> tuple[str, str]:
    return f"{name}.json", f"{name}.safetensors"


def _checksum(manifest: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


# --- Trees as JSON ----------------------------------------------------------------------------
# JSON's own types stand for themselves. Everything else is an object with one key that begins
# with "$": {"$tensor": name}, {"$array": name}, {"$tuple": [...]}, {"$float": "nan"}, and
# {"$dict": [[key, value], ...]} for a dict with other keys than plain strings.


class _Encoder:
    """Takes a tree apart into JSON and named tensors."""

    def __init__(self, name: str):
        self.name = name
        self.tensors: dict[str, Tensor] = {}
        self._names: dict[tuple, str] = {}  # a view of memory -> the name it is stored under

    def encode(self, value: Any, path: str = "") -> Any:
        """`value` as JSON; its tensors go to `self.tensors`, named by their path in the tree."""
        if isinstance(value, np.generic):
            value = value.item()
        if value is None or type(value) in (bool, int, str):
            return value
        if type(value) is float:
            return value if math.isfinite(value) else {"$float": str(value)}
        if isinstance(value, Tensor):
            return {"$tensor": self._store(value, path)}
        if isinstance(value, np.ndarray):
            # A copy: torch takes neither read-only memory nor negative strides.
            return {"$array": self._store(torch.from_numpy(np.array(value)), path)}
        if isinstance(value, list):
            return [self.encode(item, f"{path}.{i}") for i, item in enumerate(value)]
        if type(value) in (tuple, torch.Size):
            return {"$tuple": self.encode(list(value), path)}
        if isinstance(value, dict):
            pairs = [(key, self.encode(item, f"{path}.{key}")) for key, item in value.items()]
            if all(type(key) is str and not key.startswith("$") for key in value):
                return dict(pairs)
            return {"$dict": [[self.encode(key), item] for key, item in pairs]}
        raise TypeError(f"{self.name}{path}: a checkpoint cannot hold {type(value).__name__}")

    def _store(self, tensor: Tensor, path: str) -> str:
        if tensor.dtype not in DTYPES:
            raise TypeError(f"{self.name}{path}: a checkpoint cannot hold {tensor.dtype}")
        view = (tensor.device, tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride())
        if tensor.numel() and view in self._names:
            return self._names[view]  # tied weights: stored once, and one tensor again when loaded
        name = path.removeprefix(".") or "tensor"
        while name in self.tensors:  # {"a.b": t} beside {"a": {"b": t}}
            name += "'"
        self.tensors[name] = tensor
        self._names[view] = name
        return name


def _decode(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    """What `_Encoder.encode` took apart."""
    if isinstance(value, list):
        return [_decode(item, tensors) for item in value]
    if not isinstance(value, dict):
        return value
    if "$tensor" in value:
        return tensors[value["$tensor"]]
    if "$array" in value:
        return tensors[value["$array"]].numpy()
    if "$float" in value:
        return float(value["$float"])
    if "$tuple" in value:
        return tuple(_decode(value["$tuple"], tensors))
    if "$dict" in value:
        return {_decode(key, tensors): _decode(item, tensors) for key, item in value["$dict"]}
    return {key: _decode(item, tensors) for key, item in value.items()}
