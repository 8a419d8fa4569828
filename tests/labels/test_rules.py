"""Labels that would be wrong without a word: what contradicts itself is refused at the start."""

import json
import re
import warnings
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from finetune.data.faults import Fault
from finetune.data.samples import preflight, upright_sizes, warn_of_shared_files
from finetune.data.sources.coco import coco
from finetune.data.sources.folders import image_folder
from finetune.data.sources.opening import open_split
from finetune.data.sources.ultralytics import read_data_yaml, ultralytics
from finetune.errors import UserError
from finetune.labels.rules import NO_OBJECT
from finetune.labels.translation import Labels
from finetune.pictures.reading import read_colors, read_mask
from finetune.recipe import recipe_from_values

HEIGHT, WIDTH = 24, 32
SQUARE = [4, 4, 12, 4, 12, 12, 4, 12]
NAMES = ["background", "car", "dog"]


def picture(path: Path, array: np.ndarray | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.zeros((HEIGHT, WIDTH, 3), np.uint8) if array is None else array).save(path)


# -------------------------------------------------------------------------------------------- COCO


def coco_set(root: Path, categories: dict[int, str], **annotation) -> Path:
    """Two images, each with one object a category."""
    images = [
        {"id": i, "file_name": f"{i}.png", "height": HEIGHT, "width": WIDTH} for i in range(2)
    ]
    for image in images:
        picture(root / "val" / image["file_name"])
    annotations = [
        {"id": 10 * i + c, "image_id": i, "category_id": c, "iscrowd": 0, "segmentation": [SQUARE]}
        | annotation
        for i in range(2)
        for c in categories
    ]
    rows = [{"id": c, "name": name} for c, name in categories.items()]
    file = root / "annotations/val.json"
    file.parent.mkdir(exist_ok=True)
    content = {"images": images, "annotations": annotations, "categories": rows}
    file.write_text(json.dumps(content))
    return file


def edited(file: Path, key: str, row: int, **values) -> None:
    content = json.loads(file.read_text())
    content[key][row] |= values
    file.write_text(json.dumps(content))


CAR_IS_1 = Labels.build(NAMES, map={1: "car", 2: "dog"}, background="background", ignore=[])


@pytest.mark.parametrize(
    ("categories", "labels", "message"),
    [
        ({1: "dog", 2: "car"}, CAR_IS_1, r"1 is 'dog' there, but in labels it means 'car'"),
        ({1: "Dog "}, CAR_IS_1, r"1 is 'Dog' there, but in labels it means 'car'"),
        # Ids that count from 1 without a map, and the id that is ignored unless said otherwise.
        ({1: "background"}, Labels.build(NAMES), r"1 is 'background' there, .* means 'car'"),
        ({255: "car"}, Labels.build(NAMES), "255 is 'car' there, but in labels it is ignored"),
        (
            {7: "car"},
            Labels.build(NAMES, unknown="ignore"),
            "7 is 'car' there, but in labels it is ignored",
        ),
        ({1: "car", 3: "cat"}, CAR_IS_1, r"category 3 \('cat'\), which 2 annotations have, is nei"),
    ],
)
def test_a_category_that_contradicts_the_labels(tmp_path, categories, labels, message):
    coco_set(tmp_path, categories)
    with pytest.raises(UserError, match=rf"val\.json: category {message}|val\.json: {message}"):
        coco(tmp_path, "val", labels)
    faults: list[Fault] = []
    coco(tmp_path, "val", labels, faults=faults)
    assert re.search(message, faults[0].what)


def test_categories_that_only_look_like_a_contradiction(tmp_path):
    """Merged ones, two of one name, other names than the recipe's, and one that nothing has."""
    categories = {1: "car", 2: "dog", 3: "truck", 4: "Car"}
    labels = Labels.build(NAMES, map={1: 1, 2: 2, 3: 1, 4: 1}, background="background", ignore=[])
    coco_set(tmp_path, categories)
    assert coco(tmp_path, "val", labels)[0]["mask"].max() == 1
    file = coco_set(tmp_path, {1: "car", 2: "dog"})
    content = json.loads(file.read_text())
    content["categories"].append({"id": 9, "name": "dog"})
    file.write_text(json.dumps(content))
    assert coco(tmp_path, "val", CAR_IS_1)[1]["mask"].max() == 2


