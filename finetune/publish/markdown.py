"""Markdown from Jinja2 templates, and foreign text escaped so that it shows as it is."""

import html
import re
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

_SPECIAL = re.compile(r"([\\`*_{}\[\]#|~$^])")


def escaped(text: object) -> str:
    """Text as one line of Markdown, with markup, HTML and cell ends escaped."""
    line = html.escape(" ".join(str(text).split()), quote=False)
    return _SPECIAL.sub(r"\\\1", line)


def fenced(text: str, language: str = "") -> str:
    """A code block, with a fence that does not occur in the text."""
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{text.rstrip()}\n{fence}"


def percent(value: float | None) -> str:
    """A share as a percentage."""
    return "-" if value is None else f"{value:.2%}"


_TEMPLATES = Environment(
    loader=PackageLoader("finetune", ""),
    autoescape=False,  # it is for HTML; templates apply `escaped` to foreign text
    trim_blocks=True,
    lstrip_blocks=True,
    undefined=StrictUndefined,
)
_TEMPLATES.filters.update(escaped=escaped, fenced=fenced, percent=percent)


def render(template: str, **values: Any) -> str:
    """Markdown; `template` is a path below the package, such as "publish/trained.md"."""
    return _TEMPLATES.get_template(template).render(values).rstrip() + "\n"
