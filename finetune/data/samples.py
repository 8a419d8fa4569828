"""Rows to Samples: what every source has in common.

A row names an image, its mask and the sample: {"image": reference, "mask": reference, "id": name}.
References are strings: paths, or what else `Pictures` and `MaskForm` understand. Making rows reads
no pixel; their items become Samples on access.
"""

import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import datasets
import numpy as np

from finetune.data.duplicates import same_files
from finetune.data.masks import IdMasks, MaskForm, Size
from finetune.data.objects import CocoObjects
from finetune.errors import UserError
from finetune.labels.translation import Labels
from finetune.pictures.reading import image_dtype, image_size, read_image
from finetune.pictures.references import PATHS, PathPictures, Pictures

_NUM_DECODED = 16  # samples that `preflight` reads in full
_NUM_THREADS = 8  # reading headers waits for the disk (or the network) more than for the processor


def as_samples(
    images: Sequence[Path | str],
    masks: Sequence[str],
    ids: Sequence[str],
    labels: Labels,
    form: MaskForm | None = None,
    pictures: Pictures | None = None,
) -> datasets.Dataset:
    """A data set whose items are Samples: image uint8 (H, W, 3), mask class ids (H, W), id str.

    `with_channels` makes it one of other images.

    Args:
        images: Files, or what `pictures` calls them.
        masks: Their masks, as `form` calls them.
        ids: Their names.
        labels: What raw values mean.
        form: How masks are kept; None: as files of ids.
        pictures: How images are kept; None: as files.

    Raises:
        UserError: A file name is not valid UTF-8.
    """
    rows = {"image": [str(path) for path in images], "mask": list(masks), "id": list(ids)}
    try:
        data = datasets.Dataset.from_dict(rows)
    except UnicodeEncodeError as error:  # Arrow keeps text as UTF-8; file systems keep any bytes
        raise UserError(
            f"data.path: a file name is not valid UTF-8 ({error.object!r}). Rename it."
        ) from error
    return data.with_transform(ReadSamples(labels, form or IdMasks(), pictures or PATHS))


def with_channels(dataset: datasets.Dataset, num_channels: int) -> datasets.Dataset:
    """The same rows, whose images are read as (H, W, num_channels), see `read_image`.

    Args:
        dataset: From `as_samples`.
        num_channels: Of the images.
    """
    own = reader_of(dataset)
    reader = ReadSamples(own.labels, own.form, own.pictures, num_channels)
    return dataset.with_transform(reader)


def preflight(dataset: datasets.Dataset) -> None:
    """Looks for bad samples before training: every file's header, and a few in full.

    Args:
        dataset: From `as_samples`.

    Raises:
        UserError: The first thing wrong, in the order of the rows.
    """
    first, reader = dataset.with_format(None)[0]["image"], reader_of(dataset)
    if reader.pictures.files(first):  # in a table even a header costs the whole row
        upright_sizes(dataset)
    if reader.pictures.files(first) or reader.num_channels != 3:
        image_dtypes(dataset)
    spread = np.linspace(0, len(dataset) - 1, min(_NUM_DECODED, len(dataset)))
    for index in sorted({int(i) for i in spread}):
        dataset[index]


def warn_of_shared_files(train: datasets.Dataset, val: datasets.Dataset) -> None:
    """Warns once if image files of both sets hold the same bytes, under whatever names.

    Costs a look at the size of every file. Two sets of the very same files are meant to be one,
    and pictures out of tables are left to the doctor.
    """
    if not all(isinstance(reader_of(data).pictures, PathPictures) for data in (train, val)):
        return
    known, asked = (list(data.with_format(None)["image"]) for data in (train, val))
    same = [] if set(known) == set(asked) else same_files(known, asked)
    if same:
        first = f"{same[0][1]} is {same[0][0]}"
        more = f" ({first}, for one)" if len(same) > 1 else f" ({first})"
        warnings.warn(
            f"data: {len(same)} of {len(asked)} images to evaluate on are trained on, byte for "
            f"byte{more}; their scores say nothing about new images. `finetune doctor` names all, "
            "and more of the kind",
            stacklevel=2,
        )


def upright_sizes(dataset: datasets.Dataset) -> list[Size]:
    """Height and width of every sample, from the headers; raises as `preflight`."""
    reader, rows = reader_of(dataset), dataset.with_format(None)

    with ThreadPoolExecutor(_NUM_THREADS) as pool:
        # list() raises the first error of map, in order
        return list(pool.map(reader.size, rows["image"], rows["mask"]))


