"""Folders as people have them: what is taken for a set, what is a question, what is refused."""

import json
import shutil
from pathlib import Path

import datasets
import numpy as np
import pytest
import yaml
from PIL import Image

from finetune.data.annotations import coco as coco_json
from finetune.discover.labels.layout_labels import guess
from finetune.discover.layouts.layout import split_in
from finetune.discover.recognise import recognise
from finetune.errors import UserError
from finetune.labels.translation import Labels

RNG = np.random.default_rng(0)
PHOTO = RNG.integers(0, 256, (24, 32, 3), np.uint8)
MASK = np.kron(RNG.choice([0, 1, 2], (6, 8)), np.ones((4, 4), int)).astype(np.uint8)
BINARY = np.where(MASK == 1, 255, 0).astype(np.uint8)
COLORS = np.array([(0, 0, 0), (200, 0, 0), (0, 0, 200)], np.uint8)
NAMES = ["a", "b", "c", "d", "e", "f"]


def put(path: Path, array: np.ndarray, **options) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path, **options)


def pairs(root: Path, image: str, mask: str, array=MASK, splits=("train", "val"), names=NAMES):
    """Writes pictures by patterns with {split} and {name}."""
    for split in splits:
        for name in names:
            own = f"{split}_{name}" if "{split}" not in image else name
            put(root / image.format(split=split, name=own), PHOTO)
            put(root / mask.format(split=split, name=own), array)


def data_of(layout) -> dict:
    return {key: value for key, value in layout.data.items() if key not in ("source", "path")}


SPLITS = {"train_split": "train", "val_split": "val"}
FOLDERS = {"images": "images/{split}", "masks": "masks/{split}", **SPLITS}


_NOTHING_MARKED = {
    "labelme": ("a.json", json.dumps({"version": "5.0", "shapes": [], "imagePath": "a.jpg"})),
    "VIA": ("via.json", json.dumps({"a.jpg9": {"filename": "a.jpg", "size": 9, "regions": []}})),
    "CVAT": (
        "annotations.xml",
        "<annotations><meta><label><name>a</name></label></meta>"
        '<image id="0" name="a.jpg" width="32" height="24"></image></annotations>',
    ),
    "Supervisely": ("ann/a.jpg.json", '{"objects": [], "size": {"height": 24, "width": 32}}'),
}


@pytest.mark.parametrize("tool", _NOTHING_MARKED)
def test_a_file_that_marks_nothing_does_not_hide_masks(tmp_path, tool):
    pairs(tmp_path, "img/{name}.jpg", "masks/{name}.png")
    name, text = _NOTHING_MARKED[tool]
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text(text)
    (layout,) = recognise(tmp_path)
    assert (layout.data["source"], layout.data["masks"]) == ("folder", "masks")


# ------------------------------------------------------------------------------------------- splits


@pytest.mark.parametrize(
    ("path", "name", "pattern"),
    [
        ("train/images", "train", "{split}/images"),
        ("train_data/images/val", "val", "train_data/images/{split}"),
        ("dev_kit/images/train", "train", "dev_kit/images/{split}"),
        ("val/images_train", "val", "{split}/images_train"),
        ("images/trainval", "trainval", "images/{split}"),
        ("images_Train", "Train", "images_{split}"),
        ("trainannot", "train", "{split}annot"),
        ("val2017/x", "val2017", "{split}/x"),
        ("valley/trainers", "", "valley/trainers"),
        ("images", "", "images"),
    ],
)
def test_the_name_of_a_split(path, name, pattern):
    found = split_in(Path(path))
    assert (found.name, found.pattern) == (name, pattern)


@pytest.mark.parametrize("above", ["train_data", "dev_kit"])
def test_a_word_above_the_folders_of_splits_is_no_split(tmp_path, above):
    pairs(tmp_path, above + "/images/{split}/{name}.jpg", above + "/masks/{split}/{name}.png")
    (layout,) = recognise(tmp_path)
    expected = {"images": f"{above}/images/{{split}}", "masks": f"{above}/masks/{{split}}"}
    assert data_of(layout) == {**expected, **SPLITS}


