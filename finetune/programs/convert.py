"""`finetune convert`: makes a stock folder in float32 of published weights or a stock folder.

The result opens in stock transformers and gives the original's logits. Classes and preprocessing
are assumed if neither the file nor its shapes state them. Each assumption is listed.
"""

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCardData
from transformers import PreTrainedModel

from finetune.errors import UserError
from finetune.inference.models import class_colors, class_names, load_preprocessing
from finetune.inference.preprocessing import Preprocessing
from finetune.labels.colors import default_colors
from finetune.labels.presets import PRESETS, official_names
from finetune.pictures.drawing import Color
from finetune.publish import save_model_folder
from finetune.publish.cards import rendered
from finetune.publish.header import TAGS
from finetune.recipe import InferenceProtocol
from finetune.segformer import SegformerConfig
from finetune.weights.cards import Card, card_of, licence_fields, licence_in, licence_of
from finetune.weights.folders import load_config, read_model
from finetune.weights.reading import is_checkpoint_file, read_weights
from finetune.weights.shapes import ARCHITECTURES, Kind, variant_of

_WHOLE_FOLDER = ("model.safetensors", "pytorch_model.bin")  # beside their config.json
_KEPT = ("license", "license_name", "license_link", "base_model", "datasets", "language")
_EPSILON = (
    "layer norms use stock's epsilon 1e-5 everywhere, the original 1e-6 in blocks and after stages"
)
# The published protocols by the number of classes, as in the recipes ade20k and cityscapes.
_PROTOCOLS = {
    "ade20k": InferenceProtocol(shortest_edge=512, longest_edge=2048, size_divisor=32),
    "cityscapes": InferenceProtocol(window=(1024, 1024), stride=(768, 768)),
}
_PRESET_OF = {len(PRESETS[name]["names"]): name for name in _PROTOCOLS}
_DATA_OF = {"ade20k": "ADEChallengeData2016", "cityscapes": "cityscapes"}
_PURPOSES: dict[Kind, str] = {
    "segmentation": "SegFormer for semantic segmentation, {count} classes.",
    "classification": "SegFormer's encoder (MiT) with the classifier of its pretraining, {count} "
    "classes.",
    "encoder": "SegFormer's encoder (MiT), without a head.",
}
_TASKS: dict[Kind, str] = {
    "segmentation": "image-segmentation",
    "classification": "image-classification",
    "encoder": "image-feature-extraction",
}


@dataclass(frozen=True)
class Conversion:
    """The result of a conversion.

    Attributes:
        source: the file, folder or Hub id.
        output: the folder.
        kind: "segmentation", "classification" or "encoder".
        loaded: a description of the source.
        parameters: their number.
        classes: their names; empty without a head.
        assumed: sentences about facts that neither the source nor its shapes state.
        left_out: tensors of the source that no logit depends on.
        licence: the known licence, or empty.
        next: a command that uses the folder.
    """

    source: str
    output: str
    kind: Kind
    loaded: str
    parameters: int
    classes: tuple[str, ...]
    assumed: tuple[str, ...]
    left_out: tuple[str, ...]
    licence: str
    next: str

    def to_json(self) -> str:
        """One JSON object."""
        return json.dumps(asdict(self))

    def to_text(self) -> str:
        """Text for people."""
        lines = [f"Loaded: {self.loaded}, {self.parameters / 1e6:.2f} M parameters"]
        if self.left_out:
            count, first = len(self.left_out), self.left_out[0]
            lines.append(f"Left out: {count} tensors that no logit depends on, {first} first")
        lines += [f"Assumed: {text}" for text in self.assumed]
        if self.licence:
            lines.append(f"Licence: {self.licence}")
        return "\n".join([*lines, "", f"Written: {self.output}. Next: {self.next}"])


@dataclass(frozen=True)
class _Source:
    """A model, with the facts about it; no colours and no preprocessing if they are unknown."""

    model: PreTrainedModel
    kind: Kind
    loaded: str
    licence: str
    fields: dict[str, Any]
    colors: Sequence[Color]
    preprocessing: Preprocessing | None = None
    assumed: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()
    facts: Mapping[str, str] = field(default_factory=dict)


