"""Lists of classes that tools write beside masks.

Each reader returns what its file knows of a `labels:` block.
"""

import csv
import json
import re
from collections.abc import Callable, Hashable, Iterator, Sequence, Set
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeAlias

from finetune.data.text import read_text
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
    is_partial: bool = False
    """Whether the tool paints what has no class black, and may leave that out of the file."""
    unread: tuple[str, ...] = ()
    """Messages on files before it that have the name of a class list, but no known form."""

    def of_ids(self, seen: Set[int], palette: Sequence[RGB] | None) -> "ClassList":
        """The list with ids in place of its colours, if it gives an id to all that were seen."""
        if self.colors is None:
            return self
        if self.values is not None:
            return replace(self, colors=None)
        greys = [(value, value, value) for value in range(256)]
        for table in filter(None, (palette, greys)):
            id_of = {color: value for value, color in reversed([*enumerate(table)])}
            ids = tuple(id_of[color] for color in self.colors if color in id_of)
            # Masks may hold further greys, as damage.
            if len(ids) == len(self.colors) and (table is greys or seen <= set(ids)):
                return replace(self, values=ids, colors=None)
        # CVAT's masks of one channel hold the places in its list.
        return replace(self, colors=None) if self.file.name == "labelmap.txt" else self


_Reader: TypeAlias = Callable[[Path, str], ClassList | None]


def is_background(name: str) -> bool:
    """Whether a name means everything without interest."""
    return name.strip().strip("_").lower() in _BACKGROUND


def find_class_list(folders: Sequence[Path]) -> ClassList | None:
    """Reads the first file of a known name in these folders, in their order.

    Raises:
        UserError: A file contradicts itself, or the only ones of these names cannot be understood.
    """
    unread: list[str] = []
    for read, file in _files(folders):
        try:
            text = read_text(file)
        except UserError as error:
            unread.append(str(error))
            continue
        why = "is not a list of classes in a known form"
        try:
            found = read(file, text)
            if found is not None and found.names:
                _check(found)
                return replace(found, unread=tuple(unread))
        except _NotReadError as error:
            why = str(error)
        except UserError:
            raise
        except (ValueError, IndexError, RecursionError, csv.Error):
            pass  # not in the form of its name
        if text.strip():
            unread.append(f"{file}: {why}. {_REMEDY}")
    if unread:
        raise UserError(unread[0])
    return None


def _files(folders: Sequence[Path]) -> Iterator[tuple[_Reader, Path]]:
    """The files of known names, with their readers."""
    for folder in folders:
        for read, patterns in _READERS.items():
            found = (file for pattern in patterns for file in sorted(folder.glob(pattern)))
            yield from ((read, file) for file in dict.fromkeys(found))


_REMEDY = (
    "Write one class a line, as `0: road`, or remove or rename the file if it lists something else."
)


class _NotReadError(Exception):
    """The lines of a file allow no reading as a list of classes, or several."""


def _check(found: ClassList) -> None:
    """Refuses a value, colour or name of two classes."""
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
    if name is not None:
        raise _NotReadError(f"lists {name!r} twice")


def _twice(entries: Sequence[Hashable]) -> Hashable | None:
    return next((entry for i, entry in enumerate(entries) if entry in entries[:i]), None)


_NAME = ("name", "class", "label", "class_name", "classname", "label_name", "category")
_VALUE = ("pixel value", "value", "id", "class_id", "label_id", "index", "grey", "gray")
_COLOR = ("color", "colour", "class_color", "class_colour", "rgb", "color_rgb", "rgb_color")
_CHANNELS = (("r", "g", "b"), ("red", "green", "blue"))


