"""YAML of recipes: a safe reader and a readable writer."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from finetune.errors import UserError


class _Loader(yaml.SafeLoader):
    """A safe loader that reports duplicate keys as errors."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        twice = next((key for i, key in enumerate(keys) if key in keys[:i]), None)
        if twice is not None:
            raise yaml.constructor.ConstructorError(
                None, None, f"the key {twice!r} occurs twice; remove one", node.start_mark
            )
        return super().construct_mapping(node, deep)


def parse_yaml(text: str) -> Any:
    """The value of a YAML text; raises yaml.YAMLError if it is not YAML."""
    return yaml.load(text, Loader=_Loader)


def read_yaml(path: Path) -> dict[str, Any]:
    """The content of a recipe's file.

    Raises:
        UserError: The file cannot be read, or is not a mapping.
    """
    try:
        values = parse_yaml(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"recipe {path}: cannot be read ({error})") from error
    except yaml.YAMLError as error:
        raise UserError(f"recipe {path}: not valid YAML: {error}") from error
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise UserError(
            f"recipe {path}: must hold `key: value` lines, not a {type(values).__name__}"
        )
    return values


class _Dumper(yaml.SafeDumper):
    """Writes lists of plain values in one line."""


_Dumper.add_representer(
    list,
    lambda dumper, items: dumper.represent_sequence(
        "tag:yaml.org,2002:seq", items, flow_style=True
    ),
)


def to_yaml(values: Mapping[str, Any]) -> str:
    """Values as readable YAML."""
    return yaml.dump(values, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100)
