"""`finetune show --schema`: what editors complete and check."""

import json

import jsonschema
import pytest
import yaml
from typer.testing import CliRunner

from finetune.cli import app
from finetune.recipe import describe_keys, load_recipe, recipe_schema, shipped_recipes
from finetune.recipe.data import SOURCE_CLASSES

VALIDATOR = jsonschema.Draft202012Validator(recipe_schema())


def test_it_is_a_schema_and_what_the_verb_prints():
    jsonschema.Draft202012Validator.check_schema(recipe_schema())
    done = CliRunner().invoke(app, ["show", "--schema"])
    assert done.exit_code == 0
    assert json.loads(done.stdout) == recipe_schema()


def test_shipped_recipes_are_valid():
    assert len(shipped_recipes()) > 5
    for path in shipped_recipes():
        VALIDATOR.validate(yaml.safe_load(path.read_text(encoding="utf-8")))
        VALIDATOR.validate(yaml.safe_load(load_recipe(path).to_yaml()))


@pytest.mark.parametrize(
    "text",
    [
        "base: camvid",
        "base: camvid\ndata: {workers: 1}",  # the source is the base's
        "data: {source: hub, path: owner/name, streaming: true}",
        "loss: {focal_gamma: 2}",
        "loss: [{cross_entropy: {weight: 2}}]",
        "labels: {names: [a, b], map: {7: a, 8: null}}",
        "evaluation: {window: [64, 64]}",
    ],
)
def test_valid(text):
    VALIDATOR.validate(yaml.safe_load(text))


@pytest.mark.parametrize(
    "text",
    [
        "trian: {steps: 3}",
        "train: {stepz: 3}",
        "train: {steps: 0}",
        "data: {source: coco, masks: m}",
        "data: {source: hubb}",
        "data: {maks: m}",
        "loss: [{no_such_loss: {}}]",
        "loss: [{}]",
        "loss: {gamma: 2}",
        "model: {variant: b6}",
    ],
)
def test_invalid(text):
    with pytest.raises(jsonschema.ValidationError):
        VALIDATOR.validate(yaml.safe_load(text))


def test_every_key_is_described_and_every_source_has_a_branch():
    schema = recipe_schema()
    branches = schema["properties"]["data"]["anyOf"]
    assert len(branches) == len(SOURCE_CLASSES) + 1
    sections = {name: schema["$defs"][f"{name.title()}Section"] for name in ("model", "labels")}
    sections |= {name: schema["$defs"][f"{name.title()}Section"] for name in ("train", "augment")}
    sections["data"] = schema["$defs"]["DataOfBase"]
    checked = 0
    for key, _, _, description in describe_keys():
        section, _, name = key.partition(".")
        if section in sections and name != "source":
            assert description.endswith(sections[section]["properties"][name]["description"]), key
            checked += 1
    assert checked > 50
