"""What is to be predicted: files, folders, globs, videos and data sets, as one list in one order.

The order, and with it which process takes what, is a function of the arguments and the names alone.
"""

import glob
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import datasets

from finetune.data.files import FILES, IMAGE_SUFFIXES, Picture, Pictures
from finetune.data.hub import open_table, split_names
from finetune.data.tables import IMAGE_NAMES, TablePictures, is_picture
from finetune.errors import UserError

VIDEO_SUFFIXES = (".mp4", ".mov", ".mkv", ".avi", ".webm", ".m4v")
_NUM_NAMED = 5


@dataclass(frozen=True)
class Item:
    """One picture, or one video."""

    name: str
    """Of what is written for it: a relative path without a file type."""
    where: str
    """What messages call it."""
    picture: Picture | None
    """None: `where` is a video."""

    @property
    def source(self) -> str:
        """What it is, wherever the program is called."""
        return os.path.abspath(self.where) if os.path.exists(self.where) else self.where


class Inputs:
    """All of them, by index. A million files are a million paths, and no more."""

    def __init__(self) -> None:
        self._parts: list[tuple[Path | None, Pictures, Sequence[str]]] = []
        self.videos: list[Item] = []

    def add_files(self, root: Path, files: Sequence[str]) -> None:
        """Pictures named by their path below `root`."""
        self._parts.append((root, FILES, files))

    def add_rows(self, pictures: Pictures, rows: Sequence[str]) -> None:
        """Pictures of a table, named by their row."""
        self._parts.append((None, pictures, rows))

    def __len__(self) -> int:
        return sum(len(references) for _, _, references in self._parts)

    def __iter__(self) -> Iterator[Item]:
        for root, pictures, references in self._parts:
            for reference in references:
                name = f"row-{reference}" if root is None else _name(Path(reference), root)
                yield Item(name, pictures.name(reference), pictures.open(reference))

    def check_names(self) -> None:
        """Refuses pictures whose results would be one file.

        Raises:
            UserError: Two have one name; names both.
        """
        counts = Counter(item.name for item in self)
        counts.update(item.name for item in self.videos)
        if twice := next((name for name, count in counts.items() if count > 1), None):
            both = [item.where for item in (*self, *self.videos) if item.name == twice]
            raise UserError(
                f"{both[0]} and {both[1]} would both be written as {twice}: give them in two "
                "calls, with two output folders"
            )


def collect(
    inputs: Sequence[str], *, split: str | None = None, image_column: str | None = None
) -> Inputs:
    """Everything that the arguments mean.

    Args:
        inputs: Image and video files, folders (with all that is below), globs (`**` too), and data
            sets as hub:OWNER/NAME, hub:OWNER/NAME@REVISION or hub:FOLDER.
        split: Of data sets; None: the only one.
        image_column: Of data sets; None: by its name.

    Raises:
        UserError: One means nothing, or two results would have one name.
    """
    found = Inputs()
    for text in inputs:
        if text.startswith("hub:"):
            _add_table(found, text.removeprefix("hub:"), split, image_column)
            continue
        path = Path(text).expanduser()
        if path.is_dir():
            _add_files(found, path, sorted(_below(path)), text)
        elif path.exists():
            _add_files(found, path.parent, [str(path)], text, named=True)
        elif glob.has_magic(text):
            files = sorted(filter(os.path.isfile, glob.iglob(str(path), recursive=True)))
            _add_files(found, _fixed_part(path), files, text)
        else:
            raise UserError(f"{text}: does not exist")
    if not any("hub:" in text[:4] for text in inputs) and (split or image_column):
        raise UserError("--split and --image-column are for data sets, hub:OWNER/NAME")
    found.check_names()
    return found


def _below(folder: Path) -> Iterator[str]:
    for directory, subfolders, names in os.walk(folder, followlinks=True):
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
        for name in names:
            if not name.startswith("."):
                yield os.path.join(directory, name)


def _add_files(
    found: Inputs, root: Path, files: Sequence[str], text: str, *, named: bool = False
) -> None:
    """Those whose types are known; a file that was named itself is taken whatever its type."""
    videos = [file for file in files if file.lower().endswith(VIDEO_SUFFIXES)]
    known = IMAGE_SUFFIXES
    images = [
        file
        for file in files
        if file.lower().endswith(known) or (named and not file.lower().endswith(VIDEO_SUFFIXES))
    ]
    if not images and not videos:
        raise UserError(
            f"{text}: holds no images ({', '.join(known)}) and no videos "
            f"({', '.join(VIDEO_SUFFIXES)})"
        )
    if images:
        found.add_files(root, images)
    found.videos += [Item(_name(Path(file), root), file, None) for file in videos]


def _name(file: Path, root: Path) -> str:
    return file.relative_to(root).with_suffix("").as_posix()


def _fixed_part(pattern: Path) -> Path:
    """The folder below which a glob looks."""
    parts = pattern.parts
    first = next(i for i, part in enumerate(parts) if glob.has_magic(part))
    return Path(*parts[: min(first, len(parts) - 1)])


def _add_table(found: Inputs, text: str, split: str | None, image_column: str | None) -> None:
    path, _, revision = text.partition("@" if "://" not in text else " ")
    names = split_names(path, revision=revision or None)
    if split is None and len(names) > 1:
        raise UserError(f"{path}: has the splits {', '.join(names)}; choose one with --split")
    table = open_table(path, split or names[0], revision=revision or None)
    column = image_column or _image_column(table.features, path)
    if column not in table.features or not is_picture(table.features[column]):
        raise UserError(
            f"--image-column {column}: {path} has no such column of pictures; there are "
            f"{', '.join(table.features)}"
        )
    if isinstance(table.features[column], datasets.Image):
        table = table.cast_column(column, datasets.Image(decode=False))
    found.add_rows(TablePictures(table, column, path), [str(i) for i in range(len(table))])


def _image_column(features: datasets.Features, path: str) -> str:
    pictures = [name for name in features if is_picture(features[name])]
    known = [name for wanted in IMAGE_NAMES for name in pictures if name.lower() == wanted]
    if not known and len(pictures) != 1:
        raise UserError(
            f"{path}: which column holds the images is not clear; choose one with --image-column: "
            f"{', '.join(pictures) or 'none'} (of {', '.join(features)})"
        )
    return [*known, *pictures][0]
