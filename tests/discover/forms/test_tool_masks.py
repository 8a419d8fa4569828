"""Masks that CVAT, Datumaro, SuperAnnotate and segments.ai export, against the scenes they show."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from finetune.data.sources.opening import open_split
from finetune.discover.labels.layout_labels import guess
from finetune.discover.recognise import recognise
from finetune.errors import UserError
from finetune.recipe import recipe_from_values

SIZE = (40, 60)
PAINTED = {"road": (128, 64, 128), "car": (0, 0, 142)}
"""Names and colours of Cityscapes, numbered in CVAT's way: 1 is car."""
NAMES = ("background", "road", "car")


def scene(i):
    """An image, and ids of NAMES."""
    ids = np.zeros(SIZE, np.uint8)
    ids[5 + i : 25, 10:40], ids[15:30, 30 + i : 50] = 1, 2
    photo = np.random.default_rng(i).integers(0, 256, (*SIZE, 3), np.uint8)
    return photo, ids


def save(pixels, file):
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(file)


def colored(ids):
    return np.array([(0, 0, 0), *PAINTED.values()], np.uint8)[ids]


def numbered(ids):
    return np.array([0, 2, 1], np.uint8)[ids]


def cityscapes(root, split, names, images="leftImg8bit"):
    for i, name in enumerate(names):
        photo, ids = scene(i)
        save(photo, root / images / split / f"{name}_leftImg8bit.png")
        start = root / "gtFine" / split / f"{name}_gtFine"
        save(colored(ids), Path(f"{start}_color.png"))
        save(numbered(ids), Path(f"{start}_labelIds.png"))
        save(numbered(ids).astype(np.int32), Path(f"{start}_instanceIds.png"))


def older_cityscapes(root, split, names):
    cityscapes(root, split, names, "imgsFine/leftImg8bit")


def kitti(root, split, names):
    for i, name in enumerate(names):
        photo, ids = scene(i)
        save(photo, root / split / "image_2" / f"{name}.png")
        save(colored(ids), root / split / "semantic_rgb" / f"{name}.png")
        save(numbered(ids), root / split / "semantic" / f"{name}.png")
        objects = (numbered(ids).astype(np.int32) << 8) + 1
        save(objects, root / split / "instance" / f"{name}.png")
    (root / "labels.txt").write_text("road\ncar\n")


def camvid(root, split, names):
    for i, name in enumerate(names):
        photo, ids = scene(i)
        save(photo, root / split / f"{name}.png")
        save(colored(ids), root / f"{split}annot" / f"{name}.png")
    lines = [f"/{split}/{name}.png {split}annot/{name}.png\n" for name in names]
    (root / f"{split}.txt").write_text("".join(lines))


FORMS = [cityscapes, older_cityscapes, kitti, camvid]
COLORS = {"car": PAINTED["car"], "road": PAINTED["road"]}


def write_colors(root, colors):
    lines = [" ".join(map(str, (*color, name))) for name, color in colors.items()]
    (root / "label_colors.txt").write_text("\n".join(lines) + "\n")


def checked(root, numbers):
    """The layout and the lines about labels, after a comparison of every class with its scene."""
    (layout,) = recognise(root)
    found = guess(root, layout)
    recipe = recipe_from_values({"data": layout.data, "labels": found.labels}, root / "r.yaml")
    labels = recipe.labels.build()
    splits = {recipe.data.train_split, recipe.data.val_split}
    samples = {s["id"]: s for split in splits for s in open_split(recipe.data, labels, split)}
    assert samples.keys() == numbers.keys()
    for name, i in numbers.items():
        expected = np.array(NAMES)[scene(i)[1]]
        got = np.array(labels.names)[samples[name]["mask"]]
        np.testing.assert_array_equal(got, expected, name)
        np.testing.assert_array_equal(samples[name]["image"], scene(i)[0])
    return layout, (*layout.assumed, *found.assumed)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("background", [True, False])
def test_one_subset_with_and_without_background_in_the_list(tmp_path, form, background):
    names = [f"p{i}" for i in range(8)]
    form(tmp_path, "default", names)
    write_colors(tmp_path, {"background": (0, 0, 0), **COLORS} if background else COLORS)
    layout, lines = checked(tmp_path, {name: i for i, name in enumerate(names)})
    assert layout.data["val_split"] == "held_back"
    assert any("black" in line and "new class" in line for line in lines) != background


@pytest.mark.parametrize("form", FORMS)
def test_subsets_are_splits(tmp_path, form):
    form(tmp_path, "Train", ["a", "b", "c"])
    form(tmp_path, "Validation", ["d"])
    write_colors(tmp_path, COLORS)
    layout, _ = checked(tmp_path, {"a": 0, "b": 1, "c": 2, "d": 0})
    assert (layout.data["train_split"], layout.data["val_split"]) == ("Train", "Validation")


