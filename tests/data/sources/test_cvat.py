"""CVAT's XML for images: every shape against masks painted by hand, and the splits of exports."""

import numpy as np
import pytest
from PIL import Image

from finetune.data.sources.cvat import cvat
from finetune.data.sources.opening import open_split
from finetune.discover.labels.layout_labels import guess
from finetune.discover.recognise import recognise
from finetune.errors import UserError
from finetune.labels.translation import Labels
from finetune.recipe import recipe_from_values

SIZE = (40, 60)
LABELS = Labels.build(["background", "box", "disc"], background="background", ignore=[])
HEAD = """<?xml version="1.0" encoding="utf-8"?>
<annotations><version>1.1</version><meta><task><id>1</id><name>t</name><mode>annotation</mode>
<labels>
<label><name>box</name><color>#fa3253</color><type>any</type><attributes></attributes></label>
<label><name>disc</name><color>#0080ff</color><type>any</type><attributes></attributes></label>
</labels></task><dumped>2024-01-01</dumped></meta>
"""


def polygon(label, *points, z=0):
    text = ";".join(f"{x:.2f},{y:.2f}" for x, y in points)
    return f'<polygon label="{label}" source="manual" occluded="0" points="{text}" z_order="{z}"/>'


def square(label, left, top, right, bottom, z=0):
    return polygon(label, (left, top), (right, top), (right, bottom), (left, bottom), z=z)


def image(name, shapes="", more="", size=SIZE):
    return (
        f'<image id="0" name="{name}" {more} width="{size[1]}" height="{size[0]}">{shapes}</image>'
    )


def put(root, images, *, xml="annotations.xml", folder="images", files=None):
    for name in files or [part.split('name="')[1].split('"')[0] for part in images]:
        path = root / folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        noise = np.random.default_rng(len(name)).integers(0, 256, (*SIZE, 3), np.uint8)
        Image.fromarray(noise).save(path)
    (root / xml).parent.mkdir(parents=True, exist_ok=True)
    (root / xml).write_text(HEAD + "".join(images) + "</annotations>", encoding="utf-8")


def boxes(*parts):
    mask = np.zeros(SIZE, np.uint8)
    for value, left, top, right, bottom in parts:
        mask[top:bottom, left:right] = value
    return mask


def turned():
    """An ellipse with radii 12 and 4 around (30, 20), turned by 90 degrees: it stands upright."""
    rows, columns = np.mgrid[: SIZE[0], : SIZE[1]] + 0.5
    return np.where(((rows - 20) / 12) ** 2 + ((columns - 30) / 4) ** 2 <= 1, 2, 0)


# The counts go row by row through the box, and begin with pixels outside of the mask.
BRUSH = '<mask label="disc" source="manual" occluded="0" rle="{}" left="8" top="4" width="3" '
BRUSH += 'height="2" z_order="0"/>'
LINES = '<polyline label="box" points="1,1;2,2" z_order="0"/><points label="box" points="3,3"/>'
SHAPES = {
    "polygon": (square("box", 5, 6, 25, 30), boxes((1, 5, 6, 25, 30))),
    "mask": (BRUSH.format("1, 2, 1, 1, 1"), boxes((2, 9, 4, 11, 5), (2, 9, 5, 10, 6))),
    "mask from its first pixel": (BRUSH.format("0,6"), boxes((2, 8, 4, 11, 6))),
    "ellipse": (
        '<ellipse label="disc" cx="30.00" cy="20.00" rx="12.00" ry="4.00" rotation="90.00"/>',
        turned(),
    ),
    "the later one wins": (
        square("box", 5, 6, 25, 30) + square("disc", 0, 0, 60, 20),
        boxes((1, 5, 6, 25, 30), (2, 0, 0, 60, 20)),
    ),
    "the higher one wins": (
        square("box", 5, 6, 25, 30, z=10) + square("disc", 0, 0, 60, 20, z=2),
        boxes((2, 0, 0, 60, 20), (1, 5, 6, 25, 30)),
    ),
    "nothing": ("", boxes()),
}


@pytest.mark.parametrize("name", SHAPES)
def test_every_shape(tmp_path, name):
    shapes, expected = SHAPES[name]
    put(tmp_path, [image("a.png", shapes)])
    (sample,) = cvat(tmp_path, "", LABELS, images="images", annotations="annotations.xml")
    np.testing.assert_array_equal(sample["mask"], expected)
    assert sample["image"].shape == (*SIZE, 3)
    assert sample["id"] == "a"


def read_back(root):
    (layout,) = recognise(root)
    labels = guess(root, layout).labels
    recipe = recipe_from_values({"data": layout.data, "labels": labels}, root / "r.yaml")
    splits = {
        name: {s["id"]: s["mask"] for s in open_split(recipe.data, recipe.labels.build(), name)}
        for name in (recipe.data.train_split, recipe.data.val_split)
    }
    return layout, labels, splits


def test_a_task_as_it_unpacks(tmp_path):
    images = [image(f"p/{i}.png", square("disc", i, 2, 30, 20) + LINES) for i in range(4)]
    put(tmp_path, [*images, image("empty.png")])
    with pytest.warns(UserWarning, match="left out .4 polyline, 4 points"):
        layout, labels, splits = read_back(tmp_path)
    assert labels["names"] == ["box", "disc", "background"]
    assert labels["colors"] == [[250, 50, 83], [0, 128, 255], [0, 0, 0]]
    masks = {**splits["train"], **splits["held_back"]}
    assert sorted(masks) == ["empty", *(f"p/{i}" for i in range(4))]
    for i in range(4):
        expected = np.where(boxes((1, i, 2, 30, 20)) == 1, 1, 2)
        np.testing.assert_array_equal(masks[f"p/{i}"], expected)
    assert any("4 polyline, 4 points" in line for line in layout.assumed)
    assert any("1 images, such as empty.png, have no shapes" in line for line in layout.assumed)


