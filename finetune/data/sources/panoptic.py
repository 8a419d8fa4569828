"""COCO's panoptic form: PNGs whose colours number segments, and their categories in JSON.

Format: https://cocodataset.org/#format-data, 4. Panoptic Segmentation.
"""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import datasets

from finetune.data.annotations.coco import panoptic_file
from finetune.data.faults import Fault, Faults, each, listed, without_partner
from finetune.data.masks import PanopticMasks
from finetune.data.named_files import located
from finetune.data.samples import as_samples
from finetune.data.sources.coco import images_of, wrong_categories
from finetune.data.sources.folders import existing_root
from finetune.errors import UserError
from finetune.labels.translation import Labels


def panoptic(
    path: str | Path,
    split: str,
    labels: Labels,
    *,
    images: str = "images/{split}",
    masks: str = "masks/{split}",
    annotations: str = "annotations/{split}.json",
    faults: Faults = None,
) -> datasets.Dataset:
    """The images of a panoptic file; raw values are category ids of things and stuff.

    Pixels of id 0 do not count. A crowd is of its category, as in COCO's own conversion.

    Args:
        path: The data set's folder.
        split: Replaces `{split}` in the patterns.
        labels: What category ids mean.
        images: Folder of the images, relative to `path`.
        masks: Folder of the PNGs, relative to `path`.
        annotations: The JSON file, relative to `path`.
        faults: Takes missing files and unknown categories. With None they are an error.

    Raises:
        UserError: A file is missing, or the annotations are invalid or contradict `labels`.
    """
    root = existing_root(Path(path).expanduser(), annotations)
    file = root / annotations.replace("{split}", split)
    content = panoptic_file(file)
    image_dir, mask_dir = (root / part.replace("{split}", split) for part in (images, masks))
    there = images_of(content, image_dir, root, faults)
    segments = [segment for row in content.annotations for segment in row["segments_info"]]
    used = Counter(segment["category_id"] for segment in segments)
    known, owners = content.names, {image["id"] for image in content.images}
    wrong = [
        f"{file}: the PNG {row['file_name']} belongs to image {row['image_id']!r}, which is not "
        "among `images`. Correct it, or remove it."
        for row in content.annotations
        if row["image_id"] not in owners
    ]
    wrong += [
        f"{file}: {used[category]} segments have category {category}, which is not among "
        "`categories`. Add it."
        for category in sorted(used.keys() - known.keys())
    ]
    wrong += wrong_categories(content, used, labels)
    annotation_of = {row["image_id"]: row for row in content.annotations}
    alone = [str(file) for image, file, _ in there if image["id"] not in annotation_of]
    if faults is None and alone:
        wrong.append(
            f"{file}: {len(alone)} of {len(there)} images have no annotation: {listed(alone)}. "
            "Add their segments, or take the images out."
        )
    if wrong and faults is None:
        raise UserError(wrong[0])
    if faults is not None:
        faults += [Fault("bad-annotation", (str(file),), what) for what in wrong]
        faults += each("image-without-mask", alone, f"not among `annotations` of {file}")
    there = [row for row in there if row[0]["id"] in annotation_of]
    own = [annotation_of[image["id"]] for image, _, _ in there]
    pngs, _ = located([row["file_name"] for row in own], mask_dir, root, file)
    missing = [str(png) for png in pngs if not png.is_file()]
    if missing and (faults is None or len(missing) == len(pngs)):
        raise UserError(
            f"{file}: {len(missing)} of {len(pngs)} PNGs of segments are missing: "
            f"{listed(missing)}. Set data.masks to their folder."
        )
    if faults is not None:
        faults += without_partner([row[1] for row in there], pngs, f"named in {file}")
    gone = set(missing)
    files, references, ids = [], [], []
    for (_, image, name), png, row in zip(there, pngs, own, strict=True):
        if str(png) not in gone:
            files.append(image)
            references.append(segments_reference(png, row, file))
            ids.append(name)
    return as_samples(files, references, ids, labels, PanopticMasks())


def segments_reference(picture: Path, row: dict[str, Any], file: Path) -> str:
    """The reference of `PanopticMasks` for a row of the file's annotations."""
    segments = {segment["id"]: segment["category_id"] for segment in row["segments_info"]}
    return json.dumps({"file": str(picture), "segments": segments, "where": str(file)})
