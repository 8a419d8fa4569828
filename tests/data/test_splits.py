"""Splits by list and by share."""

from collections import Counter

import datasets
import pytest
from PIL import Image

from finetune.data.sources.opening import open_split
from finetune.data.splits import by_fold, by_fraction, by_list
from finetune.errors import UserError
from finetune.labels.translation import Labels
from finetune.recipe.data import read_data


def data(ids) -> datasets.Dataset:
    ids = list(ids)
    files = {key: [f"/set/{key}s/{name}.png" for name in ids] for key in ("image", "mask")}
    return datasets.Dataset.from_dict({"id": ids, **files})


FRAMES = [f"town{video}/clip_{video}_{frame:03}" for video in range(10) for frame in range(7)]


def test_a_list_takes_ids_with_and_without_file_types(tmp_path):
    (tmp_path / "val.txt").write_text("b.jpg\n\na\nb\n  c.d.png \n")
    assert by_list(data(["a", "b", "c.d", "e"]), tmp_path / "val.txt")["id"] == ["a", "b", "c.d"]


def test_a_list_that_is_wrong(tmp_path):
    for content, message in (("a\nx\ny.png\n", "do not exist, .*: x, y.png"), ("\n", "no samples")):
        (tmp_path / "val.txt").write_text(content)
        with pytest.raises(UserError, match=message):
            by_list(data(["a", "b"]), tmp_path / "val.txt")
    with pytest.raises(UserError, match="cannot be read"):
        by_list(data(["a"]), tmp_path / "none.txt")


@pytest.mark.parametrize(
    "line",
    [
        "d/a b.1",
        "d/a b.1.png",
        "images/d/a b.1.png masks/d/a b.1.png",
        "images/d/a b.1.png\tmasks/d/a b.1.png",
        "/home/x/set/images/d/a b.1.png,/home/x/set/masks/d/a b.1.png",
        "images\\d\\a b.1.jpg",
        "./images/d/a b.1",
        "set/images/d/a b.1",
        "a b.1.png",
    ],
)
def test_a_line_that_names_a_sample(tmp_path, line):
    (tmp_path / "val.txt").write_bytes(b"\xef\xbb\xbf" + line.encode() + b"\r\n# a comment\n")
    found = by_list(data(["a b", "b.1", "d/a b.1", "e/a"]), tmp_path / "val.txt")
    assert found["id"] == ["d/a b.1"]


@pytest.mark.parametrize("line", ["cat_1 1 2 1", "cat_1 -1", "cat_1  1", "images/cat_1.jpg"])
def test_numbers_after_a_name(tmp_path, line):
    (tmp_path / "val.txt").write_text(line)
    assert by_list(data(["cat", "cat_1", "cat_11"]), tmp_path / "val.txt")["id"] == ["cat_1"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("images/e/a.png", "do not exist"),  # another folder than any image's
        ("b.png", "do not exist"),  # two of this name
        ("a masks", "do not exist"),
        ("images/a.png masks/c.png", "names the mask masks/c.png"),
    ],
)
def test_a_line_that_names_none_or_another_mask(tmp_path, line, message):
    (tmp_path / "val.txt").write_text(line)
    with pytest.raises(UserError, match=message):
        by_list(data(["a", "x/b", "y/b", "c"]), tmp_path / "val.txt")


def test_names_in_two_unicode_forms(tmp_path):
    (tmp_path / "val.txt").write_text("Cafe\u0301.png\n", encoding="utf-8")
    assert by_list(data(["Caf\u00e9", "b"]), tmp_path / "val.txt")["id"] == ["Caf\u00e9"]


@pytest.mark.parametrize("fraction", [0.01, 0.1, 0.5, 0.99])
def test_a_share_takes_every_sample_once(fraction):
    rest, chosen = by_fraction(data(FRAMES), fraction, seed=0, group=None)
    assert Counter([*rest["id"], *chosen["id"]]) == Counter(FRAMES)
    assert len(chosen) == max(1, round(fraction * len(FRAMES)))
    again = by_fraction(data(reversed(FRAMES)), fraction, seed=0, group=None)
    assert set(again[1]["id"]) == set(chosen["id"])
    if fraction == 0.5:
        other = by_fraction(data(FRAMES), fraction, seed=1, group=None)
        assert set(other[1]["id"]) != set(chosen["id"])


