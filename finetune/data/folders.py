"""Images and masks in folders: any layout by two patterns, and the official ones by name.

Every source gives a `datasets.Dataset` whose rows hold two paths and an id, so that building it
reads no pixel, and whose items become Samples on access. What can be wrong with a folder is said
here, before training (`preflight`) or with the file's name when a file is read.
"""

import math
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import cv2
import datasets
import numpy as np
from PIL import ExifTags, Image, ImageFile, ImageOps

from finetune.data.labels import Labels
from finetune.errors import UserError

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".bmp")
MASK_SUFFIXES = (".png", ".bmp", ".tif", ".tiff")  # lossless only: ids do not survive JPEG

_NUM_NAMED = 5  # files that a message names before it only counts
_NUM_DECODED = 16  # samples that `preflight` reads in full
_UNCOVERED = 254  # stands for bytes without a rule where it is neither a class nor the ignore id
_NUM_THREADS = 8  # reading headers waits for the disk (or the network) more than for the processor

# Pillow spreads the grey levels of 2 and 4 bit files over 0..255, which multiplies class ids.
_SPREAD_GREY = {"L;2": 85, "L;4": 17}


def image_folder(
    path: str | Path,
    split: str,
    labels: Labels,
    *,
    images: str = "images/{split}",
    masks: str = "masks/{split}",
    image_suffix: str = "",
    mask_suffix: str = "",
) -> datasets.Dataset:
    """Pairs two folders, nested ones included, by relative path without the file type.

    Args:
        path: The data set's folder.
        split: Replaces `{split}` in the patterns.
        labels: What the mask values mean.
        images: Folder of the images, relative to `path`.
        masks: Folder of the masks, relative to `path`; may be the same as `images`.
        image_suffix: What image names end in before the file type, such as "_leftImg8bit". Other
            files in the folder are left alone.
        mask_suffix: The same of mask names, such as "_mask".

    Returns:
        Rows of {"image", "mask", "id"} (two paths and the common name), sorted by id, whose items
        are Samples: image uint8 (H, W, 3), mask class ids (H, W), id str.

    Raises:
        UserError: A folder is missing or empty, or an image or a mask has no partner.
    """
    images, masks = (pattern.replace("{split}", split) for pattern in (images, masks))
    root = _existing_root(Path(path).expanduser(), f"{images} and {masks}")
    image_dir, mask_dir = (_existing_split(root, folder, split) for folder in (images, masks))
    if (image_dir, image_suffix) == (mask_dir, mask_suffix):
        raise UserError(
            f"data.path: images and masks are both looked for in {image_dir} under the same names. "
            f"Keep masks in a folder of their own, or end their names in a suffix such as _mask."
        )

    mask_files = _files_by_key(mask_dir, MASK_SUFFIXES, mask_suffix)
    taken = set(mask_files.values()) if mask_suffix and image_dir == mask_dir else set()
    image_files = _files_by_key(image_dir, IMAGE_SUFFIXES, image_suffix, taken)
    if not image_files:
        raise UserError(
            f"data.path: no images found in {image_dir} (looked for *{image_suffix} with "
            f"{', '.join(IMAGE_SUFFIXES)}, subfolders included)."
        )
    _check_partners(image_files, mask_files, image_dir, mask_dir, image_suffix, mask_suffix)

    keys = sorted(image_files)
    rows = {
        "image": [str(image_files[key]) for key in keys],
        "mask": [str(mask_files[key]) for key in keys],
        "id": keys,
    }
    try:
        return datasets.Dataset.from_dict(rows).with_transform(ReadSamples(labels))
    except UnicodeEncodeError as error:  # Arrow keeps text as UTF-8; file systems keep any bytes
        raise UserError(
            f"data.path: a file name in {image_dir} or {mask_dir} is not valid UTF-8 "
            f"({error.object!r}). Rename it."
        ) from error


def camvid(path: str | Path, split: str, labels: Labels) -> datasets.Dataset:
    """CamVid as in the SegNet tutorial: `{split}/*.png` (or jpg) and `{split}annot/*.png`."""
    return image_folder(path, split, labels, images="{split}", masks="{split}annot")


def ade20k(path: str | Path, split: str, labels: Labels) -> datasets.Dataset:
    """ADE20K as in the official zip: `path` is ADEChallengeData2016 or the folder above it.

    `split` is "train" or "val", or the folder's own name, "training" or "validation".
    """
    root = Path(path).expanduser()
    if (root / "ADEChallengeData2016").is_dir():
        root /= "ADEChallengeData2016"
    folder = {"train": "training", "val": "validation"}.get(split, split)
    return image_folder(root, folder, labels, masks="annotations/{split}")


