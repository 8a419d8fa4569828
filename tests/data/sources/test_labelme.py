"""labelme's JSON files, and X-AnyLabeling's: every shape against masks painted by hand."""

import base64
import io
import json

import numpy as np
import pytest
from PIL import Image

from finetune.data.samples import upright_sizes
from finetune.data.sources.labelme import labelme
from finetune.data.sources.opening import open_split
from finetune.discover.labels.layout_labels import guess
from finetune.discover.recognise import recognise
from finetune.errors import UserError
from finetune.labels.translation import Labels
from finetune.recipe import recipe_from_values

SIZE = (40, 60)
LABELS = Labels.build(["background", "box", "disc"], background="background", ignore=[])


def shape(label, points, kind="polygon", **more):
    return {"label": label, "points": points, "shape_type": kind, "flags": {}, **more}


def put(root, name, shapes, *, folder=".", image=True, inside=False, **more):
    photo = Image.fromarray(np.random.default_rng(0).integers(0, 256, (*SIZE, 3), np.uint8))
    file = io.BytesIO()
    photo.save(file, "PNG")
    (root / folder).mkdir(parents=True, exist_ok=True)
    if image:
        (root / folder / f"{name}.png").write_bytes(file.getvalue())
    content = {
        "version": "5.4.1",
        "shapes": shapes,
        "imagePath": f"C:\\work\\{name}.png",
        "imageData": base64.b64encode(file.getvalue()).decode() if inside else None,
        "imageHeight": SIZE[0],
        "imageWidth": SIZE[1],
        **more,
    }
    (root / folder / f"{name}.json").write_text(json.dumps(content))


def square(left, top, right, bottom):
    return [[left, top], [right, top], [right, bottom], [left, bottom]]


def boxes(*parts):
    mask = np.zeros(SIZE, np.uint8)
    for value, left, top, right, bottom in parts:
        mask[top:bottom, left:right] = value
    return mask


def disc():
    rows, columns = np.mgrid[: SIZE[0], : SIZE[1]] + 0.5
    return np.where((rows - 20) ** 2 + (columns - 30) ** 2 <= 100, 2, 0).astype(np.uint8)


def png(part):
    file = io.BytesIO()
    Image.fromarray(part).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


SHAPES = {
    "polygon": ([shape("box", square(5, 6, 25, 30))], boxes((1, 5, 6, 25, 30))),
    "rectangle": ([shape("box", [[25, 30], [5, 6]], "rectangle")], boxes((1, 5, 6, 25, 30))),
    "X-AnyLabeling": (
        [
            shape("box", square(5, 6, 25, 30), "rectangle"),
            shape("disc", square(40, 2, 50, 9), "rotation"),
        ],
        boxes((1, 5, 6, 25, 30), (2, 40, 2, 50, 9)),
    ),
    "circle": ([shape("disc", [[30, 20], [30, 30]], "circle")], disc()),
    "mask": (
        [shape("disc", [[8, 4], [19, 13]], "mask", mask=png(np.ones((10, 12), bool)))],
        boxes((2, 8, 4, 20, 14)),
    ),
    "mask of colours": (
        [shape("disc", [[8, 4], [19, 13]], "mask", mask=png(np.full((10, 12, 3), 255, np.uint8)))],
        boxes((2, 8, 4, 20, 14)),
    ),
    "the later one wins": (
        [shape("box", square(5, 6, 25, 30)), shape("disc", square(0, 0, 60, 20))],
        boxes((1, 5, 6, 25, 30), (2, 0, 0, 60, 20)),
    ),
    "what does not count": (
        [shape("box", square(5, 6, 25, 30)), shape("__ignore__", square(10, 0, 20, 40))],
        boxes((1, 5, 6, 25, 30), (255, 10, 0, 20, 40)),
    ),
    "nothing": ([], boxes()),
}


@pytest.mark.parametrize("name", SHAPES)
def test_every_shape(tmp_path, name):
    shapes, expected = SHAPES[name]
    put(tmp_path, "a", shapes)
    (sample,) = labelme(tmp_path, "", LABELS, images=".", masks=".", overlap="order")
    np.testing.assert_array_equal(sample["mask"], expected)
    assert sample["image"].shape == (*SIZE, 3)


def read_back(root):
    (layout,) = recognise(root)
    labels = guess(root, layout).labels
    recipe = recipe_from_values({"data": layout.data, "labels": labels}, root / "r.yaml")
    splits = [
        open_split(recipe.data, recipe.labels.build(), name)
        for name in (recipe.data.train_split, recipe.data.val_split)
    ]
    return layout, labels, {s["id"]: s["mask"] for split in splits for s in split}


def test_a_folder_as_labelme_leaves_it(tmp_path):
    for i in range(6):
        put(tmp_path, f"p{i}", [shape("disc", square(i, 2, 30, 20))], inside=i == 5, image=i != 5)
    Image.new("RGB", SIZE[::-1]).save(tmp_path / "not_yet.png")
    layout, labels, masks = read_back(tmp_path)
    assert layout.data["source"] == "labelme"
    assert labels["names"] == ["disc", "background"]
    assert sorted(masks) == [f"p{i}" for i in range(6)]
    for i in range(6):
        expected = np.where(boxes((1, i, 2, 30, 20)) == 1, 0, 1)
        np.testing.assert_array_equal(masks[f"p{i}"], expected)
    assert any("not_yet" in line and "left out" in line for line in layout.assumed)