@pytest.mark.parametrize(
    ("segmentation", "message"),
    [
        ([], r"4 of 4 annotations have no segmentation: 1, 2, 11, 12\. Outline.*iscrowd"),
        (None, "have no segmentation"),
        ([[1, 2, 3, 4]], "annotation 1 has points or lines in place of polygons"),
        ([SQUARE, [*SQUARE, 7]], "annotation 1 has a polygon that is not 3 or more pairs"),
        ([[*SQUARE, 1, float("nan")]], "annotation 1 has a polygon whose coordinates"),
        ([[*SQUARE, 1, True]], "annotation 1 has a polygon whose coordinates"),
        ([[*SQUARE, 1, "2"]], "annotation 1 has a polygon whose coordinates"),
        ([[*SQUARE, 1, 10**400]], "annotation 1 has a polygon whose coordinates"),
        ({"size": [WIDTH, HEIGHT], "counts": [WIDTH * HEIGHT]}, "an RLE of 24 x 32 pixels"),
        ({"size": [HEIGHT, WIDTH], "counts": [5]}, "counts do not add up"),
        ({"size": [HEIGHT, WIDTH], "counts": "~~"}, "an RLE that cannot be read"),
        ("text", "has no segmentation"),
    ],
)
def test_segmentations_are_looked_at_when_the_file_is_opened(tmp_path, segmentation, message):
    coco_set(tmp_path, {1: "car", 2: "dog"}, segmentation=segmentation)
    with pytest.raises(UserError, match=rf"val\.json: .*{message}") as error:
        coco(tmp_path, "val", CAR_IS_1)
    assert len(str(error.value)) < 600


def test_the_doctor_gets_objects_without_a_segmentation_and_keeps_the_others(tmp_path):
    edited(coco_set(tmp_path, {1: "car"}), "annotations", 0, segmentation=[])
    faults: list[Fault] = []
    data = coco(tmp_path, "val", CAR_IS_1, faults=faults)
    assert [data[i]["mask"].max() for i in range(2)] == [0, 1]
    assert [fault.kind for fault in faults] == ["bad-annotation"]


@pytest.mark.parametrize(
    ("key", "values", "message"),
    [
        ("images", {"file_name": "1.png"}, r"file_name '1\.png' stands twice in `images`"),
        ("images", {"id": 1}, "id '?1'? stands twice in `images`"),
        ("annotations", {"iscrowd": "x"}, "iscrowd is missing or wrong in a row of .annotations."),
        ("annotations", {"image_id": 1.5, "segmentation": [SQUARE * 1000]}, "image_id is missing"),
    ],
)
def test_rows_that_say_two_things(tmp_path, key, values, message):
    edited(coco_set(tmp_path, {1: "car", 2: "dog"}), key, 0, **values)
    with pytest.raises(UserError, match=rf"val\.json: {message}") as error:
        coco(tmp_path, "val", CAR_IS_1)
    assert len(str(error.value)) < 600


def test_a_size_that_is_not_the_images(tmp_path):
    file = coco_set(tmp_path, {1: "car"})
    edited(file, "images", 0, height=WIDTH, width=HEIGHT)
    data = coco(tmp_path, "val", CAR_IS_1)
    for read in (lambda: data[0], lambda: upright_sizes(data), lambda: preflight(data)):
        with pytest.raises(UserError, match=r"val\.json, image 0\.png.* 24 x 32 .* 32 x 24"):
            read()


@pytest.mark.parametrize("crowds", [1, 2])
def test_a_set_of_crowds(tmp_path, crowds):
    """What CVAT makes of masks: nothing would be learned, without a word."""
    file = coco_set(tmp_path, {1: "car"})
    for row in range(crowds):
        edited(file, "annotations", row, iscrowd=1)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        coco(tmp_path, "val", CAR_IS_1)
    found = [str(w.message) for w in caught if "are crowds" in str(w.message)]
    assert len(found) == (crowds == 2)
    assert all("val.json: 2 of 2 annotations" in message for message in found)


def test_file_names_of_windows(tmp_path):
    file = coco_set(tmp_path, {1: "car"})
    picture(tmp_path / "val/sub/0.png")
    edited(file, "images", 0, file_name="sub\\0.png")
    assert coco(tmp_path, "val", CAR_IS_1)[1]["mask"].max() == 1