def test_trainval_is_trained_on_and_never_evaluated_with_its_own_part(tmp_path):
    for splits, val in ((("trainval", "test"), "test"), (("trainval", "val"), "held_back")):
        root = tmp_path / val
        pairs(root, "images/{split}/{name}.jpg", "masks/{split}/{name}.png", splits=splits)
        (layout,) = recognise(root)
        assert (layout.data["train_split"], layout.data["val_split"]) == ("trainval", val)


# -------------------------------------------------------------------------------------------- pairs


def test_a_table_is_not_evaluated_with_a_part_of_trainval(tmp_path):
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Image()})
    rows = {name: [Image.fromarray(MASK)] * 4 for name in features}
    split = datasets.Dataset.from_dict(rows, features)
    datasets.DatasetDict(dict.fromkeys(("trainval", "val"), split)).save_to_disk(tmp_path / "t")
    (layout,) = recognise(tmp_path / "t")
    assert (layout.data["train_split"], layout.data["val_split"]) == ("trainval", "held_back")
    assert layout.data["val_fraction"] == 0.1


def test_one_black_picture_does_not_cost_its_split(tmp_path):
    pairs(tmp_path, "images/{split}/{name}.png", "masks/{split}/{name}.png", names=["a", "b", "c"])
    put(tmp_path / "images/train/a.png", np.zeros_like(PHOTO))
    (layout,) = recognise(tmp_path)
    assert data_of(layout) == FOLDERS


def test_one_damaged_mask_does_not_cost_its_split(tmp_path):
    pairs(tmp_path, "images/{split}/{name}.png", "masks/{split}/{name}.png", names=["a", "b"])
    (tmp_path / "masks/train/a.png").write_bytes(b"nothing")
    (layout,) = recognise(tmp_path)
    assert data_of(layout) == FOLDERS
    with pytest.raises(UserError, match=r"masks/train/a\.png"):
        guess(tmp_path, layout)


def test_a_training_that_is_not_understood_is_not_replaced_by_the_validation(tmp_path):
    pairs(tmp_path, "images/{split}/{name}.jpg", "masks/{split}/{name}.png")
    for file in (tmp_path / "masks/train").iterdir():
        file.rename(file.with_name(f"mask of {file.name}"))
    with pytest.raises(
        UserError, match=r"images/train: looks like a training split but holds no pairs"
    ):
        recognise(tmp_path)


def test_pictures_that_are_left_out_are_named(tmp_path):
    pairs(tmp_path, "images/{split}/{name}.jpg", "masks/{split}/{name}.png")
    put(tmp_path / "more/x.jpg", PHOTO)
    put(tmp_path / "more/y.jpg", PHOTO)
    (layout,) = recognise(tmp_path)
    assert "2 pictures are not used: more (2)" in layout.assumed


@pytest.mark.parametrize(("start", "count"), [(1, 8), (1, 2), (0, 1)])
def test_the_number_of_a_frame_is_no_ending(tmp_path, start, count):
    for number in range(start, start + count):
        put(tmp_path / f"images/frame_{number:04}.jpg", PHOTO)
        put(tmp_path / f"masks/frame_mask_{number:04}.png", MASK)
    with pytest.raises(UserError, match="no pairs of images and masks"):
        recognise(tmp_path)


def test_endings(tmp_path):
    pairs(tmp_path, "{split}/x/{name}_1_img.png", "{split}/y/{name}_1_gt_ids.png")
    (layout,) = recognise(tmp_path)
    expected = {"images": "{split}/x", "masks": "{split}/y"}
    suffixes = {"image_suffix": "_img", "mask_suffix": "_gt_ids"}
    assert data_of(layout) == {**expected, **suffixes, **SPLITS}


@pytest.mark.parametrize("folder", ["masks/{split}", "images/{split}"])
def test_several_kinds_of_masks_are_a_question(tmp_path, folder):
    pairs(tmp_path, "images/{split}/{name}.jpg", folder + "/{name}_ids.png")
    pairs(tmp_path, "images/{split}/{name}.jpg", folder + "/{name}_color.png", COLORS[MASK])
    pairs(tmp_path, "images/{split}/{name}.jpg", folder + "/{name}_car.png", BINARY)
    layouts = recognise(tmp_path)
    assert {layout.data["mask_suffix"] for layout in layouts} == {"_ids", "_color", "_car"}


