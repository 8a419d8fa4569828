"""Pictures in the columns of tables, encoded: how `datasets` keeps them in Arrow and Parquet.

An image feature is stored as a struct of `bytes` and `path`, one of which may be missing
(https://huggingface.co/docs/datasets/about_dataset_features#image-feature); others write bytes.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import pyarrow.compute as pc

from finetune.data.masks import picture_masks
from finetune.data.samples import as_samples
from finetune.errors import UserError
from finetune.labels.translation import Labels
from finetune.pictures.references import Encoded, Picture


@dataclass(frozen=True)
class Columns:
    """The columns of a table that hold images, masks and ids."""

    image: str = "image"
    mask: str = "mask"
    id: str | None = None
    """Names of the samples. None: the names of the image files, if all exist and differ."""

    def check(self, features: datasets.Features, where: str) -> None:
        """Checks that the columns exist and hold pictures and names.

        Raises:
            UserError: One is missing or of another kind; lists the columns of the table.
        """
        pictures = [name for name in features if is_picture(features[name])]
        for key, name in (("image_column", self.image), ("mask_column", self.mask)):
            if name not in pictures:
                kind = getattr(features.get(name), "dtype", type(features.get(name)).__name__)
                what = f"holds {kind}, no pictures" if name in features else "does not exist"
                raise UserError(
                    f"data.{key}: the column {name!r} of {where} {what}. Columns of pictures: "
                    f"{', '.join(pictures) or 'none'}; all columns: {', '.join(features)}."
                )
        if self.id is not None and getattr(features.get(self.id), "dtype", "") not in _NAMES:
            raise UserError(
                f"data.id_column: {where} has no column {self.id!r} of texts or whole numbers. "
                f"Its columns: {', '.join(features)}."
            )


IMAGE_NAMES = ("image", "pixel_values", "img", "picture", "photo", "rgb")
_NAMES = ("string", "large_string", "int64", "int32", "uint64", "uint32")
MASK_NAMES = (
    *("mask", "masks", "label", "labels", "annotation", "annotations", "segmentation"),
    *("semantic_segmentation", "segmentation_mask", "seg", "label_map", "ground_truth", "gt"),
)


def guess_columns(features: datasets.Features, where: str) -> Columns:
    """Finds the columns of images and masks by their names.

    Raises:
        UserError: The names do not tell; lists them.
    """
    pictures = [name for name in features if is_picture(features[name])]
    images, masks = (
        [name for known in names for name in pictures if name.lower() == known]
        for names in (IMAGE_NAMES, MASK_NAMES)
    )
    if len(pictures) == 2 and len(images) + len(masks) == 1:  # the other picture is the missing one
        (other,) = set(pictures) - {*images, *masks}
        images, masks = images or [other], masks or [other]
    if not images or not masks:
        raise UserError(
            f"{where}: the names of columns do not tell the image from the mask. Columns of "
            f"pictures: {', '.join(pictures) or 'none'}; all columns: {', '.join(features)}. Write "
            "a recipe with data.source=hub, data.image_column and data.mask_column."
        )
    return Columns(images[0], masks[0])


def is_picture(feature: Any) -> bool:
    """Whether a column may hold encoded pictures."""
    if isinstance(feature, Mapping):
        return "bytes" in feature
    dtype = getattr(feature, "dtype", "")
    return isinstance(feature, datasets.Image) or dtype in ("binary", "large_binary")


def picture_of(value: Any, name: str) -> Picture:
    """A value of a column of pictures.

    Raises:
        UserError: It is empty, or names a missing file.
    """
    stored = value if isinstance(value, Mapping) else {"bytes": value}
    if (data := stored.get("bytes")) is not None:
        return Encoded(name, data)
    path = stored.get("path")
    if path is None or not Path(path).is_file():
        missing = f", only the name {path}" if path else ""
        raise UserError(f"{name}: there are no bytes{missing}. Correct the row, or remove it.")
    return Path(path)


@dataclass(frozen=True, repr=False)
class TablePictures:
    """A column of a `datasets.Dataset`; references are row numbers."""

    table: datasets.Dataset
    column: str
    where: str
    """The table's name in messages."""

    def open(self, reference: str) -> Picture:
        value = self.table.data.column(self.column)[int(reference)].as_py()
        return picture_of(value, self.name(reference))

    def name(self, reference: str) -> str:
        return f"{self.where}, row {reference}, {self.column}"

    def files(self, reference: str) -> list[Path]:
        return []  # `datasets` never changes an Arrow file; it writes a new one elsewhere

    def __repr__(self) -> str:
        """Tells tables apart, for the cache of decoded pictures: by file, size and time."""
        files = [Path(file["filename"]).absolute() for file in self.table.cache_files]
        stats = [(str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
        identity = stats or id(self.table)
        return f"TablePictures({identity}, {self.column!r})"


def table_samples(
    table: datasets.Dataset, labels: Labels, columns: Columns, where: str
) -> datasets.Dataset:
    """The rows of a table as Samples; messages name it by `where`.

    The table is what `datasets` loaded, without a row selection.

    Raises:
        UserError: A column is missing or of another kind, or ids are not unique.
    """
    columns.check(table.features, where)
    rows, ids = [str(i) for i in range(len(table))], _ids(table, columns, where)
    pictures, masks = (TablePictures(table, name, where) for name in (columns.image, columns.mask))
    return as_samples(rows, rows, ids, labels, picture_masks(labels, masks), pictures)


def _ids(table: datasets.Dataset, columns: Columns, where: str) -> list[str]:
    if columns.id is not None:
        ids = [str(value) for value in table.data.column(columns.id).to_pylist()]
        if repeated := [name for name, count in Counter(ids).items() if count > 1]:
            raise UserError(
                f"data.id_column: {columns.id!r} of {where} holds {repeated[0]!r} more than once. "
                "Ids must be unique: choose another column, or none."
            )
        return ids
    if isinstance(table.features[columns.image], datasets.Image):
        paths = pc.struct_field(table.data.column(columns.image), "path").to_pylist()
        names = [Path(path).stem if path else None for path in paths]
        if None not in names and len(set(names)) == len(names):
            return [str(name) for name in names]
    return [f"row-{i}" for i in range(len(table))]
