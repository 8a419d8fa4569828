"""`Recipe`: its sections, the rules between them, and the comparison of two recipes."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

from pydantic import Field

from finetune.errors import UserError
from finetune.labels.presets import PRESETS
from finetune.recipe.data import Data
from finetune.recipe.errors import did_you_mean
from finetune.recipe.evaluation import EvaluationSection
from finetune.recipe.loss import PLAIN_LOSS, Loss
from finetune.recipe.section import Section
from finetune.recipe.sections import (
    AugmentSection,
    HubSection,
    LabelsSection,
    ModelSection,
    TrainSection,
)
from finetune.recipe.text import in_line, to_yaml

SECTIONS = ("model", "data", "labels", "augment", "train", "loss", "evaluation", "hub")
USED_BY: dict[str, frozenset[str]] = {"segmentation": frozenset(SECTIONS)}
"""Task -> its sections; a recipe with another section is an error."""

# Keys that may change between a run and its resumption: places and speed.
VOLATILE = (
    *("name", "output", "resume", "data.path", "data.workers", "data.cache"),
    *("train.max_minutes", "train.checkpoint_every", "train.keep_checkpoints", "train.log_every"),
    *("train.threads", "train.compile", "hub.repo", "hub.private"),
)


class Recipe(Section):
    """A whole recipe."""

    name: str = Field("", description="name of the run; default: the recipe's file name")
    task: Literal["segmentation"] = Field("segmentation", description="kind of task")
    seed: Annotated[int, Field(ge=0, lt=2**31)] = Field(0, description="seed of everything random")
    output: str = Field("", description="run folder; default: runs/<name>")
    resume: str = Field(
        "auto", description="auto: go on where output stopped; never; or a checkpoint's folder"
    )
    model: ModelSection = ModelSection()
    data: Data = Field(default_factory=dict, validate_default=True)
    labels: LabelsSection = LabelsSection()
    augment: AugmentSection = AugmentSection()
    train: TrainSection = TrainSection()
    loss: Loss = PLAIN_LOSS
    evaluation: EvaluationSection = EvaluationSection()
    hub: HubSection = HubSection()

    def _problems(self) -> Iterator[str]:
        yield from self._of_the_task()
        yield from self._of_the_model()
        if not self.labels.names:
            yield "labels.names: missing; list the classes in the order of ids, or name a preset"
            return
        try:
            names = self.labels.build().names
        except UserError as error:
            yield str(error)
            return
        yield from self._of_the_loss(names)
        if self.data.source == "shapes" and (
            names != tuple(PRESETS["shapes"]["names"])
            or self.labels.map is not None
            or self.labels.reduce_zero
            or self.labels.ignore not in (None, [255])
        ):
            yield "labels: the source shapes draws its own classes; write `preset: shapes`"

    def _of_the_task(self) -> Iterator[str]:
        used = USED_BY[self.task]
        for name in SECTIONS:
            default = type(self).model_fields[name].get_default(call_default_factory=True)
            if name not in used and getattr(self, name) != default:
                yield f"{name}: the task {self.task} does not use this section; take it out"

    def _of_the_model(self) -> Iterator[str]:
        side, channels = self.model.smallest_side, self.model.num_channels
        for key, value in (
            ("augment.crop", self.augment.crop),
            ("evaluation.window", self.evaluation.window),
        ):
            if value and min(value) < side:
                yield f"{key}: {list(value)} is smaller than the {side} pixels that the model needs"
        if channels != 3 and self.data.source == "shapes":
            yield f"model.num_channels: {channels}, but the source shapes draws RGB: set it to 3"
        for key, example in (("image_mean", 0.5), ("image_std", 0.25)):
            values = getattr(self.data, key)
            if len(values) != channels:
                yield (
                    f"data.{key}: must have one number a channel, model.num_channels={channels} in "
                    f"all, not {len(values)}. Write what `finetune init` finds in the images, or "
                    f"data.{key}={[example] * channels}"
                )

    def _of_the_loss(self, names: tuple[str, ...]) -> Iterator[str]:
        terms = [term.name for term in self.loss]
        for name in sorted({name for name in terms if terms.count(name) > 1}):
            yield f"loss: the term {name} occurs twice; remove one"
        for number, term in enumerate(self.loss):
            where = "loss" if len(terms) == 1 else f"loss.{number}.{term.name}"
            weights = getattr(term.options, "class_weights", {})  # not every term has them
            for name in weights:
                if name not in names:
                    hint = did_you_mean(name, names)
                    yield f"{where}.class_weights: {name!r} is no class of labels.names{hint}"
            if weights and not any(weights.get(name, 1.0) for name in names):
                yield f"{where}.class_weights: all weights are 0; give one class a larger weight"

    def to_yaml(self) -> str:
        """The resolved recipe as YAML, the form saved beside the model."""
        return to_yaml(self.model_dump(mode="json"))

    def hash(self) -> str:
        """SHA-256 of all keys but `VOLATILE`, that is of those that change the result."""
        content = {key: value for key, value in _flat(self).items() if key not in VOLATILE}
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    def differences(self, other: "Recipe") -> list[str]:
        """One line "key: mine -> other's" for each difference that changes the result."""
        mine, theirs = _flat(self), _flat(other)
        return [
            f"{key}: {in_line(mine.get(key))} -> {in_line(theirs.get(key))}"
            for key in {**mine, **theirs}  # two sources have different keys
            if key not in VOLATILE and mine.get(key) != theirs.get(key)
        ]

    def batch_split(self, world_size: int) -> tuple[int, int]:
        """Micro-batch size and accumulation steps of each of `world_size` processes.

        Raises:
            UserError: the processes cannot share the global batch.
        """
        share, rest = divmod(self.train.global_batch, world_size)
        micro = self.train.micro_batch or max(share, 1)
        if rest or not share or share % micro:
            raise UserError(
                f"train.global_batch={self.train.global_batch} cannot be shared by {world_size} "
                f"process(es) in micro-batches of {micro}: it must be a multiple of "
                f"{world_size * micro}. Change train.global_batch or train.micro_batch."
            )
        return micro, share // micro


def _flat(recipe: Recipe) -> dict[str, Any]:
    """Dotted key -> plain value."""
    flat: dict[str, Any] = {}
    for name, value in recipe.model_dump(mode="json").items():
        if isinstance(value, Mapping):
            flat |= {f"{name}.{key}": own for key, own in value.items()}
        else:
            flat[name] = value
    return flat
