"""Ultralytics' layout: a `data.yaml` beside masks, or beside polygons in text files.

Label Studio's YOLO export has a `classes.txt` in its place.
"""

import json
import re
import warnings
from collections.abc import Mapping
from contextlib import suppress
from itertools import compress
from pathlib import Path, PurePosixPath
from typing import Any

import datasets
import yaml

from finetune.data.faults import Faults, each, listed, without_partner
from finetune.data.objects import Overlap, PolygonFiles
from finetune.data.samples import as_samples
from finetune.data.sources.folders import files_by_key
from finetune.data.text import read_text
from finetune.errors import UserError
from finetune.labels.translation import Labels
from finetune.pictures.references import IMAGE_SUFFIXES, MASK_SUFFIXES


def ultralytics(
    path: str | Path,
    split: str,
    labels: Labels,
    *,
    overlap: Overlap = "area",
    faults: Faults = None,
) -> datasets.Dataset:
    """The data set of a `data.yaml`: images with masks below `masks_dir`, or polygons in `labels`.

    `path` is the YAML file, or the folder of a `data.yaml`; `split` is a key of it, such as "val".
    For polygons, labels give `NO_OBJECT` a meaning. `faults` as for `open_split`.

    Raises:
        UserError: The file is invalid, or a folder is missing or empty.
    """
    file = Path(path).expanduser()
    if file.is_dir():
        file /= "data.yaml"
    content = read_data_yaml(file)
    root = _root_of(file, content)
    entries = content.get(split)
    if not entries:
        keys = [key for key in _SPLITS if content.get(key)]
        raise UserError(f"{file}: there is no split {split!r}; there are {listed(keys)}.")
    images: dict[str, Path] = {}
    for entry in map(str, entries if isinstance(entries, list) else [entries]):
        for key, image in _images_of(entry, root, file, split, faults).items():
            images[key if key not in images else f"{entry}/{key}"] = image
    if not images:
        raise UserError(f"{file}: the folders of {split} hold no images. Correct them.")
    for raw, name in meanings(content, file).items():
        if name is not None and (contradiction := labels.contradiction(raw, name)):
            raise UserError(f"{file}: class {contradiction}.")
    keys = sorted(images)
    files = [images[key] for key in keys]
    masks_dir = content.get("masks_dir")
    if masks_dir is None:
        texts = [_beside_images(image, "labels", ".txt") for image in files]
        _check_texts(texts, file, split, faults)
        form = PolygonFiles(overlap, len(content["names"]))
        return as_samples(files, [str(text) for text in texts], keys, labels, form)
    masks = [_mask_of(image, str(masks_dir)) for image in files]
    missing = [str(mask) for mask in masks if not mask.is_file()]
    whole = [mask.is_file() for mask in masks]
    if faults is not None and any(whole):
        faults += without_partner(files, masks)
        files, masks = ([*compress(part, whole)] for part in (files, masks))
        keys = [*compress(keys, whole)]
    elif missing:
        raise UserError(
            f"{file}: {len(missing)} of {len(masks)} images have no mask: {listed(missing)}. Add "
            "the masks, or remove the images."
        )
    return as_samples(files, [str(mask) for mask in masks], keys, labels)


def _check_texts(texts: list[Path], file: Path, split: str, faults: Faults) -> None:
    """Refuses text files without an image, and a split without any."""
    wanted = set(texts)
    there = {
        path
        for folder in {text.parent for text in texts}
        for path in folder.glob("*.txt")
        # Lists of names may lie there too, and texts of images that this split does not list.
        if path in wanted or (holds_object(path) and not has_image(path))
    }
    if not there & wanted:
        raise UserError(
            f"{file}: no image has a text file of polygons. The first should be {texts[0]}."
        )
    if alone := sorted(map(str, there - wanted)):
        if faults is None:
            raise UserError(
                f"{file}: {len(alone)} text files of polygons have no image: {listed(alone)}. "
                "Rename, add or remove files until each has its partner."
            )
        faults += each("mask-without-image", alone)
    without = [str(text) for text in texts if text not in there]
    if len(without) > len(texts) / 2:
        warnings.warn(
            f"{file}: {len(without)} of {len(texts)} images of {split} have no text file and count "
            f"as empty; the first should be {without[0]}",
            stacklevel=3,
        )


def holds_object(file: Path) -> bool:
    """Whether a file's first line is a class and numbers."""
    with suppress(OSError), file.open("rb") as text:
        return re.match(rb"\s*\d+(\s+-?[\d.]+(e-?\d+)?){4,}\s", text.read(4096) + b"\n") is not None
    return False


_SPLITS = ("train", "val", "test")
_KEYS = {
    *("path", "train", "val", "test", "minival", "names", "nc", "masks_dir", "label_mapping"),
    # These change no label.
    *("download", "roboflow", "channels", "version", "license", "licence", "author", "contributor"),
    *("description", "info", "url", "homepage", "date", "date_created", "year", "citation"),
}
_POSES = ("kpt_shape", "kpt_names", "flip_idx")


