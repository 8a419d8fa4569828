"""Loads recipes: a name and overrides become a resolved recipe, which holds every value."""

import os
import warnings
from collections.abc import Iterable, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from finetune.errors import UserError
from finetune.labels.presets import PRESETS
from finetune.recipe.data import READ_BY, SOURCES
from finetune.recipe.errors import did_you_mean, error_lines
from finetune.recipe.keys import explain_unknown
from finetune.recipe.recipe import Recipe
from finetune.recipe.text import parse_yaml, read_yaml


def load_recipe(
    name: str | os.PathLike[str], overrides: Iterable[str] | Mapping[str, Any] = ()
) -> Recipe:
    """Finds, inherits, overrides and checks a recipe.

    Args:
        name: a path; or a bare name, with or without `.yaml`, for a file in the working directory
            or else a shipped recipe.
        overrides: "dotted.key=value" strings (values are YAML), or a mapping of such keys.

    Raises:
        UserError: the message names the file, the dotted key and the remedy.
    """
    path = find_recipe(str(name))
    return recipe_from_values(_read_with_bases(path, ()), path, overrides)


def recipe_from_values(
    values: Mapping[str, Any],
    name: str | os.PathLike[str],
    overrides: Iterable[str] | Mapping[str, Any] = (),
) -> Recipe:
    """As `load_recipe`, for the values of a file `name`, which need not exist."""
    path = Path(name)
    if not isinstance(overrides, Mapping):
        overrides = dict(_parse_override(text) for text in overrides)
    values = _for_source(values, overrides.get("data.source"))
    for key, value in overrides.items():
        _set(values, key, value)
    recipe = _resolve(_validate(values, path), path.stem)
    _warn_of_unreachable(recipe)
    return recipe


def find_recipe(name: str) -> Path:
    """The file of a recipe; see `load_recipe`."""
    candidates = [name, f"{name}.yaml", f"{name}.yml"]
    for folder in (Path(), shipped_folder()):
        for candidate in candidates:
            path = folder / candidate
            if os.path.isfile(path) and path.suffix in (".yaml", ".yml"):
                return path
    if os.path.isdir(name):
        own = Path(name) / "recipe.yaml"  # of a run or a model
        remedy = f"take {own}" if own.is_file() else f"`finetune init {name}` writes one for it"
        raise UserError(f"{name} is a folder, not a recipe; {remedy}")
    known = [path.stem for path in shipped_recipes()]
    hint = did_you_mean(Path(name).stem, known)
    raise UserError(f"no recipe {name!r} here or among the shipped ones ({', '.join(known)}){hint}")


def shipped_recipes() -> list[Path]:
    """The files of the recipes in the package, sorted by name."""
    return sorted(shipped_folder().glob("*.yaml"))


def shipped_folder() -> Path:
    """`recipes/` of the checkout, or its copy inside the installed package."""
    inside = Path(str(resources.files("finetune"))) / "recipes"
    return inside if inside.is_dir() else inside.parents[1] / "recipes"


def recipe_from_yaml(path: Path) -> Recipe:
    """Reads a resolved recipe, such as the one in a run or model folder."""
    recipe = _validate(read_yaml(path), path)
    _warn_of_unreachable(recipe)
    return recipe


def _read_with_bases(path: Path, above: Sequence[Path]) -> dict[str, Any]:
    if path.resolve() in above:
        chain = " -> ".join(str(p.name) for p in (*above, path))
        raise UserError(f"recipe {path}: base: goes in a circle ({chain}); remove one of them")
    values = read_yaml(path)
    base = values.pop("base", None)
    if base is None:
        return values
    if not isinstance(base, str):
        raise UserError(f"recipe {path}: base: must name one recipe, such as camvid")
    beside = [path.parent / candidate for candidate in (base, f"{base}.yaml")]
    base_path = next((p for p in beside if p.is_file()), None) or find_recipe(base)
    inherited = _read_with_bases(base_path, (*above, path.resolve()))
    data = values.get("data")
    source = data.get("source") if isinstance(data, Mapping) else None
    return _merge(_for_source(inherited, source), values)


