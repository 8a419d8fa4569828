"""The inputs of `finetune predict`: files, folders, globs, videos and data sets, in one order.

The order, and with it each process's share, depends on the arguments and the names alone.
"""

import glob
import hashlib
import os
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import datasets

from finetune.data.columns import IMAGE_NAMES, TablePictures, is_picture
from finetune.data.sources.hub import open_table, split_names
from finetune.errors import UserError
from finetune.pictures.references import IMAGE_SUFFIXES, PATHS, Picture, Pictures

KNOWN = (*IMAGE_SUFFIXES, ".gif", ".avif")
"""Types of images; files of other types in folders are skipped."""
VIDEO_SUFFIXES = (".mp4", ".mov", ".mkv", ".avi", ".webm", ".m4v")


@dataclass(frozen=True)
class Item:
    """One picture, or one video."""

    name: str
    """The name of its results: a relative path without a file type."""
    where: str
    """Its name in messages."""
    source: str
    """Its source, independent of the working directory."""
    pictures: Pictures | None
    reference: str

    @property
    def is_video(self) -> bool:
        """Whether it is a video; `where` is its file then."""
        return self.pictures is None

    def open(self) -> Picture:
        """Opens the picture without decoding it.

        Raises:
            UserError: The table holds nothing there.
        """
        assert self.pictures is not None, "videos are opened elsewhere"
        return self.pictures.open(self.reference)

    def state(self) -> list[int] | None:
        """Size and time of the file; None if it is not a file, or gone."""
        try:
            stat = os.stat(self.source)
        except (OSError, ValueError):
            return None
        return [stat.st_size, stat.st_mtime_ns]


class Inputs:
    """All inputs, by index. It keeps only paths of files, and makes each `Item` on demand."""

    def __init__(self) -> None:
        self._parts: list[tuple[Sequence[str], Callable[[str], Item]]] = []
        self._seen: set[str] = set()
        self.videos: list[Item] = []

    def add_files(self, root: str, images: Iterable[str], videos: Iterable[str]) -> None:
        """Adds files named by their path below `root`; known ones are skipped."""

        def item(file: str, pictures: Pictures | None) -> Item:
            path = os.path.abspath(file)
            return Item(_name(path, root), file, path, pictures, file)

        fresh = list(filter(self._is_new, images))
        self._parts.append((fresh, lambda file: item(file, PATHS)))
        self.videos += [item(file, None) for file in filter(self._is_new, videos)]

    def add_rows(self, pictures: Pictures, count: int, table: str) -> None:
        """Adds pictures of a table, named by their row."""

        def item(row: str) -> Item:
            return Item(f"row-{row}", pictures.name(row), f"{table}, row {row}", pictures, row)

        self._parts.append(([str(row) for row in range(count)], item))

    def __len__(self) -> int:
        return sum(len(references) for references, _ in self._parts)

    def __iter__(self) -> Iterator[Item]:
        for references, item in self._parts:
            yield from map(item, references)

    def everything(self) -> Iterator[Item]:
        """Pictures, then videos."""
        yield from self
        yield from self.videos

    def check_names(self) -> None:
        """Refuses pictures whose results would be one file.

        Raises:
            UserError: Two have one name; the message names both.
        """
        counts = Counter(item.name for item in self.everything())
        if twice := next((name for name, count in counts.items() if count > 1), None):
            both = [item.where for item in self.everything() if item.name == twice]
            raise UserError(
                f"{both[0]} and {both[1]} would both be written as {twice}: predict them in two "
                "calls with two output folders"
            )

    def _is_new(self, file: str) -> bool:
        # By the real folder: links to folders show the same files again, links to files others.
        folder, name = os.path.split(os.path.abspath(file))
        path = os.path.join(os.path.realpath(folder), name)
        new = path not in self._seen
        self._seen.add(path)
        return new


def collect(
    inputs: Sequence[str],
    output: Path,
    *,
    split: str | None = None,
    image_column: str | None = None,
) -> Inputs:
    """Collects everything that the arguments name.

    Args:
        inputs: Image and video files, folders (with all that is below), globs (`**` too), and data
            sets as hub:OWNER/NAME, hub:OWNER/NAME@REVISION or hub:FOLDER.
        output: The folder of the results; its files are not inputs.
        split: Of data sets; None: the only one.
        image_column: Of data sets; None: found by its name.

    Raises:
        UserError: An argument names nothing, or two results would have one name.
    """
    found = Inputs()
    results = os.path.realpath(output)
    for text in inputs:
        if text.startswith("hub:"):
            _add_table(found, text.removeprefix("hub:"), split, image_column)
            continue
        if not text:
            raise UserError("an input is empty; check that its shell variable is set")
        path = os.path.expanduser(text)
        if os.path.isdir(path):
            _refuse_results(path, results, text)
            _add_files(found, path, sorted(_below(path, results)), text)
        elif os.path.isfile(path):
            _add_files(found, os.path.dirname(path) or ".", [path], text, named=True)
        elif os.path.exists(path):  # a pipe would block
            raise UserError(f"{text}: is neither a file nor a folder")
        elif glob.has_magic(text):
            _refuse_results(_fixed_part(path), results, text)
            files = filter(os.path.isfile, glob.iglob(path, recursive=True))
            kept = [file for file in files if not _is_result(file, results)]
            kept.sort(key=lambda file: (file.count(os.sep), file))  # before links to the same files
            _add_files(found, _fixed_part(path), kept, text)
        else:
            raise UserError(f"{text}: does not exist")
    if (split or image_column) and not any(text.startswith("hub:") for text in inputs):
        raise UserError("--split and --image-column need a data set as input: hub:OWNER/NAME")
    found.check_names()
    return found