def test_a_project_with_subsets(tmp_path):
    subsets = {"Train": ["a.png", "b.png"], "Validation": ["c.png"]}
    rows = [
        image(name, square("box", 1, 1, 9, 9), f'subset="{subset}" task_id="3"')
        for subset, names in subsets.items()
        for name in names
    ]
    put(tmp_path, rows, files=[f"{subset}/{n}" for subset, names in subsets.items() for n in names])
    layout, _, splits = read_back(tmp_path)
    assert layout.data["images"] == "images/{split}"
    assert {split: sorted(masks) for split, masks in splits.items()} == {
        "Train": ["a", "b"],
        "Validation": ["c"],
    }


def test_subsets_that_are_no_splits_are_named(tmp_path):
    rows = [
        image(f"{own}{i}.png", square("box", i, 1, 9, 9), f'subset="{own}"')
        for own in "ab"
        for i in range(4)
    ]
    put(tmp_path, rows, files=[f"{own}/{own}{i}.png" for own in "ab" for i in range(4)])
    (layout,) = recognise(tmp_path)
    assert layout.data["train_split"] == "a"
    assert "b: not used, since no name says what a split is for" in layout.assumed


def test_a_project_with_one_subset(tmp_path):
    rows = [image(f"{i}.png", square("box", i, 1, 9, 9), 'subset="default"') for i in range(4)]
    put(tmp_path, rows, folder="images/default")
    _, _, splits = read_back(tmp_path)
    masks = {**splits["train"], **splits["held_back"]}
    for i in range(4):
        np.testing.assert_array_equal(masks[f"{i}"], np.where(boxes((1, i, 1, 9, 9)), 0, 2))


def test_an_image_of_two_tasks(tmp_path):
    put(tmp_path, [image("a.png", square("box", 1, 1, 9, 9), 'task_id="3"'), image("a.png")])
    with pytest.raises(UserError, match=r"the image 'a\.png' stands twice"):
        cvat(tmp_path, "", LABELS, images="images", annotations="annotations.xml")


def test_one_export_for_each_split(tmp_path):
    for split in ("train", "val"):
        rows = [image(f"{split}{i}.png", square("box", 1, 1, 9, 9)) for i in range(2)]
        put(tmp_path, rows, xml=f"{split}/annotations.xml", folder=f"{split}/images")
    layout, _, splits = read_back(tmp_path)
    assert (layout.data["annotations"], layout.data["images"]) == (
        "{split}/annotations.xml",
        "{split}/images",
    )
    assert sorted(splits["val"]) == ["val0", "val1"]


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ('<box label="box" xtl="1" ytl="1" xbr="5" ybr="5"/>', "shape 1: is a box .'box'.; a box"),
        (polygon("box", (1, 1), (2, 2)), "its polygon is not 3 or more pairs"),
        (BRUSH.format("1, 2"), "the counts of its rle do not add up to its box"),
        (BRUSH.format("0,6").replace('left="8"', 'left="58"'), "is not inside of the image"),
        (polygon("box", (1, 1), (9, 1), (9, 1e12)), "lies beyond any image"),
        (square(" ", 1, 1, 9, 9), "shape 1: has no label"),
        ('<mask label="box" rle="4"/>', "shape 1: left"),
        (square("cat", 1, 1, 9, 9), "the label 'cat' is none of labels.names"),
    ],
)
def test_mistakes_name_the_file_and_the_shape(tmp_path, shape, message):
    put(tmp_path, [image("a.png", shape), image("b.png", square("box", 1, 1, 9, 9))])
    options = {"images": "images", "annotations": "annotations.xml"}
    with pytest.raises(UserError, match=rf"annotations\.xml: .*{message}"):
        cvat(tmp_path, "", LABELS, **options)
    faults = []
    assert len(cvat(tmp_path, "", LABELS, **options, faults=faults)) == 2
    assert [fault.kind for fault in faults] == ["bad-annotation"]


def test_tracks_name_the_right_export(tmp_path):
    put(tmp_path, ['<track id="0" label="box"><box frame="0"/></track>'], files=["a.png"])
    with pytest.raises(UserError, match=r"tracks of a video.*`CVAT for images 1.1`"):
        recognise(tmp_path)


def test_files_that_are_missing_or_damaged(tmp_path):
    put(tmp_path, [image("a.png"), image("b.png")], files=["a.png"])
    options = {"images": "images", "annotations": "annotations.xml"}
    with pytest.raises(UserError, match=r"1 of 2 images are missing: .*b\.png"):
        cvat(tmp_path, "", LABELS, **options)
    faults = []
    assert len(cvat(tmp_path, "", LABELS, **options, faults=faults)) == 1
    assert [fault.kind for fault in faults] == ["listed-but-missing"]
    (tmp_path / "annotations.xml").write_text("<annotations><image")
    with pytest.raises(UserError, match="cannot be read as CVAT's XML"):
        cvat(tmp_path, "", LABELS, **options)
    (tmp_path / "annotations.xml").write_text("<annotation/>")
    with pytest.raises(UserError, match="is not CVAT's XML"):
        cvat(tmp_path, "", LABELS, **options)
    with pytest.raises(UserError, match="does not exist"):
        cvat(tmp_path, "val", LABELS, images="images", annotations="{split}.xml")