def read_data_yaml(file: Path) -> Mapping[str, Any]:
    """A `data.yaml` whose `names` are a list, or the same for a folder of Label Studio's.

    Raises:
        UserError: It cannot be read, has no names, or a key that may change what labels mean.
    """
    if file.name == "data.yaml" and not file.exists() and (file.parent / "classes.txt").is_file():
        return _of_label_studio(file.parent)
    try:
        content = yaml.safe_load(read_text(file))
    except yaml.YAMLError as error:
        raise UserError(f"{file}: cannot be read as YAML ({error}).") from error
    names = content.get("names") if isinstance(content, dict) else None
    if isinstance(names, dict):
        names = _names_in_order(names, file)
    if not isinstance(names, list) or not names:
        raise UserError(f"{file}: `names` must be a list, or ids from 0 on with their names.")
    for i, name in enumerate(names):
        if isinstance(name, bool) or not isinstance(name, str | int | float):
            raise UserError(
                f"{file}: the name of class {i} in `names` is {name!r}. Put it in quotes: YAML "
                "does not read yes, no, on, off and null as words."
            )
    if poses := [key for key in _POSES if key in content]:
        raise UserError(
            f"{file}: {poses[0]} says that the text files hold keypoints, not outlines. Export the "
            "data set for segmentation."
        )
    if unknown := [str(key) for key in content if key not in _KEYS]:
        raise UserError(
            f"{file}: the key {unknown[0]} is unknown here and may change what labels mean. Remove "
            "it if it does not; otherwise write what it says into a recipe's labels."
        )
    if content.get("nc", len(names)) != len(names):
        raise UserError(
            f"{file}: nc is {content['nc']}, but `names` has {len(names)} names. Correct one."
        )
    return {**content, "names": [str(name) for name in names]}


def meanings(content: Mapping[str, Any], file: Path) -> dict[int, str | None]:
    """Each value of a mask or a polygon -> the name of its class; None if it is ignored.

    Raises:
        UserError: `label_mapping` says something else than a class or `ignore_label`.
    """
    names, mapping = content["names"], content.get("label_mapping")
    if mapping is None:
        return dict(enumerate(names))
    if not content.get("masks_dir") or not isinstance(mapping, dict) or not mapping:
        raise UserError(
            f"{file}: label_mapping must be a table of mask values, and needs masks_dir; it has no "
            "meaning for polygons. Correct or remove it."
        )
    found: dict[int, str | None] = {}
    for raw, target in mapping.items():
        is_ignored = target == "ignore_label" or (target == 255 and len(names) <= 255)
        is_class = type(target) is int and 0 <= target < len(names)
        if type(raw) is not int or not (is_ignored or is_class) or (raw < 0 and is_class):
            raise UserError(
                f"{file}: label_mapping says `{raw}: {target}`. A mask value from 0 on means an id "
                f"of `names` (0 to {len(names) - 1}) or ignore_label. Correct it."
            )
        if raw >= 0:  # masks hold no value below
            found[raw] = None if is_ignored else names[target]
    return found


def _of_label_studio(root: Path) -> Mapping[str, Any]:
    """What a `data.yaml` would say of `classes.txt`, `images/` and `labels/`."""
    file = root / "classes.txt"
    names = [line.strip() for line in read_text(file).rstrip().splitlines()]
    for i, name in enumerate(names):
        if not name or re.match(r"\d+\s*[:;,\t]", name):
            raise UserError(
                f"{file}: line {i + 1}, {name!r}, must be the name of class {i} alone. Correct it."
            )
    notes = root / "notes.json"
    if notes.is_file():
        try:
            rows = json.loads(read_text(notes)).get("categories", [])
            noted = {int(row["id"]): str(row["name"]).strip() for row in rows}
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise UserError(f"{notes}: cannot be read ({error!r}). Export it again.") from error
        if noted and noted != dict(enumerate(names)):
            raise UserError(f"{notes}: its categories are others than {file.name} lists. Mend one.")
    splits = [split for split in _SPLITS if (root / "images" / split).is_dir()]
    others = [
        path
        for path in (root / "images").glob("*")
        if path.name not in _SPLITS and (path.is_dir() or path.suffix.lower() in IMAGE_SUFFIXES)
    ]
    if splits and not others:
        return {"names": names, **{split: f"images/{split}" for split in splits}}
    return {"names": names, "train": "images"}


