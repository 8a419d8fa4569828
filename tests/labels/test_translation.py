import pickle

import numpy as np
import pytest

from finetune.errors import UserError
from finetune.labels.colors import WRONG, default_colors
from finetune.labels.presets import PRESETS
from finetune.labels.translation import Labels

ABC = ["a", "b", "c"]


def encode_slowly(mask: np.ndarray, meaning: dict[int, int], ignore_index: int = 255) -> list:
    """The independent reference: one pixel at a time."""
    return [[meaning.get(int(v), ignore_index) for v in row] for row in mask]


def test_plain_ids_keep_their_value_and_255_is_ignored():
    labels = Labels.build(ABC)
    mask = np.array([[0, 1, 2], [255, 2, 0]], np.uint8)
    encoded = labels.encode(mask, "m.png")
    assert encoded.dtype == np.uint8
    assert encoded.tolist() == [[0, 1, 2], [255, 2, 0]]
    assert labels.num_labels == 3
    assert labels.ignore_index == 255
    assert labels.id2label == {0: "a", 1: "b", 2: "c"}
    assert labels.label2id == {"a": 0, "b": 1, "c": 2}


def test_reduce_zero_shifts_classes_down_and_ignores_zero():
    encoded = Labels.build(ABC, reduce_zero=True).encode(np.array([[0, 1, 3, 255]]), "m.png")
    assert encoded.tolist() == [[255, 0, 2, 255]]


def test_map_merges_and_ignores():
    labels = Labels.build(ABC, map={10: 0, 11: 0, 20: 1, 30: 2, 40: None}, ignore=[99])
    encoded = labels.encode(np.array([[10, 11, 20], [30, 40, 99]], np.uint8), "m.png")
    assert encoded.tolist() == [[0, 0, 1], [2, 255, 255]]


def test_binary_mask_of_0_and_255():
    labels = Labels.build(["background", "thing"], map={0: 0, 255: 1}, ignore=[])
    assert labels.encode(np.array([[0, 255]], np.uint8), "m.png").tolist() == [[0, 1]]


@pytest.mark.parametrize("dtype", ["u1", "u2", ">u2", "i1", "i2", "i4", "i8", "u4", "u8"])
def test_every_integer_dtype(dtype):
    meaning = {0: 2, 7: 0, 9: 0, 100: 1}
    mask = np.random.default_rng(0).choice([0, 7, 9, 100, 50], (13, 17)).astype(dtype)
    encoded = Labels.build(ABC, map=meaning, ignore=[50]).encode(mask, "m.png")
    assert encoded.dtype == np.uint8
    assert encoded.tolist() == encode_slowly(mask, meaning)


@pytest.mark.parametrize("values", [[-1, 5, 9], [0, 70000, 2**24]])
def test_values_beyond_the_lookup_table(values):
    labels = Labels.build(ABC, map={values[0]: None, values[1]: 1, values[2]: 2})
    mask = np.random.default_rng(0).choice(values, (6, 5))
    expected = encode_slowly(mask, {values[1]: 1, values[2]: 2})
    assert labels.encode(mask, "m.png").tolist() == expected
    mask[0, 0] = 12345678
    with pytest.raises(UserError, match=r"m\.png.*12345678 \(1 pixels\)"):
        labels.encode(mask, "m.png")


def test_bool_masks_count_as_0_and_1():
    labels = Labels.build(["background", "thing"])
    as_pillow_gives_it = np.array([[255, 0]], np.uint8).view(bool)
    for mask in (np.array([[True, False]]), as_pillow_gives_it):
        assert labels.encode(mask, "m.png").tolist() == [[1, 0]]


def test_more_than_255_classes_need_uint16():
    labels = Labels.build([f"class {i}" for i in range(300)], ignore=[65535])
    encoded = labels.encode(np.array([[0, 255, 299, 65535]], np.uint16), "m.png")
    assert encoded.dtype == np.uint16
    assert encoded.tolist() == [[0, 255, 299, 65535]]
    assert labels.ignore_index == 65535
    assert Labels.build([str(i) for i in range(255)]).ignore_index == 255
    with pytest.raises(UserError, match=r"labels\.ignore: raw value 255"):
        Labels.build([str(i) for i in range(256)])