def convert(checkpoint: str, output: Path, *, heads: Sequence[int] | None = None) -> Conversion:
    """Converts a checkpoint file, a stock folder or a Hub id to a stock folder.

    Args:
        checkpoint: the file, folder or id.
        output: the folder to write; new or empty.
        heads: attention heads per stage, for files whose shapes do not tell.

    Raises:
        UserError: the output is in use; or the checkpoint cannot be read, or stock's model cannot
            express it. Nothing is written then.
    """
    _check_output(output)
    beside = Path(checkpoint)
    if beside.name in _WHOLE_FOLDER and (beside.parent / "config.json").is_file():
        checkpoint = str(beside.parent)
    is_file = is_checkpoint_file(checkpoint)
    if is_file:
        source = _open_file(checkpoint, heads)
    elif heads is not None:
        raise UserError(f"--heads: leave it out; the config.json of {checkpoint} has these numbers")
    else:
        source = _open_folder(checkpoint)
    config: Any = source.model.config
    labels = config.id2label or {}
    names = tuple(labels[i] for i in range(len(labels))) if source.kind != "encoder" else ()
    is_segmentor = source.kind == "segmentation"
    preset = _PRESET_OF.get(len(names)) if is_segmentor else None
    colors, preprocessing, assumed = source.colors, source.preprocessing, source.assumed
    if is_segmentor and not colors:
        colors = PRESETS[preset]["colors"] if preset else default_colors(len(names))
    if preprocessing is None:
        preprocessing, said = _assumed_preprocessing(source.kind, preset, config)
        assumed = (*assumed, said)
    fields = {
        **licence_fields(source.licence),
        "pipeline_tag": _TASKS[source.kind],
        "tags": list(TAGS if is_segmentor else ("segformer", "vision")),
        **source.fields,
    }
    card = rendered(
        "publish/converted.md",
        ModelCardData(library_name="transformers", **fields),
        name=output.resolve().name,
        purpose=_PURPOSES[source.kind].format(count=len(names)),
        facts={
            "weights": source.loaded,
            "converted from": Path(checkpoint).name if is_file else checkpoint,
            **source.facts,
            **{f"assumed ({n})": text for n, text in enumerate(assumed, 1)},
        },
        licence=source.licence,
        protocol=preprocessing.protocol if is_segmentor else None,
        num_channels=config.num_channels,
    )
    save_model_folder(output, source.model, preprocessing=preprocessing, colors=colors, card=card)
    return Conversion(
        source=checkpoint,
        output=str(output),
        kind=source.kind,
        loaded=source.loaded,
        parameters=sum(parameter.numel() for parameter in source.model.parameters()),
        classes=names,
        assumed=assumed,
        left_out=source.left_out,
        licence=source.licence,
        next=_next(output, source.kind, names, config),
    )


def _open_file(checkpoint: str, heads: Sequence[int] | None) -> _Source:
    weights = read_weights(Path(checkpoint), checkpoint, heads=heads)
    if weights.lost_head:
        raise UserError(
            f"{checkpoint}: cannot be expressed in stock's model: {weights.lost_head}. Its encoder "
            f"alone can start a training: model.init={checkpoint} in a recipe"
        )
    count = weights.arguments.get("num_labels", 0)
    assumed = list(weights.assumed)
    names, preset = weights.names, _PRESET_OF.get(count)
    if weights.kind != "segmentation":
        names, preset = tuple(f"class_{i}" for i in range(count)), None
    elif names is None and preset:
        names = tuple(PRESETS[preset]["names"])
        assumed.append(f"the {count} classes are those of {preset}, since the file names none")
    elif names is None:
        names = tuple(f"class_{i}" for i in range(count))
        assumed.append(f"the {count} classes are called class_0 and so on: the file names none")
    arguments = dict(weights.arguments)
    if arguments.pop("num_labels", None):
        arguments["id2label"] = dict(enumerate(names))
        arguments["label2id"] = {name: i for i, name in enumerate(names)}
    config = SegformerConfig(**arguments)
    model: Any = ARCHITECTURES[weights.kind](config)
    prefix = "segformer." if weights.kind == "encoder" else ""
    model.load_state_dict({k.removeprefix(prefix): v for k, v in weights.state.items()})
    is_stock = weights.layout == "transformers"
    return _Source(
        model.eval(),
        weights.kind,
        weights.describe(),
        weights.licence,
        # The card of a model folder also describes a file from that folder.
        _fields(card_of(str(Path(checkpoint).parent))) if is_stock else {"license": "other"},
        weights.colors or (),
        assumed=tuple(assumed),
        left_out=weights.left_out,
        facts={} if is_stock else {"epsilon": _EPSILON},
    )


