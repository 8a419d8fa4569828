"""Recipes: what to train, on what and how, in typed and closed YAML.

A recipe states only what differs from the defaults, which live in the classes below and nowhere
else. `base:` names a recipe to start from, `key=value` overrides by dotted path, and an unknown
key is an error that suggests the nearest one. `load_recipe` returns the resolved recipe: every
value stands in it, nothing is left to look up.

    recipe = load_recipe("camvid", ["data.path=CamVid", "train.steps=2000"])
"""

import difflib
import hashlib
import json
import os
import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from finetune.errors import UserError
from finetune.labels.presets import PRESETS
from finetune.labels.translation import Labels
from finetune.segformer.configuration import VARIANTS, SegformerConfig, smallest_side

PositiveInt = Annotated[int, Field(ge=1)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Side = Annotated[int, Field(ge=1, le=16384)]
Size = tuple[Side, Side]


def _no_bool(value: Any) -> Any:
    if isinstance(value, bool):  # which would be taken for 0 or 1
        raise ValueError("must be a number or text; YAML reads yes, no, on and off as true, false")
    return value


MaskValue = Annotated[int | str, BeforeValidator(_no_bool)]


class Section(BaseModel):
    """Closed and frozen: an unknown key is an error, and nobody changes a recipe in passing."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


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
        """Keyword arguments of `SegformerConfig`, less what the labels say."""
        own = {
            key: getattr(self, key)
            for key in ("depths", "hidden_sizes", "decoder_hidden_size")
            if getattr(self, key) is not None
        }
        return {
            **VARIANTS[self.variant],
            **own,
            "num_attention_heads": self.num_attention_heads,
            "num_channels": self.num_channels,
            "drop_path_rate": self.drop_path_rate,
            "classifier_dropout_prob": self.classifier_dropout_prob,
        }


class DataSection(Section):
    """Where the images and masks come from."""

    source: Literal[
        "shapes",
        "folder",
        "hub",
        "coco",
        "ultralytics",
        "camvid",
        "ade20k",
        "cityscapes",
        "voc",
        "coco-stuff",
    ] = Field(
        "folder",
        description="procedural shapes, two folders, the Hub (or Parquet and Arrow anywhere), "
        "COCO's JSON, Ultralytics' data.yaml, or an official layout",
    )
    path: str | None = Field(
        None,
        description="the data set's folder (every source but shapes); hub: also an id, owner/name, "
        "or an address such as s3://bucket/set",
    )
    revision: str | None = Field(None, description="hub: branch, tag or commit of the repository")
    subset: str | None = Field(None, description="hub: which one, if the repository has several")
    image_column: str = Field("image", description="hub: the column of images")
    mask_column: str = Field("mask", description="hub: the column of masks")
    id_column: str | None = Field(None, description="hub: the column of the samples' names")
    streaming: bool = Field(
        False, description="hub: read Parquet files where they are, from front to back; keeps none"
    )
    val_fraction: Annotated[float, Field(gt=0, lt=1)] | None = Field(
        None, description="share of train_split to evaluate on, instead of val_split"
    )
    split_seed: int = Field(0, description="val_fraction: another cut for each")
    split_group: str | None = Field(
        None, description="val_fraction: regular expression of what keeps samples together, in ids"
    )
    split_list: str | None = Field(
        None, description="text file of a split's ids, below path, such as {split}.txt"
    )
    train_split: str = Field("train", description="what to train on")
    val_split: str = Field("val", description="what to evaluate on")
    images: str = Field(
        "images/{split}", description="folder, coco: where the images are, below path"
    )
    masks: str = Field(
        "masks/{split}",
        description="folder: where the masks are, below path; with {class}, one file a class",
    )
    image_suffix: str = Field("", description="folder: what image names end in, e.g. _image")
    mask_suffix: str = Field(
        "", description="folder: what mask names end in, e.g. _mask; with {class}, one file a class"
    )
    annotations: str = Field(
        "annotations/{split}.json", description="coco: the file of objects, below path"
    )
    overlap: Literal["area", "order"] = Field(
        "area",
        description="coco, ultralytics: of several objects the smallest has a pixel, or the last",
    )
    train_samples: PositiveInt = Field(4000, description="shapes: pictures to train on")
    val_samples: PositiveInt = Field(200, description="shapes: pictures to evaluate on")
    size: Size = Field((96, 96), description="shapes: height and width of the pictures")
    image_mean: list[float] = Field(
        [0.485, 0.456, 0.406], description="mean per channel, of values in 0..1"
    )
    image_std: list[Annotated[float, Field(gt=0)]] = Field(
        [0.229, 0.224, 0.225], description="standard deviation per channel, of values in 0..1"
    )
    workers: Annotated[int, Field(ge=0)] = Field(
        2,
        description="loader processes per training process; never changes what is loaded (of a "
        "stream, the order)",
    )
    cache: Literal["auto", "disk", "none"] = Field(
        "auto",
        description="keep decoded files on disk ($FINETUNE_CACHE or ~/.cache/finetune/decoded): "
        "auto, if they fit; disk, whatever they take; none; never changes what is loaded",
    )


class LabelsSection(Section):
    """What the values in the masks mean: the only place where labels are translated."""

    preset: (
        Literal[
            "shapes", "ade20k", "camvid", "cityscapes", "cityscapes-label-ids", "voc", "coco-stuff"
        ]
        | None
    ) = Field(
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
        "error", description="what becomes of mask values without a rule"
    )
    tolerance: Annotated[int, Field(ge=0, le=127)] = Field(
        0, description="how far each channel of a colour may be off"
    )
    reduce_zero: bool = Field(
        False, description="mask value 0 is ignored and value v is class v - 1 (ADE20K)"
    )

    def build(self) -> Labels:
        """The translation itself; its errors name the keys of this section."""
        rules = self.model_dump(exclude={"preset"})
        return Labels.build(**rules)


class AugmentSection(Section):
    """What is done to a training image; the defaults are the published recipe's."""

    crop: Size = Field((512, 512), description="height and width of a training crop")
    base_size: Size | None = Field(
        None, description="long and short edge at scale 1; null: the image's own size"
    )
    scale: tuple[Annotated[float, Field(gt=0)], Annotated[float, Field(gt=0)]] = Field(
        (0.5, 2.0), description="range of the random scale"
    )
    cat_max_ratio: Fraction = Field(
        0.75, description="largest share of one class in a crop (10 tries); 1: any"
    )
    flip: Fraction = Field(0.5, description="probability of a horizontal flip")
    photometric: bool = Field(True, description="distort brightness, contrast, saturation and hue")


class TrainSection(Section):
    """The loop; the defaults are the published recipe's."""

    steps: PositiveInt = Field(160_000, description="optimiser steps")
    max_minutes: Annotated[float, Field(gt=0)] | None = Field(
        None,
        description="stop after so long, the state saved; the same command goes on (it takes one "
        "step at least; hub.repo's last push has up to 15 minutes more). null: no limit",
    )
    global_batch: PositiveInt = Field(16, description="images a step, over all processes")
    micro_batch: PositiveInt | None = Field(
        None, description="images a process takes at once; null: its whole share of global_batch"
    )
    lr: Annotated[float, Field(gt=0)] = Field(6e-5, description="peak learning rate (AdamW)")
    head_lr_multiplier: Annotated[float, Field(gt=0)] = Field(
        10.0, description="learning rate of the head, in multiples of lr"
    )
    weight_decay: Annotated[float, Field(ge=0)] = Field(0.01, description="AdamW's")
    schedule: Literal["poly", "cosine", "constant"] = Field("poly", description="after warm-up")
    power: Annotated[float, Field(gt=0)] = Field(1.0, description="exponent of the poly schedule")
    warmup_steps: Annotated[int, Field(ge=0)] = Field(1500, description="of linear warm-up")
    clip_norm: Annotated[float, Field(gt=0)] | None = Field(
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


class LossSection(Section):
    """Cross entropy, and what changes how much a pixel counts in it."""

    class_weights: dict[str, Annotated[float, Field(ge=0)]] = Field(
        {},
        description="class: how much its pixels count; 1 where not named. `finetune doctor` "
        "suggests some",
    )
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.0, description="share of the target that is spread over all classes"
    )
    focal_gamma: Annotated[float, Field(ge=0)] = Field(
        0.0, description="exponent of the focal factor (1 - p)^gamma; 0: none"
    )


class EvaluationSection(Section):
    """The protocol: how an image becomes a mask of its own size."""

    fixed_size: Size | None = Field(
        None, description="resize to this height and width, whatever the ratio; null: keep it"
    )
    shortest_edge: PositiveInt | None = Field(
        None, description="resize to this shorter edge, keeping the ratio; null: no resize"
    )
    longest_edge: PositiveInt | None = Field(
        None, description="with shortest_edge: the longer edge's limit"
    )
    size_divisor: PositiveInt = Field(
        1, description="with shortest_edge: sides rounded up to multiples of this"
    )
    window: Size | None = Field(None, description="sliding window; null: the whole image at once")
    stride: Size | None = Field(None, description="of the sliding window; null: 3/4 of it")
    scales: tuple[Annotated[float, Field(gt=0)], ...] = Field(
        (1.0,), min_length=1, description="sizes at which images are shown; the mean decides"
    )
    flip: bool = Field(False, description="show images mirrored as well, at each scale")
    batch_size: PositiveInt = Field(1, description="images of one size evaluated at once")


class HubSection(Section):
    """Pushing the best model to the Hugging Face Hub while training goes on."""

    repo: str | None = Field(
        None,
        description="owner/name on the Hub that is kept at the best model, from the first "
        "evaluation on; null: nothing is pushed",
    )
    private: bool = Field(True, description="whether it is private, if it is made new")


class Recipe(Section):
    """A whole recipe."""

    name: str = Field("", description="name of the run; default: the recipe's file name")
    task: Literal["segmentation"] = Field("segmentation", description="what is learned")
    seed: Annotated[int, Field(ge=0, lt=2**31)] = Field(0, description="of everything random")
    output: str = Field("", description="run folder; default: runs/<name>")
    resume: str = Field(
        "auto", description="auto: go on where output stopped; never; or a checkpoint's folder"
    )
    model: ModelSection = ModelSection()
    data: DataSection = DataSection()
    labels: LabelsSection = LabelsSection()
    augment: AugmentSection = AugmentSection()
    train: TrainSection = TrainSection()
    loss: LossSection = LossSection()
    evaluation: EvaluationSection = EvaluationSection()
    hub: HubSection = HubSection()

    def to_yaml(self) -> str:
        """The resolved recipe, as it is saved beside the model."""
        return to_yaml(self.model_dump(mode="json"))

    def hash(self) -> str:
        """SHA-256 of what the result depends on (`VOLATILE` keys left out)."""
        content = {key: value for key, value in _flat(self).items() if key not in VOLATILE}
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    def differences(self, other: "Recipe") -> list[str]:
        """The lines "key: mine -> other's" in which two recipes would give different results."""
        mine, theirs = _flat(self), _flat(other)
        return [
            f"{key}: {mine[key]} -> {theirs[key]}"
            for key in mine
            if key not in VOLATILE and mine[key] != theirs[key]
        ]

    def batch_split(self, world_size: int) -> tuple[int, int]:
        """Micro-batch and gradient accumulation steps of each of `world_size` processes.

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


# What may change between a run and its resumption: where things are and how fast they go.
VOLATILE = (
    "name",
    "output",
    "resume",
    "data.path",
    "data.workers",
    "data.cache",
    "train.max_minutes",
    "train.checkpoint_every",
    "train.keep_checkpoints",
    "train.log_every",
    "train.threads",
    "train.compile",
    "hub.repo",
    "hub.private",
)

FILES = {"folder", "coco", "ultralytics", "camvid", "ade20k", "cityscapes", "voc", "coco-stuff"}

# Keys that only some sources read: setting them for another is a mistake, not a wish.
READ_BY = {
    "images": {"folder", "coco"},
    "masks": {"folder"},
    "image_suffix": {"folder"},
    "mask_suffix": {"folder"},
    "train_samples": {"shapes"},
    "val_samples": {"shapes"},
    "size": {"shapes"},
    "annotations": {"coco"},
    "overlap": {"coco", "ultralytics"},
    "val_fraction": FILES | {"hub"},
    "split_seed": FILES | {"hub"},
    "split_group": FILES | {"hub"},
    "split_list": FILES,
    "path": FILES | {"hub"},
    "revision": {"hub"},
    "subset": {"hub"},
    "image_column": {"hub"},
    "mask_column": {"hub"},
    "id_column": {"hub"},
    "streaming": {"hub"},
}


# ------------------------------------------------------------------------------------- loading


def load_recipe(
    name: str | os.PathLike[str], overrides: Iterable[str] | Mapping[str, Any] = ()
) -> Recipe:
    """Finds, inherits, overrides and checks a recipe.

    Args:
        name: a path, or a bare name that is looked up in the working directory and then among the
            shipped recipes, with or without `.yaml`.
        overrides: "dotted.key=value" strings (values are YAML), or a mapping of such keys.

    Returns:
        The resolved recipe.

    Raises:
        UserError: names the file and the dotted key, and says what to do.
    """
    path = find_recipe(str(name))
    return recipe_from_values(_read_with_bases(path, ()), path, overrides)


def recipe_from_values(
    values: Mapping[str, Any],
    name: str | os.PathLike[str],
    overrides: Iterable[str] | Mapping[str, Any] = (),
) -> Recipe:
    """Overrides and checks what a recipe's file holds, or would hold.

    Args:
        values: Its sections.
        name: Its file, for messages and for the recipe's own name.
        overrides: As those of `load_recipe`.

    Raises:
        UserError: As `load_recipe`.
    """
    path, values = Path(name), dict(values)
    if not isinstance(overrides, Mapping):
        overrides = dict(_parse_override(text) for text in overrides)
    for key, value in overrides.items():
        _set(values, key, value)
    recipe = _validate(values, path)
    recipe = _resolve(recipe, path.stem)
    _check(recipe, path)
    return recipe


def find_recipe(name: str) -> Path:
    """The file of a recipe; see `load_recipe`."""
    candidates = [name, f"{name}.yaml", f"{name}.yml"]
    for folder in (Path(), shipped_folder()):
        for candidate in candidates:
            path = folder / candidate
            if os.path.isfile(path) and path.suffix in (".yaml", ".yml"):
                return path
    known = [path.stem for path in shipped_recipes()]
    close = difflib.get_close_matches(Path(name).stem, known, n=1)
    hint = f" Did you mean {close[0]}?" if close else ""
    raise UserError(
        f"no recipe {name!r} here or among the shipped ones ({', '.join(known)}).{hint}"
    )


def shipped_recipes() -> list[Path]:
    """The recipes that come with the package, by name."""
    return sorted(shipped_folder().glob("*.yaml"))


def shipped_folder() -> Path:
    """`recipes/` of the checkout, or of the installed wheel, which carries it in the package."""
    inside = Path(str(resources.files("finetune"))) / "recipes"
    return inside if inside.is_dir() else inside.parents[1] / "recipes"


def recipe_from_yaml(path: Path) -> Recipe:
    """A resolved recipe, as a run or a model folder keeps it."""
    recipe = _validate(_read_yaml(path), path)
    _check(recipe, path)
    return recipe


def describe_keys() -> list[tuple[str, str, str, str]]:
    """Dotted key, type, default and description of every value a recipe can hold."""

    def rows(section: type[BaseModel], prefix: str) -> Iterable[tuple[str, str, str, str]]:
        for key, field in section.model_fields.items():
            kind = field.annotation
            if isinstance(kind, type) and issubclass(kind, Section):
                yield from rows(kind, f"{prefix}{key}.")
            else:
                schema = section.model_json_schema()["properties"][key]
                yield (
                    f"{prefix}{key}",
                    _type_name(schema),
                    _value(field.default),
                    (field.description or ""),
                )

    return list(rows(Recipe, ""))


def _type_name(schema: Mapping[str, Any]) -> str:
    if "enum" in schema:
        return " | ".join(map(str, schema["enum"]))
    if "const" in schema:
        return str(schema["const"])
    if "anyOf" in schema:
        return " | ".join(_type_name(option) for option in schema["anyOf"])
    return schema.get("type", "any")


def _value(value: Any) -> str:
    return yaml.dump(
        list(value) if isinstance(value, tuple) else value, default_flow_style=True
    ).split("\n")[0]


class _Loader(yaml.SafeLoader):
    """Safe, and a key that stands twice is an error instead of the last one winning."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        twice = next((key for i, key in enumerate(keys) if key in keys[:i]), None)
        if twice is not None:
            raise yaml.constructor.ConstructorError(
                None, None, f"the key {twice!r} stands twice", node.start_mark
            )
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    """Lists of plain values in one line, as people write them."""


def to_yaml(values: Mapping[str, Any]) -> str:
    """Values as people write recipes."""
    return yaml.dump(values, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100)


def _represent_list(dumper: yaml.SafeDumper, items: list[Any]) -> yaml.Node:
    return dumper.represent_sequence("tag:yaml.org,2002:seq", items, flow_style=True)


_Dumper.add_representer(list, _represent_list)


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"recipe {path}: cannot be read ({error})") from error
    except yaml.YAMLError as error:
        raise UserError(f"recipe {path}: not valid YAML: {error}") from error
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise UserError(f"recipe {path}: must hold `key: value` lines, not a {type(values)}")
    return values


