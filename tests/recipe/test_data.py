"""The section `data`: each source has keys of its own."""

from pathlib import Path

import pytest
import yaml

from finetune.data.sources.opening import OPENERS
from finetune.errors import UserError
from finetune.recipe import load_recipe, recipe_from_values, recipe_from_yaml
from finetune.recipe.data import READ_BY, SOURCE_CLASSES, SOURCES, HubData, StoredData, read_data

EARLIER = Path(__file__).with_name("resolved-0.1.yaml")
NAMES = {"names": ["a", "b"]}
COMMON = {"source", "train_split", "val_split", "image_mean", "image_std", "workers", "cache"}
OWN = {
    "shapes": {"train_samples", "val_samples", "size"},
    "folder": {"split_list", "images", "masks", "image_suffix", "mask_suffix", "without_mask"},
    "hub": {"revision", "subset", "image_column", "mask_column", "id_column", "streaming"},
    "coco": {"split_list", "images", "annotations", "overlap"},
    "coco-panoptic": {"split_list", "images", "masks", "annotations"},
    "cvat": {"split_list", "images", "annotations"},
    "kaggle-rle": {"split_list", "images", "annotations", "overlap"},
    "label-studio": {"split_list", "images", "annotations", "brushes", "overlap"},
    "labelme": {"split_list", "images", "masks", "overlap", "without_mask"},
    "supervisely": {"split_list", "images", "overlap", "without_mask"},
    "ultralytics": {"split_list", "overlap"},
    "via": {"split_list", "images", "annotations", "attribute", "overlap"},
    "camvid": {"split_list"},
}
STORED = {"path", "val_fraction", "folds", "fold", "split_seed", "split_group"}


def of(source, **keys):
    values = {"source": source, **({} if source == "shapes" else {"path": "x"}), **keys}
    labels = {"preset": "shapes"} if source == "shapes" else NAMES
    return recipe_from_values({"data": values, "labels": labels}, "mine.yaml")


@pytest.mark.parametrize("source", OWN)
def test_keys_of_a_source(source):
    stored = STORED if source != "shapes" else set()
    assert type(of(source).data).model_fields.keys() == COMMON | stored | OWN[source]


def test_all_sources_are_known_and_opened():
    assert len(SOURCES) > 8
    assert set(SOURCES.values()) == set(SOURCE_CLASSES)
    assert {SOURCES[source] for source in OWN} == set(SOURCE_CLASSES), "enter its keys in OWN"
    assert OPENERS.keys() == {
        s for s, section in SOURCES.items() if issubclass(section, StoredData)
    }


def test_a_key_means_the_same_wherever_it_is_read():
    shared = {key: sources for key, sources in READ_BY.items() if key != "source"}
    assert len(shared) > 20
    for key, sources in shared.items():
        fields = [SOURCES[source].model_fields[key] for source in sources]
        assert len({(repr(f.default), f.description) for f in fields}) == 1


def test_a_recipe_without_a_source_is_about_a_folder():
    recipe = recipe_from_values({"data": {"path": "x"}, "labels": NAMES}, "mine.yaml")
    assert recipe.data.source == "folder"
    assert recipe.data.masks == "masks/{split}"


