"""Model cards: README.md of a model folder."""

from collections.abc import Mapping, Sequence
from typing import Any

from huggingface_hub import ModelCard, ModelCardData

from finetune.publish.header import DataSet, header
from finetune.publish.markdown import render
from finetune.recipe import InferenceProtocol
from finetune.weights.cards import licence_fields


def model_card(
    *,
    name: str,
    base_model: str | None,
    names: Sequence[str],
    results: Mapping[str, float | None],
    per_class_iou: Mapping[str, float | None],
    protocol: InferenceProtocol,
    num_channels: int = 3,
    licence: str = "",
    data_set: DataSet | None = None,
    facts: Mapping[str, Any],
) -> ModelCard:
    """A model card with the results of an evaluation.

    Args:
        name: name of the run.
        base_model: the Hub id that training started from, or None.
        names: the classes.
        results: metric -> value of this evaluation.
        per_class_iou: class -> IoU; None for absent classes.
        protocol: the protocol of the evaluation.
        num_channels: number of channels of the images.
        licence: the restriction on the use of the starting weights, or empty.
        data_set: the data set of the results; if given, the header holds the results too.
        facts: further lines of the training section.
    """
    more = licence_fields(licence)
    return rendered(
        "publish/trained.md",
        header(name=name, base_model=base_model, data_set=data_set, results=results, more=more),
        name=name,
        names=names,
        results=results,
        per_class_iou=per_class_iou,
        protocol=protocol,
        num_channels=num_channels,
        licence=licence,
        facts=facts,
    )


def rendered(template: str, data: ModelCardData, **values: Any) -> ModelCard:
    """A card from its header, and the template of its text with the template's variables."""
    return ModelCard(f"---\n{data.to_yaml()}\n---\n\n{render(template, **values)}")