@pytest.mark.parametrize("with_colors", [True, False])
def test_datumaros_own_list(tmp_path, with_colors):
    camvid(tmp_path, "default", ["a", "b", "c", "d"])
    names = {"0": "background", "1": "car", "2": "road"}
    meta = {"label_map": names, "segmentation_colors": [(0, 0, 0), *COLORS.values()]}
    if not with_colors:
        meta.pop("segmentation_colors")
        for file in (tmp_path / "defaultannot").iterdir():
            save(numbered(scene("abcd".index(file.stem))[1]), file)
    (tmp_path / "dataset_meta.json").write_text(json.dumps(meta))
    checked(tmp_path, {"a": 0, "b": 1, "c": 2, "d": 3})


def test_frames_without_annotation_are_left_out_and_counted(tmp_path):
    kitti(tmp_path, "default", ["a", "b", "c", "d"])
    write_colors(tmp_path, COLORS)
    for kind in ("semantic_rgb", "semantic", "instance"):
        (tmp_path / "default" / kind / "d.png").unlink()
    layout, lines = checked(tmp_path, {"a": 0, "b": 1, "c": 2})
    assert layout.data["without_mask"] == "skip"
    assert any(line.startswith("1 images, such as d, have no mask") for line in lines)


def superannotate(root):
    """Pictures of two file types, masks of classes and of objects with transparency."""
    for i in range(6):
        photo, ids = scene(i)
        name = f"p{i}.{'png' if i % 2 else 'bmp'}"
        save(photo, root / name)
        opaque = np.where(ids > 0, 255, 0).astype(np.uint8)
        save(np.dstack([colored(ids), opaque]), root / f"{name}___fuse.png")
        blue = np.dstack([ids * 0, ids * 0, ids * 16, opaque])
        save(blue, root / f"{name}___save.png")
        (root / f"{name}___pixel.json").write_text(json.dumps({"metadata": {}, "instances": []}))
    rows = [
        {"id": 4991071, "name": "road", "color": "#804080", "count": 0},
        {"id": 4991072, "name": "car", "color": "#00008e", "count": 0},
    ]
    (root / "classes").mkdir()
    (root / "classes" / "classes.json").write_text(json.dumps(rows))


def test_superannotate(tmp_path):
    superannotate(tmp_path)
    layout, _ = checked(tmp_path, {f"p{i}": i for i in range(6)})
    assert layout.data["mask_suffix"] == "___fuse"


def segments(root, kinds, annotations=((1, 1), (2, 2)), folders=("",), release=True):
    writers = {"": numbered, "_semantic": numbered, "_semantic_colored": colored}
    for i in range(6):
        photo, ids = scene(i)
        folder = root / folders[i % len(folders)]
        save(photo, folder / f"p{i}.png")
        for kind in kinds:
            save(writers[kind](ids), folder / f"p{i}_label_ground-truth{kind}.png")
    categories = [
        {"name": name, "id": i, "color": list(color)}
        for i, (name, color) in enumerate(COLORS.items(), 1)
    ]
    rows = [{"id": number, "category_id": category} for number, category in annotations]
    samples = [
        {"name": "p0.png", "labels": {"ground-truth": {"attributes": {"annotations": rows}}}}
    ]
    attributes = {"format_version": "0.1", "categories": categories}
    content = {"dataset": {"task_attributes": attributes, "samples": [*samples, {"labels": {}}]}}
    if release:
        (root / "jane_streets-v0.1.json").write_text(json.dumps(content))


@pytest.mark.parametrize(
    "kinds",
    [["", "_semantic", "_semantic_colored"], ["", "_semantic"], ["", "_semantic_colored"], [""]],
)
def test_segments_ai(tmp_path, kinds):
    segments(tmp_path, kinds)
    checked(tmp_path, {f"p{i}": i for i in range(6)})


def test_segments_ai_with_folders_of_splits(tmp_path):
    segments(tmp_path, ["", "_semantic"], folders=("train", "val"))
    layout, _ = checked(tmp_path, {f"p{i}": i for i in range(6)})
    assert layout.data["images"] == "{split}"


def test_numbers_of_objects_are_no_classes(tmp_path):
    segments(tmp_path, [""], [(1, 1), (2, 2), (3, 1)])
    with pytest.raises(UserError, match=r"v0\.1\.json: .* numbers of objects, .*semantic"):
        recognise(tmp_path)
    (tmp_path / "jane_streets-v0.1.json").unlink()
    (layout,) = recognise(tmp_path)
    assert any("segments.ai numbers objects there" in line for line in layout.assumed)
