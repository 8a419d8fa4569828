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
        for read, patterns in _READERS.items():
            for file in (file for pattern in patterns for file in sorted(folder.glob(pattern))):
                try:
                    found = read(file, file.read_text(encoding="utf-8-sig"))
                except UserError:
                    raise
                except (OSError, ValueError, IndexError, RecursionError, csv.Error):
                    continue  # not text, or not in the form of its name
                if found is not None and found.names and _is_list(found):
                    return found
    return None


def _is_list(found: ClassList) -> bool:
    """Refuses a value, colour or name of two classes; False if the lines are something else."""
    for color in found.colors or ():
        if not all(0 <= channel <= 255 for channel in color):
            raise UserError(f"{found.file}: {color} is not a colour; its numbers must be 0 to 255.")
    kinds: dict[str, Sequence[Hashable]] = {
        "value": found.values or (),
        "colour": found.colors or (),
    }
    for what, entries in kinds.items():
        if (twice := _twice(entries)) is not None:
            names = [name for name, own in zip(found.names, entries, strict=True) if own == twice]
            raise UserError(
                f"{found.file}: {' and '.join(map(repr, names[:2]))} have one {what}, {twice}. "
                "Correct the file."
            )
    name = _twice(found.names)
    if name is not None and (found.values or found.colors):
        raise UserError(
            f"{found.file}: the class {name!r} is listed twice. Give each class its own name."
        )
    return name is None


def _twice(entries: Sequence[Hashable]) -> Hashable | None:
    return next((entry for i, entry in enumerate(entries) if entry in entries[:i]), None)


def _csv(file: Path, text: str) -> ClassList | None:
    """`name,r,g,b` with a header, as in Kaggle's copy of CamVid, or Roboflow's `value, class`."""
    header, *rows = [[cell.strip() for cell in row] for row in csv.reader(text.splitlines()) if row]
    if [cell.lower() for cell in header[:2]] == ["pixel value", "class"]:
        form = "value, class"
    elif len(header) >= 4 and header[0].lower() in ("name", "class", "label"):
        form = "name,r,g,b"
    else:
        return None
    if short := next((row for row in rows if len(row) <= form.count(",")), None):
        raise UserError(f"{file}: the line {','.join(short)!r} is not `{form}`. Correct it.")
    if form == "value, class":
        values = tuple(int(row[0]) for row in rows)
        return ClassList(file, tuple(row[1] for row in rows), values=values)
    colors = tuple(_rgb(row[1:4]) for row in rows)
    return ClassList(file, tuple(row[0] for row in rows), colors=colors)


def _label_map(file: Path, text: str) -> ClassList | None:
    """CVAT's `labelmap.txt`: name:r,g,b:parts:actions."""
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    rows = [line.split(":") for line in lines]
    colors = tuple(_rgb(row[1].split(",")) for row in rows)
    return ClassList(file, tuple(row[0].strip() for row in rows), colors=colors)


def _color_and_name_lines(file: Path, text: str) -> ClassList | None:
    """`label_colors.txt` of CamVid: lines of `r g b name`."""
    form = re.compile(r"\s*(\d+)[ \t,]+(\d+)[ \t,]+(\d+)[ \t,]+(\S.*?)\s*")
    lines = [line for line in text.splitlines() if line.strip()]
    rows = [found.groups() for found in map(form.fullmatch, lines) if found]
    if len(rows) < len(lines):
        return None
    return ClassList(
        file, tuple(row[3] for row in rows), colors=tuple(_rgb(row[:3]) for row in rows)
    )


def _rgb(cells: Sequence[str]) -> RGB:
    red, green, blue = map(int, cells)
    return red, green, blue


def _id_to_label(file: Path, text: str) -> ClassList | None:
    """`id2label.json` of Hugging Face data sets, or a list of names."""
    content = json.loads(text)
    if isinstance(content, list) and all(isinstance(name, str) for name in content):
        return _in_order(file, content)
    if not isinstance(content, dict) or not all(isinstance(n, str) for n in content.values()):
        return None
    pairs = sorted((int(value), name) for value, name in content.items())
    return ClassList(file, tuple(n for _, n in pairs), values=tuple(value for value, _ in pairs))


def _machine_colors(file: Path, text: str) -> ClassList | None:
    """Supervisely's `obj_class_to_machine_color.json`: the grey of each class; 0 is no object."""
    content = json.loads(text)
    if not isinstance(content, dict) or not all(isinstance(c, list) for c in content.values()):
        return None
    pairs = [(name, _rgb(color)) for name, color in content.items()]
    if any(len(set(color)) > 1 for _, color in pairs):
        return ClassList(file, tuple(n for n, _ in pairs), colors=tuple(c for _, c in pairs))
    if all(any(color) for _, color in pairs):
        pairs = [("background", (0, 0, 0)), *pairs]
    return ClassList(file, tuple(n for n, _ in pairs), values=tuple(c[0] for _, c in pairs))


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


_READERS: dict[Callable[[Path, str], ClassList | None], tuple[str, ...]] = {
    _csv: ("class_dict.csv", "_classes.csv"),
    _label_map: ("labelmap.txt",),
    _color_and_name_lines: ("label_colors.txt",),
    _id_to_label: ("id2label.json", "*id2label.json", "classes.json"),
    _machine_colors: ("obj_class_to_machine_color.json",),
    _names: ("classes.txt", "labels.txt", "class_names.txt", "obj.names"),
}
"""Reader -> its files."""
