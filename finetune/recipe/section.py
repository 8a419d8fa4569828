"""What every section of a recipe is: closed, frozen, and with its rules beside its keys."""

from collections.abc import Iterator
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, model_validator

PositiveInt = Annotated[int, Field(ge=1)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Side = Annotated[int, Field(ge=1, le=16384)]
Size = tuple[Side, Side]


class Section(BaseModel):
    """Closed and frozen: an unknown key is an error, and nobody changes a recipe in passing."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    def _problems(self) -> Iterator[str]:
        """What does not fit together, as "KEY: what is wrong".

        Keys of the section are written with a dot in front, as in `.stride: needs .window`:
        `finetune.recipe.errors` puts the section's own name before it.
        """
        yield from ()

    @model_validator(mode="after")
    def _fits_together(self) -> "Section":
        if problems := [*self._problems()]:
            raise ValueError("\n".join(problems))
        return self
