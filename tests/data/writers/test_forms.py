"""Every form of annotations, written from masks and read back by what `init` says of the files."""

import json
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from finetune.data.annotations.brush_rle import decode
from finetune.data.sources.opening import open_split
from finetune.data.writers.classes import Classes
from finetune.data.writers.forms import FORMS
from finetune.disk import write_lines
from finetune.programs.init import draft

NAMES = ("background", "Straße & <Weg>", "木", "car")
COLORS = ((0, 0, 0), (250, 0, 10), (0, 128, 255), (1, 2, 3))
CLASSES = Classes(NAMES, COLORS)
SIZES = ((1, 1), (1, 37), (33, 1), (41, 57), (64, 50), (75, 33))


def blobs(size, seed, count=4):
    """Regions that touch, with holes, islands in holes and single pixels."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, count, (size[0] // 5 + 1, size[1] // 5 + 1))
    mask = np.kron(coarse, np.ones((5, 5), int))[: size[0], : size[1]]
    noise = rng.random(size) < 0.08
    return np.where(noise, rng.integers(0, count, size), mask).astype(np.uint8)


def written(root, form, masks, classes=CLASSES):
    """Photos in `images/` and the form's files, as a person puts them together."""
    described = []
    for name, mask in masks.items():
        image = root / "images" / f"{name}.png"
        image.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", mask.shape[::-1], (9, 99, 9)).save(image)
        one = FORMS[form].of_picture(mask, f"{name}.png", classes)
        described.append(json.loads(json.dumps(one)))  # a journal keeps it so
        if FORMS[form].file is not None:
            image.with_suffix(".json").write_text(FORMS[form].file(one), encoding="utf-8")
    for name, lines in FORMS[form].tables.items():
        write_lines(root / name, lines(iter(described), classes))
    return described


def read_back(root):
    """Sample -> the names of its pixels, through the recipe of `init`."""
    recipe = draft(root, root / "recipe.yaml", lambda layouts: layouts[0]).recipe
    labels = recipe.labels.build()
    splits = [recipe.data.train_split, recipe.data.val_split]
    samples = [sample for name in splits for sample in open_split(recipe.data, labels, name)]
    names = np.array([*labels.names])
    return recipe, {sample["id"]: names[sample["mask"]] for sample in samples}


@pytest.mark.parametrize("form", sorted(FORMS))
def test_what_is_written_is_read_as_the_same_masks(tmp_path, form):
    masks = {f"bild {i} é木": blobs(size, seed=i) for i, size in enumerate(SIZES)}
    masks["nothing"] = np.zeros((40, 30), np.uint8)
    written(tmp_path, form, masks)
    recipe, found = read_back(tmp_path)
    assert set(NAMES) <= {*recipe.labels.names}
    assert {name.split("/")[-1] for name in found} == set(masks)
    for name, named in found.items():
        np.testing.assert_array_equal(named, np.array(NAMES)[masks[name.split("/")[-1]]])


@pytest.mark.parametrize("form", sorted(FORMS))
def test_without_a_background_every_class_is_written(tmp_path, form):
    classes = Classes(("sky", "road"), ((1, 1, 1), (2, 2, 2)))
    masks = {f"{i}": blobs((30, 31), i, 2) for i in range(3)}
    written(tmp_path, form, masks, classes)
    _, found = read_back(tmp_path)
    for name, named in found.items():
        np.testing.assert_array_equal(named, np.array(classes.names)[masks[name]])


@pytest.mark.parametrize("form", sorted(set(FORMS) - {"coco"}))
def test_background_and_ignored_pixels_are_no_objects(tmp_path, form):
    mask = np.zeros((9, 9), np.uint8)
    mask[3:5, 2:4] = 255
    assert CLASSES.objects_in(mask) == []
    of_nothing = FORMS[form].of_picture(mask, "a.png", CLASSES)
    mask[0, 0] = 2
    with_one = FORMS[form].of_picture(mask, "a.png", CLASSES)
    assert (objects_of(of_nothing), objects_of(with_one)) == (0, 1)


def objects_of(described):
    (content,) = described.get("predictions", [described])
    (objects,) = (value for value in content.values() if isinstance(value, list))
    return len(objects)