def test_one_odd_file_is_no_kind_of_masks(tmp_path):
    names = [f"{i:02}" for i in range(12)]
    pairs(tmp_path, "images/{split}/{name}.jpg", "masks/{split}/{name}_ids.png", names=names)
    put(tmp_path / "masks/train/05_old.png", MASK)
    (layout,) = recognise(tmp_path)
    assert layout.data["mask_suffix"] == "_ids"


def test_two_folders_of_masks_are_a_question(tmp_path):
    pairs(tmp_path, "images/{split}/{name}.jpg", "masks/{split}/{name}.png")
    pairs(tmp_path, "images/{split}/{name}.jpg", "gt/semantic/{split}/{name}.png")
    masks = {layout.data["masks"] for layout in recognise(tmp_path)}
    assert masks == {"masks/{split}", "gt/semantic/{split}"}


def test_one_file_a_class(tmp_path):
    for word in ("car", "sports car", "sky"):
        pairs(tmp_path, "images/{split}/{name}.jpg", f"masks/{{split}}/{{name}}_{word}.png", BINARY)
    (tmp_path / "masks/train/a_sky.png").unlink()  # which is not in every picture
    (layout,) = recognise(tmp_path)
    assert data_of(layout) == {**FOLDERS, "mask_suffix": "_{class}"}
    found = guess(tmp_path, layout)
    assert found.labels["names"] == ["car", "sky", "sports car", "background"]
    assert found.labels["background"] == "background"


def test_two_files_a_picture_may_be_classes_or_kinds(tmp_path):
    for word in ("mask", "edge"):
        pairs(tmp_path, "images/{split}/{name}.jpg", f"masks/{{split}}/{{name}}_{word}.png", BINARY)
    suffixes = [layout.data["mask_suffix"] for layout in recognise(tmp_path)]
    assert suffixes == ["_{class}", "_edge", "_mask"]


def test_a_folder_a_class(tmp_path):
    for word in ("car", "road", "sky"):
        pairs(tmp_path, "images/{split}/{name}.jpg", f"masks/{word}/{{split}}/{{name}}.png", BINARY)
    (layout,) = recognise(tmp_path)
    assert data_of(layout) == {**FOLDERS, "masks": "masks/{class}/{split}"}
    assert layout.classes == ("car", "road", "sky")


@pytest.mark.parametrize("names", [NAMES, [f"{i:05}" for i in range(6)]])
def test_folders_of_videos_are_paired_by_what_is_below(tmp_path, names):
    for video in ("bear", "camel", "train_station"):
        image, mask = f"frames/480p/{video}/{{name}}.jpg", f"gt/480p/{video}/{{name}}.png"
        pairs(tmp_path, image, mask, names=names, splits=[""])
    (layout,) = recognise(tmp_path)
    assert layout.data["images"] == "frames"
    assert layout.data["masks"] == "gt"


def test_videos_with_folders_of_their_own_cannot_be_said(tmp_path):
    for video in ("v1", "v2", "v3"):
        pairs(tmp_path, video + "/images/{name}.jpg", video + "/masks/{name}.png")
    with pytest.raises(UserError, match=r"3 folders \(v1, v2, v3, \.\.\.\) have images and masks"):
        recognise(tmp_path)


def test_folders_that_hold_both(tmp_path):
    for scene in ("bath", "street"):
        above = f"{{split}}/urban/{scene}"
        pairs(tmp_path, above + "/{name}.jpg", above + "/{name}_seg.png")
    (layout,) = recognise(tmp_path)
    suffix = {"mask_suffix": "_seg"}
    assert data_of(layout) == {"images": "{split}", "masks": "{split}", **suffix, **SPLITS}


def test_links_are_followed_and_circles_are_not(tmp_path):
    pairs(tmp_path / "disk", "images/{split}/{name}.jpg", "masks/{split}/{name}.png")
    root = tmp_path / "data"
    root.mkdir()
    (root / "images").symlink_to(tmp_path / "disk/images")
    (root / "masks").symlink_to(tmp_path / "disk/masks")
    (root / "again").symlink_to(root)
    (layout,) = recognise(root)
    assert data_of(layout) == FOLDERS


