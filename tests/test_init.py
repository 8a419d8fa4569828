"""`finetune init`: folders in every form are recognised, and the recipe trains as it stands."""

import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image
from typer.testing import CliRunner

from finetune import cli
from finetune.data.presets import PRESETS
from finetune.data.sources import open_split
from finetune.errors import UserError
from finetune.recipe import load_recipe
from finetune.train import fit

NAMES, COLORS = PRESETS["camvid"]["names"], PRESETS["camvid"]["colors"]
UNLABELLED = 11
COUNT = 3


@pytest.fixture(scope="module")
def camvid(shared_data) -> dict[str, list[tuple[str, Path, np.ndarray]]]:
    """Of each split name, image file and raw mask (11 is unlabelled) of a few pictures."""
    found = {}
    for split in ("train", "val"):
        images = sorted((shared_data / "camvid" / split).glob("*.jpg"))[::30][:COUNT]
        annotations = shared_data / "camvid" / f"{split}annot"
        found[split] = [
            (i.stem, i, np.array(Image.open(annotations / f"{i.stem}.png"))) for i in images
        ]
    return found


def put(image: Path | np.ndarray, target: Path, palette=None) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(image, Path):
        target.write_bytes(image.read_bytes())
        return
    picture = Image.fromarray(image)
    if palette is not None:
        flat = [channel for color in palette for channel in color]
        picture.putpalette(flat + [0] * (768 - len(flat)))  # or Pillow stores 4 bits a pixel
    picture.save(target)


def ids(mask, ignored=255):
    return np.where(mask == UNLABELLED, ignored, mask).astype(np.uint8)


def colors(mask):
    return np.array([*COLORS, (0, 0, 0)], np.uint8)[mask]


def camvid_layout(root, split, name, image, mask):
    put(image, root / f"{split}/{name}.jpg")
    put(ids(mask), root / f"{split}annot/{name}.png")


def two_folders(root, split, name, image, mask):
    put(image, root / f"images/{split}/{name}.jpg")
    put(ids(mask), root / f"labels/{split}/{name}.png")


def split_above(root, split, name, image, mask):
    split = {"val": "valid"}.get(split, split)
    put(image, root / f"{split}/rgb/{name}.jpg")
    put(ids(mask), root / f"{split}/seg/{name}_seg.png", COLORS)


def one_folder(root, split, name, image, mask):
    """As Roboflow exports semantic masks."""
    put(image, root / f"{split}/{name}.jpg")
    put(ids(mask, 11), root / f"{split}/{name}_mask.png")
    rows = "".join(f"{i}, {name}\n" for i, name in enumerate([*NAMES, "unlabelled"]))
    (root / split / "_classes.csv").write_text("Pixel Value, Class\n" + rows)


def color_folders(root, split, name, image, mask):
    put(image, root / f"{split}/{name}.jpg")
    put(colors(mask), root / f"{split}_labels/{name}_L.png")
    rows = "".join(f"{n},{r},{g},{b}\n" for n, (r, g, b) in zip(NAMES, COLORS, strict=True))
    (root / "class_dict.csv").write_text("name,r,g,b\n" + rows + "Void,0,0,0\n")


def black_and_white(root, split, name, image, mask):
    put(image, root / f"{name}.jpg")
    put(np.where(mask == 8, 255, 0).astype(np.uint8), root / f"{name}_mask.png")


def voc(root, split, name, image, mask):
    put(image, root / f"VOC2012/JPEGImages/{name}.jpg")
    put(ids(mask), root / f"VOC2012/SegmentationClass/{name}.png", COLORS)
    lists = root / "VOC2012/ImageSets/Segmentation"
    lists.mkdir(parents=True, exist_ok=True)
    with open(lists / f"{split}.txt", "a") as file:
        file.write(f"{name}\n")


def cityscapes(kind):
    def write(root, split, name, image, mask):
        put(image, root / f"leftImg8bit/{split}/town/{name}_leftImg8bit.png")
        raw = ids(mask) if kind == "labelTrainIds" else ids(mask + 7, 0).clip(max=8)
        put(raw, root / f"gtFine/{split}/town/{name}_gtFine_{kind}.png")

    write.__name__ = f"cityscapes {kind}"
    return write