def test_images_in_a_folder_below_the_json_files(tmp_path):
    for i in range(3):
        put(tmp_path, f"p{i}", [shape("box", square(i, 2, 9, 9))], image=False)
        (tmp_path / "pictures").mkdir(exist_ok=True)
        Image.new("RGB", SIZE[::-1]).save(tmp_path / "pictures" / f"p{i}.png")
    layout, _, masks = read_back(tmp_path)
    assert (layout.data["images"], layout.data["masks"]) == ("pictures", ".")
    np.testing.assert_array_equal(masks["p1"], 1 - boxes((1, 1, 2, 9, 9)))


def test_of_two_names_of_the_background_the_plain_one_counts(tmp_path):
    for i in range(2):
        put(tmp_path, f"p{i}", [shape("Background", square(i, 2, 9, 9))])
    put(tmp_path, "p2", [shape("background", square(1, 2, 9, 9))])
    _, labels, masks = read_back(tmp_path)
    assert labels["names"] == ["Background", "background"]
    np.testing.assert_array_equal(masks["p1"], 1 - boxes((1, 1, 2, 9, 9)))


def test_folders_of_splits_and_a_list_of_classes(tmp_path):
    for split in ("train", "val"):
        for i in range(3):
            put(tmp_path, f"{split}{i}", [shape("box", square(i, 2, 9, 9))], folder=split)
    (tmp_path / "labels.txt").write_text("__ignore__\n_background_\nbox\ndisc\n")
    layout, labels, masks = read_back(tmp_path)
    assert (layout.data["images"], layout.data["train_split"]) == ("{split}", "train")
    assert labels["names"] == ["_background_", "box", "disc"]
    assert len(masks) == 6
    np.testing.assert_array_equal(masks["val1"], boxes((1, 1, 2, 9, 9)))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (shape("box", [[1, 1], [9, 9], [3, 4]], "linestrip"), "shape 1: is a linestrip .'box'."),
        (shape("box", [[1, 1]], "point"), "shape 1: is a point"),
        (shape("box", [[1, 1], [2, 2]]), "a polygon needs 3 or more points"),
        (shape("box", [[1, 1], [2, None], [3, 3]]), "a polygon needs 3 or more points"),
        (shape("box", square(1, 1, 2, 1e12)), "a polygon needs 3 .* none of them beyond any image"),
        (shape(None, square(1, 1, 2, 2)), "shape 1: has no label"),
        (shape(" ", square(1, 1, 2, 2)), "shape 1: has no label"),
        (shape("cat", square(1, 1, 2, 2)), "the label 'cat' is none of labels.names"),
        (shape("box", [[1, 1], [2, 2]], "mask", mask="?"), "its mask cannot be read"),
    ],
)
def test_mistakes_name_the_file_and_the_shape(tmp_path, wrong, message):
    put(tmp_path, "a", [wrong])
    with pytest.raises(UserError, match=rf"a\.json, {message}|a\.json, shape 1: {message}"):
        labelme(tmp_path, "", LABELS, images=".", masks=".")[0]


def test_files_without_a_partner(tmp_path):
    put(tmp_path, "a", [])
    put(tmp_path, "b", [], image=False)
    options = {"images": ".", "masks": "."}
    with pytest.raises(UserError, match=r"1 JSON files have no image: .*b\.json"):
        labelme(tmp_path, "", LABELS, **options)
    faults = []
    assert len(labelme(tmp_path, "", LABELS, **options, faults=faults)) == 1
    assert [fault.kind for fault in faults] == ["mask-without-image"]
    (tmp_path / "b.json").unlink()
    Image.new("RGB", (9, 9)).save(tmp_path / "c.png")
    with pytest.raises(UserError, match=r"1 images have no JSON file: .*c\.png"):
        labelme(tmp_path, "", LABELS, **options)
    assert len(labelme(tmp_path, "", LABELS, **options, without_mask="skip")) == 1


@pytest.mark.parametrize("height", [41, 41.0])
def test_another_size_than_the_image(tmp_path, height):
    put(tmp_path, "a", [], imageHeight=height)
    data = labelme(tmp_path, "", LABELS, images=".", masks=".")
    with pytest.raises(UserError, match=r"60 x 41 pixels .* 60 x 40"):
        upright_sizes(data)


def test_a_file_that_names_the_image_of_another_is_a_mistake(tmp_path):
    for name, other in (("a", "b"), ("b", "a")):
        put(tmp_path, name, [shape("box", square(3, 4, 20, 30))], imagePath=f"..\\{other}.png")
    with pytest.raises(UserError, match=r"a\.json: its imagePath is b\.png, which is there"):
        labelme(tmp_path, "train", LABELS, images=".", masks=".")
    for name in ("a", "b"):  # renamed together with its image
        put(tmp_path, name, [shape("box", square(3, 4, 20, 30))], imagePath="IMG_1.png")
    assert len(labelme(tmp_path, "train", LABELS, images=".", masks=".")) == 2


def test_lists_beside_the_shapes_decide_the_splits(tmp_path):
    for number in range(6):
        put(tmp_path, f"p{number}", [shape("box", square(3, 4, 20 + number, 30))])
    (tmp_path / "train.txt").write_text("p0\np1\n.\\p3.png\np5\n")
    (tmp_path / "val.txt").write_text("p2.png\np4.png\n")
    (layout,) = recognise(tmp_path)
    assert layout.data["split_list"] == "{split}.txt"
    labels = guess(tmp_path, layout).labels
    recipe = recipe_from_values({"data": layout.data, "labels": labels}, tmp_path / "r.yaml")
    ids = [open_split(recipe.data, recipe.labels.build(), s)["id"] for s in ("train", "val")]
    assert [sorted(own) for own in ids] == [["p0", "p1", "p3", "p5"], ["p2", "p4"]]
