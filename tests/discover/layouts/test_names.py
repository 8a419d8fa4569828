"""Names of images and masks as disks and tools write them."""

import json
from pathlib import Path
from unicodedata import normalize

import numpy as np
import pytest
from PIL import Image

from finetune.data.sources.opening import open_split
from finetune.discover.labels.layout_labels import guess
from finetune.discover.recognise import recognise
from finetune.errors import UserError
from finetune.recipe import Recipe

COUNT = 8


def scene(number: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(number)
    ids = np.zeros((40, 56), np.uint8)
    ids[number : number + 20, 8:30] = 1
    ids[5:15, 31 + number :] = 2
    return rng.integers(0, 256, (40, 56, 3), np.uint8), ids


def save(pixels: np.ndarray, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def check(root: Path, names: list[str], number_of) -> Recipe:
    """Every pixel of every mask has the class that painted it."""
    (layout,) = recognise(root)
    recipe = Recipe.model_validate({"data": layout.data, "labels": guess(root, layout).labels})
    built = recipe.labels.build()
    assert set(built.names) == set(names)
    class_ids = np.array([built.names.index(name) for name in names])
    splits = {recipe.data.train_split, recipe.data.val_split}
    samples = [sample for split in splits for sample in open_split(recipe.data, built, split)]
    assert len(samples) == COUNT
    for sample in samples:
        image, ids = scene(number_of(sample["id"]))
        assert np.array_equal(sample["mask"], class_ids[ids])
        assert np.abs(sample["image"].astype(int) - image).mean() < 60
    return recipe


@pytest.mark.parametrize("forms", [("NFC", "NFD"), ("NFD", "NFC"), ("NFD", "NFD")])
@pytest.mark.parametrize("suffix", ["", "_mäsk"])
def test_unicode_forms(tmp_path: Path, forms, suffix):
    for number in range(COUNT):
        image, ids = scene(number)
        save(image, tmp_path / normalize(forms[0], f"images/Straße é {number}.png"))
        save(ids, tmp_path / normalize(forms[1], f"masks/Straße é {number}{suffix}.png"))
        # what macOS leaves on other disks
        (tmp_path / f"masks/._Straße é {number}{suffix}.png").write_bytes(b"\0\5\26\7\0Mac OS X")
    names = ["class_0", "class_1", "class_2"]
    check(tmp_path, names, lambda name: int(name.rsplit(" ", 1)[1]))


def test_two_forms_of_one_name_in_a_folder(tmp_path: Path):
    for number in range(COUNT):
        image, ids = scene(number)
        save(image, tmp_path / f"images/é{number}.png")
        save(ids, tmp_path / f"masks/é{number}.png")
    save(scene(0)[1], tmp_path / normalize("NFD", "masks/é0.png"))
    if len([*(tmp_path / "masks").iterdir()]) == COUNT:
        pytest.skip("this disk has one form of names")
    (layout,) = recognise(tmp_path)
    with pytest.raises(UserError, match="or in the Unicode form of their names"):
        guess(tmp_path, layout)


@pytest.mark.parametrize("suffixes", [("jpg", "jpeg"), ("png", "png"), ("tif", "JPG")])
def test_supervisely(tmp_path: Path, suffixes):
    for number in range(COUNT):
        image, ids = scene(number)
        name = f"p{number}.{suffixes[number % 2]}"
        save(image, tmp_path / f"ds0/img/{name}")
        save(ids, tmp_path / f"ds0/masks_machine/{name}.png")
    colors = {"box": [1, 1, 1], "bin": [2, 2, 2]}
    (tmp_path / "obj_class_to_machine_color.json").write_text(json.dumps(colors))
    check(tmp_path, ["background", "box", "bin"], lambda name: int(name[1:]))


def test_supervisely_with_a_mask_of_another_image(tmp_path: Path):
    for number in range(COUNT):
        image, ids = scene(number)
        save(image, tmp_path / f"img/p{number}.jpg")
        save(ids, tmp_path / f"masks/p{number}.{'jpeg' if number == 3 else 'jpg'}.png")
    (layout,) = recognise(tmp_path)
    with pytest.raises(UserError, match="images have no mask"):
        guess(tmp_path, layout)


@pytest.mark.parametrize("classes", [("bin", "box"), ("box",)])
def test_rectlabel(tmp_path: Path, classes):
    for number in range(COUNT):
        image, ids = scene(number)
        save(image, tmp_path / f"images/p{number}.jpg")
        save(ids, tmp_path / f"masks/p{number}_all_objects.png")
        for place, name in enumerate(classes):
            own = ((ids == place + 1) * 255).astype(np.uint8)
            save(own, tmp_path / f"masks/p{number}_class_{name}.png")
            save(own, tmp_path / f"masks/p{number}_object{place}.png")
    if len(classes) == 2:
        check(tmp_path, ["background", *classes], lambda name: int(name[1:]))
    (layout,) = recognise(tmp_path)
    assert layout.classes == classes
    (line,) = [one for one in layout.assumed if "single classes" in one]
    assert "*_all_objects, *_object0" in line