def test_an_uncovered_value_names_the_file_the_values_and_the_remedy():
    mask = np.zeros((10, 10), np.uint8)
    mask[0, :7] = 17
    mask[1, :2] = 200
    with pytest.raises(UserError) as error:
        Labels.build(ABC).encode(mask, "masks/train/x.png")
    message = str(error.value)
    assert "masks/train/x.png" in message
    assert "17 (7 pixels), 200 (2 pixels)" in message
    assert "3 classes" in message
    for field in ("labels.map", "labels.ignore", "labels.reduce_zero"):
        assert field in message


def test_at_most_five_uncovered_values_are_listed():
    with pytest.raises(UserError, match="and 15 more") as error:
        Labels.build(ABC).encode(np.arange(3, 23).reshape(4, 5), "m.png")
    assert str(error.value).count("pixels)") == 5


def test_a_floating_point_mask_is_refused():
    with pytest.raises(UserError, match=r"m\.png.*float32"):
        Labels.build(ABC).encode(np.zeros((2, 2), np.float32), "m.png")


@pytest.mark.parametrize(
    ("block", "message"),
    [
        ({"names": ["thing"]}, r"labels.names.*\(background, thing\)"),
        ({"names": []}, "labels.names: 0 given"),
        ({"names": ["a", "b", "a"]}, "labels.names: 'a' names class 0 and class 2"),
        ({"names": ["a", " "]}, "labels.names: the name of class 1 is empty"),
        ({"names": ABC, "map": {0: 0, 1: 3}}, "labels.map: raw value 1.*class 3"),
        ({"names": ABC, "map": {0: 0}, "reduce_zero": True}, "labels.reduce_zero and labels.map"),
        ({"names": ABC, "map": {0: 0, 255: 1}}, "labels.ignore: raw value 255.*class 1 .'b'"),
        ({"names": ABC, "ignore": [1]}, "labels.ignore: raw value 1 .*class 1"),
        ({"names": ABC, "ignore": [1], "reduce_zero": True}, "labels.ignore: raw value 1.*class 0"),
        ({"names": ABC, "colors": [(1, 2, 3)]}, "labels.colors: 1 colours for 3"),
        ({"names": ABC, "colors": [(1, 2, 3), (1, 2), (4, 5, 6)]}, "labels.colors: colour 1"),
        ({"names": ABC, "colors": [(1, 2, 256)] * 3}, "labels.colors: colour 0"),
        ({"names": ABC, "map": {0: "d"}}, "labels.map: raw value 0 is mapped to 'd'"),
        ({"names": ABC, "map": {"#000000": 0}}, "labels.map: '#000000' is not a whole number"),
        ({"names": ABC, "kind": "colors"}, "labels.colors: missing"),
        ({"names": ABC, "kind": "colors", "colors": [(0, 0, 1)] * 3}, "'a' and 'b' .*#000001"),
        ({"names": ABC, "kind": "colors", "map": {"#12345": 0}}, "'#12345' is not a colour"),
        ({"names": ABC, "kind": "colors", "map": {0: 0}}, "labels.map: 0 is not a colour"),
        ({"names": ABC, "kind": "colors", "reduce_zero": True}, "labels.reduce_zero"),
        ({"names": ABC, "background": "d"}, "labels.background: 'd'"),
        ({"names": ABC, "background": "a", "ignore": [-1]}, "labels.background: .*-1 already"),
    ],
)
def test_a_contradictory_block_names_its_field(block, message):
    with pytest.raises(UserError, match=message):
        Labels.build(**block)


def test_ignoring_zero_twice_is_no_contradiction():
    labels = Labels.build(ABC, reduce_zero=True, ignore=[0, 255])
    assert labels.encode(np.array([[0, 1]]), "m.png").tolist() == [[255, 0]]


@pytest.mark.parametrize("num_labels", [2, 19, 150, 1000])
def test_default_colors_are_distinct_and_never_black(num_labels):
    colors = default_colors(num_labels)
    assert len(set(colors)) == num_labels
    assert all(max(color) > 60 for color in colors)
    assert default_colors(num_labels + 5)[:num_labels] == colors


def test_no_default_color_is_like_that_of_wrong_pixels():
    distances = np.abs(np.array(default_colors(1000)) - WRONG).max(-1)
    assert len(distances) == 1000
    assert distances.min() >= 80


def test_the_first_default_colors_are_far_apart():
    colors = np.array(default_colors(12), float)
    distances = np.linalg.norm(colors[:, None] - colors[None], axis=-1)
    assert distances[np.triu_indices(12, 1)].min() > 40


