"""Lists of classes that tools write beside masks.

Each reader returns what its file knows of a `labels:` block.
"""

import csv
import json
import re
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from finetune.errors import UserError
from finetune.labels.colors import RGB

_NO_CLASS = ("__ignore__", "_ignore_")
_BACKGROUND = (
    *("background", "bg", "unlabeled", "unlabelled", "void", "none", "nothing", "other", "others"),
    *("ignore", "unknown", "undefined", "clutter"),
)


@dataclass(frozen=True)
class ClassList:
    """The classes of a file."""

    file: Path
    names: tuple[str, ...]
    values: tuple[int, ...] | None = None
    """The mask value of each class. None means their order."""
    colors: tuple[RGB, ...] | None = None
    dropped: tuple[str, ...] = ()
    """Names in the file that are not classes, such as labelme's __ignore__ at the start."""


def is_background(name: str) -> bool:
    """Whether a name means everything without interest."""
    return name.strip().strip("_").lower() in _BACKGROUND


def find_class_list(folders: Sequence[Path]) -> ClassList | None:
    """Reads the first file of a known name and form in these folders, in their order.

    Raises:
        UserError: A value, colour or name occurs twice, or a colour is invalid.
    """
    for folder in folders:
        for pattern, read in _READERS:
            for file in sorted(folder.glob(pattern)):
                found = _try(read, file)
                if found is not None and found.names:
                    return found
    return None


def _try(read: Callable[[Path, str], ClassList | None], file: Path) -> ClassList | None:
    try:
        found = read(file, file.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, IndexError, RecursionError, csv.Error) as error:
        if isinstance(error, UserError):
            raise
        return None  # not text, or not in the form of its name
    return None if found is None else _checked(found)


def _checked(found: ClassList) -> ClassList | None:
    """Checks that no value, colour or name means two classes."""
    for color in found.colors or ():
        if not all(0 <= channel <= 255 for channel in color):
            raise UserError(f"{found.file}: {color} is not a colour; its numbers must be 0 to 255.")
    kinds: tuple[tuple[str, Sequence[Hashable] | None], ...] = (
        ("value", found.values),
        ("colour", found.colors),
    )
    for what, entries in kinds:
        if entries is not None and (twice := _twice(entries)) is not None:
            names = [name for name, own in zip(found.names, entries, strict=True) if own == twice]
            raise UserError(
                f"{found.file}: {' and '.join(map(repr, names[:2]))} have one {what}, {twice}. "
                "Correct the file."
            )
    if (name := _twice(found.names)) is not None:
        if found.values is None and found.colors is None:
            return None  # the lines are something else
        raise UserError(
            f"{found.file}: the class {name!r} is listed twice. Give each class its own name."
        )
    return found


def _twice(entries: Sequence[Hashable]) -> Hashable | None:
    return next((entry for i, entry in enumerate(entries) if entry in entries[:i]), None)


def _name_and_color_csv(file: Path, text: str) -> ClassList | None:
    """`class_dict.csv`: name, r, g, b with a header, as in Kaggle's copy of CamVid."""
    header, *rows = [[cell.strip() for cell in row] for row in csv.reader(text.splitlines()) if row]
    if len(header) < 4 or header[0].lower() not in ("name", "class", "label"):
        return None
    if short := next((row for row in rows if len(row) < 4), None):
        raise UserError(f"{file}: the line {','.join(short)!r} is not `name,r,g,b`. Correct it.")
    colors = tuple((int(row[1]), int(row[2]), int(row[3])) for row in rows)
    return ClassList(file, tuple(row[0] for row in rows), colors=colors)


def _value_and_name_csv(file: Path, text: str) -> ClassList | None:
    """Roboflow's `_classes.csv`: Pixel Value, Class."""
    header, *rows = [[cell.strip() for cell in row] for row in csv.reader(text.splitlines()) if row]
    if [cell.lower() for cell in header[:2]] != ["pixel value", "class"]:
        return None
    if short := next((row for row in rows if len(row) < 2), None):
        raise UserError(f"{file}: the line {','.join(short)!r} is not `value, class`. Correct it.")
    return ClassList(file, tuple(row[1] for row in rows), values=tuple(int(row[0]) for row in rows))


def _label_map(file: Path, text: str) -> ClassList | None:
    """CVAT's `labelmap.txt`: name:r,g,b:parts:actions."""
    names, colors = [], []
    for line in text.splitlines():
        if not line.strip() or line.startswith("#"):
            continue
        name, color, *_ = line.split(":")
        red, green, blue = (int(channel) for channel in color.split(","))
        names.append(name.strip())
        colors.append((red, green, blue))
    return ClassList(file, tuple(names), colors=tuple(colors))


def _color_and_name_lines(file: Path, text: str) -> ClassList | None:
    """`label_colors.txt` of CamVid: lines of `r g b name`."""
    names, colors = [], []
    for line in text.splitlines():
        if not line.strip():
            continue
        found = re.fullmatch(r"\s*(\d+)[ \t,]+(\d+)[ \t,]+(\d+)[ \t,]+(\S.*?)\s*", line)
        if found is None:
            return None
        names.append(found[4])
        colors.append((int(found[1]), int(found[2]), int(found[3])))
    return ClassList(file, tuple(names), colors=tuple(colors))


def _id_to_label(file: Path, text: str) -> ClassList | None:
    """`id2label.json` of Hugging Face data sets, or a list of names."""
    content = json.loads(text)
    if isinstance(content, list) and all(isinstance(name, str) for name in content):
        return _in_order(file, content)
    if not isinstance(content, dict) or not all(isinstance(n, str) for n in content.values()):
        return None
    pairs = sorted((int(value), name) for value, name in content.items())
    return ClassList(file, tuple(n for _, n in pairs), values=tuple(value for value, _ in pairs))


def _names(file: Path, text: str) -> ClassList | None:
    """`classes.txt` and the like: lines of `name` or `0: name`; # begins a comment."""
    lines = [line.strip() for line in text.splitlines()]
    lines = [line for line in lines if line and not line.startswith("#")]
    numbered = [re.fullmatch(r"(\d+)\s*[:,;\t ]\s*(\S.*)", line) for line in lines]
    found = [match for match in numbered if match]
    if lines and len(found) == len(lines):
        values = tuple(int(match[1]) for match in found)
        return ClassList(file, tuple(match[2] for match in found), values=values)
    return _in_order(file, lines)


def _in_order(file: Path, names: Sequence[str]) -> ClassList:
    """Names whose order gives the values. labelme's first one, __ignore__, means -1."""
    found = ClassList(file, tuple(names))
    if names and names[0].lower() in _NO_CLASS:
        return replace(found, names=tuple(names[1:]), dropped=(names[0],))
    return found


_READERS: tuple[tuple[str, Callable[[Path, str], ClassList | None]], ...] = (
    ("class_dict.csv", _name_and_color_csv),
    ("_classes.csv", _value_and_name_csv),
    ("labelmap.txt", _label_map),
    ("label_colors.txt", _color_and_name_lines),
    ("id2label.json", _id_to_label),
    ("*id2label.json", _id_to_label),
    ("classes.json", _id_to_label),
    ("classes.txt", _names),
    ("labels.txt", _names),
    ("class_names.txt", _names),
    ("obj.names", _names),
)
