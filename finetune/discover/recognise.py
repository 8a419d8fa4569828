"""Looks at a folder as a person would: where its images and masks are, and how both are split.

By names alone, but for a few files of each folder: which of two holds the masks is seen, not said.
`official` knows the folders of known data sets, `annotations` the files that describe objects,
`tables` what `datasets` wrote; `pairs` finds two folders, or endings of names, that belong
together.
"""

from pathlib import Path

from finetune.discover.annotations import coco_files, ultralytics
from finetune.discover.layout import Layout, refuse_without_training, walk
from finetune.discover.official import official
from finetune.discover.pairs import pairs, why_none
from finetune.discover.tables import table, table_folder
from finetune.errors import UserError

__all__ = ["Layout", "recognise", "table"]


def recognise(root: Path) -> list[Layout]:
    """The layouts that a folder may have, the likeliest first; of an official one just that.

    Raises:
        UserError: There is no folder, nothing in it that is known, or only a part of it is.
    """
    if not root.is_dir():
        raise UserError(f"{root}: is not a folder. Give the folder that holds images and masks.")
    known = ultralytics(root) or official(root)
    if known is not None:
        return [known]
    tree = walk(root)
    layouts = [*coco_files(tree)] or pairs(tree)
    if not layouts and (known := table_folder(root)) is not None:
        return [known]
    if not layouts:
        raise UserError(
            f"{root}: no pairs of images and masks found. Looked for a data.yaml, for COCO's JSON, "
            "for the official folders of ADE20K, Cityscapes, VOC, COCO-Stuff and CamVid, and for "
            "two folders with the same names in them, or names that differ at their end only "
            f"(x.jpg and x_mask.png). {why_none(tree)}Start from recipes/folder.yaml."
        )
    refuse_without_training(tree, layouts)
    return layouts