# ------------------------------------------------------------------------------------- Ultralytics


def yolo_set(root: Path, names=("car", "dog"), lines=("0", "1"), folder="images/val") -> Path:
    for i, first in enumerate(lines):
        picture(root / f"images/val/{i}.png")
        text = root / f"labels/val/{i}.txt"
        text.parent.mkdir(parents=True, exist_ok=True)
        text.write_text(f"{first} 0.1 0.1 0.5 0.1 0.5 0.5 0.1 0.5\n")
    file = root / "data.yaml"
    file.write_text(
        yaml.safe_dump({"val": folder, "names": names if isinstance(names, dict) else list(names)})
    )
    return file


YOLO = Labels.build(["car", "dog", "background"], background="background")


def test_a_class_beyond_the_names_is_not_the_background(tmp_path):
    yolo_set(tmp_path, lines=("1", "2"))
    data = ultralytics(tmp_path, "val", YOLO)
    assert data[0]["mask"].min() == 1
    with pytest.raises(UserError, match=r"1\.txt, line 1: the class is 2, but `names` .* \(0 to 1"):
        data[1]


def test_names_of_data_yaml_that_contradict_the_labels(tmp_path):
    yolo_set(tmp_path, names=("dog", "car"))
    with pytest.raises(UserError, match=r"data\.yaml: class 0 is 'dog' there, .* means 'car'"):
        ultralytics(tmp_path, "val", YOLO)


def test_texts_without_an_image(tmp_path):
    yolo_set(tmp_path)
    (tmp_path / "labels/val/classes.txt").write_text("car\ndog\n")
    assert len(ultralytics(tmp_path, "val", YOLO)) == 2
    (tmp_path / "images/val/1.png").unlink()
    with pytest.raises(UserError, match=r"1 text files of polygons have no image: .*1\.txt"):
        ultralytics(tmp_path, "val", YOLO)
    faults: list[Fault] = []
    assert len(ultralytics(tmp_path, "val", YOLO, faults=faults)) == 1
    assert [fault.kind for fault in faults] == ["mask-without-image"]


@pytest.mark.parametrize(("gone", "warned"), [(2, False), (3, True)])
def test_most_images_without_a_text(tmp_path, gone, warned):
    yolo_set(tmp_path, lines=("0", "1", "0", "1"))
    for i in range(gone):
        (tmp_path / f"labels/val/{i}.txt").unlink()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        ultralytics(tmp_path, "val", YOLO)
    found = [str(w.message) for w in caught if "have no text file" in str(w.message)]
    assert bool(found) == warned
    assert not warned or "3 of 4 images of val" in found[0]


def test_folders_as_roboflow_writes_them(tmp_path):
    yolo_set(tmp_path / "set", folder="../images/val")
    assert len(ultralytics(tmp_path / "set", "val", YOLO)) == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("names: [yes, no]", "the name of class 0 in `names` is True. Put it in quotes"),
        ("names: [a, null]", "the name of class 1 in `names` is None"),
        ("names: {0: car, 2: dog}", "2 names, up to id 2, but none of id 1"),
        ("names: {1: car, 2: dog}", "2 names, up to id 2, but none of id 0"),
        ("names: {car: 0, dog: 1}", "the key 'car' in `names` is not an id"),
        ("names: {0: car, '0': dog}", "the key '0' in `names` is not an id of its own"),
        ("names: {no: car}", "the key False in `names` is not an id"),
        ("names: 3", "`names` must be a list"),
    ],
)
def test_names_that_are_none(tmp_path, text, message):
    (tmp_path / "data.yaml").write_text(text)
    with pytest.raises(UserError, match=rf"data\.yaml: .*{message}"):
        read_data_yaml(tmp_path / "data.yaml")


def test_ids_in_quotes_are_ids(tmp_path):
    (tmp_path / "data.yaml").write_text("names: {'1': dog, '0': car}")
    assert read_data_yaml(tmp_path / "data.yaml")["names"] == ["car", "dog"]


