"""Rows to Samples: what every source has in common.

A row names an image, its mask and the sample: {"image": reference, "mask": reference, "id": name}.
References are strings: paths, or whatever `Pictures` and `MaskForm` understand. Rows are made
without reading a pixel; they become Samples on access.
"""

import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import datasets
import numpy as np

from finetune.data.duplicates import same_files
from finetune.data.masks import MaskForm, Size, picture_masks
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
    pictures: Pictures = PATHS,
) -> datasets.Dataset:
    """A data set whose items are Samples: image uint8 (H, W, 3), mask class ids (H, W), id str.

    `images` are references that `pictures` understands, `masks` those that `form` understands.
    Without a form, masks are files of ids or colours, as the labels say. `with_channels` changes
    the channels of the images.

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
    return data.with_transform(ReadSamples(labels, form or picture_masks(labels), pictures))


def with_channels(dataset: datasets.Dataset, num_channels: int) -> datasets.Dataset:
    """The rows of `as_samples`, with images read as (H, W, num_channels), see `read_image`."""
    own = reader_of(dataset)
    return dataset.with_transform(ReadSamples(own.labels, own.form, own.pictures, num_channels))


def preflight(dataset: datasets.Dataset) -> None:
    """Looks for bad samples before training: in every file's header, and in a few whole files.

    Raises:
        UserError: The first fault, in the order of the rows.
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
    """Warns once if the splits share image files with the same bytes, under whatever names.

    The cost is the size of every file. Two splits of exactly the same files are meant to be one.
    Pictures out of tables are left to the doctor.
    """
    if not all(isinstance(reader_of(data).pictures, PathPictures) for data in (train, val)):
        return
    known, asked = (list(data.with_format(None)["image"]) for data in (train, val))
    same = [] if set(known) == set(asked) else same_files(known, asked)
    if same:
        warnings.warn(
            f"data: {len(same)} of {len(asked)} validation images are training images too, byte "
            f"for byte (the first: {same[0][1]} is {same[0][0]}); their scores say nothing about "
            "new images. `finetune doctor` names all of them, and near duplicates",
            stacklevel=2,
        )


def upright_sizes(dataset: datasets.Dataset) -> list[Size]:
    """Height and width of every sample, from the headers; raises as `preflight`."""
    reader, rows = reader_of(dataset), dataset.with_format(None)
    with ThreadPoolExecutor(_NUM_THREADS) as pool:
        # list() raises the first error of map, in order
        return list(pool.map(reader.size, rows["image"], rows["mask"]))


def image_dtypes(dataset: datasets.Dataset) -> list[np.dtype]:
    """The type of every image, from the headers; all must be the same.

    Nobody can know what 8 bit mean in a data set of 16 bit: the same light need not be the same
    share of the range.

    Raises:
        UserError: A file has other channels, or some images have 8 bit and others 16.
    """
    reader, rows = reader_of(dataset), dataset.with_format(None)
    with ThreadPoolExecutor(_NUM_THREADS) as pool:
        found = list(pool.map(reader.dtype, rows["image"]))
    check_one_depth(found, [reader.pictures.name(image) for image in rows["image"]])
    return found


def first_dtype(dataset: datasets.Dataset) -> np.dtype:
    """The type of the first image, and therefore of all; see `image_dtypes`."""
    return reader_of(dataset).dtype(dataset.with_format(None)[0]["image"])


def check_one_depth(dtypes: Sequence[np.dtype], names: Sequence[str]) -> None:
    """Raises a UserError that names the first image whose type differs from the first one's."""
    for dtype, name in zip(dtypes, names, strict=True):
        if dtype != dtypes[0]:
            raise UserError(
                f"{names[0]} has {8 * dtypes[0].itemsize} bit a channel, but {name} has "
                f"{8 * dtype.itemsize}. Images of one data set need one depth: convert some."
            )


def reader_of(dataset: datasets.Dataset) -> "ReadSamples":
    """The reader behind a data set from `as_samples`."""
    reader = dataset.format["format_kwargs"]["transform"]
    assert isinstance(reader, ReadSamples)
    return reader


class ReadSamples:
    """The transform of a data set: a batch of rows becomes a batch of Samples. Picklable."""

    def __init__(
        self, labels: Labels, form: MaskForm, pictures: Pictures = PATHS, num_channels: int = 3
    ) -> None:
        self.labels = labels
        self.form = form
        self.pictures = pictures
        self.num_channels = num_channels

    def __call__(self, batch: dict[str, list[str]]) -> dict[str, list[Any]]:
        """Reads the files of each row."""
        pairs = list(map(self.read, batch["image"], batch["mask"]))
        images, masks = ([pair[i] for pair in pairs] for i in (0, 1))
        return {"image": images, "mask": masks, "id": batch["id"]}

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
        pixels = read_image(self.pictures.open(image), self.num_channels)
        size = pixels.shape[0], pixels.shape[1]
        raw = self.form.read(mask, size)
        name = self.pictures.name(image)
        where = self.form.name(mask) or name
        _check_same_size(name, size, where, raw.shape)
        return pixels, self.labels.encode(raw, where)


def _check_same_size(image: str, image_size: Size, mask: str, mask_size: tuple[int, ...]) -> None:
    if image_size != mask_size:
        raise UserError(
            f"{mask or 'the mask'} is {mask_size[1]} x {mask_size[0]} pixels (width x height), but "
            f"its image {image} is {image_size[1]} x {image_size[0]} after its EXIF rotation. "
            "Save both in the same size."
        )
