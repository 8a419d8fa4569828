"""VIA's projects and exports against masks painted by hand."""

import json

import numpy as np
import pytest
from PIL import Image

from finetune.data.sources.via import via
from finetune.discover.recognise import recognise
from finetune.errors import UserError
from finetune.labels.translation import Labels
from tests.data.sources.test_labelme import SIZE, boxes, disc, read_back


def polygon(left, top, right, bottom, **attributes):
    outline = {
        "all_points_x": [left, right, right, left],
        "all_points_y": [top, top, bottom, bottom],
    }
    return region("polygon", outline, **attributes)


def region(kind, values, **attributes):
    return {"shape_attributes": {"name": kind, **values}, "region_attributes": attributes}


def put(root, images, *, folder=".", file="via_region_data.json", project=False, first=False):
    photo = Image.fromarray(np.random.default_rng(0).integers(0, 256, (*SIZE, 3), np.uint8))
    (root / folder).mkdir(parents=True, exist_ok=True)
    entries = {}
    for name, regions in images.items():
        photo.save(root / folder / f"{name}.png")
        rows = {str(i): own for i, own in enumerate(regions)} if first else regions
        entry = {"filename": f"{name}.png", "size": 99, "regions": rows, "file_attributes": {}}
        entries[f"{name}.png99"] = entry
    content = {"_via_settings": {}, "_via_img_metadata": entries, "_via_attributes": {}}
    (root / folder / file).write_text(json.dumps(content if project else entries))


CIRCLE = {"cx": 30, "cy": 20, "r": 10}
SCENES = {
    "polygon": ([polygon(5, 6, 25, 30, type="box")], boxes((1, 5, 6, 25, 30))),
    "rect": (
        [region("rect", {"x": 5, "y": 6, "width": 20, "height": 24}, type="box")],
        boxes((1, 5, 6, 25, 30)),
    ),
    "two": (
        [polygon(5, 6, 25, 30, type="box"), polygon(8, 8, 12, 12, type="disc")],
        boxes((1, 5, 6, 25, 30), (2, 8, 8, 12, 12)),
    ),
    "none": ([], boxes()),
}


@pytest.mark.parametrize("form", ["export", "project", "version 1"])
def test_regions_of_a_set_with_splits(tmp_path, form):
    options = {"project": form == "project", "first": form == "version 1"}
    put(tmp_path, {name: own for name, (own, _) in SCENES.items()}, folder="train", **options)
    put(tmp_path, {"other": SCENES["rect"][0]}, folder="val", **options)
    layout, labels, masks = read_back(tmp_path)
    assert (layout.data["source"], layout.data["attribute"]) == ("via", "type")
    assert (layout.data["train_split"], layout.data["val_split"]) == ("train", "val")
    assert labels["names"] == ["box", "disc", "background"]
    assert masks.keys() == SCENES.keys() | {"other"}
    for name, pixels in masks.items():
        painted = SCENES[name.replace("other", "rect")][1]
        np.testing.assert_array_equal(pixels, np.array([2, 0, 1])[painted], name)
    assert any("1 images, such as none.png, have no regions" in line for line in layout.assumed)


def test_circles_and_turned_ellipses(tmp_path):
    turned = {"cx": 30, "cy": 20, "rx": 20, "ry": 4, "theta": np.pi / 4}
    put(tmp_path, {"circle": [region("circle", CIRCLE, type="a")]})
    put(tmp_path, {"e": [region("ellipse", turned, type="b")]}, file="x.json", folder="val")
    (tmp_path / "val" / "x.json").rename(tmp_path / "val" / "via_region_data.json")
    (tmp_path / "train").mkdir()
    for name in ("circle.png", "via_region_data.json"):
        (tmp_path / name).rename(tmp_path / "train" / name)
    _, labels, masks = read_back(tmp_path)
    assert labels["names"] == ["a", "b", "background"]
    assert ((masks["circle"] == 0) != (disc() == 2)).sum() <= 8
    y, x = np.mgrid[: SIZE[0], : SIZE[1]] + 0.5
    along, across = (x - 30 + y - 20) / 2**0.5, (y - 20 - x + 30) / 2**0.5  # down to the right
    inside = (along / 20) ** 2 + (across / 4) ** 2 <= 1
    assert ((masks["e"] == 1) != inside).sum() <= 12


def test_several_attributes_that_may_be_the_class_are_a_question(tmp_path):
    regions = [polygon(5, 6, 25, 30, role="box", state="new", note="")]
    put(tmp_path, {f"p{i}": regions for i in range(3)})
    put(tmp_path, {"q": [polygon(5, 6, 25, 30, role="disc", state="old")]}, file="more.json")
    layouts = recognise(tmp_path)
    kinds = {layout.data["annotations"]: set() for layout in layouts}
    for layout in layouts:
        kinds[layout.data["annotations"]].add(layout.data["attribute"])
    assert kinds == {key: {"role", "state"} for key in ("more.json", "via_region_data.json")}


def test_numbers_of_regions_are_not_the_classes_where_one_class_is_missing(tmp_path):
    regions = [polygon(i, 6, 25, 30, id=str(i), type="box") for i in range(5)]
    del regions[3]["region_attributes"]["type"]
    put(tmp_path, {"a": regions})
    with pytest.raises(UserError, match="Give each region its class"):
        recognise(tmp_path)


def test_without_attributes_there_is_one_class(tmp_path):
    put(tmp_path, {f"p{i}": [polygon(i, 6, 25, 30)] for i in range(6)}, project=True)
    layout, labels, masks = read_back(tmp_path)
    assert labels["names"] == ["object", "background"]
    assert any("rename it" in line for line in layout.assumed)
    np.testing.assert_array_equal(masks["p4"], np.where(boxes((1, 4, 6, 25, 30)) == 1, 0, 1))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (region("polyline", {"all_points_x": [1], "all_points_y": [2]}, type="a"), "a polyline"),
        (region("point", {"cx": 1, "cy": 2}, type="a"), "is a point .'a'., which covers no pixels"),
        (region("rect", {"x": 1}, type="a"), "cannot be read .KeyError.'y'"),
        (polygon(1, 2, 3, 4), "no attribute has a value in every region"),
    ],
)
def test_mistakes_name_the_file_and_the_region(tmp_path, wrong, message):
    put(tmp_path, {"p0": [polygon(5, 6, 25, 30, type="a"), wrong]})
    with pytest.raises(UserError, match=rf"via_region_data.json.*{message}"):
        recognise(tmp_path)


def test_a_region_of_no_class_is_named(tmp_path):
    put(tmp_path, {"p0": [polygon(5, 6, 25, 30, type="cat")]})
    labels = Labels.build(["background", "box"], background="background", ignore=[])
    options = {"images": ".", "annotations": "via_region_data.json"}
    with pytest.raises(UserError, match=r"region 1 of p0\.png has 'cat' as type, none of labels"):
        via(tmp_path, "", labels, attribute="type", **options)
    with pytest.raises(UserError, match=r"region 1 of p0\.png has no state"):
        via(tmp_path, "", labels, attribute="state", **options)
    (tmp_path / "via_region_data.json").write_text("[]")
    with pytest.raises(UserError, match=r"via_region_data\.json: is not a project or an export"):
        via(tmp_path, "", labels, **options)
