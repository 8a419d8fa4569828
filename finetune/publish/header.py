"""The header of a model card, built and checked by huggingface_hub."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCardData
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

TASK = "image-segmentation"
TAGS = ("segformer", "semantic-segmentation", "vision")


@dataclass(frozen=True)
class DataSet:
    """The data set of a training and its evaluation.

    Attributes:
        name: its usual name.
        split: the evaluated split.
        train_split: the training split.
        kind: its official layout or storage format.
        id: its id on the Hub, if it is there.
        subset: the subset, in a repository with several.
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
    more: Mapping[str, Any] | None = None,
) -> ModelCardData:
    """The metadata by which the Hub shows, finds and compares a segmentor.

    Args:
        name: name of the model.
        base_model: the Hub id that training started from.
        data_set: the data set of the results.
        results: metric ("mean IoU") -> share of 1; None values are left out.
        more: further fields, which override the others.
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
    """`name` if it can be an id on the Hub and is no local path, else None."""
    if not name or Path(name).expanduser().exists():
        return None
    try:
        validate_repo_id(name)
    except HFValidationError:
        return None
    return name
