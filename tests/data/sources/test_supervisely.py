"""Supervisely's projects: every shape against masks painted by hand, or as its SDK paints them."""

import base64
import io
import json
import zlib

import numpy as np
import pytest
from PIL import Image

from finetune.data.sources.supervisely import supervisely
from finetune.discover.recognise import recognise
from finetune.errors import UserError
from finetune.labels.translation import Labels
from tests.data.sources.test_labelme import SIZE, boxes, read_back

LABELS = Labels.build(["background", "box", "disc"], background="background", ignore=[])
META = [
    {"title": "box", "shape": "polygon", "color": "#FF0000"},
    {"title": "nose", "shape": "point", "color": "#00FF00"},
    {"title": "disc", "shape": "bitmap", "color": "#0000FF"},
]


def figure(title, kind, exterior=(), interior=(), **more):
    points = {"exterior": [*exterior], "interior": [*interior]}
    return {"classTitle": title, "geometryType": kind, "points": points, "tags": [], **more}


def packed(part, *, grey=False):
    """The text of a bitmap: zlib over a PNG whose palette has a transparent first colour."""
    image = Image.fromarray(part.astype(np.uint8))
    file = io.BytesIO()
    if grey:
        image.save(file, "PNG")
    else:
        image.putpalette([0, 0, 0, 255, 255, 255])
        image.save(file, "PNG", transparency=0)
    return base64.b64encode(zlib.compress(file.getvalue())).decode()


def bitmap(title, part, x, y, kind="bitmap"):
    data = packed(part, grey=kind == "alpha_mask")
    return {"classTitle": title, "geometryType": kind, "bitmap": {"data": data, "origin": [x, y]}}


def put(root, name, objects, *, folder="ds0", suffix=".jpg", annotated=True):
    photo = np.random.default_rng(0).integers(0, 256, (*SIZE, 3), np.uint8)
    for part in ("img", "ann"):
        (root / folder / part).mkdir(parents=True, exist_ok=True)
    Image.fromarray(photo).save(root / folder / "img" / (name + suffix))
    size = {"height": SIZE[0], "width": SIZE[1]}
    if annotated:
        content = {"description": "", "tags": [], "size": size, "objects": objects}
        (root / folder / "ann" / f"{name}{suffix}.json").write_text(json.dumps(content))
    (root / "meta.json").write_text(json.dumps({"classes": META, "tags": []}))


def ellipse(height, width):
    y, x = np.mgrid[:height, :width]
    half = (height - 1) / 2, (width - 1) / 2
    return ((y - half[0]) / half[0]) ** 2 + ((x - half[1]) / half[1]) ** 2 <= 1


def pasted(value, part, x, y):
    mask = boxes()
    mask[y : y + part.shape[0], x : x + part.shape[1]][part] = value
    return mask


ANGLE = [[5, 4], [50, 4], [50, 20], [30, 20], [30, 35], [5, 35]]
HOLE = [[10, 8], [20, 8], [20, 16], [10, 16]]
LEVELS = np.where(ellipse(13, 15), 255, 40)
SHAPES = {
    "bitmap": ([bitmap("disc", ellipse(13, 15), 7, 9)], pasted(2, ellipse(13, 15), 7, 9)),
    "bitmap over the edge": (
        [bitmap("disc", ellipse(13, 15), 52, 33)],
        pasted(2, ellipse(13, 15)[:7, :8], 52, 33),
    ),
    "alpha mask": ([bitmap("disc", LEVELS, 7, 9, "alpha_mask")], pasted(2, LEVELS == 255, 7, 9)),
    # The points of an outline belong to what is inside of it.
    "polygon": (
        [figure("box", "polygon", ANGLE)],
        boxes((1, 5, 4, 51, 21), (1, 5, 4, 31, 36)),
    ),
    "fractions, as the labelling tool has them": (
        [figure("box", "rectangle", [[5.9, 6.5], [25.5, 30.9]])],
        boxes((1, 5, 6, 26, 31)),
    ),
    "hole": (
        [figure("box", "polygon", ANGLE, [HOLE])],
        boxes((1, 5, 4, 51, 21), (1, 5, 4, 31, 36), (0, 10, 8, 21, 17)),
    ),
    "rectangle": (
        [figure("box", "rectangle", [[25, 30], [5, 6]])],
        boxes((1, 5, 6, 26, 31)),  # its corners belong to it
    ),
    "the later one wins": (
        [bitmap("disc", np.ones((9, 9)), 0, 0), figure("box", "rectangle", [[4, 4], [20, 20]])],
        boxes((2, 0, 0, 9, 9), (1, 4, 4, 21, 21)),
    ),
    "without geometryType": (
        [{**bitmap("disc", np.ones((9, 9)), 3, 2), "geometryType": None}],
        boxes((2, 3, 2, 12, 11)),
    ),
    "nothing": ([], boxes()),
}


