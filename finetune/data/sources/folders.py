"""Images and masks in folders: any layout that two patterns describe.

Files are found and paired here by name; `finetune.data.samples` reads them.
"""

import glob
import json
import os
from collections.abc import Iterator, Set
from pathlib import Path, PurePosixPath
from typing import Literal
from unicodedata import normalize

import datasets

from finetune.data.faults import Fault, Faults, each, listed
from finetune.data.masks import LOSSY_IDS, ClassFiles, MaskForm, picture_masks
from finetune.data.samples import as_samples
from finetune.errors import UserError
from finetune.labels.translation import Labels
from finetune.pictures.references import (
    COLOR_MASK_SUFFIXES,
    IMAGE_SUFFIXES,
    LOSSY_SUFFIXES,
    MASK_SUFFIXES,
)


def image_folder(
    path: str | Path,
    split: str,
    labels: Labels,
    *,
    images: str = "images/{split}",
    masks: str = "masks/{split}",
    image_suffix: str = "",
    mask_suffix: str = "",
    without_mask: Literal["error", "skip"] = "error",
    faults: Faults = None,
) -> datasets.Dataset:
    """Pairs two folders, nested ones included, by relative path without the file type.

    Args:
        path: The data set's folder.
        split: Replaces `{split}` in the patterns.
        labels: What the mask values mean.
        images: Folder of the images, relative to `path`. A part `*` is any folder: images of
            `seq1/Images` have their masks in `seq1/Labels`, if these are `*/Images` and `*/Labels`.
        masks: Folder of the masks, relative to `path`; may be the same as `images`. With `{class}`
            in it, or in `mask_suffix`, each class of `labels` has files of its own. An image may
            lack the files of some classes.
        image_suffix: End of image names before the file type, such as "_leftImg8bit". Other files
            in the folder are left alone.
        mask_suffix: The same for mask names, such as "_mask".
        without_mask: Whether an image without a mask is an error, or left out.
        faults: Takes files without a partner and similar faults. With None they are an error.

    Returns:
        Samples, sorted by id, the common name.

    Raises:
        UserError: A folder is missing or empty, or an image or a mask has no partner.
    """
    images, masks = (pattern.replace("{split}", split) for pattern in (images, masks))
    root = existing_root(Path(path).expanduser(), f"{images} and {masks}")
    (above_images, inner_images), (above_masks, inner_masks) = above_star(images), above_star(masks)
    image_dir = existing_folder(root, above_images, split)
    if (os.path.normpath(images), image_suffix) == (os.path.normpath(masks), mask_suffix):
        raise UserError(
            f"data.path: images and masks have the same folder, {image_dir}, and the same names. "
            "Give masks a folder of their own, or a suffix such as _mask."
        )
    form: MaskForm = picture_masks(labels)
    if "{class}" in masks + mask_suffix:
        form = ClassFiles()
        found = _class_files(root, masks, mask_suffix, split, labels, faults)
        taken = {file for files in found.values() for file in files.values()}
        mask_dir = root / masks.partition("{class}")[0]
        mask_files = {
            key: json.dumps({raw: str(file) for raw, file in sorted(files.items())})
            for key, files in found.items()
        }
    else:
        mask_dir = existing_folder(root, above_masks, split)
        lossy = labels.kind == "colors" or labels.tolerance > 0
        suffixes = COLOR_MASK_SUFFIXES if lossy else MASK_SUFFIXES
        files = files_by_key(mask_dir, suffixes, mask_suffix, faults=faults, inner=inner_masks)
        taken = set(files.values()) if mask_suffix and image_dir == mask_dir else set()
        mask_files = {key: str(file) for key, file in files.items()}
    image_files = files_by_key(image_dir, IMAGE_SUFFIXES, image_suffix, taken, faults, inner_images)
    if not image_files:
        raise UserError(
            f"data.path: no images found in {image_dir} or its subfolders (looked for "
            f"*{image_suffix} with {', '.join(IMAGE_SUFFIXES)}). Correct data.images."
        )
    if isinstance(form, ClassFiles) and mask_files:
        mask_files = dict.fromkeys(image_files, "{}") | mask_files
    mask_files = _by_whole_names(image_files, mask_files, image_dir)
    keys = sorted(image_files.keys() & mask_files.keys())
    if without_mask == "skip" and keys:
        image_files = {key: image_files[key] for key in keys}
    if faults is None or not keys:
        if labels.kind == "ids" and (unpaired := image_files.keys() - mask_files.keys()):
            _check_not_lossy(mask_dir, mask_suffix, unpaired)
        _check_partners(image_files, mask_files, image_dir, mask_dir, image_suffix, mask_suffix)
    else:
        faults += _without_partner(image_files, mask_files, form, image_dir, mask_dir, mask_suffix)
    return as_samples(
        [image_files[key] for key in keys], [mask_files[key] for key in keys], keys, labels, form
    )