# ------------------------------------------------------------------------------------------ labels


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"colors": [(1, 1, 1), (2, 2, 2)], "map": {"#010101": "b"}, "kind": "colors"},
            "#010101 is the colour of 'a' .* makes it 'b'",
        ),
        (
            {"colors": [(1, 1, 1), (2, 2, 2)], "map": {"#010101": None}, "kind": "colors"},
            "#010101 is the colour of 'a' .* ignores it",
        ),
        ({"map": {"#0A0000": "a", "#0a0000": "b"}, "kind": "colors"}, "'#0a0000' is listed twice"),
        ({"map": {True: 0, 2: 1}}, "True is not a whole number"),
        ({"map": {1: True, 2: 1}}, "mapped to class True"),
        ({"ignore": [True]}, "True is not a whole number"),
        ({"colors": [(True, 1, 1), (2, 2, 2)]}, "colour 0 is"),
    ],
)
def test_rules_that_contradict_each_other(arguments, message):
    with pytest.raises(UserError, match=message):
        Labels.build(["a", "b"], **arguments)


def test_a_color_may_be_said_twice():
    labels = Labels.build(
        ["a", "b"],
        colors=[(1, 1, 1), (2, 2, 2)],
        map={"#010101": "a", "#0a0000": "b", "#0A0000": 1},
        kind="colors",
    )
    assert dict(labels.rules)[0x010101] == 0
    assert dict(labels.rules)[0x0A0000] == 1


def recipe(**sections):
    values = {"data": {"path": "x"}, "labels": {"names": ["a", "b"]}}
    return recipe_from_values({**values, **sections}, "r.yaml")


@pytest.mark.parametrize(
    "labels", [{"map": {True: 0, 5: 1}}, {"map": {0: True}}, {"ignore": [True]}]
)
def test_yes_and_no_are_no_mask_values(labels):
    with pytest.raises(UserError, match=r"labels\..*YAML reads yes, no, on and off so"):
        recipe(labels={"names": ["a", "b"], **labels})


def test_a_class_that_no_value_means():
    with pytest.warns(UserWarning, match="no mask value means 'b'"):
        recipe(labels={"names": ["a", "b", "c"], "map": {0: 0, 1: 0, 2: 2}})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        recipe(labels={"names": ["a", "b"], "map": {1: 0}, "background": "b"})


# ------------------------------------------------------------------------------------------ splits

APART = [
    {},
    {"images": "all", "split_list": "{split}.txt", "masks": "m"},
    {"images": "all", "masks": "m", "val_fraction": 0.2},
    {"images": "all", "masks": "m", "val_split": "train"},
    {"source": "coco", "images": "all"},
    {"source": "coco", "annotations": "all.json", "val_fraction": 0.5},
]
SAME = [
    {"images": "all", "masks": "m"},
    {"images": "all", "masks": "m", "split_list": "all.txt"},
    {"source": "coco", "annotations": "all.json"},
]


@pytest.mark.parametrize("data", APART + SAME)
def test_a_recipe_whose_splits_are_the_same_images(data):
    if data in APART:
        recipe(data={"path": "x", **data})
        return
    with pytest.raises(UserError, match=r"data\.val_split: 'val' would be the same images as 't"):
        recipe(data={"path": "x", **data})


def test_lists_that_share_names(tmp_path):
    for level, name in enumerate("abc"):
        picture(tmp_path / f"images/{name}.png", np.full((HEIGHT, WIDTH, 3), level, np.uint8))
        picture(tmp_path / f"masks/{name}.png", np.zeros((HEIGHT, WIDTH), np.uint8))
    (tmp_path / "train.txt").write_text("a\nb\n")
    (tmp_path / "val.txt").write_text("b\nc\n")
    own = {"path": str(tmp_path), "images": "images", "masks": "masks"}
    made = recipe(data={**own, "split_list": "{split}.txt"})
    labels = made.labels.build()
    train, val = (open_split(made.data, labels, split) for split in ("train", "val"))
    with pytest.warns(UserWarning, match="1 of 2 validation images are training images"):
        warn_of_shared_files(train, val)


# ------------------------------------------------------------------------------------------- files


