"""CVAT's XML for images: the shapes of all images of a task or project in one file."""

import json
import warnings
from collections import Counter
from pathlib import Path

import datasets

from finetune.data.annotations.cvat import CvatShapes, read_cvat
from finetune.data.faults import Fault, Faults, each, listed
from finetune.data.named_files import located, sample_id
from finetune.data.samples import as_samples
from finetune.data.sources.folders import existing_root
from finetune.errors import UserError
from finetune.labels.translation import Labels


def cvat(
    path: str | Path,
    split: str,
    labels: Labels,
    *,
    images: str = "images/{split}",
    annotations: str = "annotations/{split}.json",
    faults: Faults = None,
) -> datasets.Dataset:
    """The images of a file; raw values are class ids, and `NO_OBJECT` outside of shapes.

    Where shapes overlap, the higher `z_order` wins, then the later shape, as CVAT draws them.

    Args:
        path: The data set's folder.
        split: Replaces `{split}` in the patterns. A file for all splits has them as subsets.
        labels: The classes; their names are those of the labels.
        images: Folder of the images, relative to `path`.
        annotations: The file, relative to `path`.
        faults: Takes missing images, and shapes that cannot be used. With None they are an error.

    Raises:
        UserError: A file is missing, or the shapes are invalid or have labels of no class.
    """
    root = existing_root(Path(path).expanduser(), annotations)
    file = root / annotations.replace("{split}", split)
    if not file.is_file():
        raise UserError(f"data.annotations: {file} does not exist. Correct the path.")
    content = read_cvat(file)
    if content is None:
        raise UserError(f"{file}: is not CVAT's XML for images. Correct data.annotations.")
    folder = root / images.replace("{split}", split)
    subsets = sorted({row.subset for row in content.images})
    is_whole = "{split}" in annotations or len(subsets) == 1
    rows = [row for row in content.images if is_whole or row.subset in ("", split)]
    if not rows:
        there = ", ".join(subsets) or "no images"
        raise UserError(f"{file}: has no subset {split!r}; it has {there}.")
    if twice := [name for name, count in Counter(row.name for row in rows).items() if count > 1]:
        raise UserError(
            f"{file}: the image {twice[0]!r} stands twice, as where two tasks have images of one "
            "name. Export each task on its own, or remove one of them."
        )
    used = {shape["label"] for row in rows for shape in row.shapes}
    wrong = list(content.wrong)
    if unknown := sorted(used - set(labels.names)):
        wrong.append(
            f"{file}: the label {unknown[0]!r} is none of labels.names. Correct it, or add it "
            "there."
        )
    if wrong and faults is None:
        raise UserError(wrong[0])
    if content.note:
        warnings.warn(f"{file}: {content.note}", stacklevel=2)
    files, alone = located([row.name for row in rows], folder, root, file)
    missing = [str(image) for image in files if not image.is_file()]
    if missing and (faults is None or len(missing) == len(files)):
        raise UserError(
            f"{file}: {len(missing)} of {len(files)} images are missing: {listed(missing)}. Set "
            "data.images to their folder."
        )
    if faults is not None:
        faults += [Fault("bad-annotation", (str(file),), what) for what in wrong]
        faults += each("listed-but-missing", missing, f"named in {file}")
    kept = [(row, image) for row, image in zip(rows, files, strict=True) if image.is_file()]
    references = [
        json.dumps(
            {
                "size": row.size,
                "shapes": [shape for shape in row.shapes if shape["label"] in labels.names],
                "where": f"{file}, image {row.name}",
            }
        )
        for row, _ in kept
    ]
    ids = [sample_id(row.name, image, folder, alone) for row, image in kept]
    return as_samples(
        [image for _, image in kept], references, ids, labels, CvatShapes(labels.names)
    )
