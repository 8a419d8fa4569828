"""Recipes: what to train, on what and how, in typed and closed YAML.

A recipe states only its differences from the defaults, which live in the classes of this folder and
nowhere else. `base:` names a recipe to start from, `key=value` overrides by dotted path, and an
unknown key is an error that suggests the nearest one. `load_recipe` returns the resolved recipe,
which holds every value.

    recipe = load_recipe("camvid", ["data.path=CamVid", "train.steps=2000"])

`sections`, `data`, `loss` and `evaluation` hold the keys and the rules between them, `recipe` the
rules between sections, `load` reads files.
"""

from finetune.recipe.data import DataSection, HubData, StoredData, read_data
from finetune.recipe.evaluation import InferenceProtocol
from finetune.recipe.keys import describe_keys
from finetune.recipe.load import (
    find_recipe,
    load_recipe,
    recipe_from_values,
    recipe_from_yaml,
    shipped_folder,
    shipped_recipes,
)
from finetune.recipe.loss import PLAIN_LOSS, LossTerm
from finetune.recipe.recipe import Recipe
from finetune.recipe.schema import SCHEMA_FILE, recipe_schema
from finetune.recipe.text import to_yaml

__all__ = [
    "PLAIN_LOSS",
    "SCHEMA_FILE",
    "DataSection",
    "HubData",
    "InferenceProtocol",
    "LossTerm",
    "Recipe",
    "StoredData",
    "describe_keys",
    "find_recipe",
    "load_recipe",
    "read_data",
    "recipe_from_values",
    "recipe_from_yaml",
    "recipe_schema",
    "shipped_folder",
    "shipped_recipes",
    "to_yaml",
]
