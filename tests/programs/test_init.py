"""`finetune init`: folders in every form are recognised, and the recipe trains as it stands."""

import io
import json
from pathlib import Path

import datasets
import jsonschema
import numpy as np
import pytest
import yaml
from PIL import Image
from pycocotools import mask as coco_api
from typer.testing import CliRunner

from finetune import cli
from finetune.data.sources.opening import open_split
from finetune.errors import UserError
from finetune.labels.presets import PRESETS
from finetune.programs.init import draft, draft_from_table
from finetune.programs.pack import pack
from finetune.recipe import SCHEMA_FILE, load_recipe
from finetune.train import fit

NAMES, COLORS = PRESETS["camvid"]["names"], PRESETS["camvid"]["colors"]
UNLABELLED = 11


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "hf"))


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


MADE_UP = [f"class_{i}" for i in range(11)]
HEX = ["color_{:02X}{:02X}{:02X}".format(*color) for color in [*COLORS, (0, 0, 0)]]
FORMS = {}


def form(source, names, unlabelled=None, name=None):
    """Enters a writer: the source of its recipe, and the class that each id of CamVid becomes."""

    def enter(write):
        FORMS[name or write.__name__] = write, source, [*names, unlabelled]
        return write

    return enter


@form("camvid", NAMES)
def camvid_layout(root, split, name, image, mask):
    put(image, root / f"{split}/{name}.jpg")
    put(mask, root / f"{split}annot/{name}.png")


@form("camvid", NAMES)
def camvid_layout_with_255(root, split, name, image, mask):
    put(image, root / f"{split}/{name}.jpg")
    put(ids(mask), root / f"{split}annot/{name}.png")


@form("folder", MADE_UP)
def two_folders(root, split, name, image, mask):
    put(image, root / f"images/{split}/{name}.jpg")
    put(ids(mask), root / f"labels/{split}/{name}.png")


@form("folder", MADE_UP)
def split_above(root, split, name, image, mask):
    split = {"val": "valid"}.get(split, split)
    put(image, root / f"{split}/rgb/{name}.jpg")
    put(ids(mask), root / f"{split}/seg/{name}_seg.png", COLORS)


@form("folder", MADE_UP)
def videos(root, split, name, image, mask):
    """Frames of the same names in a folder for each video."""
    video, frame = name.rsplit("_", 1)
    put(image, root / f"frames/{split}/{video}/{frame}.jpg")
    put(ids(mask), root / f"gt/{split}/{video}/{frame}.png")


@form("folder", NAMES, "unlabelled")
def one_folder(root, split, name, image, mask):
    """As Roboflow exports semantic masks."""
    put(image, root / f"{split}/{name}.jpg")
    put(ids(mask, 11), root / f"{split}/{name}_mask.png")
    rows = "".join(f"{i}, {name}\n" for i, name in enumerate([*NAMES, "unlabelled"]))
    (root / split / "_classes.csv").write_text("Pixel Value, Class\n" + rows)


@form("folder", NAMES, "unlabelled")
def sparse_ids_with_a_list(root, split, name, image, mask):
    put(image, root / f"images/{split}/{name}.jpg")
    put((200 - 7 * mask.astype(int)).astype(np.uint8), root / f"masks/{split}/{name}.png")
    names = {str(200 - 7 * i): name for i, name in enumerate([*NAMES, "unlabelled"])}
    (root / "id2label.json").write_text(json.dumps(names))


@form("folder", NAMES, "Void")
def color_folders(root, split, name, image, mask):
    put(image, root / f"{split}/{name}.jpg")
    put(colors(mask), root / f"{split}_labels/{name}_L.png")
    rows = "".join(f"{n},{r},{g},{b}\n" for n, (r, g, b) in zip(NAMES, COLORS, strict=True))
    (root / "class_dict.csv").write_text("name,r,g,b\n" + rows + "Void,0,0,0\n")


@form("folder", NAMES)
def colors_of_a_list_without_black(root, split, name, image, mask):
    put(image, root / f"{split}/{name}.jpg")
    put(colors(mask), root / f"{split}_labels/{name}.png")
    rows = [f"{r} {g} {b}\t{n}\n" for n, (r, g, b) in zip(NAMES, COLORS, strict=True)]
    (root / "label_colors.txt").write_text("".join(rows))


