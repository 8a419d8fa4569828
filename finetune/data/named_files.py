"""The files that an annotation file names, which may have been written on another machine."""

import os
import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from urllib.parse import unquote

from finetune.data.faults import listed
from finetune.errors import UserError

_UPLOAD = re.compile(r"[0-9a-f]{8}-(?=.)")  # Label Studio's mark of an uploaded file


def as_posix(name: str) -> str:
    """A name with the separators of this system; Windows has backslashes."""
    return name.replace("\\", "/")


def own_names(name: str) -> list[str]:
    """The file names that a path or address of another machine may have here, the likeliest first.

    `/data/upload/1/0a1b2c3d-x.png` may be `0a1b2c3d-x.png` or, before its upload, `x.png`.
    """
    names = []
    for text in (name, unquote(re.sub(r"\?(?!d=).*", "", name))):
        own = re.split(r"[\\/]|\?d=", text)[-1]
        names += [own, _UPLOAD.sub("", own, count=1)]
    return [own for own in dict.fromkeys(names) if own]


def located(names: Sequence[str], folder: Path, root: Path, where: Path) -> tuple[list[Path], bool]:
    """The files of `names`, and whether they were found by their own names alone.

    A name is a path below `folder` or below `root`. If no file is at its path, the paths are those
    of another machine: then the files are those below `folder` with the same own names. A name
    without a file gets the path at which it was expected.

    Raises:
        UserError: Several files have an own name, or several names lead to one file; names `where`.
    """
    files = [_at_path(name, folder, root) for name in names]
    if not any(file.is_file() for file in files):
        alone = _by_own_names(names, folder, where)
        if any(alone):
            _refuse_twice(names, alone, where)
            return [own or file for own, file in zip(alone, files, strict=True)], True
    _refuse_twice(names, files, where)
    return files, False


def _at_path(name: str, folder: Path, root: Path) -> Path:
    first = folder / name
    if first.is_file():
        return first
    spellings = dict.fromkeys((name, as_posix(name)))
    candidates = (above / own for own in spellings for above in (folder, root))
    return next((file for file in candidates if file.is_file()), first)


def _by_own_names(names: Sequence[str], folder: Path, where: Path) -> list[Path | None]:
    there: dict[str, list[Path]] = defaultdict(list)
    for directory, subfolders, entries in os.walk(folder):
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        for file in entries:
            there[file].append(Path(directory, file))
    found: list[Path | None] = []
    for name in names:
        files = next((there[own] for own in own_names(name) if own in there), [])
        if len(files) > 1:
            raise UserError(
                f"{where}: {name!r} is not at its path, and {len(files)} files have its own name: "
                f"{listed([str(file) for file in files])}. Correct file_name, or set data.images "
                "to the folder of the right ones."
            )
        found.append(files[0] if files else None)
    return found


def _refuse_twice(names: Sequence[str], files: Sequence[Path | None], where: Path) -> None:
    first: dict[str, str] = {}
    for name, file in zip(names, files, strict=True):
        if file is not None and (known := first.setdefault(str(file), name)) != name:
            raise UserError(
                f"{where}: {known!r} and {name!r} both lead to {file}. Correct file_name."
            )


def sample_id(name: str, file: Path, folder: Path, alone: bool) -> str:
    """A sample's name: the path without the file type; of a file found alone, the path here."""
    path = file.relative_to(folder).as_posix() if alone else as_posix(name)
    return PurePosixPath(path).with_suffix("").as_posix()
