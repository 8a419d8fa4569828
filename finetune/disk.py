"""Atomic writes of files and folders, and locks."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import time
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from finetune.errors import UserError


def write_whole(path: Path, content: str | bytes) -> None:
    """Writes a small file aside and renames it: readers see the old file or the new one."""
    name = path.name
    if len(os.fsencode(name)) > 240:  # a name may have 255 bytes
        name = hashlib.blake2b(os.fsencode(name), digest_size=16).hexdigest()
    temp = path.with_name(f".{name}.tmp")
    try:
        temp.write_bytes(content.encode() if isinstance(content, str) else content)
        temp.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):  # on a read-only disk even this fails
            temp.unlink(missing_ok=True)
        raise UserError(
            f"cannot write {path}: {error.strerror}; free some space or make the folder writable"
        ) from error


def write_lines(path: Path, lines: Iterable[str]) -> None:
    """Writes a text file line by line, aside, and renames it at the end.

    Raises:
        UserError: The file cannot be written.
    """
    temp = path.with_name(f".{path.name}.new")
    try:
        # File names may hold any bytes.
        with open(temp, "w", encoding="utf-8", errors="backslashreplace", newline="") as file:
            file.writelines(lines)
        temp.replace(path)
    except OSError as error:
        raise no_room(path, error) from error
    finally:
        temp.unlink(missing_ok=True)


def no_room(path: Path, error: OSError) -> UserError:
    """The error for a disk that does not take a file of a call that resumes."""
    return UserError(
        f"{path}: cannot be written ({error.strerror or error}). Make room and run the same "
        "command again; finished files are kept"
    )


def check_folder(path: Path) -> None:
    """Checks that a folder is there or can be made, and can be written to. Makes nothing.

    Raises:
        UserError: A file is in its place, the folder above it is read-only, or it cannot exist.
    """
    if "\0" in str(path):
        raise UserError(f"{str(path)!r}: a name cannot hold a NUL; choose another folder")
    place = next(each for each in (path, *path.absolute().parents) if os.path.lexists(each))
    if not place.is_dir():
        raise UserError(f"{path}: {place} is not a folder; choose another folder")
    if not os.access(place, os.W_OK | os.X_OK):
        raise UserError(
            f"{path}: {place} cannot be written to; choose another folder, or make it writable"
        )


def make_folder(path: Path) -> None:
    """Makes a folder and its missing parents.

    Raises:
        UserError: The folder cannot be made.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"{path}: this folder cannot be made ({error.strerror}); choose another"
        ) from error


@contextmanager
def alone_in(folder: Path, message: str, *, patience: int = 0) -> Iterator[None]:
    """Locks a folder until the end of the block, or of the process.

    On systems without such locks (Windows, some network file systems), nothing happens.

    Raises:
        UserError: Another process holds the lock, `patience` seconds long; with the `message`.
    """
    if os.name != "posix":
        yield
        return
    import fcntl

    descriptor = os.open(folder, os.O_RDONLY)
    try:
        for left in reversed(range(patience + 1)):
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if not left:
                    raise UserError(message) from None
                time.sleep(1)
            except OSError:
                warnings.warn(f"{folder}: its file system has no locks", stacklevel=2)
                break
        yield
    finally:
        os.close(descriptor)  # which unlocks it


@contextmanager
def whole_folder(target: Path, what: str) -> Iterator[Path]:
    """Yields an empty folder to write into; it replaces `target` at the end of the block.

    `target` need not exist. If the block fails, it stays as it was.

    Raises:
        UserError: The folder cannot be written; names it and `what` it is, such as "the Space".
    """
    target = target.resolve()  # "." has no name; a link's target is replaced, not the link
    new = target.with_name(f".{target.name}.new")
    try:
        shutil.rmtree(new, ignore_errors=True)  # left by a killed process
        new.mkdir(parents=True)
        yield new
        if target == Path.cwd() and not any(target.iterdir()):  # keep it: a shell may stand in it
            for path in new.iterdir():
                path.rename(target / path.name)
        else:
            swap_folder(new, target)
    except OSError as error:
        raise UserError(
            f"cannot write {what} {target}: {error.strerror or error}; free some space, or choose "
            "another folder"
        ) from error
    finally:
        shutil.rmtree(new, ignore_errors=True)


def swap_folder(new: Path, target: Path) -> None:
    """Moves the folder `new` to `target`, which need not exist.

    One whole version exists at any time: as `target` or, between the two renames, as
    `.<target>.old`, which `recover` renames back. Both folders must lie on one file system.
    """
    recover(target)
    old = _old(target)
    if target.exists():
        target.rename(old)
    try:
        new.rename(target)
    except OSError:
        recover(target)
        raise
    sync_folder(target.parent)
    if old.exists():
        discard(old)


def recover(target: Path) -> None:
    """Completes a `swap_folder(..., target)` that was killed; otherwise does nothing."""
    old = _old(target)
    if old.exists() and target.exists():
        discard(old)
    elif old.exists():
        old.rename(target)


def _old(target: Path) -> Path:
    return target.with_name(f".{target.name}.old")


def discard(folder: Path) -> None:
    """Deletes a folder; if it is killed half-way, `_sweep` removes the rest."""
    trash = folder.with_name(f".{folder.name.removeprefix('.')}.trash")
    shutil.rmtree(trash, ignore_errors=True)
    try:
        folder.rename(trash)
        shutil.rmtree(trash)
    except OSError as error:  # a warning will do: nothing depends on the deletion
        warnings.warn(f"cannot delete {folder}: {error.strerror or error}", stacklevel=3)


def measure(path: Path) -> tuple[int, str]:
    """Size in bytes and SHA-256 of a file."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256")
        return file.tell(), digest.hexdigest()


def sync_folder(folder: Path) -> None:
    """Makes renames in a folder survive a power cut."""
    if os.name == "posix":  # Windows cannot open folders
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