def _below(folder: str, results: str) -> Iterator[str]:
    """Files of a folder, without hidden files and results; each folder once, in spite of links."""

    def refuse(error: OSError) -> None:
        raise UserError(f"{error.filename}: cannot be listed ({error.strerror})") from error

    seen: set[str] = set()
    for directory, subfolders, names in os.walk(folder, followlinks=True, onerror=refuse):
        real = os.path.realpath(directory)
        if real in seen or _is_result(real, results) or ".predict" in subfolders:
            subfolders.clear()
            continue
        seen.add(real)
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
        for name in names:
            path = os.path.join(directory, name)
            # Pipes would block. A broken link is reported when it is read.
            if not name.startswith(".") and (os.path.isfile(path) or not os.path.exists(path)):
                yield path


def _is_result(file: str, results: str) -> bool:
    path = os.path.realpath(file)
    return path == results or path.startswith(results + os.sep)


def _refuse_results(folder: str, results: str, text: str) -> None:
    if _is_result(folder, results):
        raise UserError(
            f"{text}: this input is also the folder of the results (-o), or lies in it; choose "
            "another folder for the results"
        )


def _add_files(
    found: Inputs, root: str, files: Sequence[str], text: str, *, named: bool = False
) -> None:
    """Adds files of known types; a file that the user named counts whatever its type."""
    images: list[str] = []
    videos: list[str] = []
    others: Counter[str] = Counter()
    for file in files:
        suffix = os.path.splitext(file)[1].lower()
        if suffix in VIDEO_SUFFIXES:
            videos.append(file)
        elif named or suffix in KNOWN:
            images.append(file)
        else:
            others[suffix or "no type"] += 1
    if not images and not videos:
        raise UserError(
            f"{text}: holds no images ({', '.join(KNOWN)}) and no videos "
            f"({', '.join(VIDEO_SUFFIXES)})"
        )
    if others:
        kinds = ", ".join(f"{count} {kind}" for kind, count in others.most_common(5))
        warnings.warn(f"{text}: files of other types are skipped ({kinds})", stacklevel=3)
    found.add_files(os.path.abspath(root), images, videos)


def _name(path: str, root: str) -> str:
    relative = os.path.splitext(os.path.relpath(path, root))[0].replace(os.sep, "/")
    if relative.startswith("../"):
        raise UserError(f"{path}: lies outside of {root}, so its results would lie outside too")
    return relative


def _fixed_part(pattern: str) -> str:
    """The folder that a glob searches."""
    parts = Path(pattern).parts
    first = next(i for i, part in enumerate(parts) if glob.has_magic(part))
    return str(Path(*parts[: min(first, len(parts) - 1)]))


def _add_table(found: Inputs, text: str, split: str | None, image_column: str | None) -> None:
    path, _, revision = text.partition("@" if "://" not in text else " ")
    names = split_names(path, revision=revision or None)
    if split is None and len(names) > 1:
        raise UserError(f"{path}: has the splits {', '.join(names)}; choose one with --split")
    split = split or names[0]
    table = open_table(path, split, revision=revision or None)
    column = image_column or _image_column(table.features, path)
    if column not in table.features or not is_picture(table.features[column]):
        raise UserError(
            f"--image-column {column}: {path} has no such column of pictures; its columns are "
            f"{', '.join(table.features)}"
        )
    if isinstance(table.features[column], datasets.Image):
        table = table.cast_column(column, datasets.Image(decode=False))
    pictures = TablePictures(table, column, f"{path} ({split})")
    which = hashlib.blake2b(repr(pictures).encode(), digest_size=8).hexdigest()
    where = os.path.abspath(path) if os.path.exists(path) else path
    found.add_rows(pictures, len(table), f"{where}@{revision} ({split}, {which})")


def _image_column(features: datasets.Features, path: str) -> str:
    pictures = [name for name in features if is_picture(features[name])]
    known = [name for wanted in IMAGE_NAMES for name in pictures if name.lower() == wanted]
    if not known and len(pictures) != 1:
        raise UserError(
            f"{path}: choose the column of the images with --image-column; columns of pictures: "
            f"{', '.join(pictures) or 'none'} (of {', '.join(features)})"
        )
    return [*known, *pictures][0]
