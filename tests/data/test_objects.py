"""CamVid rewritten into every form in which data sets keep masks: the same labels come back."""

import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image
from pycocotools import mask as coco_api

from finetune.data.sources.archives import cityscapes, coco_stuff, voc
from finetune.data.sources.coco import coco
from finetune.data.sources.folders import image_folder
from finetune.data.sources.ultralytics import ultralytics
from finetune.errors import UserError
from finetune.labels.presets import PRESETS
from finetune.labels.rules import NO_OBJECT
from finetune.labels.translation import Labels

COUNT = 4
CAMVID = PRESETS["camvid"]
NAMES, COLORS = CAMVID["names"], CAMVID["colors"]
UNLABELLED = 11


@pytest.fixture(scope="module")
def camvid(shared_data) -> list[tuple[str, Path, np.ndarray]]:
    """Name, image file and raw mask (0 to 10, 11 is unlabelled) of a few pictures."""
    folder = shared_data / "camvid"
    images = sorted((folder / "val").glob("*.jpg"))[:: 101 // COUNT][:COUNT]
    masks = [np.array(Image.open(folder / "valannot" / f"{i.stem}.png")) for i in images]
    return [(i.stem, i, mask) for i, mask in zip(images, masks, strict=True)]


@pytest.fixture
def expected(camvid) -> dict[str, np.ndarray]:
    return {name: np.where(mask == UNLABELLED, 255, mask) for name, _, mask in camvid}


def copied(image: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(image.read_bytes())


def saved(array: np.ndarray, path: Path, palette=None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(array)
    if palette is not None:
        flat = [channel for color in palette for channel in color]
        image.putpalette(flat + [0] * (768 - len(flat)))  # or Pillow stores 4 bits a pixel
    image.save(path)


def masks_of(data) -> dict[str, np.ndarray]:
    rows = [data[i] for i in range(len(data))]
    return {Path(row["id"]).name: row["mask"] for row in rows}


def assert_equal(data, expected) -> None:
    found = masks_of(data)
    assert found.keys() == expected.keys()
    for name, mask in expected.items():
        assert found[name].dtype == np.uint8
        assert np.array_equal(found[name], mask)


def in_colors(mask: np.ndarray) -> np.ndarray:
    return np.array([*COLORS, (0, 0, 0)], np.uint8)[mask]


OBJECT_LABELS = Labels.build(NAMES, ignore=[NO_OBJECT])
COLOR_LABELS = Labels.build(NAMES, colors=COLORS, kind="colors", ignore=["#000000"])


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".tif"])
def test_colors(camvid, expected, tmp_path, suffix):
    for name, image, mask in camvid:
        copied(image, tmp_path / f"images/val/{name}.jpg")
        saved(in_colors(mask), tmp_path / f"masks/val/{name}{suffix}")
    assert_equal(image_folder(tmp_path, "val", COLOR_LABELS), expected)


def test_colors_of_a_palette_and_with_transparency(camvid, expected, tmp_path):
    for number, (name, image, mask) in enumerate(camvid):
        copied(image, tmp_path / f"images/val/{name}.jpg")
        if number % 2:  # the palette in another order than the classes
            saved(11 - mask, tmp_path / f"masks/val/{name}.png", [*COLORS, (0, 0, 0)][::-1])
        else:
            opaque = np.dstack([in_colors(mask), np.full(mask.shape, 255, np.uint8)])
            saved(opaque, tmp_path / f"masks/val/{name}.png")
    assert_equal(image_folder(tmp_path, "val", COLOR_LABELS), expected)


def test_colors_damaged_within_the_tolerance(camvid, expected, tmp_path):
    rng = np.random.default_rng(0)
    for name, image, mask in camvid:
        copied(image, tmp_path / f"images/val/{name}.jpg")
        noise = rng.integers(-12, 13, (*mask.shape, 3))
        noisy = np.clip(in_colors(mask).astype(int) + noise, 0, 255).astype(np.uint8)
        saved(noisy, tmp_path / f"masks/val/{name}.png")
    labels = Labels.build(NAMES, colors=COLORS, kind="colors", ignore=["#000000"], tolerance=12)
    assert_equal(image_folder(tmp_path, "val", labels), expected)
    with pytest.raises(UserError, match=r"\.png: the mask holds colours .*#"):
        image_folder(tmp_path, "val", COLOR_LABELS)[0]


def test_a_palette_holds_ids(camvid, expected, tmp_path):
    labels = Labels.build(NAMES, ignore=[UNLABELLED])
    for name, image, mask in camvid:
        copied(image, tmp_path / f"images/val/{name}.jpg")
        saved(mask, tmp_path / f"masks/val/{name}.png", [*COLORS, (0, 0, 0)])
    assert_equal(image_folder(tmp_path, "val", labels), expected)


def test_sixteen_bit(camvid, expected, tmp_path):
    labels = Labels.build(NAMES, map={1000 + i: i for i in range(11)}, ignore=[60000])
    for name, image, mask in camvid:
        copied(image, tmp_path / f"images/val/{name}.jpg")
        wide = np.where(mask == UNLABELLED, 60000, mask.astype(np.uint16) + 1000).astype(np.uint16)
        saved(wide, tmp_path / f"masks/val/{name}.png")
    assert_equal(image_folder(tmp_path, "val", labels), expected)


def test_black_and_white(camvid, tmp_path):
    labels = Labels.build(["background", "car"], map={0: 0, 255: 1}, ignore=[])
    for name, image, mask in camvid:
        copied(image, tmp_path / f"images/val/{name}.jpg")
        saved(np.where(mask == 8, 255, 0).astype(np.uint8), tmp_path / f"masks/val/{name}.png")
    cars = {name: (mask == 8).astype(np.uint8) for name, _, mask in camvid}
    assert_equal(image_folder(tmp_path, "val", labels), cars)


@pytest.mark.parametrize("masks", ["masks/val/{class}", "masks/{class}/val", "masks/val"])
def test_one_file_a_class(camvid, expected, tmp_path, masks):
    """Only classes that are in a picture have a file, and some pixels are in none."""
    for name, image, mask in camvid:
        copied(image, tmp_path / f"images/val/{name}.jpg")
        for value in np.unique(mask[mask != UNLABELLED]):
            folder = masks.replace("{class}", NAMES[value])
            file = f"{name}.png" if "{class}" in masks else f"{name}_{NAMES[value]}.png"
            saved((mask == value).astype(np.uint8) * 255, tmp_path / folder / file)
    suffix = "" if "{class}" in masks else "_{class}"
    data = image_folder(tmp_path, "val", OBJECT_LABELS, masks=masks, mask_suffix=suffix)
    assert_equal(data, expected)


def test_one_file_a_class_with_white_as_number_0(camvid, expected, tmp_path):
    """As programs that sort a palette by brightness or use write them."""
    for name, image, mask in camvid:
        copied(image, tmp_path / f"images/val/{name}.jpg")
        for value in np.unique(mask[mask != UNLABELLED]):
            file = tmp_path / f"masks/{NAMES[value]}/{name}.png"
            saved((mask != value).astype(np.uint8), file, [(255, 255, 255), (0, 0, 0)])
    data = image_folder(tmp_path, "val", OBJECT_LABELS, masks="masks/{class}")
    assert_equal(data, expected)


def test_voc(camvid, expected, tmp_path):
    labels = Labels.build(NAMES)
    root = tmp_path / "VOCdevkit/VOC2012"
    for name, image, mask in camvid:
        copied(image, root / f"JPEGImages/{name}.jpg")
        raw = np.where(mask == UNLABELLED, 255, mask).astype(np.uint8)
        saved(raw, root / f"SegmentationClass/{name}.png", COLORS)
    copied(camvid[0][1], root / "JPEGImages/not_in_the_list.jpg")
    lists = root / "ImageSets/Segmentation"
    lists.mkdir(parents=True)
    (lists / "val.txt").write_text("".join(f"{name}\n" for name, *_ in camvid))
    for path in (tmp_path, tmp_path / "VOCdevkit", root):
        assert_equal(voc(path, "val", labels), expected)
    with pytest.raises(UserError, match=r"no list .*train\.txt.* there are val"):
        voc(root, "train", labels)


@pytest.mark.parametrize("kind", ["labelTrainIds", "labelIds"])
def test_cityscapes(camvid, tmp_path, kind):
    """Both kinds of masks with the same classes."""
    ids = {"labelTrainIds": range(19), "labelIds": PRESETS["cityscapes-label-ids"]["map"]}[kind]
    raw_of = [raw for raw in ids if raw >= 0 and (kind == "labelTrainIds" or ids[raw] is not None)]
    raw_of = sorted(raw_of)
    preset = {"labelTrainIds": "cityscapes", "labelIds": "cityscapes-label-ids"}[kind]
    labels = Labels.build(**PRESETS[preset])
    ignored = {"labelTrainIds": 255, "labelIds": 0}[kind]
    for name, image, mask in camvid:
        copied(image, tmp_path / f"leftImg8bit/val/town/{name}_leftImg8bit.png")
        raw = np.array([*raw_of[:11], ignored], np.uint8)[mask]
        saved(raw, tmp_path / f"gtFine/val/town/{name}_gtFine_{kind}.png")
    wanted = {name: np.where(mask == UNLABELLED, 255, mask) for name, _, mask in camvid}
    assert_equal(cityscapes(tmp_path, "val", labels), wanted)
    other = {"labelTrainIds": "cityscapes-label-ids", "labelIds": "cityscapes"}[kind]
    with pytest.raises(UserError, match=f"labels.preset={preset}"):
        cityscapes(tmp_path, "val", Labels.build(**PRESETS[other]))


def test_coco_stuff(camvid, tmp_path):
    labels = Labels.build(**PRESETS["coco-stuff"])
    assert labels.num_labels == 171
    values = [0, 10, 12, 89, 91, 181, 24, 26, 27, 30, 43, 255]
    for name, image, mask in camvid:
        copied(image, tmp_path / f"images/val2017/{name}.jpg")
        saved(np.array(values, np.uint8)[mask], tmp_path / f"annotations/val2017/{name}.png")
    order = [v for v in range(182) if v not in {11, 25, 28, 29, 44, 65, 67, 68, 70, 82, 90}]
    table = np.array([*(order.index(value) for value in values[:-1]), 255], np.uint8)
    assert_equal(coco_stuff(tmp_path, "val", labels), {n: table[mask] for n, _, mask in camvid})


def data_yaml(root: Path, **extra) -> Path:
    file = root / "data.yaml"
    content = {"path": "/where/it/was/made", "val": "images/val", "names": dict(enumerate(NAMES))}
    file.write_text(yaml.safe_dump({**content, **extra}))
    return file


def test_ultralytics_masks(camvid, expected, tmp_path):
    for name, image, mask in camvid:
        copied(image, tmp_path / f"images/val/{name}.jpg")
        raw = np.where(mask == UNLABELLED, 255, mask).astype(np.uint8)
        saved(raw, tmp_path / f"masks/val/{name}.png")
    file = data_yaml(tmp_path, masks_dir="masks")
    for path in (file, tmp_path):
        assert_equal(ultralytics(path, "val", Labels.build(NAMES)), expected)


def squares(mask: np.ndarray, side: int = 40) -> list[tuple[int, int, int]]:
    """Class, left and top of squares on a grid: what polygons describe without rounding."""
    rows, columns = (range(0, edge - side, side * 2) for edge in mask.shape)
    found = [(int(mask[y, x]), x, y) for y in rows for x in columns]
    return [square for square in found if square[0] != UNLABELLED]


def painted(mask: np.ndarray, side: int = 40) -> np.ndarray:
    canvas = np.full(mask.shape, 255, np.uint8)
    for value, x, y in squares(mask, side):
        canvas[y : y + side, x : x + side] = value
    return canvas


def corners(x: int, y: int, side: int = 40) -> list[int]:
    return [x, y, x + side, y, x + side, y + side, x, y + side]


def test_ultralytics_polygons(camvid, tmp_path):
    for number, (name, image, mask) in enumerate(camvid):
        copied(image, tmp_path / f"images/val/{name}.jpg")
        if number == 0:
            continue  # an image without objects has no file
        height, width = mask.shape
        lines = [
            f"{value} "
            + " ".join(str(c / (height if i % 2 else width)) for i, c in enumerate(corners(x, y)))
            for value, x, y in squares(mask)
        ]
        text = tmp_path / f"labels/val/{name}.txt"
        text.parent.mkdir(parents=True, exist_ok=True)
        text.write_text("\n".join(lines) + "\n")
    wanted = {name: painted(mask) for name, _, mask in camvid}
    wanted[camvid[0][0]][:] = 255
    assert_equal(ultralytics(data_yaml(tmp_path), "val", OBJECT_LABELS), wanted)


def coco_file(camvid, root: Path, objects) -> None:
    """`objects` gives (category, crowd, segmentation) of a mask."""
    images, annotations = [], []
    for number, (name, image, mask) in enumerate(camvid):
        copied(image, root / f"val/{name}.jpg")
        height, width = mask.shape
        file_name = f"{name}.jpg"
        images.append({"id": 7 * number, "file_name": file_name, "height": height, "width": width})
        for category, crowd, segmentation in objects(mask):
            annotations.append(
                {
                    "id": len(annotations),
                    "image_id": 7 * number,
                    "category_id": category,
                    "iscrowd": int(crowd),
                    "segmentation": segmentation,
                }
            )
    categories = [{"id": i, "name": name} for i, name in enumerate(NAMES)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (root / "annotations").mkdir()
    (root / "annotations/val.json").write_text(json.dumps(content))


def as_counts(mask: np.ndarray) -> dict:
    """Uncompressed RLE: runs down the columns, the first of them of zeros."""
    flat = mask.T.ravel()
    edges = np.flatnonzero(np.diff(np.concatenate([[0], flat, [0]]))) if flat.any() else []
    bounds = np.concatenate([[0], edges, [flat.size]]).astype(int)
    counts = np.diff(bounds).tolist()
    return {"size": list(mask.shape), "counts": counts}


def as_compressed(mask: np.ndarray) -> dict:
    rle = coco_api.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": rle["size"], "counts": rle["counts"].decode()}


@pytest.mark.parametrize("encode", [as_counts, as_compressed])
def test_coco_rle(camvid, expected, tmp_path, encode):
    """Each class as one object; what is unlabelled as a crowd."""

    def objects(mask):
        for value in np.unique(mask):
            yield min(int(value), 10), value == UNLABELLED, encode(mask == value)

    coco_file(camvid, tmp_path, objects)
    labels = Labels.build(NAMES)  # not one pixel is without an object
    assert_equal(coco(tmp_path, "val", labels), expected)


def test_coco_polygons(camvid, tmp_path):
    def objects(mask):
        for value, x, y in squares(mask):
            halves = [x, y, x + 20, y, x + 20, y + 40, x, y + 40]
            yield value, False, [halves, [c + 20 * (1 - i % 2) for i, c in enumerate(halves)]]

    coco_file(camvid, tmp_path, objects)
    wanted = {name: painted(mask) for name, _, mask in camvid}
    assert_equal(coco(tmp_path, "val", OBJECT_LABELS), wanted)


@pytest.mark.parametrize(("overlap", "upper"), [("area", 3), ("order", 8)])
def test_overlapping_objects(camvid, tmp_path, overlap, upper):
    """A small one (3) before a large one (8) around it, and a crowd beneath both."""

    def objects(mask):
        yield 3, False, [corners(40, 40)]
        yield 8, False, [corners(20, 20, 80)]
        yield 0, True, as_counts(np.pad(np.ones((60, 60), int), ((0, 300), (0, 420))))

    coco_file(camvid[:1], tmp_path, objects)
    (mask,) = masks_of(coco(tmp_path, "val", OBJECT_LABELS, overlap=overlap)).values()
    assert mask[50, 50] == upper
    assert mask[90, 90] == 8
    assert mask[5, 5] == mask[200, 200] == 255
    background = Labels.build(NAMES, background="sky")
    (mask,) = masks_of(coco(tmp_path, "val", background)).values()
    assert mask[5, 5] == 255  # the crowd
    assert mask[200, 200] == 0
