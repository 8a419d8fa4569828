"""Recipe to Samples: what `data.source` stands for."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import datasets

from finetune.data.columns import Columns
from finetune.data.faults import Fault
from finetune.data.samples import with_channels
from finetune.data.sources import archives
from finetune.data.sources.coco import coco
from finetune.data.sources.folders import image_folder
from finetune.data.sources.hub import hub, hub_shards
from finetune.data.sources.shapes import shapes
from finetune.data.sources.ultralytics import ultralytics
from finetune.data.splits import by_fraction, by_list
from finetune.data.stream import Streamed
from finetune.labels.translation import Labels
from finetune.recipe.data import (
    CocoData,
    DataSection,
    FileData,
    FolderData,
    HubData,
    ShapesData,
    StoredData,
    UltralyticsData,
)

Faults: TypeAlias = list[Fault] | None


def open_split(
    data: DataSection,
    labels: Labels,
    split: str,
    *,
    num_channels: int = 3,
    faults: Faults = None,
) -> datasets.Dataset:
    """One split as a `datasets.Dataset` of Samples.

    Args:
        data: The recipe's section.
        labels: What mask values mean.
        split: Which one.
        num_channels: The recipe's `model.num_channels`; shapes are drawn in RGB.
        faults: Takes what is wrong with single files; the split then holds the others. With None
            the first one is raised.

    Raises:
        UserError: What is wrong with the files; see the sources.
    """
    if isinstance(data, ShapesData):
        return _shapes(data, split)
    assert isinstance(data, StoredData), data.source
    return with_channels(_part(data, labels, split, faults), num_channels)


def _part(data: StoredData, labels: Labels, split: str, faults: Faults) -> datasets.Dataset:
    """A split of what is stored: all that its name leads to, a share of it, or a list."""
    open_all = OPENERS[data.source]
    if data.val_fraction is not None:
        whole = open_all(data, labels, data.train_split, faults)
        parts = by_fraction(whole, data.val_fraction, seed=data.split_seed, group=data.split_group)
        return parts[split != data.train_split]
    found = open_all(data, labels, split, faults)
    if not isinstance(data, FileData) or data.split_list is None:
        return found
    file = Path(data.path).expanduser() / data.split_list.replace("{split}", split)
    return by_list(found, file, faults)


def stream_split(data: HubData, labels: Labels, split: str, *, num_channels: int = 3) -> Streamed:
    """One split of the source hub, to be read from front to back.

    Raises:
        UserError: There is none, it is not kept as Parquet, or a column is not what it must be.
    """
    shards = hub_shards(data.path, split, revision=data.revision, subset=data.subset)
    return Streamed(shards, labels, _columns(data), num_channels=num_channels)


def _shapes(data: ShapesData, split: str) -> datasets.Dataset:
    train = split == data.train_split
    return shapes(
        "train" if train else "val",
        num_samples=data.train_samples if train else data.val_samples,
        size=data.size,
        seed=0,  # the set is one fixed set, whatever the training's seed
    )


def _folder(data: FolderData, labels: Labels, split: str, faults: Faults) -> datasets.Dataset:
    return image_folder(
        data.path,
        split,
        labels,
        images=data.images,
        masks=data.masks,
        image_suffix=data.image_suffix,
        mask_suffix=data.mask_suffix,
        faults=faults,
    )


def _hub(data: HubData, labels: Labels, split: str, faults: Faults) -> datasets.Dataset:
    return hub(data.path, split, labels, _columns(data), revision=data.revision, subset=data.subset)


def _columns(data: HubData) -> Columns:
    return Columns(data.image_column, data.mask_column, data.id_column)


def _coco(data: CocoData, labels: Labels, split: str, faults: Faults) -> datasets.Dataset:
    return coco(
        data.path,
        split,
        labels,
        images=data.images,
        annotations=data.annotations,
        overlap=data.overlap,
        faults=faults,
    )


def _ultralytics(
    data: UltralyticsData, labels: Labels, split: str, faults: Faults
) -> datasets.Dataset:
    return ultralytics(data.path, split, labels, overlap=data.overlap, faults=faults)


def _official(layout: Callable[..., datasets.Dataset]) -> "Opener":
    return lambda data, labels, split, faults: layout(data.path, split, labels, faults=faults)


Opener: TypeAlias = Callable[[Any, Labels, str, Faults], datasets.Dataset]
OPENERS: dict[str, Opener] = {
    "folder": _folder,
    "hub": _hub,
    "coco": _coco,
    "ultralytics": _ultralytics,
    "camvid": _official(archives.camvid),
    "ade20k": _official(archives.ade20k),
    "cityscapes": _official(archives.cityscapes),
    "voc": _official(archives.voc),
    "coco-stuff": _official(archives.coco_stuff),
}
"""The source of a recipe -> what opens all that a split's name leads to."""