def test_ids_that_lossy_files_do_not_keep(tmp_path):
    ids = np.kron(MASK, np.ones((8, 8), np.uint8))
    pairs(tmp_path / "near", "images/{split}/{name}.jpg", "masks/{split}/{name}.jpg", ids)
    (layout,) = recognise(tmp_path / "near")
    with pytest.raises(UserError, match="JPEG and WebP change"):
        guess(tmp_path / "near", layout)
    pairs(tmp_path / "far", "images/{split}/{name}.jpg", "masks/{split}/{name}.jpg", ids * 100)
    (layout,) = recognise(tmp_path / "far")
    labels = guess(tmp_path / "far", layout).labels
    assert labels["tolerance"] > 0
    assert [round(value, -1) for value in labels["map"]] == [0, 100, 200]


def test_masks_in_gif(tmp_path):
    pairs(tmp_path, "images/{split}/{name}.jpg", "masks/{split}/{name}.gif")
    (layout,) = recognise(tmp_path)
    assert data_of(layout) == FOLDERS


def test_a_mask_beside_its_image_under_the_same_name(tmp_path):
    pairs(tmp_path, "{split}/{name}.jpg", "{split}/{name}.png")
    with pytest.raises(UserError, match=r"a\.jpg and a\.png .*differ in their file type only"):
        recognise(tmp_path)


def test_many_folders_of_the_same_names_take_no_time(tmp_path):
    """Of 60 videos each pair of folders would be 7200 to compare, and as many questions."""
    for video in range(60):
        for name in range(2):
            put(tmp_path / f"images/v{video}/{name}.png", PHOTO)
            put(tmp_path / f"masks/v{video}/{name}.png", MASK)
    (layout,) = recognise(tmp_path)
    assert layout.data["images"] == "images"


