"""Kaggle's run lengths against masks painted by hand: columns first, pixels from 1."""

import numpy as np
import pytest
from PIL import Image

from finetune.data.sources.kaggle_rle import kaggle_rle
from finetune.data.sources.opening import open_split
from finetune.discover.labels.layout_labels import guess
from finetune.discover.recognise import recognise
from finetune.errors import UserError
from finetune.labels.translation import Labels
from finetune.recipe import recipe_from_values

SIZE = (20, 30)
LABELS = Labels.build(["background", "thing"], background="background", map={1: 1}, ignore=[])


def runs(mask: np.ndarray) -> str:
    """The encoding of the competitions' own descriptions."""
    flat = np.concatenate([[0], mask.T.ravel(), [0]])
    ends = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    ends[1::2] -= ends[::2]
    return " ".join(map(str, ends))


def truth(i: int) -> np.ndarray:
    return np.kron(np.random.default_rng(i).integers(0, 3, (4, 5)), np.ones((5, 6), int))


def put(root, count=6, folder="train_images"):
    (root / folder).mkdir(parents=True, exist_ok=True)
    for i in range(count):
        photo = np.random.default_rng(i).integers(0, 256, (*SIZE, 3), np.uint8)
        Image.fromarray(photo).save(root / folder / f"p{i}.jpg")


FORMS = {
    "a class column": (
        "ImageId,ClassId,EncodedPixels",
        lambda i, k, text: f"p{i}.jpg,{k},{text}",
        ["background", "class_1", "class_2"],
    ),
    "image and class in one column": (
        "ImageId_ClassId,EncodedPixels",
        lambda i, k, text: f"p{i}.jpg_{k},{text}",
        ["background", "class_1", "class_2"],
    ),
    "image and name in one column": (
        "Image_Label,EncodedPixels",
        lambda i, k, text: f"p{i}.jpg_{('', 'Fish', 'Sugar')[k]},{text}",
        ["background", "Fish", "Sugar"],
    ),
    "names, ids without a file type": (
        "id,class,segmentation",
        lambda i, k, text: f"p{i},{('', 'bowel', 'stomach')[k]},{text}",
        ["background", "bowel", "stomach"],
    ),
}


@pytest.mark.parametrize("form", FORMS)
def test_what_init_reads(tmp_path, form):
    header, row, names = FORMS[form]
    put(tmp_path)
    rows = [row(i, k, runs(truth(i) == k)) for i in range(6) for k in (1, 2)]
    (tmp_path / "train.csv").write_text("\n".join([header, *rows]) + "\n")
    (layout,) = recognise(tmp_path)
    labels = guess(tmp_path, layout).labels
    assert labels["names"] == names
    recipe = recipe_from_values({"data": layout.data, "labels": labels}, tmp_path / "r.yaml")
    seen = 0
    for split in (recipe.data.train_split, recipe.data.val_split):
        for sample in open_split(recipe.data, recipe.labels.build(), split):
            np.testing.assert_array_equal(sample["mask"], truth(int(sample["id"][1:])))
            seen += 1
    assert seen == 6


@pytest.mark.parametrize("count", [1, 2])
def test_runs_along_rows(tmp_path, count):
    """Tables such as that of Sartorius' cells; with one image there are fewer objects to tell."""
    put(tmp_path, count, folder="train")
    discs = np.hypot(*(np.mgrid[: SIZE[0], : SIZE[1]] - np.array([9, 12])[:, None, None]))
    truths = [discs < 5 + i for i in range(count)]
    rows = [f"p{i},{runs(truths[i].T)}" for i in range(count)]
    (tmp_path / "train.csv").write_text("\n".join(["id,annotation", *rows]))
    (layout,) = recognise(tmp_path)
    assert any("runs count along rows" in line for line in layout.assumed)
    with pytest.warns(UserWarning, match="runs count along rows"):
        data = kaggle_rle(tmp_path, "train", LABELS, images="train", annotations="train.csv")
    for sample, truth_ in zip(data, truths, strict=True):
        np.testing.assert_array_equal(sample["mask"], truth_)


@pytest.mark.parametrize("size", [SIZE, SIZE[::-1]])
def test_thin_upright_lines_down_columns_stay_so(tmp_path, size):
    Image.new("RGB", size[::-1]).save(tmp_path / "p0.jpg")
    mask = np.zeros(size, int)
    mask[1:, 4::6] = 1
    (tmp_path / "t.csv").write_text(f"ImageId,EncodedPixels\np0.jpg,{runs(mask)}\n")
    (sample,) = kaggle_rle(tmp_path, "", LABELS, images=".", annotations="t.csv")
    np.testing.assert_array_equal(sample["mask"], mask)


def test_one_class_with_empty_images_and_several_objects(tmp_path):
    put(tmp_path, 3)
    left, right = np.zeros(SIZE, int), np.zeros(SIZE, int)
    left[3:9, 2:7], right[10:15, 20:29] = 1, 1
    rows = [f"p0.jpg,{runs(left)}", f"p0.jpg,{runs(right)}", "p1.jpg,", "p2.jpg,-1"]
    (tmp_path / "t.csv").write_text("\n".join(["ImageId,EncodedPixels", *rows]))
    data = kaggle_rle(tmp_path, "", LABELS, images="train_images", annotations="t.csv")
    np.testing.assert_array_equal(data[0]["mask"], left + right)
    assert not data[1]["mask"].any()
    assert not data[2]["mask"].any()


def test_images_that_the_table_does_not_name_are_counted(tmp_path):
    put(tmp_path, 4)
    rows = [f"p{i}.jpg,{runs(truth(i) == 1)}" for i in range(3)]
    (tmp_path / "train.csv").write_text("\n".join(["ImageId,EncodedPixels", *rows]))
    (layout,) = recognise(tmp_path)
    assert any("1 images, such as p3" in line for line in layout.assumed)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("p0.jpg,1 3 5", "line 2: '1 3 5' is not `start length start length"),
        ("p0.jpg,1 x", "line 2: '1 x' is not"),
        ("p0.jpg,599 3", r"line 2: the run 599 3 .* outside of the image of 600 pixels"),
        ("p0.jpg,0 3", "line 2: the run 0 3"),
        ("p0.jpg,1 5 3 2", "line 2: the run 3 2 overlaps"),
        ("p0.jpg", "line 2: has 1 of 2 cells"),
        ("p9.jpg,1 2", "1 of 1 images are missing: p9.jpg"),
    ],
)
def test_mistakes_name_the_line(tmp_path, row, message):
    put(tmp_path, 1)
    (tmp_path / "t.csv").write_text(f"ImageId,EncodedPixels\n{row}\n")
    with pytest.raises(UserError, match=rf"t\.csv.*{message}"):
        kaggle_rle(tmp_path, "", LABELS, images="train_images", annotations="t.csv")


def test_a_class_of_another_name_is_a_contradiction(tmp_path):
    put(tmp_path, 1)
    (tmp_path / "t.csv").write_text("id,class,rle\np0,thing,1 2\np0,zebra,9 2\n")
    wrong = Labels.build(["thing", "zebra"], background="thing", map={1: 1, 2: 1}, ignore=[])
    with pytest.raises(UserError, match="1 is 'thing' there"):
        kaggle_rle(tmp_path, "", wrong, images="train_images", annotations="t.csv")