def test_the_fields_of_coco_polygons(tmp_path):
    mask = np.zeros((20, 30), np.uint8)
    mask[2:12, 4:20] = 3
    mask[5:8, 6:9] = 0  # a hole
    mask[15:17, 1:3] = 3
    written(tmp_path, "coco-polygons", {"a": mask})
    content = json.loads((tmp_path / "coco-polygons.json").read_text())
    assert content["images"] == [{"id": 1, "file_name": "a.png", "height": 20, "width": 30}]
    assert content["categories"] == [{"id": i + 1, "name": name} for i, name in enumerate(NAMES)]
    found = {tuple(one["bbox"]): one for one in content["annotations"]}
    assert {box: one["area"] for box, one in found.items()} == {
        (4, 2, 16, 10): 10 * 16 - 9,
        (1, 15, 2, 2): 4,
    }
    assert sorted(one["id"] for one in content["annotations"]) == [1, 2]
    for one in content["annotations"]:
        assert (one["image_id"], one["category_id"], one["iscrowd"]) == (1, 4, 0)
        assert len(one["segmentation"]) == 1
    small = np.reshape(found[1, 15, 2, 2]["segmentation"][0], (-1, 2)).tolist()
    assert sorted(small) == [[1, 15], [1, 17], [3, 15], [3, 17]]


def test_the_fields_of_labelme(tmp_path):
    mask = np.zeros((20, 30), np.uint8)
    mask[15:17, 1:3] = 2
    written(tmp_path, "labelme", {"a": mask})
    content = json.loads((tmp_path / "images/a.json").read_text(encoding="utf-8"))
    assert (content["imagePath"], content["imageHeight"], content["imageWidth"]) == (
        "a.png",
        20,
        30,
    )
    assert content["imageData"] is None
    assert content["version"].startswith("5.")
    (shape,) = content["shapes"]
    assert (shape["label"], shape["shape_type"], shape["group_id"]) == ("木", "polygon", None)
    assert sorted(shape["points"]) == [[1, 15], [1, 17], [3, 15], [3, 17]]


def test_the_fields_of_cvat(tmp_path):
    mask = np.zeros((20, 30), np.uint8)
    mask[15:17, 1:4] = 1
    mask[15, 2] = 0
    written(tmp_path, "cvat", {'a "b" & c': mask})
    root = ElementTree.parse(tmp_path / "cvat.xml").getroot()
    assert (root.tag, root.findtext("version")) == ("annotations", "1.1")
    labels = root.findall("meta/task/labels/label")
    assert [label.findtext("name") for label in labels] == list(NAMES)
    assert labels[2].findtext("color") == "#0080ff"
    (image,) = root.findall("image")
    assert image.attrib == {"id": "0", "name": 'a "b" & c.png', "width": "30", "height": "20"}
    (drawn,) = image.findall("mask")
    assert drawn.attrib == {
        "label": NAMES[1],
        "source": "auto",
        "occluded": "0",
        "rle": "0, 1, 1, 4",  # 1 0 1 / 1 1 1, row by row
        "left": "1",
        "top": "15",
        "width": "3",
        "height": "2",
        "z_order": "0",
    }


def test_the_fields_of_label_studio(tmp_path):
    mask = np.zeros((20, 30), np.uint8)
    mask[15:17, 1:4] = 1
    mask[0, 0] = 2
    written(tmp_path, "label-studio", {"a b": mask, "none": mask * 0})
    task, empty = json.loads((tmp_path / "label-studio.json").read_text())
    assert task["data"] == {"image": "/data/local-files/?d=a%20b.png"}
    (prediction,) = task["predictions"]
    assert empty["predictions"] == [{**prediction, "result": []}]
    config = ElementTree.parse(tmp_path / "label_config.xml").getroot()
    (picture,), (brush,) = config.findall("Image"), config.findall("BrushLabels")
    assert picture.get("value") == "$image"
    assert brush.get("toName") == picture.get("name")
    colors = {label.get("value"): label.get("background") for label in brush}
    assert list(colors) == list(NAMES)
    assert colors["木"] == "#0080ff"
    for region, number in zip(prediction["result"], (1, 2), strict=True):
        value = region.pop("value")
        assert region.pop("id")
        assert region == {
            "type": "brushlabels",
            "from_name": brush.get("name"),
            "to_name": picture.get("name"),
            "original_width": 30,
            "original_height": 20,
            "image_rotation": 0,
        }
        assert (value["format"], value["brushlabels"]) == ("rle", [NAMES[number]])
        np.testing.assert_array_equal(decode(value["rle"], mask.shape), mask == number)


def test_class_names_cannot_break_the_labeling_config():
    classes = Classes(("a\x07<&b", "c"), ((1, 2, 3), (4, 5, 6)))
    text = "".join(FORMS["label-studio"].tables["label_config.xml"]([], classes))
    found = [label.get("value") for label in ElementTree.fromstring(text).iter("Label")]
    assert found == ["a\ufffd<&b", "c"]
