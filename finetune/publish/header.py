"""The header of a model card, made and checked by the Hub's own classes."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCardData
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from finetune.weights.cards import licence_fields

TASK = "image-segmentation"
TAGS = ("segformer", "semantic-segmentation", "vision")


@dataclass(frozen=True)
class DataSet:
    """What a model was trained and measured on.

    Attributes:
        name: what people call it.
        split: that was scored.
        train_split: that was trained on.
        kind: of its files: an official layout, or the way it is kept.
        id: on the Hub, if it is there.
        subset: which one, of a repository with several.
        revision: branch, tag or commit of the repository.
    """

    name: str
    split: str
    train_split: str
    kind: str
    id: str | None = None
    subset: str | None = None
    revision: str | None = None


def header(
    *,
    name: str,
    base_model: str | None = None,
    data_set: DataSet | None = None,
    results: Mapping[str, float | None] | None = None,
    licence: str = "",
    more: Mapping[str, Any] | None = None,
) -> ModelCardData:
    """What the Hub shows, finds and compares a segmentor by.

    Args:
        name: of the model.
        base_model: the Hub id of what training started from.
        data_set: what the results were measured on.
        results: metric ("mean IoU") -> share of 1; those that are None are left out.
        licence: what restricts the use of the weights, see `finetune.weights.cards`.
        more: further fields, which count where they contradict.
    """
    evaluated = [
        EvalResult(
            task_type=TASK,
            task_name="Semantic segmentation",
            dataset_type=data_set.id or data_set.kind,
            dataset_name=data_set.name,
            dataset_config=data_set.subset,
            dataset_split=data_set.split,
            dataset_revision=data_set.revision,
            metric_type=metric.lower().replace(" ", "_"),
            metric_name=metric,
            metric_value=value,
        )
        for metric, value in (results or {}).items()
        if data_set is not None and value is not None
    ]
    fields: dict[str, Any] = {
        **licence_fields(licence),
        "library_name": "transformers",
        "pipeline_tag": TASK,
        "tags": list(TAGS),
        "base_model": base_model,
        "datasets": [data_set.id] if data_set is not None and data_set.id else None,
        "eval_results": evaluated or None,
        "model_name": name if evaluated else None,
        "metrics": [result.metric_type for result in evaluated] or None,
    }
    return ModelCardData(**{**fields, **(more or {})})


def hub_id(name: str | None) -> str | None:
    """`name`, if it can be an id on the Hub and is nothing on this machine."""
    if not name or Path(name).expanduser().exists():
        return None
    try:
        validate_repo_id(name)
    except HFValidationError:
        return None
    return name
