"""The JSON Schema of recipe files, with which editors complete and check them."""

from typing import Any

from pydantic.json_schema import GenerateJsonSchema

from finetune.recipe.data import READ_BY
from finetune.recipe.recipe import Recipe

SCHEMA_FILE = ".finetune-recipe.schema.json"
"""Its name beside a recipe; hidden, so that it does not look like a file of the data set."""


class _WithoutTitles(GenerateJsonSchema):
    """Leaves out titles of fields, which would repeat their keys."""

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False


def recipe_schema() -> dict[str, Any]:
    """The schema, in draft 2020-12.

    No key is required: a file may leave keys to `base` or to the command line. `finetune show`
    checks the rules between keys, such as crop and model.
    """
    schema = Recipe.model_json_schema(schema_generator=_WithoutTitles)
    sections, keys = schema["$defs"], schema["properties"]
    base = {"type": "string", "description": "the recipe to start from: a file or a shipped name"}
    keys["data"] = {"anyOf": _data_branches(sections, keys["data"]["oneOf"])}
    keys["loss"] = {"anyOf": [{"$ref": "#/$defs/CrossEntropySection"}, keys["loss"]]}
    sections["LossTerm"] |= {"minProperties": 1, "maxProperties": 1}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **schema,
        "title": "A recipe of finetune",
        "properties": {"base": base, **keys},
    }


def _data_branches(
    sections: dict[str, Any], branches: list[dict[str, str]]
) -> list[dict[str, str]]:
    """One branch for each source, and one for files without one, whose `base` may have any."""
    every: dict[str, Any] = {}
    for branch in branches:
        section = sections[branch["$ref"].rpartition("/")[2]]
        section["required"] = ["source"]
        every = {**section["properties"], **every}
    sections["DataOfBase"] = {
        "type": "object",
        "description": "The source is that of `base`, or else folder.",
        "additionalProperties": False,
        "properties": {key: every[key] for key in READ_BY if key != "source"},
    }
    return [*branches, {"$ref": "#/$defs/DataOfBase"}]