def _names_in_order(names: Mapping[Any, Any], file: Path) -> list[Any]:
    """Names in the order of their ids, which may be in quotes."""
    by_id: dict[int, Any] = {}
    for key, name in names.items():
        is_id = not isinstance(key, bool) and re.fullmatch("[0-9]{1,5}", str(key))
        if not is_id or int(key) in by_id:
            raise UserError(
                f"{file}: the key {key!r} in `names` is not an id of its own; write `0: {name}` "
                "and so on, or a list."
            )
        by_id[int(key)] = name
    if gaps := sorted(set(range(len(by_id))) - set(by_id)):
        raise UserError(
            f"{file}: `names` has {len(by_id)} names, up to id {max(by_id)}, but none of id "
            f"{', '.join(map(str, gaps[:5]))}. Ids count from 0 without gaps: name these too, or "
            "renumber the classes, also in the text files or masks."
        )
    return [by_id[i] for i in range(len(by_id))]


def _root_of(file: Path, content: Mapping[str, Any]) -> Path:
    """`path` if that folder exists; moved files keep the path where they were written."""
    root = Path(str(content.get("path") or "."))
    absolute = root if root.is_absolute() else file.parent / root
    return absolute if absolute.is_dir() else file.parent


def _images_of(entry: str, root: Path, file: Path, split: str, faults: Faults) -> dict[str, Path]:
    """The images of a folder, or of a text file that lists them, by their names."""
    places = [base / entry for base in (root, file.parent)]
    if not any(place.exists() for place in places) and entry.startswith("../"):
        places = [root / entry.removeprefix("../")]  # Roboflow means train/images by it
    place = next((place for place in places if place.exists()), None)
    if place is None:
        raise UserError(
            f"{file}: {split} names {places[0]}, which is neither a folder nor a list of images. "
            f"Correct it; paths are relative to {root}."
        )
    if place.is_dir():
        return files_by_key(place, IMAGE_SUFFIXES, "", None, faults)
    return _listed_images(place, root, faults)


def _listed_images(file: Path, root: Path, faults: Faults) -> dict[str, Path]:
    """The images of a text file, one a line.

    Paths are absolute, relative to the data set's folder or, with `./`, to the list's own. If a
    data set was moved, the folders above it that the first path names are left out in all.

    Raises:
        UserError: There are none, or one is missing, no image, or listed beside a namesake.
    """
    lines = [line.strip().replace("\\", "/") for line in read_text(file).splitlines()]
    lines = list(dict.fromkeys(filter(None, lines)))
    if not lines:
        raise UserError(f"{file}: lists no images. Write the path of one a line.")
    if wrong := next((x for x in lines if Path(x).suffix.lower() not in IMAGE_SUFFIXES), None):
        raise UserError(
            f"{file}: {wrong[:80]!r} is not the path of an image ({', '.join(IMAGE_SUFFIXES)})."
        )
    first, bases = PurePosixPath(lines[0]), [root, file.parent]
    if lines[0].startswith("./"):
        bases.reverse()
    number = next(
        (
            number
            for number in range(max(1, len(first.parts) - 1))  # a file's name alone is too little
            if any((base / Path(*first.parts[number:])).is_file() for base in bases)
        ),
        0,
    )
    images: dict[str, Path] = {}
    missing = []
    for line in lines:
        path = Path(*PurePosixPath(line).parts[number:])
        image = next((base / path for base in bases if (base / path).is_file()), None)
        if image is None:
            missing.append(line)
            continue
        key = Path(*path.parts[1:] if path.is_absolute() else path.parts).with_suffix("").as_posix()
        if images.setdefault(key, image) != image:
            raise UserError(
                f"{file}: {images[key]} and {image} differ in their file type only, so their "
                "labels are not clear. Remove one of them."
            )
    if missing and (faults is None or not images):
        raise UserError(
            f"{file}: {len(missing)} of {len(lines)} images do not exist: {listed(missing)}. "
            f"Correct the paths; they are relative to {root}."
        )
    if faults is not None:
        faults += each("listed-but-missing", missing, f"named in {file}")
    return images


def has_image(text: Path) -> bool:
    """Whether the image of a text file of polygons is there, in whatever split."""
    swapped = _swapped(text, "labels", "images")
    return any(path.with_suffix(s).is_file() for path in (swapped, text) for s in IMAGE_SUFFIXES)


def _mask_of(image: Path, folder: str) -> Path:
    """The mask of an image: a PNG or, if there is none, of another file type."""
    mask = _beside_images(image, folder, ".png")
    others = (mask.with_suffix(suffix) for suffix in (".PNG", *MASK_SUFFIXES))
    return mask if mask.is_file() else next((path for path in others if path.is_file()), mask)


def _beside_images(image: Path, folder: str, suffix: str) -> Path:
    """The last `images` in a path becomes `folder`, as in Ultralytics."""
    return _swapped(image, "images", folder).with_suffix(suffix)


def _swapped(path: Path, old: str, new: str) -> Path:
    """The path with `new` in place of the last folder called `old`."""
    parts = list(path.parts)
    for position in reversed(range(len(parts) - 1)):
        if parts[position] == old:
            parts[position] = new
            break
    return Path(*parts)
