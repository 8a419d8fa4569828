"""Ultralytics' data.yaml: lists of images, `label_mapping`, keys that are not understood."""

from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from finetune.data.sources.opening import open_split
from finetune.data.sources.ultralytics import ultralytics
from finetune.discover.labels.layout_labels import guess
from finetune.discover.recognise import recognise
from finetune.errors import UserError
from finetune.labels.translation import Labels
from finetune.recipe.data import read_data

RNG = np.random.default_rng(0)
SIDE = 32


def scene(i: int) -> np.ndarray:
    """Ids: 1 and 2 are the first two classes, in squares of 8 pixels; 0 is no object."""
    rng = np.random.default_rng(i)
    return np.kron(rng.integers(0, 3, (4, 4)), np.ones((8, 8), int)).astype(np.uint8)


def picture(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(RNG.integers(0, 256, (SIDE, SIDE, 3), np.uint8)).save(path)


def polygons(path: Path, ids: np.ndarray) -> None:
    lines = []
    for y, x in np.argwhere(ids[::8, ::8]) / 4:
        value = ids[int(y * SIDE), int(x * SIDE)] - 1
        lines.append(f"{value} {x} {y} {x + 0.25} {y} {x + 0.25} {y + 0.25} {x} {y + 0.25}")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines))


def pairs(root: Path, image: str, text: str, numbers) -> list[str]:
    for i in numbers:
        picture(root / image.format(i))
        polygons(root / text.format(i), scene(i))
    return [image.format(i) for i in numbers]


def read(root: Path) -> dict[str, dict[int, np.ndarray]]:
    """Each split as `init` finds it: number in the id -> names of classes, pixel by pixel."""
    (layout,) = recognise(root)
    labels = Labels.build(**guess(root, layout).labels)
    names = np.array([*labels.names, *["ignored"] * (256 - len(labels.names))])
    data = read_data(layout.data)
    return {
        split: {
            int(sample["id"].rpartition("p")[2]): names[sample["mask"]]
            for sample in open_split(data, labels, split)
        }
        for split in (data.train_split, data.val_split)
    }


def assert_read(root: Path, truth=("background", "box", "bin"), train=range(6), val=range(6, 9)):
    found = read(root)
    assert found.keys() == {"train", "val"}
    for split, numbers in (("train", train), ("val", val)):
        assert found[split].keys() == set(numbers)
        for i, names in found[split].items():
            assert np.array_equal(names, np.array(truth)[scene(i)])


def data_yaml(root: Path, **content) -> None:
    keys = {"path": "./", "train": "train.txt", "val": "val.txt", "names": ["box", "bin"]}
    (root / "data.yaml").write_text(yaml.safe_dump({**keys, **content}))


LINES = {
    "relative to path": lambda line, root: line,
    "relative to the list": lambda line, root: "./" + line,
    "absolute": lambda line, root: str(root / line),
    "absolute before a move": lambda line, root: f"/home/somebody/set/{line}",
    "below another folder": lambda line, root: f"data/{line}",
    "of Windows": lambda line, root: "C:\\set\\" + line.replace("/", "\\"),
}


@pytest.mark.parametrize("written", LINES)
@pytest.mark.parametrize("folder", ["images/{split}", "images"])
def test_lists_of_images(tmp_path, written, folder):
    for split, numbers in (("train", range(6)), ("val", range(6, 9))):
        image = folder.format(split=split) + "/p{}.png"
        lines = pairs(tmp_path, image, image.replace("images", "labels")[:-3] + "txt", numbers)
        text = "\r\n".join(LINES[written](line, tmp_path) for line in lines)
        (tmp_path / f"{split}.txt").write_text(text + "\r\n\r\n")
    data_yaml(tmp_path)
    assert_read(tmp_path)


def test_several_folders_and_lists(tmp_path):
    for folder, numbers in (("a", range(3)), ("b", range(3, 6)), ("c", range(6, 9))):
        lines = pairs(tmp_path, f"{folder}/images/p{{}}.png", f"{folder}/labels/p{{}}.txt", numbers)
        (tmp_path / f"{folder}.txt").write_text("\n".join(lines))
    data_yaml(tmp_path, train=["a/images", "b.txt"], val="c/images")
    assert_read(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("images/p0.png\nimages/gone.png\n", "1 of 2 images do not exist: images/gone.png"),
        ("images/p0.png images/p1.png 3\n", "is not the path of an image"),
        ("\n", "lists no images"),
    ],
)
def test_lists_that_are_none(tmp_path, text, message):
    pairs(tmp_path, "images/p{}.png", "labels/p{}.txt", range(2))
    (tmp_path / "train.txt").write_text(text)
    data_yaml(tmp_path)
    with pytest.raises(UserError, match=rf"train\.txt: .*{message}"):
        ultralytics(tmp_path, "train", Labels.build(["box", "bin", "bg"], background="bg"))


