"""YAML of recipes: a safe reader and a readable writer."""

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from finetune.errors import UserError, first_line


class _Loader(yaml.SafeLoader):
    """A safe loader that reports duplicate keys as errors, and reads integers as people do."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        own = (key for key, _ in node.value if key.tag != "tag:yaml.org,2002:merge")  # `<<`
        keys = [self.construct_object(key, deep=True) for key in own]
        twice = next((key for i, key in enumerate(keys) if key in keys[:i]), None)
        if twice is not None:
            raise yaml.constructor.ConstructorError(
                None, None, f"the key {twice!r} occurs twice; remove one", node.start_mark
            )
        return super().construct_mapping(node, deep)

    def construct_yaml_int(self, node: yaml.ScalarNode) -> Any:
        """Reads 010 as ten and 1:30 as text, as YAML 1.2 does; YAML 1.1 reads 8 and 90."""
        text = node.value.replace("_", "")
        if ":" in text:
            return node.value
        return super().construct_yaml_int(node) if re.match("[-+]?0[bx]", text) else int(text)


_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_yaml_int)


def parse_yaml(text: str, where: str) -> Any:
    """The value of a YAML text.

    Raises:
        UserError: It is not YAML; the message begins with `where`.
    """
    try:
        return yaml.load(text, Loader=_Loader)
    except RecursionError as error:
        raise UserError(f"{where}: not valid YAML: too many brackets inside each other") from error
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a date such as 2024-13-01
        mark = getattr(error, "problem_mark", None)
        place = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        reason = getattr(error, "problem", None) or first_line(error)
        raise UserError(f"{where}: not valid YAML: {place}{reason}") from error


def read_yaml(path: Path) -> dict[str, Any]:
    """The content of a recipe's file.

    Raises:
        UserError: The file cannot be read, or is not a mapping.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"recipe {path}: cannot be read ({error})") from error
    values = parse_yaml(text, f"recipe {path}")
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise UserError(f"recipe {path}: must hold `key: value` lines, such as `base: camvid`")
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


def in_line(value: Any) -> str:
    """A value as YAML writes it inside a line."""
    try:
        text = yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, width=math.inf)
    except yaml.YAMLError:  # from Python, not from a file
        return str(value)
    return text.removesuffix("\n").removesuffix("\n...")