def ade20k(root, split, name, image, mask):
    split = {"train": "training", "val": "validation"}[split]
    put(image, root / f"ADEChallengeData2016/images/{split}/{name}.jpg")
    put(ids(mask + 1, 0), root / f"ADEChallengeData2016/annotations/{split}/{name}.png")


def coco_stuff(root, split, name, image, mask):
    put(image, root / f"images/{split}2017/{name}.jpg")
    put(ids(mask % 11), root / f"annotations/{split}2017/{name}.png")


def data_yaml(root, **extra):
    content = {"path": "/elsewhere", "train": "images/train", "val": "images/val"}
    names = dict(enumerate(NAMES))
    (root / "data.yaml").write_text(yaml.safe_dump({**content, "names": names, **extra}))


def ultralytics_masks(root, split, name, image, mask):
    put(image, root / f"images/{split}/{name}.jpg")
    put(ids(mask), root / f"masks/{split}/{name}.png")
    data_yaml(root, masks_dir="masks")


def ultralytics_polygons(root, split, name, image, mask):
    put(image, root / f"images/{split}/{name}.jpg")
    text = root / f"labels/{split}/{name}.txt"
    text.parent.mkdir(parents=True, exist_ok=True)
    text.write_text("3 0.1 0.5 0.9 0.5 0.9 0.9 0.1 0.9\n0 0 0 1 0 1 0.3 0 0.3\n")
    data_yaml(root)


def coco(root, split, name, image, mask):
    """As Roboflow exports COCO: images and annotations in the folder of the split."""
    put(image, root / f"{split}/{name}.jpg")
    file = root / f"{split}/_annotations.coco.json"
    empty = {"images": [], "annotations": [], "categories": []}
    content = json.loads(file.read_text()) if file.exists() else empty
    content["categories"] = [{"id": i, "name": n} for i, n in enumerate(["objects", *NAMES])]
    number, (height, width) = len(content["images"]), mask.shape
    entry = {"id": number, "file_name": f"{name}.jpg", "height": height, "width": width}
    content["images"].append(entry)
    for value in (1, 4):
        box = [10 * value, 10, 100 * value, 10, 100 * value, 90, 10 * value, 90]
        content["annotations"].append(
            {
                "id": len(content["annotations"]),
                "image_id": number,
                "category_id": value,
                "iscrowd": 0,
                "segmentation": [box],
            }
        )
    file.write_text(json.dumps(content))


FORMS = {
    camvid_layout: ("folder", 11),
    two_folders: ("folder", 11),
    split_above: ("folder", 11),
    one_folder: ("folder", 12),
    color_folders: ("folder", 12),
    black_and_white: ("folder", 2),
    voc: ("voc", 21),
    cityscapes("labelTrainIds"): ("cityscapes", 19),
    cityscapes("labelIds"): ("cityscapes", 19),
    ade20k: ("ade20k", 150),
    coco_stuff: ("coco-stuff", 171),
    ultralytics_masks: ("ultralytics", 11),
    ultralytics_polygons: ("ultralytics", 12),
    coco: ("coco", 12),
}


def init(root: Path, *arguments: str):
    output = root.parent / "recipe.yaml"
    return output, CliRunner().invoke(cli.app, ["init", str(root), "-o", str(output), *arguments])


@pytest.mark.parametrize("write", FORMS, ids=lambda write: write.__name__)
def test_every_form_is_recognised(camvid, tmp_path, write):
    root = tmp_path / "data"
    for split, pictures in camvid.items():
        for name, image, mask in pictures:
            write(root, split, name, image, mask)
    output, done = init(root)
    assert done.exit_code == 0, done.output
    recipe = load_recipe(output)
    source, num_labels = FORMS[write]
    assert recipe.data.source == source
    labels = recipe.labels.build()
    assert labels.num_labels == num_labels
    samples = [
        sample
        for split in (recipe.data.train_split, recipe.data.val_split)
        for sample in open_split(recipe.data, labels, split)
    ]
    assert len(samples) == 2 * COUNT
    truth = {name: mask for pictures in camvid.values() for name, _, mask in pictures}
    if num_labels in (11, 12) and source == "folder":
        for sample in samples:
            mask = truth[Path(sample["id"]).name]
            known = mask != UNLABELLED
            assert np.array_equal(sample["mask"][known], mask[known])
    for line in done.stdout.splitlines():
        assert len(line) <= 200


