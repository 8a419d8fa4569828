"""CVAT's "Segmentation mask 1.1": VOC's folders with a labelmap.txt."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from finetune.data.sources.opening import open_split
from finetune.discover.labels.layout_labels import guess
from finetune.discover.recognise import recognise
from finetune.labels.translation import Labels
from finetune.recipe import recipe_from_values
from finetune.recipe.data import read_data

COLORS = {"background": (0, 0, 0), "box": (48, 112, 32), "bin: large": (176, 112, 32)}
TABLE = np.array([*COLORS.values()], np.uint8)
RNG = np.random.default_rng(0)


def put(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


def scene(i: int) -> np.ndarray:
    rng = np.random.default_rng(i)
    return np.kron(rng.integers(0, 3, (4, 4)), np.ones((8, 8), int)).astype(np.uint8)


def cvat(root: Path, images="JPEGImages", lists=("default",), without=(), kind="colors") -> None:
    for i in range(9):
        put(root / f"{images}/p{i}.png", RNG.integers(0, 256, (32, 32, 3), np.uint8))
        if i not in without:
            mask = TABLE[scene(i)] if kind == "colors" else scene(i)
            put(root / f"SegmentationClass/p{i}.png", mask)
            put(root / f"SegmentationObject/p{i}.png", TABLE[::-1][scene(i)])
    for number, name in enumerate(lists):
        file = root / f"ImageSets/Segmentation/{name}.txt"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("".join(f"p{i}\n" for i in range(number, 9, len(lists))))
    rows = [f"{name}:{r},{g},{b}::\n" for name, (r, g, b) in COLORS.items()]
    (root / "labelmap.txt").write_text("# label:color_rgb:parts:actions\n" + "".join(rows))


@pytest.mark.parametrize("kind", ["colors", "ids"])
@pytest.mark.parametrize("images", ["JPEGImages", "images"])
@pytest.mark.parametrize("lists", [("default",), ("Train", "Validation"), ()])
@pytest.mark.parametrize("without", [(), (2, 5)])
def test_cvat_masks(tmp_path, kind, images, lists, without):
    cvat(tmp_path, images, lists, without, kind)
    (layout,) = recognise(tmp_path)
    labels = Labels.build(**guess(tmp_path, layout).labels)
    assert labels.names == tuple(COLORS)
    data = read_data(layout.data)
    found = {
        sample["id"]: (split, sample["mask"])
        for split in (data.train_split, data.val_split)
        for sample in open_split(data, labels, split)
    }
    assert found.keys() == {f"p{i}" for i in range(9) if i not in without}
    for name, (split, mask) in found.items():
        assert np.array_equal(mask, scene(int(name[1:])))
        if len(lists) == 2:
            assert split == lists[int(name[1:]) % 2]
    said = [line for line in layout.assumed if "2 of 9 images" in line]
    assert bool(said) == bool(without)


def test_what_labelme2voc_wrote(tmp_path):
    rng = np.random.default_rng(0)
    masks = {}
    for i in range(6):
        mask = np.kron(rng.integers(0, 3, (5, 6)), np.ones((8, 8), int)).astype(np.uint8)
        photo = rng.integers(0, 256, (*mask.shape, 3), np.uint8)
        stored = Image.fromarray(mask)
        stored.putpalette([0, 0, 0, 128, 0, 0, 0, 128, 0] + [0] * 759)
        for folder, picture in (
            ("JPEGImages", Image.fromarray(photo)),
            ("SegmentationClassVisualization", Image.fromarray(photo)),
            ("SegmentationClass", stored),
            ("SegmentationObject", stored),
        ):
            (tmp_path / folder).mkdir(exist_ok=True)
            suffix = ".png" if picture is stored else ".jpg"
            picture.save(tmp_path / folder / f"p{i}{suffix}")
        (tmp_path / "SegmentationClassNpy").mkdir(exist_ok=True)
        np.save(tmp_path / f"SegmentationClassNpy/p{i}.npy", mask)
        masks[f"p{i}"] = mask
    (tmp_path / "class_names.txt").write_text("_background_\nbox\nbin\n")
    (layout,) = recognise(tmp_path)
    labels = guess(tmp_path, layout).labels
    assert labels["names"] == ["_background_", "box", "bin"]
    recipe = recipe_from_values({"data": layout.data, "labels": labels}, tmp_path / "r.yaml")
    for split in (recipe.data.train_split, recipe.data.val_split):
        for sample in open_split(recipe.data, recipe.labels.build(), split):
            np.testing.assert_array_equal(sample["mask"], masks.pop(sample["id"]))
    assert not masks