def test_a_picture_too_large_is_a_message(tmp_path, monkeypatch):
    pairs(tmp_path, "images/{split}/{name}.png", "masks/{split}/{name}.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(UserError):
        recognise(tmp_path)


# ------------------------------------------------------------------------------------ official ones


def ade20k(root, array):
    splits = ("training", "validation")
    image, mask = "images/{split}/{name}.jpg", "annotations/{split}/{name}.png"
    pairs(root, image, mask, array, splits=splits)
    return recognise(root)[0]


def test_an_official_layout_is_believed_if_its_masks_and_lists_fit(tmp_path):
    many = np.arange(768, dtype=np.uint8).reshape(24, 32) % 60
    found = guess(tmp_path / "a", ade20k(tmp_path / "a", many))
    assert found.labels == {"preset": "ade20k"}
    assert any("those of ade20k" in line for line in found.assumed)
    found = guess(tmp_path / "b", ade20k(tmp_path / "b", MASK))
    assert found.labels["names"] == ["class_0", "class_1", "class_2"]
    assert any("not the preset ade20k: only 2 of its 150" in line for line in found.assumed)
    layout = ade20k(tmp_path / "c", many)
    (tmp_path / "c/classes.txt").write_text("\n".join(f"leaf {i}" for i in range(60)))
    assert guess(tmp_path / "c", layout).labels["names"][1] == "leaf 1"
    layout = ade20k(tmp_path / "d", many + 120)
    found = guess(tmp_path / "d", layout)
    assert "preset" not in found.labels


def test_cityscapes_folders_with_other_names_are_pairs(tmp_path):
    image, mask = "leftImg8bit/{split}/t/{name}_leftImg8bit.png", "gtFine/{split}/t/{name}_l3.png"
    pairs(tmp_path, image, mask)
    (layout,) = recognise(tmp_path)
    assert layout.data["source"] == "folder"
    assert layout.data["mask_suffix"] == "_l3"


def test_folders_as_camvid_s_without_its_pictures_are_a_pair(tmp_path):
    pairs(tmp_path, "{split}/{name}.jpg", "{split}annot/{name}.png")
    (layout,) = recognise(tmp_path)
    assert layout.data["source"] == "folder"


# --------------------------------------------------------------------------------------- COCO files


def coco_file(root, split, categories, objects, file="{split}/_annotations.json", folder="{split}"):
    """One image an object; objects are category ids."""
    images, annotations = [], []
    for number, category in enumerate(objects):
        name = f"{split}{number}.jpg"
        put(root / folder.format(split=split) / name, PHOTO)
        images.append({"id": number, "file_name": name, "height": 24, "width": 32})
        box = [[2, 2, 20, 2, 20, 20, 2, 20]]
        row = {"id": number, "image_id": number, "category_id": category, "segmentation": box}
        annotations.append(row)
    rows = [{"id": number, "name": name} for number, name in categories.items()]
    path = root / file.format(split=split)
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {"images": images, "annotations": annotations, "categories": rows}
    path.write_text(json.dumps(content))
    return path


def test_categories_are_those_of_all_splits(tmp_path):
    coco_file(tmp_path, "train", {0: "objects", 1: "car"}, [1, 1])
    coco_file(tmp_path, "valid", {0: "objects", 1: "car", 255: "dog"}, [1, 0, 255])
    (layout,) = recognise(tmp_path)
    labels = guess(tmp_path, layout).labels
    assert labels["names"] == ["background", "objects", "car", "dog"]
    assert labels["map"] == {0: 1, 1: 2, 255: 3}
    assert labels["ignore"] == []
    Labels.build(**labels)


def test_a_category_with_two_names_is_a_mistake(tmp_path):
    coco_file(tmp_path, "train", {1: "car", 2: "dog"}, [1, 2])
    coco_file(tmp_path, "valid", {1: "dog", 2: "car"}, [1, 2])
    (layout,) = recognise(tmp_path)
    with pytest.raises(UserError, match=r"category 1 is 'dog', but in .* it is 'car'"):
        guess(tmp_path, layout)


def test_a_category_without_objects_is_left_out_by_its_id(tmp_path):
    coco_file(tmp_path, "train", {0: "cars", 1: "cars", 2: "dog"}, [1, 2])
    (layout,) = recognise(tmp_path)
    found = guess(tmp_path, layout)
    assert found.labels["names"] == ["background", "cars", "dog"]
    assert found.labels["map"] == {1: 1, 2: 2}
    assert "category 0, cars, is left out: no object has it" in found.assumed


def test_a_category_called_background_is_it(tmp_path):
    coco_file(tmp_path, "train", {1: "car", 2: "Background"}, [1, 2])
    (layout,) = recognise(tmp_path)
    labels = guess(tmp_path, layout).labels
    assert labels["names"] == ["Background", "car"]
    assert labels["background"] == "Background"


def test_the_first_image_of_a_coco_file_may_be_missing(tmp_path):
    for split in ("train", "valid"):
        coco_file(tmp_path, split, {1: "car", 2: "dog"}, [1, 2])
    (tmp_path / "train/train0.jpg").unlink()
    (layout,) = recognise(tmp_path)
    assert layout.data["train_split"] == "train"


def test_a_coco_file_without_its_images_is_a_mistake(tmp_path):
    path = coco_file(tmp_path, "train", {1: "car"}, [1, 1])
    coco_file(tmp_path, "valid", {1: "car"}, [1, 1])
    shutil.rmtree(tmp_path / "train")
    path.parent.mkdir()
    coco_file(tmp_path, "train", {1: "car"}, [1, 1], folder="../elsewhere")
    with pytest.raises(
        UserError, match=r"none of its first 2 images is in a folder.*'train0\.jpg'"
    ):
        recognise(tmp_path)


def test_images_of_a_coco_file_are_found_wherever_they_are(tmp_path):
    coco_file(tmp_path, "", {1: "car"}, [1, 1], "annotations/all.json", "images/default")
    (layout,) = recognise(tmp_path)
    assert layout.data["images"] == "images/default"
    assert layout.found[0] == "annotations/all.json, in COCO's form"


def test_a_coco_file_is_parsed_once_to_be_understood(tmp_path, monkeypatch):
    for split in ("train", "valid"):
        coco_file(tmp_path, split, {1: "car"}, [1, 1])
    calls = []
    real = json.loads
    monkeypatch.setattr(coco_json.json, "loads", lambda text: calls.append(1) or real(text))
    (layout,) = recognise(tmp_path)
    guess(tmp_path, layout)
    assert len(calls) == 2


# -------------------------------------------------------------------------------------- Ultralytics


def polygons(root, names=("car", "dog"), line="0 0.1 0.1 0.9 0.1 0.9 0.9"):
    for split in ("train", "val"):
        for name in NAMES:
            put(root / f"images/{split}/{name}.jpg", PHOTO)
            text = root / f"labels/{split}/{name}.txt"
            text.parent.mkdir(parents=True, exist_ok=True)
            text.write_text(line)
    content = {"train": "images/train", "val": "images/val", "names": names}
    (root / "data.yaml").write_text(yaml.safe_dump(content))


def test_the_number_behind_the_last_name_is_nothing(tmp_path):
    polygons(tmp_path, ["car", "dog"])
    labels = Labels.build(**guess(tmp_path, recognise(tmp_path)[0]).labels)
    assert labels.encode(np.array([[0, 1, -1]], np.int32), "")[0].tolist() == [0, 1, 2]
    assert labels.names[2] == "background"
    with pytest.raises(UserError, match="neither a class nor ignored: 2"):
        labels.encode(np.array([[2]], np.int32), "x")


def test_many_names_leave_no_id_to_ignore(tmp_path):
    polygons(tmp_path, [f"part {i}" for i in range(300)])
    labels = Labels.build(**guess(tmp_path, recognise(tmp_path)[0]).labels)
    assert labels.num_labels == 301


def test_images_without_a_text_file_are_counted(tmp_path):
    polygons(tmp_path)
    for file in ["train/a", "train/b", "train/c", "train/d", "val/a", "val/b", "val/c"]:
        (tmp_path / f"labels/{file}.txt").unlink()
    found = guess(tmp_path, recognise(tmp_path)[0])
    assert any("7 of 12 images have no text file" in line for line in found.found)
    assert any("show background only" in line for line in found.assumed)


def test_text_files_without_an_image_are_a_mistake(tmp_path):
    polygons(tmp_path)
    (tmp_path / "labels/train/a (1).txt").write_text("")
    with pytest.raises(UserError, match=r"1 text files of polygons have no image.*a \(1\)\.txt"):
        guess(tmp_path, recognise(tmp_path)[0])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("train: images/train\nnames: [car, dog\n", "cannot be read as YAML"),
        ("train: images/train\nnames: {0: car, 2: dog}\n", "but none of id 1"),
        ("train: images/train\nnames: [yes, no]\n", "the name of class 0 in `names` is True"),
    ],
)
def test_a_bad_data_yaml_is_named(tmp_path, text, message):
    polygons(tmp_path)
    (tmp_path / "data.yaml").write_text(text)
    with pytest.raises(UserError, match=message):
        recognise(tmp_path)