MAPPING = {-1: "ignore_label", 0: "ignore_label", 1: 0, 2: 1, 7: "ignore_label"}


def masks(root: Path, **content) -> None:
    for split, numbers in (("train", range(6)), ("val", range(6, 9))):
        for i in numbers:
            picture(root / f"images/{split}/p{i}.jpg")
            file = root / f"masks/{split}/p{i}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(scene(i)).save(file)
    keys = {"train": "images/train", "val": "images/val", "masks_dir": "masks"}
    data_yaml(root, **{**keys, **content})


def test_label_mapping_says_what_masks_mean(tmp_path):
    masks(tmp_path, label_mapping=MAPPING)
    assert_read(tmp_path, ("ignored", "box", "bin"))
    labels = Labels.build(**guess(tmp_path, recognise(tmp_path)[0]).labels)
    with pytest.raises(UserError, match="neither a class nor ignored: 3"):
        labels.encode(np.array([[3]]), "x")


def test_label_mapping_may_merge_and_use_255(tmp_path):
    masks(tmp_path, label_mapping={0: 1, 1: 0, 2: 1, 255: 0})
    assert_read(tmp_path, ("bin", "box", "bin"))


def test_a_recipe_that_knows_nothing_of_label_mapping_is_refused(tmp_path):
    masks(tmp_path, label_mapping=MAPPING)
    with pytest.raises(UserError, match="class 1 is 'box' there"):
        ultralytics(tmp_path, "train", Labels.build(["box", "bin"]))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"label_mapping": {0: 2}}, "label_mapping says `0: 2`"),
        ({"label_mapping": {0: "box"}}, "label_mapping says `0: box`"),
        ({"label_mapping": [0, 1]}, "label_mapping must be a table"),
        ({"label_mapping": {0: 0}, "masks_dir": None}, "needs masks_dir"),
        ({"reduce_zero_label": True}, "the key reduce_zero_label is unknown"),
        ({"ignore_label": 0}, "the key ignore_label is unknown"),
        ({"kpt_shape": [17, 3]}, "kpt_shape says .* keypoints"),
        ({"nc": 3}, "nc is 3, but `names` has 2"),
    ],
)
def test_keys_that_are_not_understood(tmp_path, content, message):
    masks(tmp_path, **content)
    with pytest.raises(UserError, match=rf"data\.yaml: .*{message}"):
        guess(tmp_path, recognise(tmp_path)[0])


def test_keys_that_change_no_label(tmp_path):
    masks(tmp_path, nc=2, download="x", roboflow={"license": "MIT"}, channels=3, test=None)
    assert recognise(tmp_path)


@pytest.mark.parametrize("folder", ["", "train/"])
def test_label_studio_without_data_yaml(tmp_path, folder):
    image, text = f"images/{folder}ab-p{{}}.png", f"labels/{folder}ab-p{{}}.txt"
    if folder:
        pairs(tmp_path, image.replace("train", "val"), text.replace("train", "val"), range(6, 9))
    pairs(tmp_path, image, text, range(6))
    (tmp_path / "classes.txt").write_text("box\nbin\n")
    categories = '{"categories": [{"id": 0, "name": "box"}, {"id": 1, "name": "bin"}]}'
    (tmp_path / "notes.json").write_text(categories)
    if folder:
        assert_read(tmp_path)
        return
    found = read(tmp_path)
    together = found["train"] | found["held_back"]
    assert together.keys() == set(range(6))
    for i, names in together.items():
        assert np.array_equal(names, np.array(["background", "box", "bin"])[scene(i)])


@pytest.mark.parametrize(
    ("text", "notes", "message"),
    [
        ("bin\nbox\n", "", r"notes\.json: its categories are others"),
        ("box\n\nbin\n", "", r"classes\.txt: line 2, '', must be the name"),
        ("0: box\n1: bin\n", "", r"classes\.txt: line 1, '0: box'"),
        ("box\nbin\n", "{", r"notes\.json: cannot be read"),
    ],
)
def test_label_studio_lists_that_contradict(tmp_path, text, notes, message):
    pairs(tmp_path, "images/p{}.png", "labels/p{}.txt", range(3))
    (tmp_path / "classes.txt").write_text(text)
    categories = '{"categories": [{"id": 0, "name": "box"}, {"id": 1, "name": "bin"}]}'
    (tmp_path / "notes.json").write_text(notes or categories)
    with pytest.raises(UserError, match=message):
        recognise(tmp_path)
