"""Recipe to Samples: what `data.source` stands for."""

from pathlib import Path

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
from finetune.recipe import DataSection

# The source named in a recipe -> what opens one split of it.
LAYOUTS = {
    "camvid": archives.camvid,
    "ade20k": archives.ade20k,
    "cityscapes": archives.cityscapes,
    "voc": archives.voc,
    "coco-stuff": archives.coco_stuff,
}


def open_split(
    data: DataSection,
    labels: Labels,
    split: str,
    *,
    num_channels: int = 3,
    faults: list[Fault] | None = None,
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
    if data.source == "shapes":
        train = split == data.train_split
        return shapes(
            "train" if train else "val",
            num_samples=data.train_samples if train else data.val_samples,
            size=data.size,
            seed=0,  # the set is one fixed set, whatever the training's seed
        )
    return with_channels(_open_split(data, labels, split, faults), num_channels)


def _open_split(
    data: DataSection, labels: Labels, split: str, faults: list[Fault] | None
) -> datasets.Dataset:
    assert data.path is not None, "load_recipe asks for it"
    if data.val_fraction is not None:
        whole = _open(data, labels, data.train_split, faults)
        parts = by_fraction(whole, data.val_fraction, seed=data.split_seed, group=data.split_group)
        return parts[split != data.train_split]
    found = _open(data, labels, split, faults)
    if data.split_list is None:
        return found
    file = Path(data.path).expanduser() / data.split_list.replace("{split}", split)
    return by_list(found, file, faults)


def stream_split(
    data: DataSection, labels: Labels, split: str, *, num_channels: int = 3
) -> Streamed:
    """One split of the source hub, to be read from front to back.

    Raises:
        UserError: There is none, it is not kept as Parquet, or a column is not what it must be.
    """
    assert data.path is not None, "load_recipe asks for it"
    shards = hub_shards(data.path, split, revision=data.revision, subset=data.subset)
    return Streamed(shards, labels, _columns(data), num_channels=num_channels)


def _columns(data: DataSection) -> Columns:
    return Columns(data.image_column, data.mask_column, data.id_column)


def _open(
    data: DataSection, labels: Labels, split: str, faults: list[Fault] | None
) -> datasets.Dataset:
    assert data.path is not None, "load_recipe asks for it"
    if data.source == "folder":
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
    if data.source == "hub":
        return hub(
            data.path,
            split,
            labels,
            _columns(data),
            revision=data.revision,
            subset=data.subset,
        )
    if data.source == "coco":
        return coco(
            data.path,
            split,
            labels,
            images=data.images,
            annotations=data.annotations,
            overlap=data.overlap,
            faults=faults,
        )
    if data.source == "ultralytics":
        return ultralytics(data.path, split, labels, overlap=data.overlap, faults=faults)
    return LAYOUTS[data.source](data.path, split, labels, faults=faults)
