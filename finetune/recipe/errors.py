"""pydantic's errors as lines for the user: the dotted key, the mistake, the value found."""

import difflib
import re
from collections.abc import Callable, Iterable

from pydantic import ValidationError

OWN_KEY = re.compile(r"(?:^|(?<=\s))\.(?=[a-z_])")
"""The dot of `.window` in a message of `Section._problems`."""


def error_lines(
    error: ValidationError,
    key_of: Callable[[tuple[str | int, ...]], str] = lambda where: ".".join(map(str, where)),
    unknown: Callable[[str], str] = lambda key: "unknown key",
) -> list[str]:
    """One line for each mistake.

    `key_of` turns pydantic's location into the dotted key, `unknown` a key into its message.
    """
    lines: list[str] = []
    for problem in error.errors():
        key = key_of(problem["loc"])
        if problem["type"] == "extra_forbidden":
            lines.append(f"{key}: {unknown(key)}")
        elif "error" in problem.get("ctx", {}):
            for line in str(problem["ctx"]["error"]).split("\n"):
                whole = line if line.startswith(".") or not key else f"{key}: {line}"
                lines.append(OWN_KEY.sub(f"{key}." if key else "", whole))
        else:
            message = problem["msg"][0].lower() + problem["msg"][1:]
            lines.append(f"{key}: {message} (got {problem['input']!r})".removeprefix(": "))
    return lines


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """The end of a message: a question with the nearest known word, or nothing."""
    close = difflib.get_close_matches(word, list(known), n=1)
    return f"; did you mean {close[0]}?" if close else ""