@form("folder", HEX[:11], HEX[11])
def colors_without_a_list(root, split, name, image, mask):
    put(image, root / f"images/{split}/{name}.jpg")
    put(colors(mask), root / f"masks/{split}/{name}.png")


@form("folder", HEX[:11], HEX[11])
def palettes_that_differ(root, split, name, image, mask):
    """As tools that sort a palette by use write them."""
    counts = np.bincount(mask.ravel(), minlength=12)
    order = np.argsort(-counts, kind="stable")
    place = np.argsort(order).astype(np.uint8)
    put(image, root / f"images/{split}/{name}.jpg")
    palette = [[*COLORS, (0, 0, 0)][i] for i in order]
    put(place[mask], root / f"masks/{split}/{name}.png", palette)


@form("folder", [*MADE_UP], "class_11")
def ids_as_equal_channels(root, split, name, image, mask):
    put(image, root / f"images/{split}/{name}.jpg")
    put(np.repeat(mask[..., None], 3, 2), root / f"masks/{split}/{name}.png")


@form("folder", ["thing" if i == 8 else "background" for i in range(11)], "background")
def black_and_white(root, split, name, image, mask):
    put(image, root / f"{name}.jpg")
    put(np.where(mask == 8, 255, 0).astype(np.uint8), root / f"{name}_mask.png")


@form("folder", ["car" if i == 8 else "background" for i in range(11)], "background")
def black_and_white_with_a_list(root, split, name, image, mask):
    put(image, root / f"images/{split}/{name}.jpg")
    put(np.where(mask == 8, 255, 0).astype(np.uint8), root / f"masks/{split}/{name}.png")
    (root / "classes.txt").write_text("background\ncar\n")


@form("folder", ["car" if i == 8 else "background" for i in range(11)], "background")
def black_and_white_in_16_bits(root, split, name, image, mask):
    put(image, root / f"images/{split}/{name}.jpg")
    put(np.where(mask == 8, 65535, 0).astype(np.uint16), root / f"masks/{split}/{name}.png")
    (root / "classes.txt").write_text("car\n")


@form("folder", ["thing" if i == 8 else "background" for i in range(11)], "background")
def one_bit_and_eight(root, split, name, image, mask):
    put(image, root / f"images/{split}/{name}.jpg")
    bits = mask == 8
    content = bits if split == "val" else np.where(bits, np.uint8(255), np.uint8(0))
    put(content, root / f"masks/{split}/{name}.png")


SEPARATE = {i: NAMES[i] for i in (0, 3, 8)}


@form("folder", [SEPARATE.get(i, "background") for i in range(11)], "background")
def one_file_a_class(root, split, name, image, mask):
    put(image, root / f"images/{split}/{name}.jpg")
    for i, word in SEPARATE.items():
        put(np.where(mask == i, 255, 0).astype(np.uint8), root / f"masks/{split}/{name}_{word}.png")


@form("folder", [SEPARATE.get(i, "background") for i in range(11)], "background")
def one_folder_a_class(root, split, name, image, mask):
    put(image, root / f"images/{split}/{name}.jpg")
    for i, word in SEPARATE.items():
        put(np.where(mask == i, 255, 0).astype(np.uint8), root / f"masks/{split}/{word}/{name}.png")


def voc_lists(root, split, name):
    lists = root / "ImageSets/Segmentation"
    lists.mkdir(parents=True, exist_ok=True)
    with open(lists / f"{split}.txt", "a") as file:
        file.write(f"{name}\n")


@form("voc", PRESETS["voc"]["names"][:11])
def voc(root, split, name, image, mask):
    put(image, root / f"VOC2012/JPEGImages/{name}.jpg")
    put(ids(mask), root / f"VOC2012/SegmentationClass/{name}.png", COLORS)
    voc_lists(root / "VOC2012", split, name)


@form("voc", NAMES)
def voc_folders_with_other_classes(root, split, name, image, mask):
    put(image, root / f"JPEGImages/{name}.jpg")
    put(ids(mask), root / f"SegmentationClass/{name}.png")
    voc_lists(root, split, name)
    (root / "class_names.txt").write_text("\n".join(NAMES))


