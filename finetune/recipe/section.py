"""The base class of recipe sections."""

from collections.abc import Callable, Iterator, Mapping
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

PositiveInt = Annotated[int, Field(ge=1, le=10**9)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Side = Annotated[int, Field(ge=1, le=16384)]
Size = tuple[Side, Side]


class Section(BaseModel):
    """A closed and frozen section: an unknown key is an error, and values never change."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    def _problems(self) -> Iterator[str]:
        """Yields the contradictions between keys, as "KEY: the mistake".

        A dot in front marks keys of the section, as in `.stride: needs .window`.
        `finetune.recipe.errors` puts the section's name before the dot.
        """
        yield from ()

    @model_validator(mode="wrap")
    @classmethod
    def _fits_together(cls, values: Any, validate: Callable[[Any], "Section"]) -> "Section":
        section = validate(values)
        problems = [
            f".{key}: must be a number, not true or false (YAML reads yes, no, on and off so; put "
            "text in quotes)"
            for key, value in (values.items() if isinstance(values, Mapping) else ())
            if _was_bool(value, getattr(section, key))
        ]
        if problems := problems or [*section._problems()]:
            raise ValueError("\n".join(problems))
        return section


def _was_bool(given: Any, taken: Any) -> bool:
    """Whether pydantic took a boolean for a number, here or inside."""
    if isinstance(given, Mapping) and isinstance(taken, dict):
        return _was_bool([*given, *given.values()], [*taken, *taken.values()])
    if isinstance(given, list | tuple) and isinstance(taken, list | tuple):
        return any(map(_was_bool, given, taken))
    return isinstance(given, bool) and not isinstance(taken, bool)