@pytest.mark.parametrize("name", SHAPES)
def test_every_shape(tmp_path, name):
    objects, expected = SHAPES[name]
    put(tmp_path, "a", objects)
    (sample,) = supervisely(tmp_path, "ds0", LABELS)
    np.testing.assert_array_equal(sample["mask"], expected)
    assert sample["image"].shape == (*SIZE, 3)
    assert sample["id"] == "a"


def test_a_slanting_polygon_has_the_pixels_with_a_middle_inside(tmp_path):
    corners = np.array([[5, 4], [50, 7], [54, 35], [9, 30]])
    put(tmp_path, "a", [figure("box", "polygon", corners.tolist())])
    (sample,) = supervisely(tmp_path, "ds0", LABELS)
    y, x = np.mgrid[: SIZE[0], : SIZE[1]]
    edges = np.roll(corners, -1, axis=0) - corners
    depth = np.min(
        [
            (dx * (y - top) - dy * (x - left)) / np.hypot(dx, dy)
            for (left, top), (dx, dy) in zip(corners, edges, strict=True)
        ],
        axis=0,
    )
    assert (sample["mask"][depth >= 0] == 1).all()
    assert (sample["mask"][depth < -1] == 0).all()


def test_a_project_of_several_data_sets_is_read_whole(tmp_path):
    for i in range(6):
        put(tmp_path, f"p{i}", [bitmap("disc", np.ones((9, 9)), i, 3)], folder=f"ds{i % 2}")
    put(tmp_path, "p0", [figure("box", "rectangle", [[4, 4], [20, 20]])], folder="ds1")
    put(tmp_path, "not_yet", [], folder="ds1", annotated=False, suffix=".png")
    layout, labels, masks = read_back(tmp_path)
    assert layout.data["source"] == "supervisely"
    assert labels["names"] == ["box", "disc", "background"]
    assert sorted(masks) == ["ds0/p0", "ds0/p2", "ds0/p4", "ds1/p0", "ds1/p1", "ds1/p3", "ds1/p5"]
    for i in range(6):
        expected = np.where(boxes((1, i, 3, i + 9, 12)) == 1, 1, 2)
        np.testing.assert_array_equal(masks[f"ds{i % 2}/p{i}"], expected)
    expected = np.where(boxes((1, 4, 4, 21, 21)) == 1, 0, 2)
    np.testing.assert_array_equal(masks["ds1/p0"], expected)
    assert any("not_yet" in line and "left out" in line for line in layout.assumed)


def test_data_sets_named_as_splits_are_splits(tmp_path):
    for split in ("train", "val"):
        for i in range(3):
            put(tmp_path, f"{split}{i}", [bitmap("disc", np.ones((9, 9)), i, 3)], folder=split)
    layout, _, masks = read_back(tmp_path)
    assert (layout.data["images"], layout.data["train_split"]) == ("{split}", "train")
    assert layout.data["val_split"] == "val"
    assert sorted(masks) == ["train0", "train1", "train2", "val0", "val1", "val2"]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (figure("nose", "point", [[3, 4]]), "shape 1: is a point .'nose'., which covers no pixels"),
        (figure("box", "line", [[3, 4], [9, 9]]), "shape 1: is a line"),
        (figure("box", "polygon", [[3, 4], [9, 9]]), "shape 1: a polygon needs 3 or more points"),
        (figure("box", "polygon", ANGLE, [[[1, 2]]]), "shape 1: a hole needs 3 or more points"),
        ({**bitmap("disc", np.ones((2, 2)), 0, 0), "bitmap": {}}, "not in Supervisely's form"),
        ({"geometryType": "polygon"}, "not in Supervisely's form .KeyError.'classTitle'"),
        (figure("cat", "polygon", ANGLE), "shape 1: the label 'cat' is none of labels.names"),
    ],
)
def test_mistakes_name_the_file_and_the_shape(tmp_path, wrong, message):
    put(tmp_path, "a", [wrong])
    with pytest.raises(UserError, match=rf"a\.jpg\.json.*{message}"):
        supervisely(tmp_path, "ds0", LABELS)[0]


def test_a_line_in_a_project_stops_init(tmp_path):
    put(tmp_path, "a", [figure("box", "line", [[3, 4], [9, 9]])])
    with pytest.raises(UserError, match=r"a\.jpg\.json, shape 1: is a line .'box'."):
        recognise(tmp_path)


def test_files_without_a_partner(tmp_path):
    put(tmp_path, "a", [])
    put(tmp_path, "b", [], annotated=False)
    with pytest.raises(UserError, match=r"1 images have no JSON file: .*b\.jpg"):
        supervisely(tmp_path, "ds0", LABELS)
    faults = []
    assert len(supervisely(tmp_path, "ds0", LABELS, faults=faults)) == 1
    assert [fault.kind for fault in faults] == ["image-without-mask"]
    assert len(supervisely(tmp_path, "ds0", LABELS, without_mask="skip")) == 1
    with pytest.raises(UserError, match="no folders img and ann"):
        supervisely(tmp_path / "ds0", "img", LABELS)
