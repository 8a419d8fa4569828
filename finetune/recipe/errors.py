"""pydantic's errors as lines for the user: the dotted key, the mistake, the value found."""

import difflib
import re
from collections.abc import Callable, Iterable

from pydantic import ValidationError

from finetune.recipe.text import in_line

_INTEGER, _NUMBER = "must be an integer", "must be a number"
_SECTION, _LIST = "must be a section of `key: value`", "must be a list, such as [1, 2]"
WORDS = {
    **dict.fromkeys(("model_type", "model_attributes_type", "dict_type"), _SECTION),
    **dict.fromkeys(("tuple_type", "list_type"), _LIST),
    **dict.fromkeys(("int_type", "int_parsing", "int_from_float"), _INTEGER),
    **dict.fromkeys(("float_type", "float_parsing"), _NUMBER),
    **dict.fromkeys(("bool_type", "bool_parsing"), "must be true or false"),
    "string_type": "must be text",
    "too_short": "must have {min_length} or more values",
    "too_long": "must have {max_length} values at most",
    "missing": "is missing",
}
"""Type of pydantic's errors -> the mistake in plain words."""

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
    problems = error.errors()
    for problem in problems:
        where, context = problem["loc"], problem.get("ctx", {})
        if problem["type"] == "too_short" and any(
            other["loc"][: len(where)] == where for other in problems if other is not problem
        ):
            continue  # pydantic counts the valid items alone
        key = key_of(where)
        if problem["type"] == "extra_forbidden":
            lines.append(f"{key}: {unknown(key)}")
        elif "error" in context:
            for line in str(context["error"]).split("\n"):
                whole = line if line.startswith(".") or not key else f"{key}: {line}"
                lines.append(OWN_KEY.sub(f"{key}." if key else "", whole))
        else:
            message = WORDS.get(problem["type"], "").format(**context)
            message = message or problem["msg"][0].lower() + problem["msg"][1:]
            lines.append(f"{key}: {message} (got {in_line(problem['input'])})".removeprefix(": "))
    return lines


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """The end of a message: a question with the nearest known word, or nothing."""
    close = difflib.get_close_matches(word, list(known), n=1)
    return f"; did you mean {close[0]}?" if close else ""
