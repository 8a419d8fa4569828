"""All keys of recipes, for `finetune show --keys` and for suggestions after a typo."""

import difflib
import re
from collections.abc import Iterator, Mapping
from typing import Any, get_args

from finetune.recipe.data import READ_BY, SOURCE_CLASSES, SOURCES
from finetune.recipe.loss import LOSS_FORM, CrossEntropySection, LossTerm
from finetune.recipe.recipe import Recipe
from finetune.recipe.section import Section
from finetune.recipe.text import in_line

Row = tuple[str, str, str, str]


def describe_keys() -> list[Row]:
    """Dotted key, type, default and description of every value of a recipe.

    Keys of `data` name their sources unless all sources read them. Keys of `loss` are those of one
    term.
    """
    rows: list[Row] = []
    for name, field in Recipe.model_fields.items():
        if name == "data":
            rows += _of_data()
        elif name == "loss":
            example = "[{cross_entropy: {focal_gamma: 2}}]"
            rows.append(("loss", "list", "[{cross_entropy: {}}]", f"terms by name, as {example}"))
            rows += _of_section(CrossEntropySection, "loss.")  # the short form
        elif isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            rows += _of_section(field.annotation, f"{name}.")
        else:
            rows.append(_row(Recipe, name, ""))
    return rows


def explain_unknown(dotted: str, source: str) -> str:
    """The message for a key that is unknown to recipes or to their source of data."""
    section, _, name = dotted.partition(".")
    if section == "data" and name in READ_BY:
        readers = " / ".join(sorted(READ_BY[name]))
        return f"read by source {readers}, not {source}; take it out or change data.source"
    if dotted == "base":
        return "only a recipe's file names its base; take it out, or write a file that begins so"
    if nearest := _nearest_key(dotted):
        return f"unknown key; did you mean {nearest}?"
    return "unknown key" + (f"; {LOSS_FORM}" if section == "loss" else "")


def _of_data() -> Iterator[Row]:
    kinds = " ".join(section.__doc__ or "" for section in SOURCE_CLASSES)
    yield "data.source", " | ".join(SOURCES), "folder", kinds
    for key, readers in READ_BY.items():
        if key == "source":
            continue
        name, kind, default, description = _row(SOURCES[readers[0]], key, "data.")
        others = [source for source in SOURCES if source not in readers]
        if others:
            few = len(others) < len(readers)
            who = f"every source but {', '.join(others)}" if few else ", ".join(readers)
            description = f"{who}: {description}"
        yield name, kind, default, description


def _of_section(section: type[Section], prefix: str) -> Iterator[Row]:
    for key in section.model_fields:
        yield _row(section, key, prefix)


def _row(section: type[Section], key: str, prefix: str) -> Row:
    field, schema = section.model_fields[key], section.model_json_schema()["properties"][key]
    default = "required"
    if not field.is_required():
        default = in_line(field.default)
    return f"{prefix}{key}", _type_name(schema), default, field.description or ""


def _type_name(schema: Mapping[str, Any]) -> str:
    if "enum" in schema:
        return " | ".join(map(str, schema["enum"]))
    if "const" in schema:
        return str(schema["const"])
    if "anyOf" in schema:
        return " | ".join(_type_name(option) for option in schema["anyOf"])
    return str(schema.get("type", "any"))


def _nearest_key(dotted: str) -> str | None:
    """The most similar key of the same section, or a very similar one elsewhere."""
    keys = [key for key, *_ in describe_keys()]
    keys += sorted({key.partition(".")[0] for key in keys} - set(keys))
    section, _, name = dotted.rpartition(".")
    beside = [key for key in keys if key.rpartition(".")[0] == section]
    if term := re.fullmatch(r"loss\.\d+\.(\w+)", section):  # a list, which has no short form
        (options, _) = get_args(LossTerm.model_fields[term[1]].annotation)
        beside = keys = [f"{section}.{key}" for key in options.model_fields]
    for some, cutoff in ((beside, 0.6), (keys, 0.7)):
        by_name = {key.rpartition(".")[2]: key for key in some}
        if close := difflib.get_close_matches(name, by_name, 1, cutoff):
            return by_name[close[0]]
    return None