def test_labels_survive_pickling_without_their_table():
    labels = Labels.build(ABC)
    labels.encode(np.zeros((2, 2), np.uint8), "m.png")
    assert pickle.loads(pickle.dumps(labels)) == labels
    assert len(pickle.dumps(labels)) < 2000


@pytest.mark.parametrize(
    ("name", "num_labels", "last"),
    [
        ("ade20k", 150, "flag"),
        ("camvid", 11, "bicyclist"),
        ("cityscapes", 19, "bicycle"),
        ("cityscapes-label-ids", 19, "bicycle"),
        ("coco-stuff", 171, "wood"),
        ("shapes", 6, "ring"),
        ("voc", 21, "tvmonitor"),
    ],
)
def test_presets(name, num_labels, last):
    labels = Labels.build(**PRESETS[name])
    assert labels.num_labels == num_labels
    assert labels.names[-1] == last
    assert len(labels.colors) == num_labels


def test_official_tables():
    """Spot checks of the tables that the data sets publish."""
    voc = Labels.build(**PRESETS["voc"])
    colors = dict(zip(voc.names, voc.colors, strict=True))
    assert colors["person"] == (192, 128, 128)
    assert colors["tvmonitor"] == (0, 64, 128)
    cityscapes = Labels.build(**PRESETS["cityscapes-label-ids"])
    rules = dict(cityscapes.rules)
    names = {raw: cityscapes.names[i] for raw, i in rules.items() if i != 255}
    assert names[7] == "road"
    assert names[17] == "pole"
    assert names[24] == "person"
    assert names[28] == "bus"
    assert names[33] == "bicycle"
    assert {raw for raw in range(-1, 34) if rules[raw] == 255} == {
        *(-1, 0, 1, 2, 3, 4, 5, 6, 9, 10, 14, 15, 16, 18, 29, 30)
    }
    stuff = Labels.build(**PRESETS["coco-stuff"])
    rules = dict(stuff.rules)
    # Category ids less one: 1 person, 90 toothbrush, 92 banner, 182 wood.
    for raw, name in ((0, "person"), (89, "toothbrush"), (91, "banner"), (181, "wood")):
        assert stuff.names[rules[raw]] == name
    assert 11 not in rules  # street sign, which is in no mask


def test_the_ade20k_preset_follows_the_official_list(shared_data):
    listing = shared_data / "ade20k_sample" / "ADEChallengeData2016" / "objectInfo150.txt"
    if not listing.exists():
        pytest.skip(f"no {listing}")
    rows = listing.read_text().splitlines()[1:]
    official = [row.split("\t")[-1].split(",")[0].strip() for row in rows]
    assert PRESETS["ade20k"]["names"] == official


RED_GREEN = {"names": ["red", "green"], "colors": [(255, 0, 0), (0, 255, 0)], "kind": "colors"}


def test_colors_are_numbers():
    labels = Labels.build(**RED_GREEN, map={"#0000ff": "green", "000000": None}, ignore=["#FFFFFF"])
    mask = np.array([[0xFF0000, 0x00FF00, 0x0000FF], [0, 0xFFFFFF, 0xFF0000]], np.int32)
    assert labels.encode(mask, "m.png").tolist() == [[0, 1, 1], [255, 255, 0]]
    with pytest.raises(UserError, match=r"m\.png: .*colours .*: #00FF01 \(3 pixels\)"):
        labels.encode(np.full((1, 3), 0x00FF01, np.int32), "m.png")


def test_map_by_name_and_background():
    labels = Labels.build(ABC, map={7: "c", 8: 2, 9: None}, background="a")
    mask = np.array([[-1, 7, 8, 9, 255, -2]], np.int32)
    assert labels.encode(mask, "m.json").tolist() == [[0, 2, 2, 255, 255, 255]]
    with pytest.raises(UserError, match=r"3 pixels belong to no object .*labels\.background"):
        Labels.build(ABC).encode(np.full((1, 3), -1), "m.json")


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int32])
def test_unknown_values_are_ignored_if_wanted(dtype):
    labels = Labels.build(ABC, unknown="ignore")
    mask = np.array([[0, 2, 3, 77, 254]], dtype)
    assert labels.encode(mask, "m.png").tolist() == [[0, 2, 255, 255, 255]]
    colors = Labels.build(**RED_GREEN, unknown="ignore")
    assert colors.encode(np.array([[0x123456, 0xFF0000]]), "m.png").tolist() == [[255, 0]]