@pytest.mark.parametrize("group", [r"clip_\d+", r"^town(\d+)/"])
def test_groups_stay_together(group):
    rest, chosen = by_fraction(data(FRAMES), 0.3, seed=3, group=group)
    videos = [{name.split("/")[0] for name in part["id"]} for part in (rest, chosen)]
    assert not videos[0] & videos[1]
    assert [len(part) for part in videos] == [7, 3]


def test_a_set_that_grows_keeps_its_split():
    before = set(by_fraction(data(FRAMES), 0.2, seed=0, group=None)[1]["id"])
    after = set(by_fraction(data([*FRAMES, "one/more"]), 0.2, seed=0, group=None)[1]["id"])
    assert len(before ^ after) <= 2


@pytest.mark.parametrize(
    ("ids", "group", "message"),
    [
        (["a"], None, "only one"),
        (["a1", "a2"], "a", "one group"),
        (["a", "b"], "[", "not a regular expression"),
        (["a", "b"], "a", "finds nothing in the id 'b'"),
    ],
)
def test_what_cannot_be_split(ids, group, message):
    with pytest.raises(UserError, match=message):
        by_fraction(data(ids), 0.5, seed=0, group=group)


@pytest.mark.parametrize(("folds", "group"), [(2, None), (3, None), (70, None), (3, r"clip_\d+")])
def test_folds_cover_the_set_once_and_are_of_equal_size(folds, group):
    parts = [by_fold(data(FRAMES), fold, folds, seed=0, group=group) for fold in range(folds)]
    held_out = [set(chosen["id"]) for _, chosen in parts]
    assert Counter(name for names in held_out for name in names) == Counter(FRAMES)
    for (rest, _), names in zip(parts, held_out, strict=True):
        assert set(rest["id"]) == set(FRAMES) - names
        assert abs(len(names) - len(FRAMES) / folds) <= (7 if group else 1)
        clips = {name.rpartition("_")[0] for name in names}
        assert not group or clips.isdisjoint(name.rpartition("_")[0] for name in rest["id"])


def test_folds_are_drawn_by_names_and_seed():
    def held_out(ids, seed=0):
        return by_fold(data(ids), 1, 3, seed=seed, group=None)[1]["id"]

    assert set(held_out(FRAMES)) == set(held_out(reversed(FRAMES)))
    assert set(held_out(FRAMES)) != set(held_out(FRAMES, seed=1))
    assert set(held_out(FRAMES)) != set(FRAMES[24:47])
    assert len(set(held_out(FRAMES)) ^ set(held_out([*FRAMES, "one/more"]))) <= 3


def test_too_few_groups_for_the_folds():
    with pytest.raises(UserError, match=r"data\.folds: fold 1 of 4 has no samples: .* 3 groups"):
        by_fold(data(["a", "b", "c"]), 0, 4, seed=0, group=None)  # before fold 0 is trained
    with pytest.raises(UserError, match=r"data\.folds: the samples cannot be split"):
        by_fold(data(FRAMES), 0, 2, seed=0, group="town")


def test_folds_cut_the_list_of_the_training_split(tmp_path):
    for kind in ("images", "masks"):
        (tmp_path / kind).mkdir()
        for name in "abcdefg":
            Image.new("L", (4, 4)).save(tmp_path / kind / f"{name}.png")
    (tmp_path / "train.txt").write_text("b\nc\ne\nf\ng\n")
    section = {"path": str(tmp_path), "images": "images", "masks": "masks", "folds": 2}
    section |= {"split_list": "{split}.txt"}
    found = [
        open_split(read_data({**section, "fold": fold}), Labels.build(["x", "y"]), split)["id"]
        for fold in (0, 1)
        for split in ("val", "train")
    ]
    assert found[0] == found[3] != []
    assert found[1] == found[2] != []
    assert sorted([*found[0], *found[1]]) == list("bcefg")