def _table(file: Path, text: str) -> ClassList | None:
    """A table with a header: Kaggle's `name,r,g,b`, V7's `class_name,class_color` and the like.

    Cells are divided by commas, semicolons or tabs, as in the header. pandas writes the number of
    the line into a column without a name.
    """
    lines = [line for line in text.splitlines() if line.strip()]
    divider = max(",;\t", key=lines[0].count)
    rows = [[cell.strip() for cell in row] for row in csv.reader(lines, delimiter=divider)]
    header = [cell.lower() for cell in rows.pop(0)]
    place = {cell: i for i, cell in reversed(list(enumerate(header)))}
    name = next((place[cell] for cell in _NAME if cell in place), None)
    value = next((place[cell] for cell in _VALUE if cell in place), None)
    color = next((place[cell] for cell in _COLOR if cell in place), None)
    channels = next(
        ([place[c] for c in own] for own in _CHANNELS if set(own) <= place.keys()), None
    )
    if name is None:
        return _by_form(file, lines)
    if value is None and [row[0] for row in rows] == [*map(str, range(len(rows)))]:
        value = 0 if header[0] in ("", "unnamed: 0") else None
    form = divider.join(header)
    places = [place for place in (name, value, color, *(channels or ())) if place is not None]
    for row in rows:
        if len(row) <= max(places) or not all(row[place] for place in places):
            raise UserError(f"{file}: the line {divider.join(row)!r} is not `{form}`. Correct it.")
    names = tuple(row[name] for row in rows)
    values = None if value is None else tuple(int(row[value]) for row in rows)
    if channels is not None:
        colors = tuple(_rgb([row[place] for place in channels]) for row in rows)
        return ClassList(file, names, values, colors)
    if color is None:
        return ClassList(file, names, values) if values else _in_order(file, names)
    cells = [row[color] for row in rows]
    if values is None and all(map(str.isdigit, cells)):  # V7's masks of grey levels or indices
        return ClassList(file, names, tuple(map(int, cells)))
    return ClassList(file, names, values, tuple(map(_color, cells)))


def _color(cell: str) -> RGB:
    """`128 0 0`, `128,0,0`, `(128, 0, 0)` or `#800000`."""
    if re.fullmatch("#[0-9a-fA-F]{6}", cell):
        return _rgb([str(channel) for channel in bytes.fromhex(cell[1:])])
    return _rgb(re.split(r"[ ,;]+", cell.strip("()[] ")))


def _label_map(file: Path, text: str) -> ClassList | None:
    """CVAT's `labelmap.txt`: name:r,g,b:parts:actions. Names may hold colons."""
    form = re.compile(r"(.+?)\s*:\s*(\d+)\s*,\s*(\d+)\s*,\s*(\d+)\s*(:.*)?")
    lines = [line.strip() for line in text.splitlines()]
    found = [form.fullmatch(line) for line in lines]
    for line, match in zip(lines, found, strict=True):
        if line and match is None and not line.startswith("#"):
            raise _NotReadError(f"the line {line[:60]!r} is not `name:r,g,b::`")
    rows = [match.groups() for match in found if match]
    return ClassList(file, tuple(row[0] for row in rows), colors=tuple(_rgb(r[1:4]) for r in rows))


def _rgb(cells: Sequence[str]) -> RGB:
    red, green, blue = map(int, cells)
    return red, green, blue


def _json(file: Path, text: str) -> ClassList | None:
    """`id2label.json` of Hugging Face data sets, its inverse, or a list of names or classes."""
    content = json.loads(text)
    if isinstance(content, dict) and len(content) == 1:
        content = next((v for v in content.values() if isinstance(v, list)), content)
    if isinstance(content, list) and all(isinstance(name, str) for name in content):
        return _in_order(file, content)
    if isinstance(content, list) and content and all(isinstance(row, dict) for row in content):
        names = tuple(str(row["name"]) for row in content if "name" in row)
        if len(names) < len(content) or not all("id" in row for row in content):
            return None
        values = tuple(int(row["id"]) for row in content)
        if all(isinstance(row.get("color"), str) for row in content):  # SuperAnnotate
            colors = tuple(_color(row["color"]) for row in content)
            return ClassList(file, names, values, colors, is_partial=True)
        return ClassList(file, names, values)
    if not isinstance(content, dict):
        return None
    if all(type(value) is int for value in content.values()):
        content = {value: name for name, value in content.items()}
    if not all(isinstance(name, str) for name in content.values()):
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


_LONGEST = 200  # characters of a line
_DIVIDED = r"[ \t]*[,:;\t=|][ \t]*"
_APART = rf"(?:{_DIVIDED}|[ \t]+)"
_RGB = r"(\d{1,3})(?:[ \t]*[,;\t ][ \t]*)(\d{1,3})(?:[ \t]*[,;\t ][ \t]*)(\d{1,3})"
_FORMS = tuple(
    (keys.split(), re.compile(form))
    for keys, form in {
        "id name r g b": rf"(\d+){_APART}(.*\S){_APART}{_RGB}",
        "id r g b name": rf"(\d+){_APART}{_RGB}{_APART}(\D.*)",
        "name r g b": rf"(.*\S){_APART}{_RGB}",
        "r g b name": rf"{_RGB}{_APART}(\S.*)",
        "id name": rf"(\d+){_APART}(\S.*)",
        "name id": rf"(.+?){_DIVIDED}(\d+)",
    }.items()
)
"""Forms of a line with a value or a colour: the parts, and an expression with a group for each."""