def _read_with_bases(path: Path, above: Sequence[Path]) -> dict[str, Any]:
    if path.resolve() in above:
        chain = " -> ".join(str(p.name) for p in (*above, path))
        raise UserError(f"recipe {path}: base: goes in a circle ({chain})")
    values = _read_yaml(path)
    base = values.pop("base", None)
    if base is None:
        return values
    if not isinstance(base, str):
        raise UserError(f"recipe {path}: base: must be the name of one recipe")
    beside = [path.parent / candidate for candidate in (base, f"{base}.yaml")]
    base_path = next((p for p in beside if p.is_file()), None) or find_recipe(base)
    return _merge(_read_with_bases(base_path, (*above, path.resolve())), values)


def _merge(base: dict[str, Any], top: Mapping[str, Any]) -> dict[str, Any]:
    """`top` over `base`: sections key by key, everything else (lists too) replaced."""
    merged = dict(base)
    for key, value in top.items():
        if isinstance(value, Mapping) and isinstance(merged.get(key), Mapping) and key != "map":
            merged[key] = _merge(merged[key], value)
        else:
            merged[key] = value
    return merged


def _parse_override(text: str) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    if not equals or not key or key.startswith("-"):
        raise UserError(f"{text!r} is not an override: write key=value, such as train.steps=100")
    try:
        return key, yaml.load(value, Loader=_Loader)
    except yaml.YAMLError as error:
        raise UserError(f"{key}: {value!r} is not valid YAML: {error}") from error


