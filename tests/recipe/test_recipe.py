"""Recipes: what ships is valid, what is wrong is said with its key and a remedy."""

import os
import re
import warnings
from pathlib import Path

import pytest
import yaml

from finetune.errors import UserError
from finetune.recipe import (
    Recipe,
    describe_keys,
    find_recipe,
    load_recipe,
    recipe_from_yaml,
    shipped_folder,
    shipped_recipes,
)


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


def test_the_resolved_recipe_is_whole_and_reads_back(tmp_path):
    recipe = load_recipe("ade20k", ["train.steps=100", "model.variant=b2"])
    saved = write(tmp_path, "recipe.yaml", recipe.to_yaml())
    assert recipe_from_yaml(saved) == recipe
    values = yaml.safe_load(saved.read_text())
    keys = {key for key, *_ in describe_keys()}
    written = {
        f"{section}.{key}" if isinstance(value, dict) else section
        for section, value in values.items()
        for key in (value if isinstance(value, dict) else [section])
    }
    assert written == keys
    assert len(values["labels"]["names"]) == 150, "nothing left to look up"


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
    ("overrides", "expected"),
    [
        (["train.stepz=3"], "train.stepz: unknown key; did you mean train.steps?"),
        (["trian.steps=3"], "trian: unknown key; did you mean train?"),
        (["steps=3"], "steps: unknown key; did you mean train.steps?"),
        (["train.steps=abc"], "train.steps: .*integer.*'abc'"),
        (["train.steps=0"], "train.steps: .*greater than or equal to 1"),
        (["train.lr=.nan"], "train.lr: .*finite"),
        (["model.variant=b6"], "model.variant: .*'b5'.*'b6'"),
        (["model.num_attention_heads=[1,2,3,8]"], r"num_attention_heads\[2\]: 3 heads .*160"),
        (["model.depths=[1,1]"], "model: .*4 stages"),
        (["augment.crop=[28,64]"], "augment.crop: .*28.*29 pixels"),
        (["augment.scale=[2,1]"], r"augment.scale: .*smallest, largest"),
        (["train.global_batch=6", "train.micro_batch=4"], "train.global_batch: 6 .*micro_batch=4"),
        (["data.images=x"], "data.images: read by source coco / folder, not shapes"),
        (["data.source=folder"], "data.path: missing"),
        (["data.cache=yes"], "data.cache: .*'auto', 'disk' or 'none'"),
        (["labels.names=[a]"], "labels.names: .*background"),
        (["labels.names=[a,b]", "labels.colors=null"], "preset: shapes"),
        (["evaluation.stride=[8,8]"], "evaluation.stride: needs evaluation.window"),
        (["evaluation.size_divisor=32"], "size_divisor: needs evaluation.shortest_edge"),
        (["evaluation.window=[16,16]"], "evaluation.window: .*29 pixels"),
        (["model.num_channels=4"], "model.num_channels: 4.*RGB"),
        (["loss.class_weights={disk: 2}"], "'disk' is none of the classes.*Did you mean disc"),
        (["loss.class_weights={disc: -1}"], "loss.class_weights.disc: .*greater than or equal to"),
        (["loss.label_smoothing=1"], "loss.label_smoothing: .*less than 1"),
        (["train.steps"], "'train.steps' is not an override"),
        (["--recipe=x"], "is not an override"),
        (["train.steps=[1"], "train.steps: .*not valid YAML"),
        (["train=3"], "train: "),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_mistakes_name_the_key_and_the_remedy(overrides, expected):
    sizes = ["data.size=[96,96]", "data.train_samples=4000", "data.val_samples=200"]  # defaults
    if overrides == ["data.source=folder"]:
        overrides = [*overrides, *sizes]
    with pytest.raises(UserError, match=expected):
        load_recipe("shapes", overrides)


def test_mean_and_deviation_have_one_number_a_channel(tmp_path):
    path = write(tmp_path, "bands.yaml", "data: {path: x}\nlabels: {names: [a, b]}\n")
    channels = "model.num_channels=2"
    with pytest.raises(UserError) as caught:
        load_recipe(path, [channels])
    for key, values in (("image_mean", "[0.5, 0.5]"), ("image_std", "[0.25, 0.25]")):
        expected = rf"data.{key}: must have one number a channel, {channels} in all, not 3. Write"
        assert re.search(expected, str(caught.value))
        assert f"data.{key}={values}" in str(caught.value)
    given = [channels, "data.image_mean=[0.1, 0]", "data.image_std=[0.2, 0.3]"]
    assert load_recipe(path, given).model.num_channels == 2
    with pytest.raises(UserError, match=r"image_mean: \[0.5, 1200.0\] are not in 0..1; divide by"):
        load_recipe(path, [*given, "data.image_mean=[0.5, 1200]"])
    with pytest.raises(UserError, match=r"model.num_channels: .*less than or equal to 128"):
        load_recipe(path, ["model.num_channels=129"])


def test_all_mistakes_at_once():
    with pytest.raises(UserError) as caught:
        load_recipe("shapes", ["augment.crop=[8,8]", "evaluation.stride=[8,8]"])
    assert "augment.crop" in str(caught.value)
    assert "evaluation.stride" in str(caught.value)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("seed: 1\nseed: 2\n", "'seed' stands twice"),
        ("- 1\n", "key: value"),
        ("seed: [1\n", "not valid YAML"),
        ("base: nowhere\n", "no recipe 'nowhere'"),
        ("base: mine\n", "circle"),
        ("a: !!python/object/apply:os.system ['true']\n", "not valid YAML"),
    ],
)
def test_broken_files(text, expected, tmp_path):
    path = write(tmp_path, "mine.yaml", text)
    with pytest.raises(UserError, match=expected) as caught:
        load_recipe(path)
    assert "mine.yaml" in str(caught.value) or "nowhere" in str(caught.value)


