"""Layouts of tables that `datasets` writes, from their splits, columns and some rows."""

from contextlib import suppress
from pathlib import Path
from typing import Any

from finetune.data.columns import Columns, guess_columns, picture_of
from finetune.data.masks import PictureMasks
from finetune.data.samples import reader_of
from finetune.data.sources.hub import first_rows, hub, hub_shards, read_index, split_names
from finetune.discover.layouts.layout import (
    OVERLAPPING,
    TRAIN_NAMES,
    VAL_FRACTION,
    VAL_NAMES,
    Layout,
    TableRows,
)
from finetune.discover.values.mask_values import spread
from finetune.errors import UserError
from finetune.labels.translation import Labels
from finetune.pictures.references import Picture

NUM_ROWS = 200
"""Rows to look at: evenly spread if the table is on this disk, otherwise the first ones."""


def table_folder(root: Path) -> Layout | None:
    """The layout of Parquet files or of `save_to_disk`; None for any other folder."""
    marks = ("dataset_dict.json", "state.json", "*.parquet", "*/*.parquet")
    if not any(any(root.glob(mark)) for mark in marks):
        return None
    return table(str(root))


def table(path: str, revision: str | None = None) -> Layout:
    """The layout of a Hub id, a folder or an address.

    Args:
        path: The `data.path` of the source hub.
        revision: Branch, tag or commit of a Hub id.

    Raises:
        UserError: It cannot be opened, or its columns' names do not tell images from masks.
    """
    splits = split_names(path, revision=revision)
    train = next((name for name in TRAIN_NAMES if name in splits), splits[0])
    others = {*splits} - {train, *OVERLAPPING.get(train, ())}
    val = next((name for name in VAL_NAMES if name in others), None)
    index = read_index(path)
    is_here = Path(path).is_dir()
    features, rows = first_rows(path, train, 1 if is_here else NUM_ROWS, revision=revision)
    columns = guess_columns(features, path)
    keys = {"image_column": columns.image, "mask_column": columns.mask}
    data: dict[str, Any] = {"source": "hub", "path": path, "revision": revision, **keys}
    data |= {"id_column": "id" if index else None, "train_split": train, "val_split": val}
    found = [
        f"a table with the splits {', '.join(splits)}; images in the column {columns.image}, "
        f"masks in {columns.mask}"
    ]
    assumed = []
    if val is None:
        data |= {"val_split": "held_back", "val_fraction": VAL_FRACTION}
        assumed.append(f"no validation split: {VAL_FRACTION:.0%} of {train} are held back")
    pictures: list[tuple[Picture, Picture]] = []
    if is_here:
        for name in filter(None, (train, val)):
            pictures += _spread(path, name, columns)
    else:
        for i, row in enumerate(rows):
            with suppress(UserError):  # an empty row: doctor and training name it
                where = f"{path} ({train}), row {i}"
                image = picture_of(row[columns.image], f"{where}, {columns.image}")
                mask = picture_of(row[columns.mask], f"{where}, {columns.mask}")
                pictures.append((image, mask))
        assumed.append(f"values of masks come from the first {len(rows)} rows of {train} alone")
    if not pictures:
        raise UserError(
            f"{path}: none of the rows looked at holds an image and a mask. Fill in both columns."
        )
    count: int | None = None
    with suppress(UserError):  # only footers of Parquet tell it
        count = sum(shard.num_rows for shard in hub_shards(path, train, revision=revision))
    seen = TableRows(tuple(pictures), count, is_here, index.labels if index else None)
    data = {key: value for key, value in data.items() if value is not None}
    return Layout(data, tuple(found), tuple(assumed), table=seen)


def _spread(path: str, split: str, columns: Columns) -> list[tuple[Picture, Picture]]:
    samples = hub(path, split, Labels.build(["0", "1"], unknown="ignore"), columns)
    reader = reader_of(samples)
    assert isinstance(reader.form, PictureMasks)
    found = []
    for place in map(str, spread(range(len(samples)), NUM_ROWS)):
        with suppress(UserError):  # an empty row: doctor and training name it
            found.append((reader.pictures.open(place), reader.form.pictures.open(place)))
    return found
