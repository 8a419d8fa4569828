"""The section `loss`: a list of named terms, whose weighted sum is the training loss.

A new loss is a section here, a key of `LossTerm`, and a class in `finetune/losses.py`.
"""

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import (
    BeforeValidator,
    Field,
    NonNegativeFloat,
    PlainSerializer,
    PositiveFloat,
    SerializationInfo,
    model_validator,
)

from finetune.recipe.errors import did_you_mean
from finetune.recipe.section import Section


class TermSection(Section):
    """The keys of every term."""

    weight: PositiveFloat = Field(1.0, description="factor of the term in the sum of terms")


class CrossEntropySection(TermSection):
    """Cross entropy and the weights of pixels in it."""

    class_weights: dict[str, NonNegativeFloat] = Field(
        {},
        description="class: weight of its pixels; 1 for other classes. `finetune doctor` suggests "
        "weights",
    )
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.0, description="share of the target that is spread over all classes"
    )
    focal_gamma: NonNegativeFloat = Field(
        0.0, description="exponent of the focal factor (1 - p)^gamma; 0: none"
    )


class LossTerm(Section):
    """One term; its only key names the loss."""

    cross_entropy: CrossEntropySection | None = Field(None, description="cross entropy of pixels")

    @model_validator(mode="before")
    @classmethod
    def _one_name(cls, value: Any) -> Any:
        if not isinstance(value, Mapping) or len(value) != 1:
            raise ValueError(f"is not one name with its keys; {LOSS_FORM}")
        ((name, keys),) = value.items()
        if name not in LossTerm.model_fields:
            hint = did_you_mean(str(name), LossTerm.model_fields)
            raise ValueError(f"{name} is no loss{hint or f'; {LOSS_FORM}'}")
        if not isinstance(keys, Mapping | Section | None):  # None: `- cross_entropy:` in YAML
            raise ValueError(f".{name}: must hold keys; {LOSS_FORM}")
        return {name: keys or {}}

    @property
    def name(self) -> str:
        """The name of the loss."""
        return next(iter(self.model_fields_set))

    @property
    def options(self) -> TermSection:
        """The keys of that loss."""
        found: TermSection = getattr(self, self.name)
        return found


LOSS_FORM = (
    "write keys of cross_entropy, such as loss={focal_gamma: 2}, or terms by name, such as "
    "loss=[{cross_entropy: {focal_gamma: 2}}]; the losses are " + ", ".join(LossTerm.model_fields)
)


def _as_list(value: Any) -> Any:
    """Turns the short form, the keys of cross entropy alone, into a list of terms."""
    if isinstance(value, Mapping):
        return [{"cross_entropy": value}]
    if not value or not isinstance(value, list | tuple):
        raise ValueError(LOSS_FORM)
    return value


def _as_written(terms: tuple[LossTerm, ...], info: SerializationInfo) -> Any:
    """Writes the short form if it holds all terms."""
    if [term.name for term in terms] == ["cross_entropy"]:
        return terms[0].options.model_dump(mode=info.mode)
    return [{term.name: term.options.model_dump(mode=info.mode)} for term in terms]


Loss = Annotated[
    tuple[LossTerm, ...],
    Field(min_length=1),
    BeforeValidator(_as_list),
    PlainSerializer(_as_written),
]
PLAIN_LOSS: tuple[LossTerm, ...] = (LossTerm(cross_entropy=CrossEntropySection()),)
"""The default: cross entropy with equal weights for all pixels."""