def cityscapes(path: str | Path, split: str, labels: Labels) -> datasets.Dataset:
    """Cityscapes: `leftImg8bit/{split}/{city}` and `gtFine/{split}/{city}/*_labelTrainIds.png`.

    Raises:
        UserError: As `image_folder`; also if only the 34 label ids are there.
    """
    masks = Path(path).expanduser() / "gtFine" / split
    has_train_ids = any(masks.rglob("*_gtFine_labelTrainIds.png"))
    if not has_train_ids and any(masks.rglob("*_gtFine_labelIds.png")):
        raise UserError(
            f"data.path: {masks} holds *_labelIds.png (34 ids) but no *_labelTrainIds.png (the 19 "
            f"ids that are trained on). Make them once: pip install cityscapesscripts, then "
            f"CITYSCAPES_DATASET={path} csCreateTrainIdLabelImgs (the module "
            f"cityscapesscripts.preparation.createTrainIdLabelImgs)."
        )
    return image_folder(
        path,
        split,
        labels,
        images="leftImg8bit/{split}",
        masks="gtFine/{split}",
        image_suffix="_leftImg8bit",
        mask_suffix="_gtFine_labelTrainIds",
    )


def preflight(dataset: datasets.Dataset) -> None:
    """Looks for bad files before training: every header, and a few samples in full.

    Args:
        dataset: From one of the functions above.

    Raises:
        UserError: The first thing wrong, in the order of the rows.
    """
    upright_sizes(dataset)
    spread = np.linspace(0, len(dataset) - 1, min(_NUM_DECODED, len(dataset)))
    for index in sorted({int(i) for i in spread}):
        dataset[index]


def upright_sizes(dataset: datasets.Dataset) -> list[tuple[int, int]]:
    """Height and width of every sample, from the headers; raises as `preflight`."""
    paths = dataset.with_format(None)
    with ThreadPoolExecutor(_NUM_THREADS) as pool:
        # list() raises the first error of map, in order
        return list(pool.map(_check_headers, paths["image"], paths["mask"]))


class ReadSamples:
    """The transform of every data set here: a batch of rows to a batch of Samples. Picklable."""

    def __init__(self, labels: Labels) -> None:
        self.labels = labels
        self._table = _byte_table(labels)

    def __call__(self, batch: dict[str, list[str]]) -> dict[str, list[Any]]:
        """Reads the files of each row."""
        samples = [
            self.read(Path(image), Path(mask))
            for image, mask in zip(batch["image"], batch["mask"], strict=True)
        ]
        return {
            "image": [image for image, _ in samples],
            "mask": [mask for _, mask in samples],
            "id": batch["id"],
        }

    def read(self, image_path: Path, mask_path: Path) -> tuple[np.ndarray, np.ndarray]:
        """One image and its mask of class ids."""
        image, mask = read_image(image_path), read_mask(mask_path)
        _check_same_size(image_path, image.shape[1::-1], mask_path, mask.shape[1::-1])
        return image, self._encode(mask, where=str(mask_path))

    def _encode(self, mask: np.ndarray, where: str) -> np.ndarray:
        """Class ids; of bytes by the table, in a quarter of the time."""
        if mask.dtype == np.uint8 and self._table is not None:
            encoded = cv2.LUT(mask, self._table)
            if not (encoded == _UNCOVERED).any():
                return encoded
        return self.labels.encode(mask, where)  # which says what is wrong


def _byte_table(labels: Labels) -> np.ndarray | None:
    """What `labels` makes of the 256 bytes; None if no id is left for those without a rule."""
    if labels.num_labels > _UNCOVERED:
        return None
    table = np.full(256, _UNCOVERED, np.uint8)
    for value in range(256):
        with suppress(UserError):
            table[value] = labels.encode(np.full((1, 1), value, np.uint8), "")[0, 0]
    return table


def read_image(path: Path) -> np.ndarray:
    """Reads any picture as uint8 (H, W, 3), RGB, upright (EXIF orientation applied).

    16 bit grey keeps its high byte, which is what Pillow does to 16 bit colour. Transparency is
    dropped.

    Raises:
        UserError: The file cannot be read, or holds floating point or 32 bit values.
    """
    if (decoded := _decode_plain(path)) is not None and decoded.ndim == 3:
        return decoded
    with _open(path) as image:
        upright = ImageOps.exif_transpose(image)
        if upright.mode not in ("I", "F") and not upright.mode.startswith("I;16"):
            return np.array(upright.convert("RGB"))
        grey = np.asarray(upright)  # convert() would clip these at 255
    if grey.dtype.kind == "f" or grey.min() < 0 or grey.max() > 65535:
        raise UserError(
            f"{path}: a grey image with {grey.dtype} values, whose range cannot be known. Convert "
            f"it to 8 or 16 bit."
        )
    return np.repeat((grey.astype(np.uint16) >> 8).astype(np.uint8)[..., None], 3, axis=2)


