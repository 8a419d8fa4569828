"""Datumaro's JSON files, as it and CVAT write them, against masks painted by hand."""

import json

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from finetune.discover.recognise import recognise
from finetune.errors import UserError
from tests.data.sources.test_labelme import SIZE, boxes, disc, read_back

LABELS = ("road", "box", "disc")


def row(label, kind, z_order=0, **more):
    start = {"id": 0, "type": kind, "attributes": {}, "group": 0, "z_order": z_order}
    return {**start, "label_id": LABELS.index(label), **more}


def polygon(label, left, top, right, bottom, z_order=0):
    points = [left, top, right, top, right, bottom, left, bottom]
    return row(label, "polygon", z_order, points=[float(x) for x in points])


def mask(label, pixels, z_order=0):
    rle = coco_mask.encode(np.asfortranarray(pixels.astype(np.uint8)))
    rle = {"counts": rle["counts"].decode(), "size": list(rle["size"])}
    return row(label, "mask", z_order, rle=rle)


def put(root, subset, items, *, path="{}.jpg", images="images"):
    photo = Image.fromarray(np.random.default_rng(0).integers(0, 256, (*SIZE, 3), np.uint8))
    for name in items:
        file = root / images / subset / f"{name}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        photo.save(file)
    labels = [{"name": name, "parent": "", "attributes": []} for name in LABELS]
    content = {
        "dm_format_version": "1.0",
        "media_type": 2,
        "infos": {},
        "categories": {"label": {"labels": labels, "label_groups": [], "attributes": []}},
        "items": [
            {
                "id": name,
                "annotations": rows,
                "attr": {"frame": 0},
                "image": {"path": path.format(name), "size": list(SIZE)},
            }
            for name, rows in items.items()
        ],
    }
    (root / "annotations").mkdir(exist_ok=True)
    (root / "annotations" / f"{subset}.json").write_text(json.dumps(content))


def test_every_form_of_an_object(tmp_path):
    items = {
        "polygon": [polygon("box", 5, 6, 25, 30)],
        "mask": [mask("disc", disc() > 0)],
        # The file's order says nothing against z_order.
        "order": [polygon("disc", 0, 0, 20, 20, 2), polygon("box", 5, 6, 25, 30, 1)],
        "tag": [row("box", "label")],
        "nothing": [],
    }
    put(tmp_path, "train", items)
    put(tmp_path, "val", {"other": [polygon("disc", 1, 1, 9, 9)]})
    layout, labels, masks = read_back(tmp_path)
    assert labels["names"] == ["background", *LABELS]
    assert (layout.data["source"], layout.data["overlap"]) == ("coco", "order")
    assert (layout.data["train_split"], layout.data["val_split"]) == ("train", "val")
    expected = {
        "polygon": boxes((2, 5, 6, 25, 30)),
        "mask": np.where(disc() > 0, 3, 0),
        "order": boxes((2, 5, 6, 25, 30), (3, 0, 0, 20, 20)),
        "tag": boxes(),
        "nothing": boxes(),
        "other": boxes((3, 1, 1, 9, 9)),
    }
    assert masks.keys() == expected.keys()
    for name, pixels in expected.items():
        np.testing.assert_array_equal(masks[name], pixels, name)


def test_an_ellipse_is_that_of_its_box(tmp_path):
    for i in range(2):
        put(
            tmp_path,
            ("train", "val")[i],
            {f"e{i}": [row("disc", "ellipse", points=[20, 10, 40, 30])]},
        )
    _, _, masks = read_back(tmp_path)
    # A polygon differs from a circle in few pixels of its edge.
    assert ((masks["e0"] == 3) != (disc() == 2)).sum() <= 8


def test_an_export_of_cvat_has_one_subset(tmp_path):
    put(tmp_path, "default", {f"p{i}": [polygon("box", i, 2, 30, 20)] for i in range(6)})
    layout, _, masks = read_back(tmp_path)
    assert layout.data["images"] == "images/default"
    assert len(masks) == 6
    np.testing.assert_array_equal(masks["p3"], boxes((2, 3, 2, 30, 20)))


def test_boxes_say_nothing_about_pixels(tmp_path):
    box = row("box", "bbox", bbox=[1, 2, 10, 10])
    put(tmp_path, "default", {f"p{i}": [polygon("box", 1, 2, 30, 20), box] for i in range(6)})
    with pytest.raises(
        UserError, match=r"6 of 12 annotations have no segmentation: .*1 of p0 .bbox"
    ):
        read_back(tmp_path)
    put(tmp_path, "default", {"p0": [box]})
    with pytest.raises(UserError, match=r"default\.json: .* no annotation has a segmentation"):
        recognise(tmp_path)


def test_a_damaged_item_is_named(tmp_path):
    put(tmp_path, "default", {"p0": [{"type": "polygon", "label_id": 1}]})
    with pytest.raises(UserError, match=r"default.json: is in Datumaro's form.*KeyError.'points'"):
        recognise(tmp_path)