@pytest.mark.parametrize("suffix", [".jpg", ".webp"])
@pytest.mark.parametrize("mask_suffix", ["", "_mask"])
def test_ids_do_not_survive_jpeg(tmp_path, suffix, mask_suffix):
    folder = "all" if mask_suffix else "masks"
    for name in "ab":
        picture(tmp_path / f"{'all' if mask_suffix else 'images'}/{name}.png")
        picture(
            tmp_path / f"{folder}/{name}{mask_suffix}{suffix}",
            np.zeros((HEIGHT, WIDTH, 3), np.uint8),
        )
    patterns = (
        {"images": "all", "masks": "all"} if mask_suffix else {"images": "images", "masks": "masks"}
    )
    with pytest.raises(UserError, match=r"2 masks are JPEG or WebP: .*labels\.tolerance"):
        image_folder(tmp_path, "val", Labels.build(["x", "y"]), **patterns, mask_suffix=mask_suffix)


def test_gif_masks(tmp_path):
    """Their palettes are as good as those of PNG: ids, and colours."""
    ids = np.random.default_rng(0).integers(0, 3, (HEIGHT, WIDTH)).astype(np.uint8)
    colors = [(255, 0, 0), (0, 255, 0), (0, 0, 255)]
    mask = Image.fromarray(ids)
    mask.putpalette([c for color in colors for c in color] + [0] * 759)
    picture(tmp_path / "images/val/x.png")
    (tmp_path / "masks/val").mkdir(parents=True)
    mask.save(tmp_path / "masks/val/x.gif", optimize=False)
    for arguments in ({}, {"kind": "colors", "colors": colors}):
        labels = Labels.build(["a", "b", "c"], **arguments)
        assert np.array_equal(image_folder(tmp_path, "val", labels)[0]["mask"], ids)


@pytest.mark.parametrize("suffix", [".gif", ".tif"])
def test_masks_of_several_frames(tmp_path, suffix):
    frames = [Image.fromarray(np.full((HEIGHT, WIDTH), i, np.uint8)) for i in range(3)]
    frames[0].save(tmp_path / f"x{suffix}", save_all=True, append_images=frames[1:])
    for read in (read_mask, read_colors):
        with pytest.raises(UserError, match=rf"x{suffix}: the mask has 3 frames or pages"):
            read(tmp_path / f"x{suffix}")


def test_colors_of_sixteen_bit(tmp_path):
    import cv2

    cv2.imwrite(str(tmp_path / "x.png"), np.full((4, 5, 3), 0x1234, np.uint16))
    with pytest.raises(UserError, match=r"x\.png: the mask has 16 bits a channel"):
        read_colors(tmp_path / "x.png")


# ------------------------------------------------------------------------------------ exact colours


@pytest.mark.parametrize("tolerance", [0, 1, 30])
def test_mended_colors_are_the_nearest(tolerance):
    """Against the plain rule, a pixel at a time; twice, since colours met are kept."""
    rng = np.random.default_rng(tolerance)
    colors = [int(c) for c in rng.integers(0, 2**24, 9)]
    near = np.array(colors)[rng.integers(0, 9, (20, 20))] ^ rng.integers(0, 8, (20, 20)) * 0x10101
    pixels = np.where(rng.random((20, 20)) < 0.8, near, rng.integers(0, 2**24, (20, 20)))
    pixels = pixels.astype(np.int32)

    def mended(value: int) -> int:
        def distance(other: int) -> int:
            return max(abs((value >> s & 255) - (other >> s & 255)) for s in (16, 8, 0))

        best = min(colors, key=distance)
        return best if distance(best) <= tolerance else value

    rules = tuple((color, i) for i, color in enumerate(colors))
    names = tuple(map(str, colors))
    labels = Labels(names, ((0, 0, 0),) * 9, rules, True, "colors", tolerance)
    known = dict(rules)
    for part in (pixels[:10], pixels, pixels):
        expected = [[mended(int(v)) for v in row] for row in part]
        assert labels.mended(part).tolist() == expected
        ids = [[known.get(v, 255) for v in row] for row in expected]
        assert labels.encode(part, "m").tolist() == ids


def test_values_on_the_borders_of_the_table():
    values = [-2, NO_OBJECT, 0, 65535, 65536, 2**24 - 1, 2**24]
    for kind in ("ids", "colors"):
        rules = tuple(sorted((value, i) for i, value in enumerate(values)))
        labels = Labels(tuple("abcdefg"), ((0, 0, 0),) * 7, rules, kind=kind)
        for chosen in (values, values[:4], values[2:6]):
            mask = np.array([chosen])
            assert labels.encode(mask, "m").tolist() == [[values.index(v) for v in chosen]]
