"""From a name to a resolved recipe: what ships, bases, overrides, and files that are broken."""

import os
import re
import warnings
from pathlib import Path

import pytest
import yaml

from finetune.errors import UserError
from finetune.recipe import Recipe, find_recipe, load_recipe, shipped_folder, shipped_recipes


def write(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def test_every_shipped_recipe_is_valid():
    names = [path.stem for path in shipped_recipes()]
    official = ["ade20k", "camvid", "cityscapes", "coco-stuff", "voc"]
    assert sorted(names) == sorted([*official, "folder", "shapes"])
    for path in shipped_recipes():
        recipe = load_recipe(path)
        assert len(path.read_text().splitlines()) <= 30, "differences only"
        assert recipe.name == path.stem
        assert recipe.output == f"runs/{path.stem}"
        recipe.labels.build()
        recipe.batch_split(1)


def test_how_to_train_longer_on_shapes():
    """The command that the recipe and `make run` name changes how long and how fast, no more."""
    pages = (find_recipe("shapes"), Path(__file__).resolve().parents[2] / "Makefile")
    command = re.compile(r"finetune train shapes (train[^'\n]*)")
    found = [command.findall(page.read_text(encoding="utf-8")) for page in pages]
    assert found[0] == found[1]
    assert len(found[0]) == 1
    short, long = load_recipe("shapes"), load_recipe("shapes", found[0][0].split())
    assert short.differences(long) == ["train.steps: 2000 -> 4000", "train.lr: 0.002 -> 0.001"]
    assert short.output != long.output


def test_accelerate_configs_are_about_hardware_only():
    paths = sorted((shipped_folder() / "accelerate").glob("*.yaml"))
    assert len(paths) == 1
    for path in paths:
        values = yaml.safe_load(path.read_text())
        assert values["num_processes"] >= 1
        assert not values.keys() & Recipe.model_fields.keys()


def test_published_settings_of_ade20k():
    recipe = load_recipe("ade20k")
    train, augment = recipe.train, recipe.augment
    assert (train.steps, train.global_batch, train.lr) == (160_000, 16, 6e-5)
    assert (train.warmup_steps, train.weight_decay, train.head_lr_multiplier) == (1500, 0.01, 10)
    assert (train.schedule, train.power, train.clip_norm) == ("poly", 1.0, None)
    assert augment.base_size == (2048, 512)
    assert augment.crop == (512, 512)
    assert augment.scale == (0.5, 2.0)
    assert augment.cat_max_ratio == 0.75
    labels = recipe.labels.build()
    assert labels.num_labels == 150
    assert labels.names[0] == "wall"
    assert labels.names[149] == "flag"
    assert labels.id2label[0] == "wall"


def test_base_and_overrides(tmp_path, monkeypatch):
    write(tmp_path, "one.yaml", "base: shapes\ntrain: {steps: 700}\nseed: 3\n")
    write(tmp_path, "two.yaml", "base: one\ntrain: {lr: 1e-3}\naugment: {scale: [1, 1]}\n")
    monkeypatch.chdir(tmp_path)
    recipe = load_recipe("two", ["train.global_batch=4", "output=somewhere"])
    assert recipe.train.steps == 700
    assert recipe.train.lr == 1e-3
    assert recipe.train.global_batch == 4
    assert recipe.seed == 3
    assert recipe.augment.scale == (1.0, 1.0)  # a list is replaced, not merged
    assert recipe.output == "somewhere"
    assert recipe.name == "two"
    assert recipe.labels.names[0] == "background"  # from the shipped base's preset
    same = load_recipe("two", {"train.global_batch": 4, "output": "somewhere"})
    assert same == recipe


def test_a_new_source_drops_the_keys_of_the_old_one(tmp_path):
    data, labels = "data: {source: folder, path: x}", "labels: {preset: null, names: [a, b]}"
    path = write(tmp_path, "mine.yaml", f"base: shapes\n{data}\n{labels}\n")
    assert load_recipe(path).data.path == "x"
    overrides = ["data.source=folder", "data.path=x", "labels={names: [a, b]}"]
    assert load_recipe(path).data == load_recipe("shapes", overrides).data
    back = load_recipe(path, ["data.source=shapes", "labels={preset: shapes}"])
    assert back.data.source == "shapes"
    write(tmp_path, "mine.yaml", "base: shapes\ndata: {source: shapes, sise: [9, 9]}\n")
    with pytest.raises(UserError, match=r"data.sise: unknown key; did you mean data.size"):
        load_recipe(path)


def test_a_folder_is_no_recipe(tmp_path):
    with pytest.raises(UserError, match=r"is a folder, not a recipe; `finetune init .*` writes"):
        load_recipe(tmp_path)
    write(tmp_path, "recipe.yaml", "base: shapes\n")
    with pytest.raises(UserError, match=r"is a folder, not a recipe; take .*recipe\.yaml"):
        load_recipe(tmp_path)


def test_lookup_order(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shipped = find_recipe("shapes")
    assert find_recipe("shapes.yaml") == shipped
    mine = write(tmp_path, "shapes.yaml", "base: camvid\n")
    assert find_recipe("shapes").resolve() == mine.resolve()
    os.remove(mine)
    (tmp_path / "shapes").mkdir()  # a folder of that name is not a recipe
    assert find_recipe("shapes") == shipped


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("seed: 1\nseed: 2\n", "'seed' occurs twice"),
        ("- 1\n", "must hold `key: value` lines, such as"),
        ("seed: [1\n", "mine.yaml: not valid YAML: line 2, column 1: expected ',' or ']'"),
        ("name: 2024-13-01\n", "mine.yaml: not valid YAML: month must be in 1..12"),
        ("base: nowhere\n", "no recipe 'nowhere'"),
        ("base: mine\n", "circle"),
        ("a: !!python/object/apply:os.system ['true']\n", "not valid YAML"),
        ("[" * 5000, "mine.yaml: not valid YAML: too many brackets"),
    ],
)
def test_broken_files(text, expected, tmp_path):
    path = write(tmp_path, "mine.yaml", text)
    with pytest.raises(UserError, match=expected) as caught:
        load_recipe(path)
    assert "mine.yaml" in str(caught.value) or "nowhere" in str(caught.value)


