"""The sections `model`, `labels`, `augment`, `train` and `hub`."""

import re
from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, NonNegativeFloat, NonNegativeInt, PositiveFloat

from finetune.labels.translation import Labels
from finetune.recipe.section import Fraction, PositiveInt, Section, Size
from finetune.recipe.text import in_line
from finetune.segformer.configuration import VARIANTS, SegformerConfig, smallest_side

Preset = Literal[
    "shapes", "ade20k", "camvid", "cityscapes", "cityscapes-label-ids", "voc", "coco-stuff",
    "oxford-pets", "bdd100k-drivable", "idd", "idd-level3", "idd-lite", "loveda", "uavid",
    "floodnet", "suim", "celebamask-hq", "deepglobe-land-cover", "isaid", "potsdam", "vaihingen",
]  # fmt: skip


def _mask_value(value: Any) -> Any:
    if isinstance(value, int | str) or (isinstance(value, float) and value.is_integer()):
        return value
    raise ValueError(f"must be a whole number or text (got {in_line(value)})")


MaskValue = Annotated[int | str, BeforeValidator(_mask_value)]
"""A union of two types, for which pydantic would give two errors."""


class ModelSection(Section):
    """The model."""

    variant: Literal["b0", "b1", "b2", "b3", "b4", "b5"] = Field(
        "b0", description="size of SegFormer, from b0 (lightest) to b5 (best)"
    )
    init: str | None = Field(
        None,
        description="folder or Hub id of a SegFormer to start from (any head), or a file of "
        "weights: .safetensors, or .pth of NVlabs or mmsegmentation; null: from scratch",
    )
    num_channels: Annotated[int, Field(ge=1, le=128)] = Field(
        3, description="channels of the images; 3: RGB, 1: grey, 4: with alpha, any: TIFF"
    )
    depths: list[PositiveInt] | None = Field(None, description="blocks a stage, if not the size's")
    hidden_sizes: list[PositiveInt] | None = Field(
        None, description="channels a stage, if not the size's"
    )
    num_attention_heads: list[PositiveInt] = Field([1, 2, 5, 8], description="heads a stage")
    decoder_hidden_size: PositiveInt | None = Field(
        None, description="channels of the head, if not the size's"
    )
    drop_path_rate: Fraction = Field(0.1, description="stochastic depth of the last block")
    classifier_dropout_prob: Fraction = Field(0.1, description="dropout before the classifier")

    def config_arguments(self) -> dict[str, Any]:
        """Keyword arguments of `SegformerConfig`, without those of the labels."""
        own = self.model_dump(exclude={"variant", "init"}, exclude_none=True)
        return {**VARIANTS[self.variant], **own}

    @property
    def smallest_side(self) -> int:
        """The smallest side of an image, in pixels."""
        return smallest_side(SegformerConfig(**self.config_arguments()))

    def _problems(self) -> Iterator[str]:
        arguments = self.config_arguments()
        sizes, heads = arguments["hidden_sizes"], self.num_attention_heads
        if {len(sizes), len(heads), len(arguments["depths"])} != {4}:
            yield (
                "depths, hidden_sizes and num_attention_heads must have one number for each of the "
                "4 stages"
            )
            return
        for stage, (size, head) in enumerate(zip(sizes, heads, strict=True)):
            if size % head:
                yield (
                    f".num_attention_heads[{stage}]: {head} heads do not divide "
                    f".hidden_sizes[{stage}]={size}"
                )


class LabelsSection(Section):
    """The meaning of the values in the masks; labels are translated here only."""

    preset: Preset | None = Field(
        None, description="names, colours and rules of a known data set, as defaults for the rest"
    )
    names: list[str] = Field([], description="the classes' names, in the order of their ids")
    colors: list[tuple[int, int, int]] | None = Field(
        None, description="the classes' colours (R, G, B); null: chosen by the package"
    )
    kind: Literal["ids", "colors"] = Field(
        "ids", description="what masks hold; a palette's ids or its colours are both there"
    )
    ignore: list[MaskValue] | None = Field(
        None, description="mask values that do not count; null: 255 of ids, no colour"
    )
    map: dict[MaskValue, MaskValue | None] | None = Field(
        None,
        description='mask value, or "#RRGGBB" -> class id or name (null: ignored); null: the value '
        "is the id, the colour that of the class",
    )
    background: str | None = Field(
        None, description="class of pixels that no object covers (coco, polygons, one file a class)"
    )
    unknown: Literal["error", "ignore"] = Field(
        "error", description="what to do with mask values without a rule"
    )
    tolerance: Annotated[int, Field(ge=0, le=32767)] = Field(
        0,
        description="largest difference of a value, or of each channel of a colour, from a "
        "class's; for masks damaged by smooth resizing or JPEG",
    )
    reduce_zero: bool = Field(
        False, description="mask value 0 is ignored and value v is class v - 1 (ADE20K)"
    )

    def build(self) -> Labels:
        """The translation; its errors name the keys of this section."""
        return Labels.build(**self.model_dump(exclude={"preset"}))


