"""Finds the images, the masks and the splits of a folder.

Names decide, and a glance at a few files tells masks from images.
`official` and `public_sets` know the folders of published data sets, `annotations`, `exports` and
`label_studio` the files that describe objects, `tables` what `datasets` wrote; `pairs` finds two
folders, or endings of names, that belong together.
"""

import functools
from dataclasses import replace
from pathlib import Path

from finetune.discover.forms.annotations import coco_files, ultralytics
from finetune.discover.forms.exports import cvat_files, labelme_files, rle_tables
from finetune.discover.forms.label_studio import label_studio_files
from finetune.discover.forms.official import official
from finetune.discover.forms.public_sets import public_sets
from finetune.discover.forms.supervisely import supervisely_project
from finetune.discover.forms.tables import table, table_folder
from finetune.discover.forms.via import via_files
from finetune.discover.layouts.glances import glance
from finetune.discover.layouts.layout import Layout, Tree, refuse_without_training, walk
from finetune.discover.layouts.pairs import pairs
from finetune.discover.layouts.split_lists import with_lists
from finetune.discover.nothing_fits import why_nothing_fits
from finetune.errors import UserError

__all__ = ["Layout", "recognise", "table"]


def recognise(root: Path) -> list[Layout]:
    """The layouts that a folder may have, the likeliest first. An official layout comes alone.

    Raises:
        UserError: The folder does not exist, no layout fits, or none fits the training split.
    """
    if not root.is_dir():
        raise UserError(f"{root}: is not a folder. Name the folder that holds images and masks.")
    known = ultralytics(root) or official(root)
    if known is not None:
        return [known]
    if sets := public_sets(root):
        return sets
    tree = walk(root)
    look = functools.cache(glance)  # looks at each file once
    layouts = _of_tools(tree) or pairs(tree, look) or [*rle_tables(tree)]
    if not layouts and (known := table_folder(root)) is not None:
        return [known]
    if not layouts:
        raise UserError(
            f"{root}: no pairs of images and masks found. {why_nothing_fits(tree, look)} "
            "docs/data.md lists the forms that are recognised; recipes/folder.yaml is a start for "
            "others."
        )
    layouts = [with_lists(tree, layout) for layout in layouts]
    refuse_without_training(tree, layouts)
    return layouts


_TOOLS = (
    coco_files,
    labelme_files,
    label_studio_files,
    supervisely_project,
    via_files,
    cvat_files,
)


def _of_tools(tree: Tree) -> list[Layout]:
    """The layouts of all tools that annotated the folder: files of two may disagree.

    Raises:
        UserError: A file of the first tool that has any is invalid.
    """
    layouts: list[Layout] = []
    for read in _TOOLS:
        known = {own.file for layout in layouts for own in layout.categories}
        left = tuple(file for file in tree.json_files if file not in known)  # COCO's can be large
        try:
            layouts += read(replace(tree, json_files=left))
        except UserError:
            if not layouts:
                raise
    return layouts
