"""Lists of names that come with a data set decide its splits, or are named as unused."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from finetune.data.sources.opening import open_split
from finetune.discover.labels.known_labels import with_preset
from finetune.discover.labels.layout_labels import guess
from finetune.discover.recognise import recognise
from finetune.labels.translation import Labels
from finetune.recipe import Recipe

COUNT = 12
TRAIN, VAL = range(8), range(8, 11)  # the last one is in no list


def scene(number: int) -> tuple[np.ndarray, np.ndarray]:
    """An image, and its ids of 1 to 3."""
    rng = np.random.default_rng(number)
    ids = np.full((40, 56), 1, np.uint8)
    ids[number : number + 20, 8:30] = 2
    ids[5:15, 30 + number :] = 3
    noise = rng.integers(0, 20, (40, 56, 3))
    return (ids[..., None] * 60 + noise).astype(np.uint8), ids


def folder(root: Path, images: str, masks: str) -> None:
    for number in range(COUNT):
        for pixels, pattern in zip(scene(number), (images, masks), strict=True):
            path = root / pattern.replace("*", f"pic_{number}")
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(path)


def opened(root: Path, layout) -> dict[str, set[int]]:
    """The numbers of the pictures in both splits; every pixel of each mask is right."""
    labels = guess(root, layout)
    recipe = Recipe.model_validate({"data": layout.data, "labels": with_preset(labels.labels)})
    built = recipe.labels.build()
    assert isinstance(built, Labels)
    found = {}
    for split in (recipe.data.train_split, recipe.data.val_split):
        samples = list(open_split(recipe.data, built, split))
        found[split] = {int(sample["id"].rsplit("_", 1)[1]) for sample in samples}
        for sample in samples:
            ids = scene(int(sample["id"].rsplit("_", 1)[1]))[1]
            names = np.array(built.names)[sample["mask"]]
            assert len({(int(i), str(n)) for i, n in zip(ids.flat, names.flat, strict=True)}) == 3
    return found


FORMS = {
    "paddleseg": (
        "JPEGImages/*.png",
        "Annotations/*.png",
        {"train_list.txt": TRAIN, "val_list.txt": VAL},
        "JPEGImages/pic_{n}.png Annotations/pic_{n}.png",
    ),
    "paddleseg_plain": (
        "images/*.png",
        "labels/*.png",
        {"train.txt": TRAIN, "val.txt": VAL},
        "images/pic_{n}.png labels/pic_{n}.png",
    ),
    "pets": (
        "images/*.png",
        "annotations/trimaps/*.png",
        {
            "annotations/trainval.txt": TRAIN,
            "annotations/test.txt": VAL,
            "annotations/list.txt": range(COUNT),
        },
        "pic_{n} 1 1 2",
    ),
    "image_sets": (
        "imgs/*.png",
        "masks/*.png",
        {"ImageSets/Segmentation/train.txt": TRAIN, "ImageSets/Segmentation/val.txt": VAL},
        "pic_{n}",
    ),
    "paths_of_another_machine": (
        "images/*.png",
        "masks/*_mask.png",
        {"lists/training.lst": TRAIN, "lists/validation.lst": VAL},
        r"C:\data\set\images\pic_{n}.png",
    ),
    "commas": (
        "img/*_image.png",
        "img/*_label.png",
        {"splits/train.csv": TRAIN, "splits/test.csv": VAL},
        "img/pic_{n}_image.png,img/pic_{n}_label.png",
    ),
}


@pytest.mark.parametrize("form", FORMS)
def test_lists_decide_the_splits(tmp_path, form):
    images, masks, lists, line = FORMS[form]
    folder(tmp_path, images, masks)
    for name, numbers in lists.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("\n".join(line.replace("{n}", str(n)) for n in numbers))
    (layout,) = recognise(tmp_path)
    assert "val_fraction" not in layout.data
    assert not [one for one in layout.assumed if "drawn" in one]
    assert [*opened(tmp_path, layout).values()] == [{*TRAIN}, {*VAL}]


def test_pictures_that_no_list_names_may_lack_a_mask(tmp_path):
    images, masks, lists, line = FORMS["image_sets"]
    folder(tmp_path, images, masks)
    (tmp_path / "masks/pic_11.png").unlink()
    for name, numbers in lists.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("\n".join(line.replace("{n}", str(n)) for n in numbers))
    (layout,) = recognise(tmp_path)
    assert [*opened(tmp_path, layout).values()] == [{*TRAIN}, {*VAL}]


def test_lists_that_are_not_used_are_named(tmp_path):
    folder(tmp_path, "images/*.png", "masks/*.png")
    (tmp_path / "train.txt").write_text("\n".join(f"pic_{n}" for n in TRAIN))
    (tmp_path / "val_notes.txt").write_text("pictures of May\nand of June")
    (layout,) = recognise(tmp_path)
    assert layout.data["val_fraction"] == 0.1
    (line,) = [one for one in layout.assumed if "lists of names" in one]
    assert "train.txt; lists for training and for validation are needed" in line
    # A second list completes it, and a third kind is named.
    (tmp_path / "val.txt").write_text("\n".join(f"pic_{n}" for n in VAL))
    (tmp_path / "test.txt").write_text("pic_11")
    for split in ("train", "val"):
        (tmp_path / "fold2").mkdir(exist_ok=True)
        (tmp_path / f"fold2/{split}.txt").write_text("pic_1\npic_2")
    (layout,) = recognise(tmp_path)
    assert layout.data["split_list"] == "{split}.txt"
    assert any("not used: test" in one for one in layout.assumed)
    assert any("not used: fold2/train.txt, fold2/val.txt" in one for one in layout.assumed)
    assert [*opened(tmp_path, layout).values()] == [{*TRAIN}, {*VAL}]


def test_folders_of_splits_come_before_lists(tmp_path):
    for split in ("train", "val"):
        folder(tmp_path, f"images/{split}/*.png", f"masks/{split}/*.png")
        (tmp_path / f"{split}.txt").write_text(
            "\n".join(f"images/{split}/pic_{n}.png" for n in VAL)
        )
    (layout,) = recognise(tmp_path)
    assert "split_list" not in layout.data
    assert any("the folders hold the splits" in one for one in layout.assumed)


def test_other_text_is_no_list(tmp_path):
    folder(tmp_path, "images/*.png", "masks/*.png")
    for number in range(COUNT):  # as polygons of YOLO
        (tmp_path / f"train_{number}.txt").write_text("0 0.1 0.2 0.3 0.4")
        (tmp_path / f"val_{number}.txt").write_text("0 0.1 0.2 0.3 0.4")
    (layout,) = recognise(tmp_path)
    assert layout.data["val_fraction"] == 0.1
    assert not [one for one in layout.assumed if "lists" in one]