@form("folder", NAMES, "background")
def voc_folders_with_colors(root, split, name, image, mask):
    """As CVAT exports segmentation masks."""
    put(image, root / f"JPEGImages/{name}.jpg")
    put(colors(mask), root / f"SegmentationClass/{name}.png")
    voc_lists(root, split, name)
    rows = zip([*NAMES, "background"], [*COLORS, (0, 0, 0)], strict=True)
    lines = [f"{name}:{r},{g},{b}::\n" for name, (r, g, b) in rows]
    (root / "labelmap.txt").write_text("# label:color_rgb:parts:actions\n" + "".join(lines))


@form("cityscapes", PRESETS["cityscapes"]["names"][:11])
def cityscapes_train_ids(root, split, name, image, mask):
    put(image, root / f"leftImg8bit/{split}/town/{name}_leftImg8bit.png")
    put(ids(mask), root / f"gtFine/{split}/town/{name}_gtFine_labelTrainIds.png")


LABEL_IDS = [23, 11, 17, 7, 8, 21, 20, 13, 26, 24, 33, 0]


@form(
    "cityscapes",
    [
        *["sky", "building", "pole", "road", "sidewalk", "vegetation", "traffic sign", "fence"],
        *["car", "person", "bicycle"],
    ],
)
def cityscapes_label_ids(root, split, name, image, mask):
    put(image, root / f"leftImg8bit/{split}/town/{name}_leftImg8bit.png")
    raw = np.array(LABEL_IDS, np.uint8)[mask]
    put(raw, root / f"gtFine/{split}/town/{name}_gtFine_labelIds.png")


@form("ade20k", PRESETS["ade20k"]["names"][:11])
def ade20k(root, split, name, image, mask):
    split = {"train": "training", "val": "validation"}[split]
    put(image, root / f"ADEChallengeData2016/images/{split}/{name}.jpg")
    put((mask + 1) % 12, root / f"ADEChallengeData2016/annotations/{split}/{name}.png")


@form("ade20k", ["thing" if i == 8 else "background" for i in range(11)], "background")
def ade20k_folders_with_two_values(root, split, name, image, mask):
    split = {"train": "training", "val": "validation"}[split]
    put(image, root / f"images/{split}/{name}.jpg")
    put((mask == 8).astype(np.uint8), root / f"annotations/{split}/{name}.png")


@form("coco-stuff", PRESETS["coco-stuff"]["names"][:11])
def coco_stuff(root, split, name, image, mask):
    put(image, root / f"images/{split}2017/{name}.jpg")
    put(ids(mask), root / f"annotations/{split}2017/{name}.png")


def data_yaml(root, **extra):
    content = {"path": "/elsewhere", "train": "images/train", "val": "images/val"}
    names = dict(enumerate(NAMES))
    (root / "data.yaml").write_text(yaml.safe_dump({**content, "names": names, **extra}))


@form("ultralytics", NAMES)
def ultralytics_masks(root, split, name, image, mask):
    put(image, root / f"images/{split}/{name}.jpg")
    put(ids(mask), root / f"masks/{split}/{name}.png")
    data_yaml(root, masks_dir="masks")


def coarse(mask):
    """The mask in squares of 24 pixels, which polygons can say."""
    return np.kron(mask[12::24, 12::24], np.ones((24, 24), np.uint8))


@form("ultralytics", NAMES, "background")
def ultralytics_polygons(root, split, name, image, mask):
    put(image, root / f"images/{split}/{name}.jpg")
    rows, columns = mask.shape[0] // 24, mask.shape[1] // 24
    lines = []
    for row, column in np.ndindex(rows, columns):
        value = mask[24 * row + 12, 24 * column + 12]
        x, y = (column / columns, (column + 1) / columns), (row / rows, (row + 1) / rows)
        corners = (x[0], y[0], x[1], y[0], x[1], y[1], x[0], y[1])
        if value != UNLABELLED:
            lines.append(" ".join(map(str, (value, *corners))))
    text = root / f"labels/{split}/{name}.txt"
    text.parent.mkdir(parents=True, exist_ok=True)
    text.write_text("\n".join(lines))
    data_yaml(root)


