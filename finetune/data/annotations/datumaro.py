"""Datumaro's JSON files, which CVAT writes too, as the content of COCO's.

Format: https://github.com/openvinotoolkit/datumaro (`categories`, `items` and `annotations`, as in
`src/datumaro/plugins/data_formats/datumaro/exporter.py`).
"""

from pathlib import Path
from typing import Any

from finetune.data.objects import ellipse
from finetune.errors import UserError


def from_datumaro(file: Path, content: dict[str, Any]) -> dict[str, Any]:
    """The content of COCO's file with the same objects, from the lowest `z_order` to the highest.

    Categories count from 1. Boxes, points and lines have no segmentation, as in COCO.

    Raises:
        UserError: A field is missing or wrong.
    """
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    try:
        labels = content["categories"]["label"]["labels"]
        for number, item in enumerate(content["items"]):
            picture = item.get("image") or item.get("media") or {}
            height, width = picture.get("size") or (None, None)
            name = picture.get("path") or str(item["id"])
            images.append({"id": number, "file_name": name, "height": height, "width": width})
            rows = sorted(item["annotations"], key=lambda row: row.get("z_order") or 0)
            for place, row in enumerate(rows):
                if row["type"] in ("label", "caption"):  # of the whole image
                    continue
                annotation = {
                    "id": f"{place} of {item['id']} ({row['type']})",
                    "image_id": number,
                    "category_id": row["label_id"] + 1,
                    "segmentation": _segmentation(row),
                }
                annotations.append(annotation)
        categories = [{"id": i, "name": label["name"]} for i, label in enumerate(labels, 1)]
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{file}: is in Datumaro's form, but a field is missing or wrong ({error!r}). Export "
            "it again."
        ) from error
    content = {"images": images, "annotations": annotations, "categories": categories}
    return {**content, "is_ordered": True}


def _segmentation(row: dict[str, Any]) -> Any:
    if row["type"] == "polygon":
        return [row["points"]]
    if row["type"] == "mask":
        return row["rle"]
    if row["type"] == "ellipse":  # the corners of its box
        left, top, right, bottom = row["points"]
        middle = (left + right) / 2, (top + bottom) / 2
        return [ellipse(*middle, (right - left) / 2, (bottom - top) / 2)]
    return None


def is_datumaro(content: Any) -> bool:
    """Whether a JSON file's content is in Datumaro's form."""
    return (
        isinstance(content, dict)
        and isinstance(content.get("items"), list)
        and isinstance(content.get("categories"), dict)
    )