def _set(values: dict[str, Any], dotted: str, value: Any) -> None:
    *sections, key = dotted.split(".")
    for section in sections:
        inner = values.get(section)
        values[section] = dict(inner) if isinstance(inner, Mapping) else {}
        values = values[section]
    values[key] = value


def _validate(values: Mapping[str, Any], path: Path) -> Recipe:
    try:
        return Recipe.model_validate(_with_preset(values))
    except ValidationError as error:
        raise _mistakes(path, [_explain(problem) for problem in error.errors()]) from None


def _mistakes(path: Path, lines: list[str]) -> UserError:
    return UserError(f"recipe {path}: " + "\n  ".join(["", *lines] if lines[1:] else lines))


def _with_preset(values: Mapping[str, Any]) -> Mapping[str, Any]:
    labels = values.get("labels")
    if not isinstance(labels, Mapping):
        return values
    preset = labels.get("preset")
    if not isinstance(preset, str) or preset not in PRESETS:
        return values  # none, or a mistake that the validation names
    return {**values, "labels": {**PRESETS[preset], **labels}}


def _explain(problem: Mapping[str, Any]) -> str:
    location = [str(part) for part in problem["loc"] if isinstance(part, str | int)]
    dotted = ".".join(location)
    if problem["type"] == "extra_forbidden":
        nearest = _nearest_key(dotted)
        return f"{dotted}: unknown key" + (f"; did you mean {nearest}?" if nearest else "")
    message = problem["msg"][0].lower() + problem["msg"][1:]
    return f"{dotted}: {message} (got {problem['input']!r})"