@form("coco", NAMES, "background")
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
    for value in np.unique(mask[mask != UNLABELLED]).tolist():
        rle = coco_api.encode(np.asfortranarray(mask == value))
        content["annotations"].append(
            {
                "id": len(content["annotations"]),
                "image_id": number,
                "category_id": value + 1,
                "iscrowd": 0,
                "segmentation": {**rle, "counts": rle["counts"].decode()},
            }
        )
    file.write_text(json.dumps(content))


def encoded(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "PNG")
    return buffer.getvalue()


def row(name: str, image: Path, mask: np.ndarray) -> dict:
    return {
        "picture": {"bytes": image.read_bytes(), "path": f"{name}.jpg"},
        "annotation": {"bytes": encoded(mask), "path": None},
    }


ROWS = datasets.Features(picture=datasets.Image(), annotation=datasets.Image())


@form("hub", MADE_UP)
def parquet(root, split, name, image, mask):
    rows = datasets.Dataset.from_list([row(name, image, ids(mask))], features=ROWS)
    rows.to_parquet(root / f"data/{split}-{name}.parquet")


@form("hub", HEX[:11], HEX[11])
def parquet_in_colors(root, split, name, image, mask):
    rows = datasets.Dataset.from_list([row(name, image, colors(mask))], features=ROWS)
    rows.to_parquet(root / f"{split}/{name}.parquet")


def init(root: Path, *arguments: str):
    output = root.parent / "recipe.yaml"
    return output, CliRunner().invoke(cli.app, ["init", str(root), "-o", str(output), *arguments])


@pytest.mark.parametrize("name", FORMS)
def test_every_form_is_recognised(camvid, tmp_path, name):
    """The class of every pixel of both splits, by its name."""
    root = tmp_path / "data"
    write, source, names = FORMS[name]
    for split, pictures in camvid.items():
        for stem, image, mask in pictures:
            write(root, split, stem, image, mask)
    output, done = init(root)
    assert done.exit_code == 0, done.output or done.exception
    recipe = load_recipe(output)
    assert recipe.data.source == source
    labels = recipe.labels.build()
    expected = np.array([labels.ignore_index if n is None else labels.label2id[n] for n in names])
    found = {}
    for split in (recipe.data.train_split, recipe.data.val_split):
        for sample in open_split(recipe.data, labels, split):
            key = sample["id"].replace("/", "_").removesuffix("_leftImg8bit")
            found[key.removeprefix("town_")] = split, sample["mask"]
    for split, pictures in camvid.items():
        for stem, _, mask in pictures:
            own, encoded = found.pop(stem)
            truth = coarse(mask) if write is ultralytics_polygons else mask
            assert np.array_equal(encoded, expected[truth])
            if recipe.data.val_fraction is None:
                splits = {"train": recipe.data.train_split, "val": recipe.data.val_split}
                assert own == splits[split]
    assert not found
    for line in done.stdout.splitlines():
        assert len(line) <= 250


SMALL = [
    *["model.depths=[1,1,1,1]", "model.hidden_sizes=[8,16,40,64]", "model.decoder_hidden_size=32"],
    *["data.workers=0", "train.threads=2"],
]


