"""Label Studio's exports, JSON and JSON-MIN, and the names of its brush PNGs.

Formats: https://labelstud.io/guide/export and label_studio_sdk/converter in
https://github.com/HumanSignal/label-studio-sdk. Lengths are in per cent of the image. The x and y
of an ellipse are its middle, and it turns clockwise about it, as the tool draws it.
"""

import base64
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any
from unicodedata import normalize

from finetune.data.annotations.coco import parsed
from finetune.data.faults import listed
from finetune.data.named_files import own_names
from finetune.errors import UserError
from finetune.pictures.references import IMAGE_SUFFIXES

_KINDS = {
    "rle": "brush",
    "points": "polygon",
    "radiusX": "ellipse",
    "height": "rectangle",
    "x": "keypoint",
}
"""A key of a region's value -> its kind. The first one counts: a rectangle has an x too."""
_ANNOTATIONS = ("annotations", "completions")  # the second is that of versions before 1.0
_FARTHEST = 1e4  # per cent; beyond any image
_BRUSH_PNG = re.compile(
    r"task-([^-]+)-annotation-([^-]+)(?:-by-[^-]*)?-(?P<rest>.+)-\d+", re.IGNORECASE
)


@dataclass(frozen=True)
class Region:
    """One marked object."""

    label: str
    kind: str
    """brush, polygon or ellipse; png, for a file."""
    shape: Any
    """The brush's bytes in base64, points, numbers of the ellipse, or the path of the file."""
    name: str
    """For messages."""


@dataclass(frozen=True)
class Task:
    """An image, and the annotation that is used."""

    name: str
    """Its id, as text."""
    image: str
    """The path or address of the image."""
    annotation: str | None
    """The id of the annotation; None if there is none."""
    regions: tuple[Region, ...] = ()
    size: tuple[int, int] | None = None
    """Height and width that the regions state."""


@dataclass(frozen=True)
class Export:
    """The tasks of a file."""

    file: Path
    tasks: tuple[Task, ...]
    """Those with an annotation."""
    others: tuple[Task, ...] = ()
    """Those without."""
    tags: frozenset[str] = frozenset()
    """Names of the controls that drew the regions."""
    notes: tuple[str, ...] = ()
    """Lines about what was chosen, and left out of annotations."""

    @property
    def lines(self) -> tuple[str, ...]:
        """The notes, with one about tasks without an annotation."""
        line = f"{len(self.others)} tasks have no annotation yet and are left out"
        return (line, *self.notes) if self.others else self.notes


@dataclass
class _Found:
    """What one annotation holds, and what was left out in all of them."""

    regions: list[Region] = field(default_factory=list)
    sizes: set[tuple[int, int]] = field(default_factory=set)
    unlabelled: list[tuple[Any, str]] = field(default_factory=list)
    keypoints: int = 0