@pytest.mark.parametrize(
    ("text", "steps"), [("010", 10), ("0100", 100), ("1_000", 1000), ("0x10", 16), ("+7", 7)]
)
def test_integers_are_decimal_as_in_yaml_1_2(text, steps, tmp_path):
    path = write(tmp_path, "mine.yaml", f"base: shapes\ntrain: {{steps: {text}, warmup_steps: 0}}")
    assert load_recipe(path).train.steps == steps
    overridden = load_recipe("shapes", [f"train.steps={text}", "train.warmup_steps=0"])
    assert overridden.train.steps == steps


def test_no_time_of_day_is_an_integer():
    with pytest.raises(UserError, match=r"train.steps: must be an integer \(got '1:30'\)"):
        load_recipe("shapes", ["train.steps=1:30"])


def test_yaml_merges_sections(tmp_path):
    text = "base: shapes\ntrain:\n  <<: {steps: 300, seed: 1}\n  steps: 400\n"
    with pytest.raises(UserError, match=r"train\.seed: unknown key"):
        load_recipe(write(tmp_path, "mine.yaml", text))
    path = write(tmp_path, "mine.yaml", text.replace(", seed: 1", ", lr: 0.5"))
    assert (load_recipe(path).train.steps, load_recipe(path).train.lr) == (400, 0.5)


def test_an_unknown_name_suggests_the_nearest():
    with pytest.raises(UserError, match="did you mean camvid"):
        load_recipe("camvd")


def test_a_short_run_shortens_the_warmup_and_says_so():
    with pytest.warns(UserWarning, match="warmup_steps=200.*steps=50.*shortened to 5"):
        recipe = load_recipe("shapes", ["train.steps=50"])
    assert recipe.train.warmup_steps == 5
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert load_recipe("shapes", ["train.steps=300"]).train.warmup_steps == 200