@pytest.mark.slow
@pytest.mark.parametrize("name", FORMS)
def test_what_it_writes_trains(camvid, tmp_path, monkeypatch, name):
    """Five steps and an evaluation, as it stands but for the size of the model."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FINETUNE_CACHE", str(tmp_path / "cache"))
    for split, pictures in camvid.items():
        for stem, image, mask in pictures:
            FORMS[name][0](tmp_path / "data", split, stem, image, mask)
    output, done = init(tmp_path / "data")
    assert done.exit_code == 0, done.output
    result = fit(load_recipe(output, ["train.steps=5", *SMALL]))
    rows = [json.loads(line) for line in (result.output / "metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["step"] == 5
    assert 0 <= rows[-1]["eval/mean_iou"] <= 1


@pytest.fixture
def saved(camvid, tmp_path) -> Path:
    splits = {
        split: datasets.Dataset.from_list(
            [row(name, image, ids(mask)) for name, image, mask in pictures], features=ROWS
        )
        for split, pictures in camvid.items()
    }
    datasets.DatasetDict(splits).save_to_disk(tmp_path / "saved")
    return tmp_path / "saved"


def test_what_save_to_disk_wrote(saved, camvid):
    output, done = init(saved)
    assert done.exit_code == 0, done.output
    recipe = load_recipe(output)
    assert (recipe.data.source, recipe.data.train_split, recipe.data.val_split) == (
        "hub",
        "train",
        "val",
    )
    samples = open_split(recipe.data, recipe.labels.build(), "val")
    for sample, (name, _, mask) in zip(samples, camvid["val"], strict=True):
        assert sample["id"] == name
        assert np.array_equal(sample["mask"], ids(mask))


def test_a_table_beside_pictures_is_not_what_is_meant(camvid, tmp_path):
    for split, pictures in camvid.items():
        for name, image, mask in pictures:
            two_folders(tmp_path / "data", split, name, image, mask)
    datasets.Dataset.from_dict({"a": [1]}).to_parquet(tmp_path / "data/metadata.parquet")
    output, done = init(tmp_path / "data")
    assert done.exit_code == 0, done.output
    assert load_recipe(output).data.source == "folder"


def test_what_pack_wrote_keeps_its_classes(camvid, tmp_path):
    for split, pictures in camvid.items():
        for name, image, mask in pictures:
            camvid_layout(tmp_path / "set", split, name, image, mask)
    pack(load_recipe("camvid", [f"data.path={tmp_path / 'set'}"]), tmp_path / "packed")
    output, done = init(tmp_path / "packed")
    assert done.exit_code == 0, done.output
    recipe = load_recipe(output)
    far = draft_from_table((tmp_path / "packed").as_uri(), tmp_path / "far.yaml").recipe
    for own in (recipe, far):
        assert own.labels.names == NAMES
        assert own.data.id_column == "id"
        assert len(open_split(own.data, own.labels.build(), "train")) == COUNT


def test_from_elsewhere_by_the_first_rows(camvid, tmp_path, monkeypatch):
    """An address, of which nothing but the first rows is read; it trains as it stands, streamed."""
    monkeypatch.chdir(tmp_path)
    for split, pictures in camvid.items():
        for name, image, mask in pictures:
            parquet(tmp_path / "bucket", split, name, image, mask)
    address = (tmp_path / "bucket").as_uri()
    arguments = ["init", "--from", f"hub:{address}", "-o", "far.yaml"]
    done = CliRunner().invoke(cli.app, arguments)
    assert done.exit_code == 0, done.output
    assert "the first 3 rows of train alone" in done.output
    recipe = load_recipe("far.yaml", ["train.steps=5", "data.streaming=true", *SMALL])
    assert recipe.data.path == address
    assert recipe.labels.names == MADE_UP
    assert recipe.train.global_batch == COUNT
    assert 0 <= fit(recipe).metrics["eval/mean_iou"] <= 1


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["data", "--from", "hub:a/b"],
        ["--from", "a/b"],
        ["--from", "hub:"],
        ["--from", "hub:a/b"],
    ],
)
def test_from_needs_one_place_that_can_be_opened(arguments, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(cli.app, ["init", *arguments])
    assert isinstance(done.exception, UserError)
    says_how = "--from hub:OWNER/NAME" in str(done.exception)
    assert says_how == (arguments != ["--from", "hub:a/b"])
    assert not list(tmp_path.iterdir())


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
    with pytest.raises(UserError, match=r"data\.val_split: the training uses"):
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


def test_the_recipe_s_folder_is_checked_before_the_images(tmp_path):
    (tmp_path / "file").write_text("mine")
    done = CliRunner().invoke(cli.app, ["init", "nowhere", "-o", str(tmp_path / "file/r.yaml")])
    assert isinstance(done.exception, UserError)
    assert "file is not a folder; choose another folder" in str(done.exception)


@pytest.mark.parametrize("name", ["recipe", "recipe.txt"])
def test_a_recipe_needs_a_name_that_is_found_again(camvid, tmp_path, name):
    for stem, image, mask in camvid["train"]:
        two_folders(tmp_path / "data", "train", stem, image, mask)
    arguments = ["init", str(tmp_path / "data"), "-o", str(tmp_path / name)]
    done = CliRunner().invoke(cli.app, arguments)
    assert isinstance(done.exception, UserError)
    assert "ends in .yaml" in str(done.exception)
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


def test_the_draft_holds_the_recipe_as_it_is_written(camvid, tmp_path):
    for stem, image, mask in camvid["train"]:
        two_folders(tmp_path / "data", "train", stem, image, mask)
    done = draft(tmp_path / "data", tmp_path / "mine.yaml", lambda layouts: layouts[0])
    assert done.recipe == load_recipe(tmp_path / "mine.yaml")
    assert done.recipe.name == "mine"
    written = {path.name for path in tmp_path.iterdir()}
    assert written == {"data", "mine.yaml", SCHEMA_FILE}


def test_editors_find_the_schema_beside_the_recipe(camvid, tmp_path):
    for stem, image, mask in camvid["train"]:
        two_folders(tmp_path / "data", "train", stem, image, mask)
    output, done = init(tmp_path / "data")
    assert f"Beside the recipe: {SCHEMA_FILE}" in done.output
    first = output.read_text(encoding="utf-8").splitlines()[0]
    schema = output.parent / first.removeprefix("# yaml-language-server: $schema=")
    assert schema.samefile(output.with_name(SCHEMA_FILE))
    content = json.loads(schema.read_text(encoding="utf-8"))
    jsonschema.validate(yaml.safe_load(output.read_text(encoding="utf-8")), content)


def test_a_choice_of_what_is_not_there_is_a_mistake(camvid, tmp_path):
    for stem, image, mask in camvid["train"]:
        two_folders(tmp_path / "data", "train", stem, image, mask)
    _, done = init(tmp_path / "data", "--choice", "7")
    assert str(done.exception) == "--choice 7: only layout 1 fits"
    _, done = init(tmp_path / "data", "--choice", "1")
    assert done.exit_code == 0


def test_bad_files_of_the_validation_are_found(camvid, tmp_path):
    for split, pictures in camvid.items():
        for stem, image, mask in pictures:
            two_folders(
                tmp_path / "data", split, stem, image, mask[:-1] if split == "val" else mask
            )
    output, done = init(tmp_path / "data")
    assert isinstance(done.exception, UserError)
    assert "labels/val" in str(done.exception)
    assert not output.exists()


def test_what_is_assumed_stands_in_the_recipe(camvid, tmp_path):
    for stem, image, mask in camvid["train"]:
        black_and_white_with_a_list(tmp_path / "data", "train", stem, image, mask)
    output, done = init(tmp_path / "data")
    assert done.exit_code == 0
    assert "# - 0 is background, 255 car" in output.read_text()


def test_doubts_stand_on_top_and_a_person_is_asked(tmp_path, monkeypatch):
    for i in range(6):
        mask = np.full((40, 60), 255, np.uint8)
        mask[:10] = np.arange(60) % 3
        photo = np.random.default_rng(i).integers(0, 256, (40, 60, 3), np.uint8)
        put(photo, tmp_path / f"d/images/{i}.png")
        put(np.kron(mask[::2, ::2], np.ones((2, 2), np.uint8)), tmp_path / f"d/masks/{i}.png")
    asked = []
    done = draft(tmp_path / "d", tmp_path / "r.yaml", lambda layouts: layouts[0], asked.append)
    assert asked == [done.doubts]
    assert done.doubts == ("75% of the pixels are ignored",)
    lines = done.text.splitlines()
    assert lines[2:4] == [
        "# Doubtful (look at the masks before you train):",
        "# - 75% of the pixels are ignored",
    ]
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr("typer.confirm", lambda *_, **__: False)
    with pytest.raises(UserError, match="the recipe is not written"):
        draft(tmp_path / "d", tmp_path / "no.yaml", lambda layouts: layouts[0], cli.data._accept)
    assert not (tmp_path / "no.yaml").exists()