def read_export(file: Path, content: Any = None) -> Export | None:
    """The tasks of a JSON or JSON-MIN export; None if the file is none.

    Tasks without an annotation are left out. Of several annotations the one that is marked as
    ground truth counts, else the latest; cancelled ones never count. In a file without any
    annotation, as tasks with pre-annotations are, the predictions count.

    Args:
        file: The file.
        content: What `parsed` gave for it, if it was called.

    Raises:
        UserError: It cannot be read, or a region cannot be used; names the task and the region.
    """
    content = parsed(file) if content is None else content
    rows = [row for row in _dicts(content) if isinstance(row.get("data"), dict)]
    rows = rows or _from_min(_dicts(content))
    if not any(_images(row["data"]) for row in rows):
        return None
    live = [_live(row, _ANNOTATIONS) for row in rows]
    counts = Counter(cancelled for _, cancelled in live)
    chosen = [annotations for annotations, _ in live]
    notes = []
    if not any(chosen):
        chosen = [_live(row, ("predictions",))[0] for row in rows]
        if any(chosen):
            notes.append("no task has an annotation: its predictions (pre-annotations) are read")
    tasks, others, tags, keypoints = [], [], set(), 0
    for number, (row, own) in enumerate(zip(rows, chosen, strict=True), 1):
        name = str(row.get("id", number))
        if own:
            found = _regions(own[-1], f"{file}, task {name}")
            tasks.append(_task(file, name, row["data"], own[-1], found))
            tags |= {str(item["from_name"]) for item in own[-1]["result"] if "from_name" in item}
            keypoints += found.keypoints
        elif len(images := _images(row["data"])) == 1:
            others.append(Task(name, images[0], None))
    several = [task.name for task, own in zip(tasks, filter(None, chosen), strict=True) if own[1:]]
    for count, line in (
        (counts[True], "tasks have cancelled annotations, which are left out"),
        (keypoints, "keypoints are left out: a point covers no pixels"),
    ):
        if count:
            notes.append(f"{count} {line}")
    if several:
        notes.append(
            f"{len(several)} tasks have several annotations; the ground truth of each is read, "
            f"else the latest: task {listed(several)}"
        )
    _refuse_twice(file, tasks)
    return Export(file, tuple(tasks), tuple(others), frozenset(tags), tuple(notes))


def _dicts(value: Any) -> list[dict[str, Any]]:
    return [own for own in value if isinstance(own, dict)] if isinstance(value, list) else []


