"""Opens the data of a recipe: each `data.source` has its opener."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import datasets

from finetune.data.columns import Columns
from finetune.data.faults import Fault, Faults
from finetune.data.samples import with_channels
from finetune.data.sources import archives
from finetune.data.sources.coco import coco
from finetune.data.sources.cvat import cvat
from finetune.data.sources.folders import image_folder
from finetune.data.sources.hub import hub, hub_shards
from finetune.data.sources.kaggle_rle import kaggle_rle
from finetune.data.sources.label_studio import label_studio
from finetune.data.sources.labelme import labelme
from finetune.data.sources.panoptic import panoptic
from finetune.data.sources.shapes import shapes
from finetune.data.sources.supervisely import supervisely
from finetune.data.sources.ultralytics import ultralytics
from finetune.data.sources.via import via
from finetune.data.splits import by_fold, by_fraction, by_list
from finetune.data.stream import Streamed
from finetune.labels.translation import Labels
from finetune.pictures.references import IMAGE_SUFFIXES
from finetune.recipe.data import (
    DataSection,
    FileData,
    FolderData,
    HubData,
    LabelmeData,
    ShapesData,
    StoredData,
    SuperviselyData,
)

_PARTNERS = ("image-without-mask", "mask-without-image")


def open_split(
    data: DataSection, labels: Labels, split: str, *, num_channels: int = 3, faults: Faults = None
) -> datasets.Dataset:
    """One split as a `datasets.Dataset` of Samples.

    `faults` takes the faults of single files; the split then holds the other files. With None the
    first fault is raised. Shapes are drawn in RGB, whatever `num_channels` is.

    Raises:
        UserError: A file is missing or wrong; see the sources.
    """
    if isinstance(data, ShapesData):
        is_train = split == data.train_split
        count = data.train_samples if is_train else data.val_samples
        # One fixed set, whatever the training's seed.
        return shapes("train" if is_train else "val", num_samples=count, size=data.size, seed=0)
    assert isinstance(data, StoredData), data.source
    return with_channels(_part(data, labels, split, faults), num_channels)


def _part(data: StoredData, labels: Labels, split: str, faults: Faults) -> datasets.Dataset:
    """A split of stored data: all samples of its name, those of a list, or a drawn part."""
    if data.held_back is None:
        return _named(data, labels, split, faults)
    whole = _named(data, labels, data.train_split, faults)
    seed, group = data.split_seed, data.split_group
    if data.folds is None:
        parts = by_fraction(whole, data.held_back, seed=seed, group=group)
    else:
        parts = by_fold(whole, data.fold, data.folds, seed=seed, group=group)
    return parts[split != data.train_split]


def _named(data: StoredData, labels: Labels, split: str, faults: Faults) -> datasets.Dataset:
    """All samples of a split's name, or those of its list."""
    open_all = OPENERS[data.source]
    if not isinstance(data, FileData) or data.split_list is None:
        return open_all(data, labels, split, faults)
    file = Path(data.path).expanduser() / data.split_list.replace("{split}", split)
    own: list[Fault] = []
    found = open_all(data, labels, split, own)
    # Files that no list names may lack a partner.
    serious = [fault for fault in own if fault.kind not in _PARTNERS]
    if faults is not None:
        faults += serious
    elif serious:
        found = open_all(data, labels, split, None)
    return by_list(found, file, faults, _left_out(data, split))


def _left_out(data: FileData, split: str) -> Callable[[str], bool]:
    """Whether a name in a list is that of an image which the recipe leaves out."""
    if (
        not isinstance(data, FolderData | LabelmeData | SuperviselyData)
        or data.without_mask == "error"
    ):
        return lambda name: False
    folder = Path(data.path).expanduser() / data.images.replace("{split}", split)
    ends = [getattr(data, "image_suffix", "") + suffix for suffix in ("", *IMAGE_SUFFIXES)]
    return lambda name: any((folder / (name + end)).is_file() for end in ends)


def stream_split(data: HubData, labels: Labels, split: str, *, num_channels: int = 3) -> Streamed:
    """One split of the source hub, to be read from front to back.

    Raises:
        UserError: There is none, it is not kept as Parquet, or a column is not what it must be.
    """
    shards = hub_shards(data.path, split, revision=data.revision, subset=data.subset)
    return Streamed(shards, labels, _columns(data), num_channels=num_channels)


def _columns(data: HubData) -> Columns:
    return Columns(data.image_column, data.mask_column, data.id_column)


def _hub(data: HubData, labels: Labels, split: str, faults: Faults) -> datasets.Dataset:
    return hub(data.path, split, labels, _columns(data), revision=data.revision, subset=data.subset)


def _opener(layout: Callable[..., datasets.Dataset], *keys: str) -> "Opener":
    """Calls a layout with the keys of the recipe's section that it takes."""

    def open_all(data: Any, labels: Labels, split: str, faults: Faults) -> datasets.Dataset:
        options = {key: getattr(data, key) for key in keys}
        return layout(data.path, split, labels, **options, faults=faults)

    return open_all


Opener: TypeAlias = Callable[[Any, Labels, str, Faults], datasets.Dataset]
OPENERS: dict[str, Opener] = {
    "folder": _opener(
        image_folder, "images", "masks", "image_suffix", "mask_suffix", "without_mask"
    ),
    "hub": _hub,
    "coco": _opener(coco, "images", "annotations", "overlap"),
    "coco-panoptic": _opener(panoptic, "images", "masks", "annotations"),
    "cvat": _opener(cvat, "images", "annotations"),
    "kaggle-rle": _opener(kaggle_rle, "images", "annotations", "overlap"),
    "label-studio": _opener(label_studio, "images", "annotations", "brushes", "overlap"),
    "labelme": _opener(labelme, "images", "masks", "overlap", "without_mask"),
    "supervisely": _opener(supervisely, "images", "overlap", "without_mask"),
    "ultralytics": _opener(ultralytics, "overlap"),
    "via": _opener(via, "images", "annotations", "attribute", "overlap"),
    "camvid": _opener(archives.camvid),
    "ade20k": _opener(archives.ade20k),
    "cityscapes": _opener(archives.cityscapes),
    "voc": _opener(archives.voc),
    "coco-stuff": _opener(archives.coco_stuff),
    "celebamask-hq": _opener(archives.celebamask_hq),
}
"""The source of a recipe -> the function that opens all samples of a split."""
