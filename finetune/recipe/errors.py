"""pydantic's errors as lines for the user: the dotted key, the mistake, the value found."""

import re
from collections.abc import Callable
from typing import Any

from pydantic import ValidationError

OWN_KEY = re.compile(r"(?:^|(?<=\s))\.(?=[a-z_])")
"""The dot of `.window` in a message of `Section._problems`."""


def error_lines(
    error: ValidationError,
    key_of: Callable[[tuple[str | int, ...]], str] = lambda where: ".".join(map(str, where)),
    unknown: Callable[[str], str] = lambda key: "unknown key",
) -> list[str]:
    """One line for each mistake.

    Args:
        error: The error of a section or of a whole recipe.
        key_of: Turns pydantic's location into the dotted key.
        unknown: Gives the message for an unknown key.
    """
    lines: list[str] = []
    for problem in error.errors():
        key = key_of(problem["loc"])
        if problem["type"] == "extra_forbidden":
            lines.append(f"{key}: {unknown(key)}")
        elif "error" in problem.get("ctx", {}):
            lines += _own(str(problem["ctx"]["error"]), key)
        else:
            lines.append(_pydantics(problem["msg"], problem["input"], key))
    return lines


def _own(message: str, key: str) -> list[str]:
    """The lines of one of our messages, in which a leading dot marks keys of the section."""
    prefix = f"{key}." if key else ""
    lines = message.split("\n")
    return [
        OWN_KEY.sub(prefix, line if line.startswith(".") or not key else f"{key}: {line}")
        for line in lines
    ]


def _pydantics(message: str, found: Any, key: str) -> str:
    return f"{key}: {message[0].lower()}{message[1:]} (got {found!r})".removeprefix(": ")