def read_mask(path: Path) -> np.ndarray:
    """Reads the raw values of a mask: palette indices, never their colours.

    Returns:
        (H, W) bool, uint8, uint16 or int32: the numbers that the file stores.

    Raises:
        UserError: The file cannot be read, or holds colours.
    """
    if (decoded := _decode_plain(path)) is not None and decoded.ndim == 2:
        return decoded
    with _open(path) as mask:
        _check_mask_mode(path, mask)
        spread = _SPREAD_GREY.get(_raw_mode(mask))
        values = np.array(mask)
    return values // np.uint8(spread) if spread else values


def _decode_plain(path: Path) -> np.ndarray | None:
    """Decodes what most files are, upright RGB in JPEG and 8 bit grey in PNG, by cv2.

    The same bits as Pillow's, of which a test makes sure, in two thirds of the time: Pillow copies
    three times on the way to an array. Returns None for any other file, and for what might be
    damaged: Pillow knows better what that is, and what to say about it.
    """
    suffix = path.suffix.lower()
    if suffix not in (".jpg", ".jpeg", ".png"):
        return None
    try:
        data = path.read_bytes()
        size = _plain_png(data) if suffix == ".png" else _plain_jpeg(data)
        # Pillow warns of sizes beyond, and refuses twice that.
        if size is None or size[0] * size[1] > (Image.MAX_IMAGE_PIXELS or math.inf):
            return None
        flags = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
        flags = cv2.IMREAD_UNCHANGED if suffix == ".png" else flags
        decoded = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except (OSError, IndexError, cv2.error):
        return None
    return decoded if decoded is not None and decoded.shape[:2] == size else None


def _plain_png(data: bytes) -> tuple[int, int] | None:
    """Height and width of a PNG of 8 bit grey."""
    if data[:8] != b"\x89PNG\r\n\x1a\n" or data[24:26] != b"\x08\x00":
        return None
    return int.from_bytes(data[20:24], "big"), int.from_bytes(data[16:20], "big")


def _plain_jpeg(data: bytes) -> tuple[int, int] | None:
    """Height and width of a JPEG of three colours, without EXIF data, and whole in all likelihood.

    cv2 gives half a picture without a word where Pillow raises. That takes a file that is cut off
    or has a marker in the middle of the picture, as it never has in a single scan.
    """
    if data[:2] != b"\xff\xd8" or data[-2:] != b"\xff\xd9":
        return None
    position, size = 2, None
    while (marker := data[position + 1]) != 0xDA and data[position] == 0xFF:  # until the scan
        if marker == 0xE1 and data[position + 4 : position + 8] == b"Exif":
            return None
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):  # the frame's header
            height, width = data[position + 5 : position + 7], data[position + 7 : position + 9]
            if (data[position + 4], data[position + 9]) != (8, 3):  # bits, components
                return None
            size = int.from_bytes(height, "big"), int.from_bytes(width, "big")
        position += 2 + int.from_bytes(data[position + 2 : position + 4], "big")
    scan = np.frombuffer(data, np.uint8)[position + 2 : -2]
    after = scan[1:][scan[:-1] == 0xFF]  # 0: the byte was a 255; 0xD0 to 0xD7: a restart
    return size if ((after == 0) | ((after >= 0xD0) & (after <= 0xD7))).all() else None


@contextmanager
def _open(path: Path) -> Iterator[ImageFile.ImageFile]:
    """Opens a file with Pillow; whatever goes wrong until the end of the block names the file."""
    try:
        with Image.open(path) as image:
            yield image
    except UserError:
        raise
    except Exception as error:  # damaged files raise OSError, SyntaxError, ValueError, struct.error
        size = path.stat().st_size if path.is_file() else None
        what = "the file is gone" if size is None else f"cannot be read ({size} bytes): {error}"
        raise UserError(f"{path}: {what}. Replace the file, or remove image and mask.") from error


def _raw_mode(image: ImageFile.ImageFile) -> str:
    """How the file stores its pixels, as Pillow calls it; "" once they are loaded."""
    if not image.tile:
        return ""
    args = image.tile[0][3]
    return str(args[0] if isinstance(args, tuple) else args)