def _for_source(values: Mapping[str, Any], source: Any) -> dict[str, Any]:
    """A copy, which loses the keys of `data` that a new source does not read."""
    data, source = values.get("data"), str(source)
    if (
        not isinstance(data, Mapping)
        or source not in SOURCES
        or source == data.get("source", "folder")
    ):
        return dict(values)
    own = SOURCES[source].model_fields
    kept = {key: value for key, value in data.items() if key in own or key not in READ_BY}
    return {**values, "data": kept}


def _merge(base: dict[str, Any], top: Mapping[str, Any]) -> dict[str, Any]:
    """Merges `top` into `base`: sections key by key; other values, lists too, are replaced."""
    merged = dict(base)
    for key, value in top.items():
        if isinstance(value, Mapping) and isinstance(merged.get(key), Mapping) and key != "map":
            merged[key] = _merge(merged[key], value)
        else:
            merged[key] = value
    return merged


def _parse_override(text: str) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    if not equals or key.startswith("-") or not all(key.split(".")):
        raise UserError(f"{text!r} is not an override: write key=value, such as train.steps=100")
    return key, parse_yaml(value, text)


def _set(values: dict[str, Any], dotted: str, value: Any) -> None:
    *sections, key = dotted.split(".")
    for section in sections:
        inner = values.get(section)
        if isinstance(inner, list):
            raise UserError(
                f"{dotted}: {section} is a list in the recipe; give it whole, {section}=[...]"
            )
        values[section] = dict(inner) if isinstance(inner, Mapping) else {}
        values = values[section]
    values[key] = value


def _validate(values: Mapping[str, Any], path: Path) -> Recipe:
    try:
        return Recipe.model_validate(_with_preset(values))
    except ValidationError as error:
        data = values.get("data")
        source = data.get("source", "folder") if isinstance(data, Mapping) else ""
        lines = error_lines(
            error,
            key_of=lambda where: _as_people_write(where, values),
            unknown=lambda key: explain_unknown(key, source),
        )
    raise UserError(f"recipe {path}: " + "\n  ".join(["", *lines] if lines[1:] else lines))


def _as_people_write(where: Sequence[str | int], values: Mapping[str, Any]) -> str:
    """The dotted key for pydantic's location, which also names the branch of a union."""
    parts = [*where]
    if parts[:1] == ["data"]:
        del parts[1:2]  # the source
    if parts[:1] == ["loss"] and isinstance(values["loss"], Mapping):
        del parts[1:3]  # the number and name of the one term
    return ".".join(map(str, parts))


def _with_preset(values: Mapping[str, Any]) -> Mapping[str, Any]:
    labels = values.get("labels")
    if not isinstance(labels, Mapping):
        return values
    preset = labels.get("preset")
    if not isinstance(preset, str) or preset not in PRESETS:
        return values  # no base, or a mistake that the validation reports
    return {**values, "labels": {**PRESETS[preset], **labels}}


def _resolve(recipe: Recipe, stem: str) -> Recipe:
    """Fills in the values that depend on other values."""
    name, train, labels = recipe.name or stem, recipe.train, recipe.labels
    lengths = {"checkpoint_every": train.checkpoint_every or train.eval_every}
    if train.warmup_steps >= train.steps:
        lengths["warmup_steps"] = train.steps // 10
        warnings.warn(
            f"train.warmup_steps={train.warmup_steps} does not fit into train.steps={train.steps}: "
            f"shortened to {lengths['warmup_steps']}",
            stacklevel=4,
        )
    if labels.ignore is None:
        labels = labels.model_copy(update={"ignore": [] if labels.kind == "colors" else [255]})
    resolved = {
        "name": name,
        "output": os.path.expanduser(recipe.output or Path("runs") / name),
        "labels": labels,
        "train": train.model_copy(update=lengths),
    }
    return recipe.model_copy(update=resolved)


def _warn_of_unreachable(recipe: Recipe) -> None:
    if unreachable := recipe.labels.build().unreachable:
        warnings.warn(
            f"labels.names: no mask value means {', '.join(map(repr, unreachable))}, so the model "
            "cannot learn it. Give it a value in labels.map, or take it out",
            stacklevel=4,
        )