class AugmentSection(Section):
    """The augmentation of training images; the defaults are the published recipe's."""

    crop: Size = Field((512, 512), description="height and width of a training crop")
    base_size: Size | None = Field(
        None, description="long and short edge at scale 1; null: the image's own size"
    )
    scale: tuple[PositiveFloat, PositiveFloat] = Field(
        (0.5, 2.0), description="range of the random scale"
    )
    cat_max_ratio: Fraction = Field(
        0.75, description="largest share of one class in a crop (10 tries); 1: any"
    )
    flip: Fraction = Field(0.5, description="probability of a horizontal flip")
    photometric: bool = Field(True, description="distort brightness, contrast, saturation and hue")

    def _problems(self) -> Iterator[str]:
        if self.scale[0] > self.scale[1]:
            yield f".scale: {list(self.scale)} must be [smallest, largest]"


class TrainSection(Section):
    """The training loop; the defaults are the published recipe's."""

    steps: PositiveInt = Field(160_000, description="optimiser steps")
    max_minutes: PositiveFloat | None = Field(
        None,
        description="minutes until the state is saved and the run stops (after one step at least; "
        "hub.repo's last push may take 15 minutes more); the same command resumes it. null: no "
        "limit",
    )
    global_batch: PositiveInt = Field(16, description="images a step, over all processes")
    micro_batch: PositiveInt | None = Field(
        None, description="images a process takes at once; null: its whole share of global_batch"
    )
    lr: PositiveFloat = Field(6e-5, description="peak learning rate (AdamW)")
    head_lr_multiplier: PositiveFloat = Field(
        10.0, description="learning rate of the head, in multiples of lr"
    )
    weight_decay: NonNegativeFloat = Field(0.01, description="weight decay of AdamW")
    schedule: Literal["poly", "cosine", "constant"] = Field(
        "poly", description="shape after the warm-up"
    )
    power: PositiveFloat = Field(1.0, description="exponent of the poly schedule")
    warmup_steps: NonNegativeInt = Field(1500, description="steps of linear warm-up")
    clip_norm: PositiveFloat | None = Field(
        None, description="largest norm of the gradient; null: not clipped"
    )
    precision: Literal["fp32", "bf16", "fp16"] = Field("fp32", description="mixed precision")
    compile: bool = Field(
        False, description="torch.compile the model in training: for GPUs, a CPU is faster without"
    )
    eval_every: PositiveInt = Field(2000, description="steps between evaluations")
    checkpoint_every: PositiveInt | None = Field(
        None, description="steps between checkpoints; null: eval_every"
    )
    keep_checkpoints: PositiveInt = Field(2, description="checkpoints to keep")
    log_every: PositiveInt = Field(10, description="steps between lines of metrics.jsonl")
    threads: Annotated[int, Field(ge=1, le=1024)] | None = Field(
        None, description="CPU threads a process; null: usable cores / local processes"
    )

    def _problems(self) -> Iterator[str]:
        if self.micro_batch and self.global_batch % self.micro_batch:
            yield (
                f".global_batch: {self.global_batch} is not a multiple of "
                f".micro_batch={self.micro_batch}; change one of them"
            )


class HubSection(Section):
    """Pushes of the best model to the Hugging Face Hub during training."""

    repo: str | None = Field(
        None,
        description="owner/name on the Hub that is kept at the best model, from the first "
        "evaluation on; null: nothing is pushed",
    )
    private: bool = Field(True, description="whether a new repository is private")

    def _problems(self) -> Iterator[str]:
        if self.repo is None and not self.private:
            yield ".private: needs .repo"
        if self.repo is not None and not _is_repo(self.repo):
            yield f".repo: {self.repo!r} is not owner/name, such as me/parrots"


def _is_repo(name: str) -> bool:
    """Whether the Hub allows the name; checked before the training, not after hours of it."""
    from huggingface_hub.errors import HFValidationError  # heavy, and few recipes push
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return re.fullmatch(r"[\w.-]+/[\w.-]+", name, re.ASCII) is not None