def _nearest_key(dotted: str) -> str | None:
    """The key beside it with the likest name, or one elsewhere with nearly the same name."""
    keys = [key for key, *_ in describe_keys()]
    keys += sorted({key.partition(".")[0] for key in keys} - set(keys))
    section, _, name = dotted.rpartition(".")
    beside = [key for key in keys if key.rpartition(".")[0] == section]
    close = difflib.get_close_matches(dotted, beside, 1, 0.5)
    if close:
        return close[0]
    by_name = {key.rpartition(".")[2]: key for key in keys}
    close = difflib.get_close_matches(name, by_name, 1, 0.7)
    return by_name[close[0]] if close else None


def _resolve(recipe: Recipe, stem: str) -> Recipe:
    """Fills in what depends on other values, so that nothing is left to look up."""
    name = recipe.name or stem
    train = recipe.train
    if train.warmup_steps >= train.steps:
        shortened = train.steps // 10
        warnings.warn(
            f"train.warmup_steps={train.warmup_steps} does not fit into train.steps={train.steps}: "
            f"shortened to {shortened}",
            stacklevel=4,
        )
        train = train.model_copy(update={"warmup_steps": shortened})
    if train.checkpoint_every is None:
        train = train.model_copy(update={"checkpoint_every": train.eval_every})
    labels = recipe.labels
    if labels.ignore is None:
        labels = labels.model_copy(update={"ignore": [] if labels.kind == "colors" else [255]})
    evaluation = recipe.evaluation
    if evaluation.window and evaluation.stride is None:
        stride = tuple(max(1, side * 3 // 4) for side in evaluation.window)
        evaluation = evaluation.model_copy(update={"stride": stride})
    return recipe.model_copy(
        update={
            "name": name,
            "output": os.path.expanduser(recipe.output or Path("runs") / name),
            "labels": labels,
            "train": train,
            "evaluation": evaluation,
        }
    )


def _check(recipe: Recipe, path: Path) -> None:
    """Values that must fit together, before anything is downloaded, opened or built."""
    problems = [*_model_problems(recipe), *_data_problems(recipe), *_loss_problems(recipe)]
    augment, train, evaluation = recipe.augment, recipe.train, recipe.evaluation
    if augment.scale[0] > augment.scale[1]:
        problems.append(f"augment.scale: {list(augment.scale)} must be [smallest, largest]")
    if train.micro_batch and train.global_batch % train.micro_batch:
        problems.append(
            f"train.global_batch: {train.global_batch} is not a multiple of "
            f"train.micro_batch={train.micro_batch}"
        )
    if evaluation.fixed_size and evaluation.shortest_edge:
        problems.append("evaluation.fixed_size: does not go with evaluation.shortest_edge")
    if evaluation.shortest_edge is None:
        for key, default in (("longest_edge", None), ("size_divisor", 1)):
            if getattr(evaluation, key) != default:
                problems.append(f"evaluation.{key}: needs evaluation.shortest_edge")
    if evaluation.stride and not evaluation.window:
        problems.append("evaluation.stride: needs evaluation.window")
    if evaluation.window and evaluation.stride:
        sides = zip(evaluation.stride, evaluation.window, strict=True)
        if any(stride > window for stride, window in sides):
            problems.append("evaluation.stride: larger than evaluation.window leaves gaps")
    if recipe.hub.repo is None and not recipe.hub.private:
        problems.append("hub.private: needs hub.repo")
    if recipe.hub.repo is not None and not _is_repo(recipe.hub.repo):
        problems.append(f"hub.repo: {recipe.hub.repo!r} is not owner/name, such as me/parrots")
    if problems:
        raise _mistakes(path, problems)
    if unreachable := recipe.labels.build().unreachable:
        warnings.warn(
            f"labels.names: no value of a mask means {', '.join(map(repr, unreachable))}, so that "
            "nothing of the kind can be learned. Give it a value in labels.map, or take it out",
            stacklevel=4,
        )


def _is_repo(name: str) -> bool:
    """Whether a push would take it: known before a training of hours, not after it."""
    from huggingface_hub.errors import HFValidationError  # heavy, and few recipes push
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return re.fullmatch(r"[\w.-]+/[\w.-]+", name, re.ASCII) is not None


def _loss_problems(recipe: Recipe) -> Iterable[str]:
    weights = recipe.loss.class_weights
    if not weights:
        return
    names = recipe.labels.build().names
    for name in weights:
        if name not in names:
            close = difflib.get_close_matches(name, names, n=1)
            hint = f" Did you mean {close[0]}?" if close else ""
            yield f"loss.class_weights: {name!r} is none of the classes in labels.names.{hint}"
    if not any(weights.get(name, 1.0) for name in names):
        yield "loss.class_weights: no class counts, so that nothing can be learned"


def _model_problems(recipe: Recipe) -> Iterable[str]:
    model = recipe.model
    arguments = model.config_arguments()
    sizes, heads = arguments["hidden_sizes"], model.num_attention_heads
    lengths = {len(sizes), len(heads), len(arguments["depths"])}
    if lengths != {4}:
        yield (
            "model: depths, hidden_sizes and num_attention_heads must have one number for each of "
            "the 4 stages"
        )
        return
    for stage, (size, head) in enumerate(zip(sizes, heads, strict=True)):
        if size % head:
            yield (
                f"model.num_attention_heads[{stage}]: {head} heads do not divide "
                f"model.hidden_sizes[{stage}]={size}"
            )
    if not any(True for size, head in zip(sizes, heads, strict=True) if size % head):
        side = smallest_side(SegformerConfig(**arguments))
        for key in ("augment.crop", "evaluation.window"):
            section, _, name = key.partition(".")
            value = getattr(getattr(recipe, section), name)
            if value and min(value) < side:
                yield f"{key}: {list(value)} is smaller than the {side} pixels that the model needs"
    channels = model.num_channels
    if channels != 3 and recipe.data.source == "shapes":
        yield f"model.num_channels: {channels}, but the source shapes draws RGB images (3)"
    for key, example in (("image_mean", 0.5), ("image_std", 0.25)):
        values = getattr(recipe.data, key)
        if len(values) != channels:
            yield (
                f"data.{key}: must have one number a channel, model.num_channels={channels} in "
                f"all, not {len(values)}. Write what `finetune init` finds in the images, or "
                f"data.{key}={[example] * channels}"
            )
        elif min(values) < 0 or max(values) > 1:
            yield (
                f"data.{key}: {values} are not in 0..1; divide by 255, or by 65535 if the images "
                "have 16 bit"
            )


def _data_problems(recipe: Recipe) -> Iterable[str]:
    data = recipe.data
    for key, sources in READ_BY.items():
        default = DataSection.model_fields[key].default
        if data.source not in sources and getattr(data, key) != default:
            yield f"data.{key}: read by source {' / '.join(sorted(sources))}, not {data.source}"
    if data.val_fraction is not None and data.split_list is not None:
        yield "data.val_fraction: the split is drawn, but data.split_list names files; take one"
    if data.val_fraction is not None and data.val_split == data.train_split:
        yield (
            f"data.val_split: {data.val_split!r} is what is trained on; with data.val_fraction "
            "give the part that is held back another name"
        )
    if data.streaming:
        for key in ("val_fraction", "cache"):
            value = getattr(data, key)
            if value not in (None, "auto", "none"):
                yield f"data.{key}: {value} needs all samples at hand; not with data.streaming"
    if not _tells_splits_apart(data):
        where = "data.annotations" if data.source == "coco" else "data.images and data.masks"
        yield (
            f"data.val_split: {data.val_split!r} would be the same images as {data.train_split!r}: "
            f"there is no {{split}} in {where}, nor in data.split_list. Write {{split}} where the "
            "splits differ, or hold a share back by data.val_fraction, such as 0.2; if scores of "
            "the training images are what you want, set data.val_split to data.train_split"
        )
    for key in ("split_seed", "split_group"):
        default = DataSection.model_fields[key].default
        if data.val_fraction is None and getattr(data, key) != default:
            yield f"data.{key}: needs data.val_fraction"
    if data.path is None and data.source != "shapes":
        yield f"data.path: missing; the source {data.source} needs the data set's folder"
    if not recipe.labels.names:
        yield "labels.names: missing; list the classes in the order of their ids, or name a preset"
        return
    try:
        labels = recipe.labels.build()
    except UserError as error:
        yield str(error)
        return
    if data.source == "shapes" and (
        labels.names != tuple(PRESETS["shapes"]["names"])
        or recipe.labels.map is not None
        or recipe.labels.reduce_zero
        or recipe.labels.ignore != [255]
    ):
        yield "labels: the source shapes draws its own classes; write `preset: shapes`"


def _tells_splits_apart(data: DataSection) -> bool:
    """Whether a split's name leads to other files, where two names are given."""
    patterns = {"folder": [data.images, data.masks], "coco": [data.annotations]}.get(data.source)
    if patterns is None or data.val_fraction is not None or data.train_split == data.val_split:
        return True
    return any("{split}" in pattern for pattern in [*patterns, data.split_list or ""])


def _flat(recipe: Recipe) -> dict[str, Any]:
    """Dotted key -> plain value."""

    def walk(values: Mapping[str, Any], prefix: str) -> Iterable[tuple[str, Any]]:
        for key, value in values.items():
            if isinstance(value, Mapping) and f"{prefix}{key}" in Recipe.model_fields:
                yield from walk(value, f"{prefix}{key}.")
            else:
                yield f"{prefix}{key}", value

    return dict(walk(recipe.model_dump(mode="json"), ""))