@pytest.mark.parametrize(
    ("source", "keys", "expected"),
    [
        (
            "coco",
            {"masks": "m"},
            "data.masks: read by source coco-panoptic / folder / labelme, ",
        ),
        ("hub", {"split_list": "x"}, "data.split_list: read by source ade20k / .* / voc, not hub"),
        ("camvid", {"streaming": True}, "data.streaming: read by source hub, not camvid"),
        ("shapes", {"path": "x"}, "data.path: read by source .*, not shapes; take it out or"),
        ("folder", {"imags": "x"}, "data.imags: unknown key; did you mean data.images"),
        ("foldr", {}, "data.source: 'foldr' is none of shapes, .*; did you mean folder"),
        ("folder", {"path": None}, "data.path: missing; the source folder needs"),
        (
            "hub",
            {"streaming": True, "cache": "disk"},
            "data.cache: disk needs all .*data.streaming",
        ),
        ("hub", {"streaming": True, "val_fraction": 0.1}, "data.val_fraction: 0.1 needs all"),
        (
            "folder",
            {"masks": "m", "images": "i"},
            "data.val_split: 'val' .*in data.images and data",
        ),
        ("coco", {"annotations": "a.json"}, "data.val_split: .*no {split} in data.annotations"),
        ("folder", {"split_seed": 3}, "data.split_seed: needs data.val_fraction"),
        ("folder", {"val_fraction": 0.1, "split_list": "x"}, "data.val_fraction: .*give one"),
        (
            "folder",
            {"val_fraction": 0.1, "val_split": "train"},
            "data.val_split: the training uses 'train'",
        ),
        (
            "folder",
            {"folds": 3, "val_split": "train"},
            r"data.val_split: .* with data\.folds, give",
        ),
        ("folder", {"folds": 3, "fold": 3}, "data.fold: 3 needs data.folds of at least 4"),
        ("folder", {"fold": 1}, "data.fold: 1 needs data.folds of at least 2"),
        ("folder", {"folds": 1}, "data.folds: .*greater than or equal to 2"),
        ("folder", {"folds": 2, "val_fraction": 0.1}, "data.folds: data.val_fraction cuts"),
        ("hub", {"streaming": True, "folds": 2}, "data.folds: 2 needs all"),
        ("folder", {"workers": -1}, "data.workers: .*greater than or equal to 0"),
    ],
)
def test_mistakes(source, keys, expected):
    with pytest.raises(UserError, match=expected):
        of(source, **keys)


def test_data_must_be_a_section():
    with pytest.raises(UserError, match=r"data: must be a section .*got 3"):
        recipe_from_values({"data": 3, "labels": NAMES}, "mine.yaml")


def test_what_depends_on_the_source():
    assert of("shapes").data.is_drawn
    assert not of("folder").data.is_drawn
    assert of("hub", streaming=True).data.is_streamed
    assert not of("hub").data.is_streamed
    assert not of("coco").data.is_streamed
    assert of("voc", val_fraction=0.25).data.held_back == 0.25
    assert of("voc", folds=3, fold=2).data.held_back == pytest.approx(1 / 3)
    assert of("shapes").data.held_back is None
    found = read_data({"source": "hub", "path": "owner/name", "subset": "a"})
    assert isinstance(found, HubData)
    assert found.subset == "a"


def test_recipes_of_earlier_versions_are_read():
    old = recipe_from_yaml(EARLIER)
    assert (old.train.steps, old.data.source, old.data.size) == (4000, "shapes", (64, 64))
    values = yaml.safe_load(EARLIER.read_text(encoding="utf-8"))
    foreign = [key for key in values["data"] if "shapes" not in READ_BY[key]]
    assert len(foreign) > 10
    for key in foreign:
        del values["data"][key]
    new = recipe_from_values(values, "mine.yaml")
    assert old.differences(new) == []
    assert old.hash() == new.hash()
    assert load_recipe(EARLIER).data == old.data


@pytest.mark.parametrize("source", SOURCES)
def test_keys_of_other_sources_may_stand_at_their_default(source, tmp_path):
    values = yaml.safe_load(EARLIER.read_text(encoding="utf-8"))
    values["data"] |= {"train_samples": 4000, "size": [96, 96], "source": source}
    if source != "shapes":
        values["data"]["path"] = "somewhere"
        values["labels"] = NAMES
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    data = recipe_from_yaml(path).data
    assert type(data) is SOURCES[source]
    assert data.val_split == "val"
    values["data"]["size" if source != "shapes" else "masks"] = [5, 5]
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    with pytest.raises(UserError, match="read by source"):
        recipe_from_yaml(path)


def test_two_sources_differ_in_the_keys_of_both():
    folder, hub = of("folder", masks="m/{split}"), of("hub", subset="s")
    lines = folder.differences(hub)
    assert "data.source: folder -> hub" in lines
    assert "data.masks: m/{split} -> null" in lines
    assert "data.subset: null -> s" in lines