def test_recipes_beside_the_data_are_no_data_yaml(tmp_path):
    pairs(tmp_path, "images/{split}/{name}.jpg", "masks/{split}/{name}.png")
    (tmp_path / "recipe.yaml").write_text("data: {source: folder}\ntrain: {steps: 5}\n")
    assert recognise(tmp_path)[0].data["source"] == "folder"


def test_files_of_two_tools_are_a_question(tmp_path):
    """They may be copies, or disagree: labelme's files and an older COCO export of them."""
    for name in NAMES:
        put(tmp_path / f"images/{name}.jpg", PHOTO)
        shape = {"label": "cat", "shape_type": "polygon", "points": [[1, 1], [9, 1], [9, 9]]}
        content = {"shapes": [shape], "imagePath": f"{name}.jpg", "imageData": None}
        content |= {"imageHeight": PHOTO.shape[0], "imageWidth": PHOTO.shape[1]}
        (tmp_path / f"images/{name}.json").write_text(json.dumps(content))
    coco = {
        "images": [{"id": i, "file_name": f"{name}.jpg"} for i, name in enumerate(NAMES)],
        "annotations": [
            {"id": i, "image_id": i, "category_id": 1, "segmentation": [[2, 2, 8, 2, 8, 8]]}
            for i in range(len(NAMES))
        ],
        "categories": [{"id": 1, "name": "cat"}],
    }
    (tmp_path / "export.json").write_text(json.dumps(coco))
    layouts = recognise(tmp_path)
    assert [layout.data["source"] for layout in layouts] == ["coco", "labelme"]