def _check_mask_mode(path: Path, mask: ImageFile.ImageFile) -> None:
    if mask.mode not in ("1", "L", "P", "I") and not mask.mode.startswith("I;16"):
        raise UserError(
            f"{path}: the mask is {mask.mode} (colours, or several channels); masks must hold "
            f"class ids: one channel of whole numbers, or a palette. Convert colours to ids first."
        )


def _check_headers(image_path: str, mask_path: str) -> tuple[int, int]:
    """Checks what can be known without decoding: that both files open, kind and size.

    Returns:
        Height and width.
    """
    with _open(Path(mask_path)) as mask:
        _check_mask_mode(Path(mask_path), mask)
    with _open(Path(image_path)) as image:
        size = image.size
        # Pillow decodes the whole of a PNG to look for EXIF data behind the pixels: only if needed.
        may_be_turned = image.format != "PNG" or "exif" in image.info or size != mask.size
        if may_be_turned and image.getexif().get(ExifTags.Base.Orientation, 1) >= 5:
            size = size[::-1]
    _check_same_size(Path(image_path), size, Path(mask_path), mask.size)
    return size[1], size[0]


def _check_same_size(
    image_path: Path, image_size: tuple[int, ...], mask_path: Path, mask_size: tuple[int, ...]
) -> None:
    """Sizes are (width, height)."""
    if tuple(image_size) != tuple(mask_size):
        raise UserError(
            f"{mask_path} is {mask_size[0]} x {mask_size[1]} pixels (width x height), but its "
            f"image {image_path} is {image_size[0]} x {image_size[1]}, turned upright if its EXIF "
            f"data says so. An image and its mask must have the same size."
        )


def _existing_root(root: Path, expected: str) -> Path:
    if not root.is_dir():
        state = "is a file" if root.exists() else "does not exist"
        raise UserError(
            f"data.path: {root.absolute()} {state}. It must be the folder that holds {expected}."
        )
    return root


def _existing_split(root: Path, relative: str, split: str) -> Path:
    """The folder of a split; the message about a missing one says what is there instead."""
    folder = root / relative
    if folder.is_dir():
        return folder
    above = next(parent for parent in folder.parents if parent.is_dir())
    there = sorted(f.name for f in above.iterdir() if f.is_dir() and not f.name.startswith("."))
    raise UserError(
        f"data.path: there is no folder {folder} for the split {split!r}. {above} holds "
        f"{_listed(there) if there else 'no folders'}. Correct data.path, or the split's name."
    )


def _files_by_key(
    folder: Path, suffixes: tuple[str, ...], name_suffix: str, skip: set[Path] | None = None
) -> dict[str, Path]:
    """Files below a folder by relative path without file type and `name_suffix`.

    Hidden files and folders are left out (macOS leaves a `._x.png` beside each `x.png`).
    """
    files: dict[str, Path] = {}
    for directory, subfolders, names in os.walk(folder, followlinks=True):
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
        for name in names:
            path = Path(directory, name)
            if name.startswith(".") or path.suffix.lower() not in suffixes:
                continue
            if not path.stem.endswith(name_suffix) or (skip and path in skip):
                continue
            stem = path.stem.removesuffix(name_suffix)
            key = path.relative_to(folder).with_name(stem or path.stem).as_posix()
            if key in files:
                raise UserError(
                    f"data.path: {files[key]} and {path} differ in their file type only, so that "
                    f"they cannot be paired by name. Remove one of them."
                )
            files[key] = path
    return files


def _check_partners(
    images: dict[str, Path],
    masks: dict[str, Path],
    image_dir: Path,
    mask_dir: Path,
    image_suffix: str,
    mask_suffix: str,
) -> None:
    """Refuses images without a mask and masks without an image."""
    problems = []
    if alone := sorted(images.keys() - masks.keys()):
        problems.append(f"{len(alone)} of {len(images)} images have no mask: {_listed(alone)}.")
    if alone := sorted(masks.keys() - images.keys()):
        problems.append(f"{len(alone)} of {len(masks)} masks have no image: {_listed(alone)}.")
    if problems:
        raise UserError(
            f"data.path: {' '.join(problems)} The image NAME{image_suffix} in {image_dir} belongs "
            f"to the mask NAME{mask_suffix} ({', '.join(MASK_SUFFIXES)}) in {mask_dir}. Rename, "
            f"add or remove files until each has its partner."
        )


def _listed(names: list[str]) -> str:
    """The first few names, and how many more there are."""
    more = f" and {len(names) - _NUM_NAMED} more" if len(names) > _NUM_NAMED else ""
    return ", ".join(names[:_NUM_NAMED]) + more
