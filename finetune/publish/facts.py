"""A card's facts about a training: its data and its starting weights. No paths of a machine."""

from pathlib import Path

from finetune.publish.header import DataSet, hub_id
from finetune.recipe import DataSection, HubData, StoredData
from finetune.weights.reading import is_checkpoint_file

DATA_SETS = {
    "shapes": "procedural shapes",
    "camvid": "CamVid",
    "ade20k": "ADE20K",
    "cityscapes": "Cityscapes",
    "voc": "Pascal VOC 2012",
    "coco-stuff": "COCO-Stuff 164k",
    "celebamask-hq": "CelebAMask-HQ",
}
"""Names of the sources that are a single data set."""


def base_model_of(init: str | None) -> str | None:
    """The Hub id that a recipe's training starts from; None for local files."""
    return None if init is None or is_checkpoint_file(init) else hub_id(init)


def start_of(init: str | None) -> str:
    """The starting weights as a public card names them, without local paths."""
    return base_model_of(init) or (Path(init).resolve().name if init else "random weights")


def data_set_of(data: DataSection) -> DataSet:
    """The data set of a recipe, for a card."""
    name = DATA_SETS.get(data.source, "")
    if not name and isinstance(data, StoredData):
        name = Path(data.path).expanduser().resolve().name
    split = data.val_split
    if data.held_back is not None:
        split = f"{data.held_back:.0%} of {data.train_split}, held back"
    found = hub_id(data.path) if isinstance(data, HubData) else None
    return DataSet(
        name=found or name,
        split=split,
        train_split=data.train_split,
        kind=data.source,
        id=found,
        subset=data.subset if isinstance(data, HubData) else None,
        revision=data.revision if isinstance(data, HubData) else None,
    )