def _by_whole_names(
    images: dict[str, Path], masks: dict[str, str], image_dir: Path
) -> dict[str, str]:
    """The masks; x.jpg.png, as Supervisely names it, is that of x.jpg."""
    whole = {
        normalize("NFC", path.relative_to(image_dir).as_posix()): key
        for key, path in images.items()
        if key not in masks
    }
    return {whole.get(key, key) if key not in images else key: m for key, m in masks.items()}


def _class_files(
    root: Path, masks: str, suffix: str, split: str, labels: Labels, faults: Faults
) -> dict[str, dict[int, Path]]:
    """Key of an image -> class id -> its file.

    Raises:
        UserError: Files belong to no class, and there is no list for faults.
    """
    has_folders = "{class}" in masks
    folder = existing_folder(root, masks.partition("{class}")[0], split)
    if has_folders:
        _check_class_folders(root, masks, labels, faults)
    found: dict[str, dict[int, Path]] = {}
    taken: set[Path] = set()
    # The longest name first: the file of "sports car" ends in "_car" too.
    for class_id, name in sorted(enumerate(labels.names), key=lambda item: -len(item[1])):
        own, ending = (pattern.replace("{class}", name) for pattern in (masks, suffix))
        for key, file in files_by_key(root / own, MASK_SUFFIXES, ending, taken, faults).items():
            found.setdefault(key, {})[class_id] = file
            taken.add(file)
    fixed = suffix.partition("{class}")[0]  # files without it are other things
    others = sorted(f for f in {*_files(folder, MASK_SUFFIXES)} - taken if fixed in f.stem)
    if not has_folders and others:
        if faults is None:
            raise UserError(
                f"data.mask_suffix: {len(others)} files in {folder} end in no name of "
                f"labels.names: {listed(sorted(file.name for file in others))}. Rename them, or "
                "add their classes."
            )
        faults += each("mask-of-no-class", others)
    return found


def _check_class_folders(root: Path, masks: str, labels: Labels, faults: Faults) -> None:
    """Refuses folders that are no class: their names may be misspelt."""
    above, _, below = masks.partition("{class}")
    parent = root / above
    there = {
        folder.name
        for folder in parent.iterdir()
        if (folder / below.strip("/")).is_dir() and not folder.name.startswith(".")
    }
    if strangers := sorted(there - set(labels.names)):
        if faults is None:
            raise UserError(
                f"data.masks: {parent} holds folders that are no class of labels.names: "
                f"{listed(strangers)}. Rename them, or add their classes."
            )
        faults += each("mask-of-no-class", [parent / name for name in strangers])
    if not there:
        raise UserError(
            f"data.masks: {parent} holds no folder of a class of labels.names. Name one per class."
        )


def existing_root(root: Path, expected: str) -> Path:
    """Returns a data set's folder, or raises a UserError if it is not one."""
    if not root.is_dir():
        state = "is a file" if root.exists() else "does not exist"
        raise UserError(
            f"data.path: {root.absolute()} {state}. It must be the folder that holds {expected}."
        )
    return root


def existing_folder(root: Path, relative: str, split: str) -> Path:
    """Returns the folder of a split; if it is missing, the message lists the others."""
    folder = root / relative
    if folder.is_dir():
        return folder
    above = next(parent for parent in folder.parents if parent.is_dir())
    there = sorted(f.name for f in above.iterdir() if f.is_dir() and not f.name.startswith("."))
    raise UserError(
        f"data.path: there is no folder {folder} for the split {split!r}. {above} holds "
        f"{listed(there) if there else 'no folders'}. Correct data.path, or the split's name."
    )