SMALL = [
    *["model.depths=[1,1,1,1]", "model.hidden_sizes=[8,16,40,64]", "model.decoder_hidden_size=32"],
    *["data.workers=0", "train.threads=2"],
]


@pytest.mark.slow
@pytest.mark.parametrize("write", FORMS, ids=lambda write: write.__name__)
def test_what_it_writes_trains(camvid, tmp_path, monkeypatch, write):
    """Five steps and an evaluation, as it stands but for the size of the model."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FINETUNE_CACHE", str(tmp_path / "cache"))
    for split, pictures in camvid.items():
        for name, image, mask in pictures:
            write(tmp_path / "data", split, name, image, mask)
    output, done = init(tmp_path / "data")
    assert done.exit_code == 0, done.output
    result = fit(load_recipe(output, ["train.steps=5", *SMALL]))
    rows = [json.loads(line) for line in (result.output / "metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["step"] == 5
    assert 0 <= rows[-1]["eval/mean_iou"] <= 1


def test_validation_pictures_alone_get_a_split(shared_data, tmp_path):
    output = tmp_path / "recipe.yaml"
    root = shared_data / "ade20k_sample"
    done = CliRunner().invoke(cli.app, ["init", str(root), "-o", str(output)])
    assert done.exit_code == 0, done.output
    assert "held back" in done.stdout
    recipe = load_recipe(output)
    assert recipe.data.train_split == "validation"
    assert_held_back(recipe, [2, 1])


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_whatever_the_only_split_is_called_nothing_trained_on_is_evaluated(camvid, tmp_path, split):
    for name, image, mask in camvid["train"]:
        two_folders(tmp_path / "data", split, name, image, mask)
    output, done = init(tmp_path / "data")
    assert done.exit_code == 0, done.output
    assert_held_back(load_recipe(output), [COUNT - 1, 1])
    with pytest.raises(UserError, match=r"data\.val_split: .*what is trained on"):
        load_recipe(output, [f"data.val_split={split}"])


def assert_held_back(recipe, sizes) -> None:
    labels = recipe.labels.build()
    splits = recipe.data.train_split, recipe.data.val_split
    rows = [open_split(recipe.data, labels, split).with_format(None) for split in splits]
    parts = [set(part["id"]) for part in rows]
    assert [len(part) for part in parts] == sizes
    assert not parts[0] & parts[1]


def test_an_ambiguous_folder_is_a_question_or_a_mistake(camvid, tmp_path, monkeypatch):
    root = tmp_path / "data"
    for name, image, mask in camvid["train"]:
        put(image, root / f"images/{name}.jpg")
        put(ids(mask), root / f"masks/{name}.png")
        put(np.where(mask == 8, 255, 0).astype(np.uint8), root / f"cars/{name}.png")
    output, done = init(root)
    assert isinstance(done.exception, UserError)
    assert "masks" in str(done.exception)
    assert "cars" in str(done.exception)
    assert not output.exists()
    assert not list(output.parent.glob(".*.new.yaml"))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda root: None, "is not a folder"),
        (lambda root: root.mkdir(), "no pairs of images and masks"),
        (lambda root: put(np.zeros((9, 9, 3), np.uint8), root / "a.png"), "no pairs"),
    ],
)
def test_a_folder_that_holds_nothing_of_use(tmp_path, make, message):
    make(tmp_path / "data")
    output, done = init(tmp_path / "data")
    assert message in str(done.exception)
    assert not output.exists()


def test_a_recipe_is_not_overwritten(camvid, tmp_path):
    for name, image, mask in camvid["train"]:
        two_folders(tmp_path / "data", "train", name, image, mask)
    (tmp_path / "recipe.yaml").write_text("mine")
    output, done = init(tmp_path / "data")
    assert "not overwritten" in str(done.exception)
    assert output.read_text() == "mine"
