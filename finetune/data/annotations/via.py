"""VIA's JSON files, projects and exports, as the content of COCO's.

Format: https://www.robots.ox.ac.uk/~vgg/software/via, version 2 (`regions` with `shape_attributes`
and `region_attributes`, in each image of `_via_img_metadata`); version 1 differs in little.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from finetune.data.annotations.coco import CocoFile, objects_file, parsed
from finetune.data.objects import ellipse
from finetune.errors import UserError

_ONLY = "object"
"""The class of the regions if none has an attribute."""


def via_entries(content: Any) -> list[dict[str, Any]] | None:
    """The images of VIA's project or export, with their regions in a list; None of other files."""
    if not isinstance(content, dict):
        return None
    entries = content.get("_via_img_metadata", content)
    rows = [*entries.values()] if isinstance(entries, dict) else []
    if not rows or not all(isinstance(r, dict) and {"filename", "regions"} <= {*r} for r in rows):
        return None
    return [{**row, "regions": _regions(row["regions"])} for row in rows]


def _regions(regions: Any) -> list[dict[str, Any]]:
    """VIA 1 numbers them as the keys of an object."""
    found = [*regions.values()] if isinstance(regions, dict) else regions
    return [row for row in found if isinstance(row, dict)] if isinstance(found, list) else []


def via_attributes(entries: Sequence[dict[str, Any]]) -> dict[str, list[str]]:
    """The attributes in which every region has a text or number, with their values, sorted.

    It is {"": ["object"]} if no region has any attribute. An attribute that most regions have, with
    fewer values than each of those that all have, is the likelier class: then it is {}.
    """
    regions = [own.get("region_attributes") or {} for row in entries for own in row["regions"]]
    values = {key: [_text(own.get(key)) for own in regions] for own in regions for key in own}
    if not any(map(any, values.values())):
        return {"": [_ONLY]}
    found = {key: sorted(set(own)) for key, own in values.items() if all(own)}
    fewest = min(map(len, found.values()), default=0)
    gaps = [[text for text in own if text] for key, own in values.items() if key not in found]
    if any(2 * len(own) > len(regions) and len(set(own)) < fewest for own in gaps):
        return {}  # the others may number the regions
    return found


def _text(value: Any) -> str:
    """The value of an attribute; "" if there is none. A checkbox with one mark counts."""
    if isinstance(value, dict):
        marked = [key for key, is_marked in value.items() if is_marked]
        value = marked[0] if len(marked) == 1 else ""
    return str(value).strip() if isinstance(value, str | int | float) else ""


def from_via(
    file: Path, entries: Sequence[dict[str, Any]], attribute: str, names: Sequence[str]
) -> dict[str, Any]:
    """The content of COCO's file with the same regions.

    Args:
        file: The file, for messages.
        entries: What `via_entries` gave for it.
        attribute: The region attribute that names the class; "" if there is one class.
        names: The classes; the id of a category is its place there.

    Raises:
        UserError: A region has no class of `names`, or covers no pixels.
    """
    images, annotations = [], []
    for number, row in enumerate(entries):
        images.append({"id": number, "file_name": row["filename"]})
        for place, region in enumerate(row["regions"], 1):
            where = f"{file}: region {place} of {row['filename']}"
            own = _text((region.get("region_attributes") or {}).get(attribute))
            name = own if attribute else _ONLY
            if name not in names:
                what = (
                    f"has {name!r} as {attribute}, none of labels.names"
                    if name
                    else (f"has no {attribute}")
                )
                raise UserError(f"{where} {what}. Correct it, or name another data.attribute.")
            shape = region.get("shape_attributes") or {}
            try:
                outline = [*_outline(shape)]
            except (KeyError, TypeError, ValueError) as error:
                raise UserError(f"{where} cannot be read ({error!r}). Draw it again.") from error
            if not outline:
                raise UserError(
                    f"{where} is a {shape.get('name')} ({name!r}), which covers no pixels. Draw it "
                    "as a polygon, or remove it."
                )
            annotation = {"id": f"{place} of {row['filename']}", "image_id": number}
            annotation |= {"category_id": names.index(name), "segmentation": [outline]}
            annotations.append(annotation)
    categories = [{"id": number, "name": name} for number, name in enumerate(names)]
    return {"images": images, "annotations": annotations, "categories": categories}


def _outline(shape: dict[str, Any]) -> Iterator[float]:
    """The polygon of a region, x and y in turns; nothing for points and lines."""
    kind = shape["name"]
    if kind == "polygon":
        for point in zip(shape["all_points_x"], shape["all_points_y"], strict=True):
            yield from point
    elif kind == "rect":
        x, y, width, height = (shape[key] for key in ("x", "y", "width", "height"))
        yield from (x, y, x + width, y, x + width, y + height, x, y + height)
    elif kind == "circle":
        yield from ellipse(shape["cx"], shape["cy"], shape["r"], shape["r"])
    elif kind == "ellipse":
        turned = shape.get("theta", 0)
        yield from ellipse(shape["cx"], shape["cy"], shape["rx"], shape["ry"], turned)


def via_file(file: Path, attribute: str, names: Sequence[str]) -> CocoFile:
    """A file of VIA as one of COCO; the id of a category is its place in `names`.

    Raises:
        UserError: It cannot be read, or is not VIA's; a region has no class, or covers no pixels.
    """
    entries = via_entries(parsed(file))
    if entries is None:
        raise UserError(
            f"{file}: is not a project or an export of VIA 2. Correct data.annotations."
        )
    return objects_file(file, from_via(file, entries, attribute, names))