def _open_folder(checkpoint: str) -> _Source:
    config = load_config(checkpoint, checkpoint)
    kinds = {architecture.__name__: kind for kind, architecture in ARCHITECTURES.items()}
    kind = kinds.get((config.architectures or [""])[0], "segmentation")
    model, missing = read_model(checkpoint, checkpoint, config, ARCHITECTURES[kind])
    if missing:
        raise UserError(
            f"{checkpoint}: {len(missing)} weights of config.json are missing or have another "
            f"shape, {missing[0]} among them; take a complete folder"
        )
    if kind != "encoder":
        class_names(config, checkpoint)  # refuses a config without every name
    preprocessing = None
    is_local = Path(checkpoint).is_dir()
    if not is_local or Path(checkpoint, "preprocessor_config.json").is_file():
        preprocessing = load_preprocessing(checkpoint, checkpoint, config)
    variant = variant_of(config.depths, config.hidden_sizes)
    size = f"MiT-{variant.upper()}" if variant else "a MiT of another size"
    fields = _fields(card_of(checkpoint))
    if not is_local:
        fields["base_model"] = checkpoint
    if licence := licence_of(checkpoint):
        fields["license"] = "other"
    return _Source(
        model,
        kind,
        f"transformers folder of {size}, {type(model).__name__}",
        licence,
        fields,
        class_colors(config, len(config.id2label or {}), checkpoint) or (),
        preprocessing,
    )


def _assumed_preprocessing(
    kind: Kind, preset: str | None, config: SegformerConfig
) -> tuple[Preprocessing, str]:
    """The assumed preprocessing, and a sentence that states the assumption."""
    if kind != "segmentation":
        protocol = InferenceProtocol(fixed_size=(224, 224))
        of = "images of 224 x 224, as in pretraining"
    elif preset:
        protocol = _PROTOCOLS[preset]
        if preset == "ade20k" and variant_of(config.depths, config.hidden_sizes) == "b5":
            protocol = InferenceProtocol(shortest_edge=640, longest_edge=2048, size_divisor=32)
        of = f"images are shown as published for {preset}: {protocol.describe()}"
    else:
        protocol, of = InferenceProtocol(), "images are shown at their own size"
    if config.num_channels == 3:
        return Preprocessing(protocol), f"{of}; normalised by ImageNet's mean and deviation"
    mean, std = (0.0,) * config.num_channels, (1.0,) * config.num_channels
    remedy = "values in 0..1 as they are; mend image_mean and image_std in preprocessor_config.json"
    return Preprocessing(protocol, mean, std), f"{of}; {remedy}"


def _fields(card: Card) -> dict[str, Any]:
    """The licence and the source model in a card, as fields for our card."""
    kept = {key: card.header[key] for key in _KEPT if card.header.get(key)}
    return {**kept, "license": "other"} if licence_in(card) else kept


def _next(output: Path, kind: Kind, names: tuple[str, ...], config: SegformerConfig) -> str:
    folder = shlex.quote(str(output))
    preset = _PRESET_OF.get(len(names))
    if kind == "segmentation" and preset and official_names(names) == PRESETS[preset]["names"]:
        return f"finetune eval {folder} --recipe {preset} data.path={_DATA_OF[preset]}"
    if kind == "segmentation":
        return f"finetune predict {folder} PICTURE -o masks"
    variant = variant_of(config.depths, config.hidden_sizes)
    size = f"model.variant={variant}"
    if variant is None:
        keys = ("depths", "hidden_sizes", "num_attention_heads")
        lists = {key: str(list(getattr(config, key))).replace(" ", "") for key in keys}
        size = " ".join(f"model.{key}={value}" for key, value in lists.items())
    return f"finetune train RECIPE model.init={folder} {size}"


def _check_output(output: Path) -> None:
    try:
        in_use = output.exists() and (not output.is_dir() or any(output.iterdir()))
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise UserError(f"{output}: not a usable folder ({error}); name another") from error
    if in_use:
        raise UserError(f"{output}: is there already; name a folder that is new or empty")