def image_dtypes(dataset: datasets.Dataset) -> list[np.dtype]:
    """The type of every image, from the headers; all are of one.

    What 8 bit mean in a set of 16 bit is anybody's guess: the same light need not be the same share
    of the range.

    Raises:
        UserError: A file has other channels; or images are of 8 bit here and of 16 bit there.
    """
    reader, rows = reader_of(dataset), dataset.with_format(None)
    with ThreadPoolExecutor(_NUM_THREADS) as pool:
        found = list(pool.map(reader.dtype, rows["image"]))
    check_one_depth(found, [reader.pictures.name(image) for image in rows["image"]])
    return found


def first_dtype(dataset: datasets.Dataset) -> np.dtype:
    """The type of the first image, and so of all; see `image_dtypes`."""
    return reader_of(dataset).dtype(dataset.with_format(None)[0]["image"])


def check_one_depth(dtypes: Sequence[np.dtype], names: Sequence[str]) -> None:
    """Raises a UserError that names the first image of another type than the first of all."""
    for dtype, name in zip(dtypes, names, strict=True):
        if dtype != dtypes[0]:
            raise UserError(
                f"{names[0]} has {8 * dtypes[0].itemsize} bit a channel, but {name} has "
                f"{8 * dtype.itemsize}. Images of one set must have one depth: convert the ones "
                "or the others."
            )


def reader_of(dataset: datasets.Dataset) -> "ReadSamples":
    """What reads the items of a data set from `as_samples`."""
    reader = dataset.format["format_kwargs"]["transform"]
    assert isinstance(reader, ReadSamples)
    return reader


class ReadSamples:
    """The transform of a data set of files: a batch of rows to a batch of Samples. Picklable."""

    def __init__(
        self,
        labels: Labels,
        form: MaskForm,
        pictures: Pictures = PATHS,
        num_channels: int = 3,
    ) -> None:
        self.labels = labels
        self.form = form
        self.pictures = pictures
        self.num_channels = num_channels

    def __call__(self, batch: dict[str, list[str]]) -> dict[str, list[Any]]:
        """Reads the files of each row."""
        samples = [
            self.read(image, mask)
            for image, mask in zip(batch["image"], batch["mask"], strict=True)
        ]
        return {
            "image": [image for image, _ in samples],
            "mask": [mask for _, mask in samples],
            "id": batch["id"],
        }

    def size(self, image: Any, mask: Any) -> Size:
        """Height and width of a sample, upright, from the headers.

        Raises:
            UserError: One cannot be opened, or they differ in size.
        """
        own = self.form.size(mask)
        found = image_size(self.pictures.open(image), expected=own)
        if own not in (None, found) and isinstance(self.form, CocoObjects):
            self.form.refuse_size(mask, found)
        _check_same_size(self.pictures.name(image), found, self.form.name(mask), own or found)
        return found

    def dtype(self, image: Any) -> np.dtype:
        """The type of an image, from its header.

        Raises:
            UserError: It cannot be opened, or has other channels.
        """
        return image_dtype(self.pictures.open(image), self.num_channels)

    def read(self, image: Any, mask: Any) -> tuple[np.ndarray, np.ndarray]:
        """One image and its mask of class ids.

        Raises:
            UserError: One cannot be read, they differ in size, or a value has no meaning.
        """
        pixels, raw, where = self.read_raw(image, mask)
        return pixels, self.labels.encode(raw, where)

    def read_raw(self, image: Any, mask: Any) -> tuple[np.ndarray, np.ndarray, str]:
        """One image, the raw values of its mask, and what messages call that."""
        pixels = read_image(self.pictures.open(image), self.num_channels)
        size = pixels.shape[0], pixels.shape[1]
        raw = self.form.read(mask, size)
        name = self.pictures.name(image)
        where = self.form.name(mask) or name
        _check_same_size(name, size, where, raw.shape)
        return pixels, raw, where


def _check_same_size(image: str, image_size: Size, mask: str, mask_size: tuple[int, ...]) -> None:
    if image_size != mask_size:
        raise UserError(
            f"{mask or 'the mask'} is {mask_size[1]} x {mask_size[0]} pixels (width x height), but "
            f"its image {image} is {image_size[1]} x {image_size[0]}, turned upright if its EXIF "
            f"data says so. An image and its mask must have the same size."
        )