def _from_min(content: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Tasks from the rows of JSON-MIN, one for each annotation, with a key for each control."""
    tasks: dict[str, dict[str, Any]] = {}
    has_regions = False
    for number, row in enumerate(content, 1):
        result = [
            {"value": value, "from_name": tag, **{k: value[k] for k in _SIDES if k in value}}
            for tag, values in row.items()
            for value in _dicts(values)
            if not {*_SIDES, *_KINDS}.isdisjoint(value)
        ]
        name = str(row.get("id", f"of row {number}"))
        task = tasks.setdefault(name, {"id": name, "data": row, "annotations": []})
        has_regions |= bool(result) or "annotation_id" in row
        if row.get("annotation_id", "") is not None:
            task["annotations"].append({**row, "id": row.get("annotation_id"), "result": result})
    return list(tasks.values()) if has_regions else []


_SIDES = ("original_height", "original_width")


def _live(row: Mapping[str, Any], keys: Iterable[str]) -> tuple[list[dict[str, Any]], bool]:
    """The annotations that count, the one to use last, and whether some were cancelled."""
    entries = [own for key in keys for own in _dicts(row.get(key))]
    live = [own for own in entries if not (own.get("was_cancelled") or own.get("skipped"))]
    for own in live:
        own["result"] = _dicts(own.get("result"))
    live.sort(
        key=lambda own: (
            own.get("ground_truth") is True,
            str(own.get("updated_at") or own.get("created_at") or "").removesuffix("Z"),
        )
    )
    return live, len(live) < len(entries)


def _images(data: Mapping[str, Any]) -> list[Any]:
    """The images that a task shows, by their key or by their file type."""
    if isinstance(data.get("image"), str):
        return [data["image"]]
    values = [own for value in data.values() for own in (value if type(value) is list else [value])]
    return [own for own in values if isinstance(own, str) and _is_picture(own)]


def _is_picture(name: str) -> bool:
    return any(own.lower().endswith(IMAGE_SUFFIXES) for own in own_names(name))


def _task(
    file: Path, name: str, data: Mapping[str, Any], annotation: Mapping[str, Any], found: _Found
) -> Task:
    images = _images(data)
    if len(images) != 1:
        raise UserError(
            f"{file}, task {name}: shows {len(images)} images (keys: {', '.join(data)}). A task "
            "must have one, under the key image or with the file type of a picture."
        )
    if len(found.sizes) > 1:
        raise UserError(
            f"{file}, task {name}: its regions state several sizes of the image, "
            f"{' and '.join(f'{w} x {h}' for h, w in sorted(found.sizes))}. Correct "
            "original_width and original_height."
        )
    size, regions = next(iter(found.sizes), None), tuple(found.regions)
    return Task(name, images[0], str(annotation.get("id")), regions, size)


def _refuse_twice(file: Path, tasks: Iterable[Task]) -> None:
    first: dict[str, str] = {}
    for task in tasks:
        if (known := first.setdefault(task.image, task.name)) != task.name:
            raise UserError(
                f"{file}: the tasks {known} and {task.name} show the same image, {task.image!r}, "
                "and both have an annotation. Remove one of them."
            )


# ------------------------------------------------------------------------------------- the regions


def _regions(annotation: Mapping[str, Any], where: str) -> _Found:
    """The regions of an annotation that cover pixels.

    Choices, texts and relations are passed over. They, and the drawn half of a Brush with Labels,
    repeat a region without its label.
    """
    found = _Found()
    for number, item in enumerate(annotation["result"], 1):
        value = item.get("value")
        if not isinstance(value, dict):
            continue
        key = next((k for k, v in value.items() if k.endswith("labels") and type(v) is list), None)
        kind = next((_KINDS[k] for k in _KINDS if k in value), None)
        name = f"region {item.get('id', number)!r}"
        if kind == "keypoint":
            found.keypoints += key is not None
            continue
        labels = [text for label in value[key] if (text := str(label).strip())] if key else []
        if kind is None and (not labels or _SIDES[0] not in item):
            continue
        _check(item, kind or key or "", labels, f"{where}, {name}")
        shape = _shape(kind or "", value, f"{where}, {name}")
        height, width = (_side(item, key) for key in _SIDES)
        if height and width:
            found.sizes.add((height, width))
        if labels:
            region = Region(normalize("NFC", labels[0]), kind or "", shape, name)
            found.regions.append(region)
        else:
            found.unlabelled.append((shape, name))
    labelled = [region.shape for region in found.regions]
    for shape, name in found.unlabelled:
        if shape not in labelled:
            raise UserError(
                f"{where}, {name}: has no label, so its pixels have no class. Label it, or remove "
                "it."
            )
    return found


def _check(item: Mapping[str, Any], kind: str, labels: list[str], where: str) -> None:
    """Refuses what has no reading as pixels of one class."""
    if kind not in ("brush", "polygon", "ellipse"):
        about = "a box, which says nothing about pixels" if kind == "rectangle" else "not read"
        raise UserError(
            f"{where}: is of the kind {kind} ({', '.join(labels) or 'no label'}), {about}. Draw it "
            "with the brush, as a polygon or as an ellipse, or remove it."
        )
    if len(labels) > 1:
        raise UserError(
            f"{where}: has {len(labels)} labels ({', '.join(labels)}), but a pixel has one class. "
            "Leave one of them."
        )
    if item.get("image_rotation") or item.get("item_index"):
        key = "image_rotation" if item.get("image_rotation") else "item_index"
        raise UserError(
            f"{where}: has {key} {item[key]}, so its place in the image file is not clear. Turn "
            "the image itself, or split the task, and annotate the image as it is."
        )


def _side(item: Mapping[str, Any], key: str) -> int | None:
    value = item.get(key)
    return int(value) if isinstance(value, int | float) and 1 <= value < 1e9 else None


def _shape(kind: str, value: Mapping[str, Any], where: str) -> Any:
    """A region's shape in the form of `Region`."""
    if kind == "brush":
        try:
            return base64.b64encode(bytes(value["rle"])).decode()
        except (TypeError, ValueError) as error:
            raise UserError(
                f"{where}: its rle is not a list of bytes, 0 to 255. Export it again."
            ) from error
    if kind == "polygon":
        numbers, is_right = value["points"], False
        if isinstance(numbers, list) and len(numbers) > 2:
            is_right = all(isinstance(p, list) and len(p) == 2 and _are_near(p) for p in numbers)
    else:
        numbers = [value.get(key) for key in ("x", "y", "radiusX", "radiusY")]
        numbers.append(value.get("rotation") or 0)
        is_right = _are_near(numbers)
    if not is_right:
        need = "3 or more points [x, y]" if kind == "polygon" else "x, y, radiusX and radiusY"
        raise UserError(
            f"{where}: the {kind} needs {need}, in per cent of the image. Correct it, or remove it."
        )
    return numbers


def _are_near(numbers: list[Any]) -> bool:
    return all(isinstance(x, int | float) and abs(x) < _FARTHEST for x in numbers)  # NaN is not


# --------------------------------------------------------------------------------- the brush's PNGs


def is_brush_png(stem: str) -> bool:
    """Whether this is the name of a brush PNG, such as `task-1-annotation-3-by-1-tag-Cat-0`."""
    return _BRUSH_PNG.fullmatch(stem) is not None


def brush_pngs(files: Iterable[Path], tags: frozenset[str]) -> dict[str, dict[str, list[Region]]]:
    """The brush PNGs by task and annotation.

    A name ends in the control's name, the label and a number. Without the name in `tags`, the
    control's name is what stands before the first hyphen.

    Raises:
        UserError: A region has no label.
    """
    found: dict[str, dict[str, list[Region]]] = defaultdict(lambda: defaultdict(list))
    for file in sorted(files):
        match = _BRUSH_PNG.fullmatch(normalize("NFC", file.stem))
        if match is None:
            continue
        rest = match["rest"]
        tag = next((own for own in sorted(tags, key=len)[::-1] if rest.startswith(f"{own}-")), None)
        label = rest[len(tag) + 1 :] if tag else rest.partition("-")[2]
        if label in ("", "no_label"):
            raise UserError(f"{file}: its name has no label. Label the brush, and export again.")
        found[match[1]][match[2]].append(Region(label, "png", str(file), file.name))
    return found


def with_pngs(export: Export, pngs: Mapping[str, Mapping[str, list[Region]]]) -> Export:
    """The tasks with their PNGs in place of regions.

    PNGs without their annotation in the file are those of the latest one, which has the highest
    number. A task without an annotation and without PNGs stays left out.

    Raises:
        UserError: PNGs belong to no task of the file, or tasks show the same image.
    """
    tasks = [*export.tasks, *(task for task in export.others if task.name in pngs)]
    if strange := sorted(pngs.keys() - {task.name for task in tasks}):
        file = next(iter(pngs[strange[0]].values()))[0].shape
        raise UserError(
            f"{export.file}: names no image for task {listed(strange)}, but there are brush PNGs, "
            f"such as {file}. Put an export of the project as JSON or JSON-MIN, from the same "
            "time, beside them."
        )
    _refuse_twice(export.file, tasks)
    found = []
    for task in tasks:
        own = pngs.get(task.name, {})
        latest = max(own, key=lambda name: (len(name), name), default="")
        regions = own.get(task.annotation or "", own.get(latest, []))
        found.append(replace(task, regions=tuple(regions), size=None))
    others = tuple(task for task in export.others if task.name not in pngs)
    return replace(export, tasks=tuple(found), others=others)


def named_export(folder: Path, pngs: Mapping[str, Any], names: Iterable[str]) -> Export:
    """The tasks of brush PNGs without a JSON file: the names of their images are their numbers.

    These are names such as `1.jpg` or `task-1.jpg`. Of one task and one image, any name will do.
    """
    names = list(names)
    own = {re.sub(r"^(task[-_ ]?)?0*(?=.)", "", PurePosixPath(n).stem.lower()): n for n in names}
    if len(pngs) == len(names) == 1:
        own = {next(iter(pngs)): names[0]}
    return Export(folder, (), tuple(Task(task, own[task], None) for task in pngs if task in own))
