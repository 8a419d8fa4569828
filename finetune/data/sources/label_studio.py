"""Label Studio's exports: regions in JSON or JSON-MIN, or brush PNGs beside such a file."""

import base64
import json
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unicodedata import normalize

import datasets
import numpy as np

from finetune.data.annotations import brush_rle
from finetune.data.annotations.coco import CocoFile
from finetune.data.annotations.label_studio import (
    Export,
    brush_pngs,
    is_brush_png,
    named_export,
    read_export,
    with_pngs,
)
from finetune.data.faults import Fault, Faults
from finetune.data.masks import Size
from finetune.data.objects import Overlap, encoded_polygons, painted
from finetune.data.samples import as_samples
from finetune.data.sources.coco import images_of
from finetune.data.sources.folders import existing_folder, existing_root, files_by_key
from finetune.errors import UserError
from finetune.labels.translation import Labels
from finetune.pictures.reading import mask_size, read_mask
from finetune.pictures.references import IMAGE_SUFFIXES, MASK_SUFFIXES


def label_studio(
    path: str | Path,
    split: str,
    labels: Labels,
    *,
    images: str = "images/{split}",
    annotations: str = "annotations/{split}.json",
    brushes: str = "",
    overlap: Overlap = "area",
    faults: Faults = None,
) -> datasets.Dataset:
    """The images of annotated tasks; raw values are class ids, `NO_OBJECT` outside of regions.

    Args:
        path: The data set's folder.
        split: Replaces `{split}` in the patterns.
        labels: The classes; their names are the tool's labels.
        images: Folder of the images, relative to `path`.
        annotations: The JSON or JSON-MIN file, relative to `path`. With `brushes` it may be "":
            then the images are named by their task's number.
        brushes: Folder of brush PNGs, relative to `path`, which take the place of the file's
            regions; "" if there are none.
        overlap: The region that wins where several overlap.
        faults: Takes missing images and regions of unknown labels. With None they are an error.

    Raises:
        UserError: A file is missing, or a region cannot be used; names the task.
    """
    root = existing_root(Path(path).expanduser(), annotations)
    folder = root / images.replace("{split}", split)
    export = export_of(root, *(t.replace("{split}", split) for t in (images, annotations, brushes)))
    if not export.tasks:
        raise UserError(
            f"{export.file}: no task has an annotation. Annotate some, and export again."
        )
    for line in export.lines:
        warnings.warn(f"{export.file}: {line}", stacklevel=2)
    rows = []
    for at, task in enumerate(export.tasks):
        height, width = task.size or (None, None)
        rows.append({"id": at, "file_name": task.image, "height": height, "width": width})
    numbers = {normalize("NFC", name): number for number, name in enumerate(labels.names)}
    files, references, ids = [], [], []
    for row, file, name in images_of(CocoFile(export.file, rows, [], []), folder, root, faults):
        task = export.tasks[row["id"]]
        where = f"{export.file}, task {task.name}"
        if strange := sorted({region.label for region in task.regions} - numbers.keys()):
            what = (
                f"{where}: the label {strange[0]!r} is none of labels.names. Correct it, or add "
                "it there."
            )
            if faults is None:
                raise UserError(what)
            faults.append(Fault("bad-annotation", (str(export.file),), what))
            continue
        files.append(file)
        regions = [[numbers[r.label], r.kind, r.shape, r.name] for r in task.regions]
        size = [row["height"], row["width"]]
        references.append(json.dumps({"size": size, "regions": regions, "where": where}))
        ids.append(name)
    return as_samples(files, references, ids, labels, RegionMasks(overlap))


def export_of(root: Path, images: str, annotations: str, brushes: str) -> Export:
    """The tasks of a file, of brush PNGs, or of both; see `label_studio` for the arguments.

    Raises:
        UserError: As `label_studio`.
    """
    export = read_export(root / annotations) if annotations else None
    if annotations and export is None:
        raise UserError(
            f"{root / annotations}: is no export of Label Studio as JSON or JSON-MIN. Set "
            "data.annotations to it."
        )
    if not brushes:
        if export is None:
            raise UserError("data.annotations: names no file, and data.brushes no folder.")
        return export
    folder = existing_folder(root, brushes, brushes)
    there = files_by_key(folder, MASK_SUFFIXES, "").values()
    pngs = brush_pngs(there, export.tags if export else frozenset())
    if not pngs:
        raise UserError(f"data.brushes: {folder} holds no files such as task-1-annotation-1-....")
    if export is None:
        own = existing_folder(root, images, images)
        names = [
            file.relative_to(own).as_posix()
            for file in files_by_key(own, IMAGE_SUFFIXES, "").values()
            if not is_brush_png(file.stem)
        ]
        export = named_export(own, pngs, names)
    return with_pngs(export, pngs)


@dataclass(frozen=True)
class RegionMasks:
    """Regions of a task; the reference is {"size": [h, w], "regions": [...], "where": text}.

    Each region is [class id, kind, shape, name], see `Region`.
    """

    overlap: Overlap = "area"

    def name(self, reference: str) -> str:
        return json.loads(reference)["where"]

    def files(self, reference: str) -> list[Path]:
        regions = json.loads(reference)["regions"]
        return [Path(shape) for _, kind, shape, _ in regions if kind == "png"]

    def size(self, reference: str) -> Size | None:
        files = self.files(reference)
        if files:
            return mask_size(files[0], of_ids=True)
        height, width = json.loads(reference)["size"]
        return height, width

    def read(self, reference: str, size: Size) -> np.ndarray:
        """Class ids of the regions, `NO_OBJECT` elsewhere; int32."""
        content = json.loads(reference)
        if not self.files(reference) and (stated := tuple(content["size"])) != size:
            raise UserError(
                f"{content['where']}: states an image of {stated[1]} x {stated[0]} pixels (width x "
                f"height), but it has {size[1]} x {size[0]} after its EXIF rotation. Annotate the "
                "image as it is, or correct original_width and original_height.",
                kind="size-mismatch",
            )
        objects = []
        for value, kind, shape, name in content["regions"]:
            where = f"{content['where']}, {name}"
            objects.append((value, _encoded(kind, shape, size, where), where))
        return painted(objects, size, self.overlap)


def _encoded(kind: str, shape: Any, size: Size, where: str) -> dict[str, Any]:
    """The pixels of a region as compressed RLE."""
    from pycocotools import mask as coco

    height, width = size
    if kind == "polygon":
        return encoded_polygons(
            [[n / 100 * side for x, y in shape for n, side in ((x, width), (y, height))]], size
        )
    if kind == "ellipse":
        x, y, across, down = np.array(shape[:4]) * (width, height, width, height) / 100
        turn = np.radians(shape[4])
        rows, columns = np.ogrid[:height, :width]
        right, below = columns + 0.5 - x, rows + 0.5 - y
        along = right * np.cos(turn) + below * np.sin(turn)
        beside = below * np.cos(turn) - right * np.sin(turn)
        mask = (along * down) ** 2 + (beside * across) ** 2 <= (across * down) ** 2
    elif kind == "png":
        mask = read_mask(Path(shape)) != 0
        if mask.shape != size:
            raise UserError(
                f"{shape}: the mask has {mask.shape[1]} x {mask.shape[0]} pixels (width x height), "
                f"its image {width} x {height}. Export both again.",
                kind="size-mismatch",
            )
    else:
        try:
            mask = brush_rle.decode(base64.b64decode(shape), size)
        except ValueError as error:
            raise UserError(f"{where}: {error}. Export it again.") from error
    return coco.encode(np.asfortranarray(mask, np.uint8))