def test_an_unknown_name_suggests_the_nearest():
    with pytest.raises(UserError, match="Did you mean camvid"):
        load_recipe("camvd")


def test_a_short_run_shortens_the_warmup_and_says_so():
    with pytest.warns(UserWarning, match="warmup_steps=200.*steps=50.*shortened to 5"):
        recipe = load_recipe("shapes", ["train.steps=50"])
    assert recipe.train.warmup_steps == 5
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert load_recipe("shapes", ["train.steps=300"]).train.warmup_steps == 200


def test_what_a_resume_may_change():
    one = load_recipe("shapes")
    moved = load_recipe(
        "shapes", ["output=elsewhere", "data.workers=0", "data.cache=none", "train.log_every=5"]
    )
    assert one.hash() == moved.hash()
    assert one.differences(moved) == []
    other = load_recipe("shapes", ["train.lr=1e-4", "seed=1"])
    assert one.hash() != other.hash()
    assert one.differences(other) == ["seed: 0 -> 1", "train.lr: 0.002 -> 0.0001"]


def test_processes_must_share_the_batch():
    recipe = load_recipe("shapes", ["train.global_batch=12"])
    assert recipe.batch_split(1) == (12, 1)
    assert recipe.batch_split(3) == (4, 1)
    small = load_recipe("shapes", ["train.global_batch=12", "train.micro_batch=2"])
    assert small.batch_split(2) == (2, 3)
    with pytest.raises(UserError, match=r"global_batch=12 cannot be shared by 5 process"):
        recipe.batch_split(5)


def test_every_key_is_described_and_read():
    rows = describe_keys()
    assert len(rows) > 50
    source = "\n".join(
        path.read_text() for path in Path(find_recipe.__code__.co_filename).parent.rglob("*.py")
    )
    for key, kind, _, description in rows:
        assert description, key
        assert kind, key
        name = key.rpartition(".")[2]
        # The declaration is one mention; somebody must read it too (labels are passed on whole).
        assert source.count(name) > 1 or key.startswith("labels."), key
