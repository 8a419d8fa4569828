"""The base class of recipe sections."""

from collections.abc import Iterator
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, model_validator

PositiveInt = Annotated[int, Field(ge=1)]
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

    @model_validator(mode="after")
    def _fits_together(self) -> "Section":
        if problems := [*self._problems()]:
            raise ValueError("\n".join(problems))
        return self
