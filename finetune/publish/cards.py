"""Model cards: README.md of a model folder."""

from collections.abc import Mapping, Sequence
from typing import Any

from huggingface_hub import ModelCard, ModelCardData

from finetune.publish.header import DataSet, header
from finetune.publish.markdown import escaped, percent, table
from finetune.recipe import InferenceProtocol
from finetune.weights.cards import licence_fields

_HERE = "path/to/this/folder"

_PIPELINE = """\
```python
from transformers import pipeline

segment = pipeline("image-segmentation", model="{model}")
segment("picture.jpg")
```"""

# Pipelines convert every picture to RGB.
_ARRAYS = """\
Images have {channels} channel(s): give arrays (height, width, {channels}) to the processor, not \
files to a pipeline.

```python
import tifffile
from transformers import AutoImageProcessor, SegformerForSemanticSegmentation

image = tifffile.imread("picture.tif"){axis}  # (height, width, {channels})
processor = AutoImageProcessor.from_pretrained("{model}")
model = SegformerForSemanticSegmentation.from_pretrained("{model}").eval()
inputs = processor(image, input_data_format="channels_last", return_tensors="pt")
outputs = model(**inputs)
masks = processor.post_process_semantic_segmentation(outputs, [image.shape[:2]])
```"""


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
    data = header(
        name=name, base_model=base_model, data_set=data_set, results=results, licence=licence
    )
    return card_of_lines(
        data,
        [
            f"# {escaped(name)}",
            "",
            f"SegFormer for semantic segmentation, {len(names)} classes.",
            "",
            "## Results",
            "",
            *(f"- {key}: {percent(value)}" for key, value in results.items()),
            "",
            f"Protocol: {protocol.describe()}.",
            "",
            *table(
                ["class", "IoU"],
                [[escaped(key), percent(value)] for key, value in per_class_iou.items()],
            ),
            "",
            "## Training",
            "",
            *(f"- {key}: {escaped(value)}" for key, value in facts.items()),
            "- everything else: `recipe.yaml` beside this file",
            "",
            *_licence(licence),
            "## Use",
            "",
            *usage(num_channels),
            "",
        ],
    )


def conversion_card(
    *,
    name: str,
    purpose: str,
    facts: Mapping[str, Any],
    metadata: Mapping[str, Any],
    licence: str = "",
    protocol: InferenceProtocol | None = None,
    num_channels: int = 3,
) -> ModelCard:
    """A model card for weights that were converted without training.

    Args:
        name: name of the folder.
        purpose: the model's purpose, in a sentence.
        facts: lines about its origin and the assumptions made.
        metadata: fields of the card's header besides the library; None values are left out.
        licence: the known restriction on its use, or empty.
        protocol: the protocol of a segmentor; None for other models.
        num_channels: number of channels of the images.
    """
    fields = {**licence_fields(licence), **metadata}
    data = ModelCardData(library_name="transformers", **fields)
    use = ["## Use", "", *usage(num_channels), ""] if protocol is not None else []
    shown = [f"- images: {protocol.describe()}"] if protocol is not None else []
    return card_of_lines(
        data,
        [
            f"# {escaped(name)}",
            "",
            purpose,
            "",
            "## Origin",
            "",
            *(f"- {key}: {escaped(value)}" for key, value in facts.items()),
            *shown,
            "",
            *_licence(licence),
            *use,
        ],
    )


def card_of_lines(data: ModelCardData, lines: Sequence[str]) -> ModelCard:
    """A card from its header and the lines of its text."""
    return ModelCard(f"---\n{data.to_yaml()}\n---\n\n" + "\n".join(lines))


def usage(num_channels: int, model: str = _HERE) -> list[str]:
    """How stock transformers uses a model.

    Args:
        num_channels: number of channels of its images.
        model: its folder or Hub id.
    """
    if num_channels == 3:
        return _PIPELINE.format(model=model).splitlines()
    # tifffile drops the axis of a single channel, which the processor needs.
    axis = "[..., None]" if num_channels == 1 else ""
    return _ARRAYS.format(channels=num_channels, axis=axis, model=model).splitlines()


def _licence(remark: str) -> list[str]:
    return ["## Licence", "", remark, ""] if remark else []