def _names(file: Path, text: str) -> ClassList | None:
    """Lines of `name`, `0: name`, `name;0`, `name 255 0 0` and the like; # begins a comment."""
    lines = [line.strip().rstrip(";,").strip() for line in text.splitlines()]
    lines = [line for line in lines if line and not line.startswith("#")]
    if not lines:
        return None
    found = _by_form(file, lines)
    if found is not None:
        return found
    odd = next((line for line in lines if re.match(rf"\d+{_DIVIDED}|.*[;\t|\0]", line)), None)
    if odd is None and len({line.count(",") for line in lines}) == 1 and "," in lines[0]:
        odd = lines[0]
    if odd is not None:
        raise _NotReadError(f"the line {odd[:60]!r} may hold more than a name")
    return _in_order(file, lines)


def _colors(file: Path, text: str) -> ClassList | None:
    """`label_colors.txt` of CamVid: lines of `r g b name`, or of another form with colours."""
    found = _names(file, text)
    return found if found is not None and found.colors else None


def _dataset_meta(file: Path, text: str) -> ClassList | None:
    """Datumaro's `dataset_meta.json`: `label_map` or `labels`, perhaps `segmentation_colors`."""
    content = json.loads(text)
    labels = content.get("label_map") or dict(enumerate(content.get("labels") or ()))
    pairs = [(int(value), str(name)) for value, name in labels.items()]
    values, names = tuple(value for value, _ in pairs), tuple(name for _, name in pairs)
    colors = content.get("segmentation_colors") or ()
    if len(colors) != len(names) or not all(colors):
        return ClassList(file, names, values)
    return ClassList(file, names, values, tuple(map(_rgb, colors)), is_partial=True)


def _by_form(file: Path, lines: Sequence[str]) -> ClassList | None:
    """The classes of lines of one form, below a header or not; None if they have no such form."""
    if long := next((line for line in lines if len(line) > _LONGEST), None):
        raise _NotReadError(f"the line {long[:60]!r}... is too long for a class")
    header = {cell.strip().lower() for cell in re.split(r"[,;:\t ]", lines[0])}
    if len(lines) > 1 and header <= {*_NAME, *_VALUE, *_COLOR, *sum(_CHANNELS, ()), ""}:
        lines = lines[1:]
    for keys, form in _FORMS:
        rows = [match.groups() for match in map(form.fullmatch, lines) if match]
        if len(rows) < len(lines):
            continue
        columns = dict(zip(keys, zip(*rows, strict=True), strict=True))
        names = tuple(name.strip().strip('"') for name in columns["name"])
        if any(map(str.isdigit, names)):
            continue
        ends = [name[-1 if keys[0] == "name" else 0] for name in names]
        if "r" in keys and "id" not in keys and all(map(str.isdigit, ends)):
            raise _NotReadError(f"the line {lines[0]!r} has more numbers than a colour")
        values = tuple(map(int, columns["id"])) if "id" in columns else None
        channels = zip(*(columns[c] for c in "rgb"), strict=True) if "r" in columns else None
        return ClassList(
            file, names, values, None if channels is None else tuple(map(_rgb, channels))
        )
    return None


def _in_order(file: Path, names: Sequence[str]) -> ClassList:
    """Names whose order gives the values. labelme's first one, __ignore__, means -1."""
    found = ClassList(file, tuple(names))
    if names and names[0].lower() in _NO_CLASS:
        return replace(found, names=tuple(names[1:]), dropped=(names[0],))
    return found


_READERS: dict[_Reader, tuple[str, ...]] = {
    _table: ("class_dict.csv", "_classes.csv", "class_mapping.csv", "classes.csv"),
    _label_map: ("labelmap.txt",),
    _colors: ("label_colors.txt", "label_color.txt"),
    _dataset_meta: ("dataset_meta.json",),
    _json: ("id2label.json", "*id2label.json", "classes.json"),
    _machine_colors: ("obj_class_to_machine_color.json",),
    _names: (
        *("classes.txt", "labels.txt", "class_names.txt", "label_names.txt", "_classes.txt"),
        "obj.names",
    ),
}
"""Reader -> its files."""
