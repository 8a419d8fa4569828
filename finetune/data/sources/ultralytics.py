"""Ultralytics' layout: a `data.yaml` beside masks, or beside polygons in text files."""

import re
import warnings
from collections.abc import Mapping
from contextlib import suppress
from itertools import compress
from pathlib import Path
from typing import Any

import datasets
import yaml

from finetune.data.faults import Faults, each, listed, without_partner
from finetune.data.objects import Overlap, PolygonFiles
from finetune.data.samples import as_samples
from finetune.data.sources.folders import files_by_key
from finetune.errors import UserError
from finetune.labels.translation import Labels
from finetune.pictures.references import IMAGE_SUFFIXES


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
    folders = content.get(split)
    if not folders:
        keys = [key for key in ("train", "val", "test") if content.get(key)]
        raise UserError(f"{file}: there is no split {split!r}; there are {listed(keys)}.")
    images: dict[str, Path] = {}
    for folder in folders if isinstance(folders, list) else [folders]:
        directory = _image_folder(root, str(folder))
        if not directory.is_dir():
            raise UserError(
                f"{file}: {split} names {directory}, which is not a folder. Correct it; paths "
                f"are relative to {root}."
            )
        for key, image in files_by_key(directory, IMAGE_SUFFIXES, "", None, faults).items():
            images[key if key not in images else f"{folder}/{key}"] = image
    if not images:
        raise UserError(f"{file}: the folders of {split} hold no images. Correct them.")
    for raw, name in enumerate(content["names"]):
        if contradiction := labels.contradiction(raw, name):
            raise UserError(f"{file}: class {contradiction}.")
    keys = sorted(images)
    files = [images[key] for key in keys]
    masks_dir = content.get("masks_dir")
    if masks_dir is None:
        texts = [_beside_images(image, "labels", ".txt") for image in files]
        _check_texts(texts, file, split, faults)
        form = PolygonFiles(overlap, len(content["names"]))
        return as_samples(files, [str(text) for text in texts], keys, labels, form)
    masks = [_beside_images(image, str(masks_dir), ".png") for image in files]
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
        if path in wanted or _holds_object(path)  # lists of names may lie there too
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


def _holds_object(file: Path) -> bool:
    """Whether a file's first line is a class and numbers."""
    with suppress(OSError), file.open("rb") as text:
        return re.match(rb"\s*\d+(\s+-?[\d.]+(e-?\d+)?){4,}\s", text.read(4096) + b"\n") is not None
    return False


def read_data_yaml(file: Path) -> Mapping[str, Any]:
    """A `data.yaml` whose `names` are a list.

    Raises:
        UserError: It cannot be read, or has no names.
    """
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
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
    return {**content, "names": [str(name) for name in names]}


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


def _image_folder(root: Path, folder: str) -> Path:
    """A folder of `data.yaml`. Roboflow writes ../train/images for train/images beside the file."""
    inside = root / folder.removeprefix("../")
    return inside if inside.is_dir() and not (root / folder).is_dir() else root / folder


def _beside_images(image: Path, folder: str, suffix: str) -> Path:
    """The last `images` in a path becomes `folder`, as in Ultralytics."""
    parts = list(image.parts)
    for position in reversed(range(len(parts) - 1)):
        if parts[position] == "images":
            parts[position] = folder
            break
    return Path(*parts).with_suffix(suffix)