def files_by_key(
    folder: Path,
    suffixes: tuple[str, ...],
    name_suffix: str,
    skip: set[Path] | None = None,
    faults: Faults = None,
    inner: tuple[str, ...] = (),
) -> dict[str, Path]:
    """Files below a folder, by relative path without file type and `name_suffix`.

    Hidden files and folders are left out (macOS leaves a `._x.png` beside each `x.png`). With
    `inner`, such as ("*", "Images"), files lie in such subfolders, and only what stands for a star
    remains in the key.
    """
    files: dict[str, Path] = {}
    for path in _files(folder, suffixes):
        stem = normalize("NFC", path.stem)
        if not stem.endswith(normalize("NFC", name_suffix)) or (skip and path in skip):
            continue
        key = _key(path, folder, name_suffix)
        if inner:
            parts = key.split("/")
            pairs = [*zip(inner, parts, strict=False)]
            if len(parts) <= len(inner) or any(own not in ("*", part) for own, part in pairs):
                continue
            key = "/".join([*(part for own, part in pairs if own == "*"), *parts[len(inner) :]])
        if key in files:
            if faults is None:
                raise UserError(
                    f"data.path: {files[key]} and {path} differ in their file type only (or in "
                    "the Unicode form of their names), so "
                    f"their mask is not clear. Remove one of them."
                )
            # Keep the same one, in whatever order the disk lists them.
            path, other = sorted((files[key], path))
            faults.append(Fault("same-name", (str(path), str(other))))
        files[key] = path
    return files


def above_star(pattern: str) -> tuple[str, tuple[str, ...]]:
    """The folder above the first `*` of a pattern, and the parts from there on."""
    parts = PurePosixPath(pattern).parts
    place = parts.index("*") if "*" in parts else len(parts)
    return "/".join(parts[:place]), parts[place:]


def _files(folder: Path, suffixes: tuple[str, ...]) -> Iterator[Path]:
    for directory, subfolders, names in os.walk(folder, followlinks=True):
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
        for name in names:
            path = Path(directory, name)
            if not name.startswith(".") and path.suffix.lower() in suffixes:
                yield path


def _without_partner(
    images: dict[str, Path],
    masks: dict[str, str],
    form: MaskForm,
    image_dir: Path,
    mask_dir: Path,
    mask_suffix: str,
) -> Iterator[Fault]:
    """The files that `_check_partners` refuses; names a mask that has another file type."""
    alone = sorted(images.keys() - masks.keys())
    beside = _other_types(mask_dir, mask_suffix) if alone and mask_dir != image_dir else {}
    for key in alone:
        others = beside.get(key, [])
        what = f"{others[-1].suffix} is not a file type for masks" if others else ""
        yield Fault("image-without-mask", tuple(map(str, (images[key], *others))), what)
    for key in sorted(masks.keys() - images.keys()):
        yield Fault("mask-without-image", tuple(map(str, form.files(masks[key]))))


def _other_types(folder: Path, name_suffix: str) -> dict[str, list[Path]]:
    """Files by key as `files_by_key`, with file types that masks cannot have, such as JPEG."""
    found: dict[str, list[Path]] = {}
    for path in sorted(folder.rglob(f"*{glob.escape(name_suffix)}.*")):
        if path.suffix.lower() not in MASK_SUFFIXES and not path.name.startswith("."):
            found.setdefault(_key(path, folder, name_suffix), []).append(path)
    return found


def _key(path: Path, folder: Path, name_suffix: str) -> str:
    """The key of an image and its mask: the relative path without file type and suffix.

    Macs write names in another Unicode form than Windows and Linux; keys have one.
    """
    stem, suffix = (normalize("NFC", text) for text in (path.stem, name_suffix))
    key = path.relative_to(folder).with_name(stem.removesuffix(suffix) or stem).as_posix()
    return normalize("NFC", key)


def _check_not_lossy(mask_dir: Path, mask_suffix: str, unpaired: Set[str]) -> None:
    """Refuses masks of ids in lossy files, if their images have no other mask."""
    beside = _other_types(mask_dir, mask_suffix)
    files = [file for key in sorted(beside.keys() & unpaired) for file in beside[key]]
    if lossy := [str(file) for file in files if file.suffix.lower() in LOSSY_SUFFIXES]:
        raise UserError(
            f"data.masks: {len(lossy)} masks are JPEG or WebP: {listed(lossy)}. {LOSSY_IDS}"
        )


def _check_partners(
    images: dict[str, Path],
    masks: dict[str, str],
    image_dir: Path,
    mask_dir: Path,
    image_suffix: str,
    mask_suffix: str,
) -> None:
    """Refuses images without a mask and masks without an image."""
    problems = []
    if alone := sorted(images.keys() - masks.keys()):
        problems.append(f"{len(alone)} of {len(images)} images have no mask: {listed(alone)}.")
    if alone := sorted(masks.keys() - images.keys()):
        problems.append(f"{len(alone)} of {len(masks)} masks have no image: {listed(alone)}.")
    if problems:
        raise UserError(
            f"data.path: {' '.join(problems)} The image NAME{image_suffix} in {image_dir} belongs "
            f"to the mask NAME{mask_suffix} ({', '.join(MASK_SUFFIXES)}) in {mask_dir}. Rename, "
            f"add or remove files until each has its partner."
        )
