"""Model folders as Hugging Face expects them: stock files that open without this package."""

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData
from safetensors import SafetensorError
from transformers import PreTrainedModel

from finetune.checkpoint import swap_folder
from finetune.errors import UserError
from finetune.inference import Protocol


def save_model_folder(
    folder: Path,
    model: PreTrainedModel,
    *,
    protocol: Protocol,
    image_mean: Sequence[float],
    image_std: Sequence[float],
    full: int = 255,
    card: ModelCard,
    recipe: str,
) -> None:
    """Writes a stock `segformer` folder, aside, and swaps it in by rename.

    config.json, model.safetensors (float32), preprocessor_config.json, README.md and recipe.yaml.

    Args:
        folder: where it goes; an older one is replaced whole.
        model: with its labels in the config.
        protocol: how images are to be shown to it; stands in config.json under `finetune_eval`.
        image_mean: per channel, of values in 0..1.
        image_std: likewise.
        full: the value of a pixel that is 1 there: 255, or 65535 if images have 16 bit.
        card: README.md.
        recipe: recipe.yaml, resolved.

    Raises:
        UserError: the folder cannot be written.
    """
    temp = folder.with_name(f".{folder.name}.new")
    try:
        shutil.rmtree(temp, ignore_errors=True)
        temp.mkdir(parents=True)
        model.config.finetune_eval = protocol.to_dict()
        model.save_pretrained(temp)
        values = preprocessor_config(protocol, image_mean, image_std, full)
        processor = json.dumps(values, indent=2)
        (temp / "preprocessor_config.json").write_text(processor + "\n", encoding="utf-8")
        (temp / "README.md").write_text(str(card), encoding="utf-8")
        (temp / "recipe.yaml").write_text(recipe, encoding="utf-8")
        swap_folder(temp, folder)
    except (OSError, SafetensorError) as error:  # safetensors has an error of its own
        shutil.rmtree(temp, ignore_errors=True)
        reason = getattr(error, "strerror", None) or error
        raise UserError(
            f"cannot write the model folder {folder}: {reason}; free some space, or let `output` "
            "point elsewhere"
        ) from error


def preprocessor_config(
    protocol: Protocol, image_mean: Sequence[float], image_std: Sequence[float], full: int = 255
) -> dict[str, Any]:
    """The stock image processor's settings that come nearest to a protocol.

    Rounding up to a multiple and sliding windows cannot be said there. Labels are translated
    already, so stock must not reduce them. Arrays of any number of channels are normalised as here
    (beyond 1, 3 and 4 if `input_data_format` is given); stock resizes only 8 bit of 1, 3 or 4, and
    says so of others.
    """
    size: dict[str, int] = {"height": 512, "width": 512}  # stock's default, for do_resize: false
    if protocol.shortest_edge is not None:
        size = {"shortest_edge": protocol.shortest_edge}
        if protocol.longest_edge is not None:
            size["longest_edge"] = protocol.longest_edge
    return {
        "image_processor_type": "SegformerImageProcessor",
        "do_resize": protocol.shortest_edge is not None,
        "size": size,
        "resample": 2,  # bilinear, PIL.Image.Resampling
        "do_rescale": True,
        "rescale_factor": 1 / full,
        "do_normalize": True,
        "image_mean": list(image_mean),
        "image_std": list(image_std),
        "do_reduce_labels": False,
    }


_PIPELINE = """\
```python
from transformers import pipeline

segment = pipeline("image-segmentation", model="path/to/this/folder")
segment("picture.jpg")
```"""

# Pipelines turn every picture into RGB.
_ARRAYS = """\
Images have {channels} channel(s): give arrays (height, width, {channels}) to the processor, not \
files to a pipeline.

```python
import tifffile
from transformers import AutoImageProcessor, SegformerForSemanticSegmentation

image = tifffile.imread("picture.tif"){axis}  # (height, width, {channels})
processor = AutoImageProcessor.from_pretrained("path/to/this/folder")
model = SegformerForSemanticSegmentation.from_pretrained("path/to/this/folder").eval()
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
    protocol: Protocol,
    num_channels: int = 3,
    facts: Mapping[str, Any],
) -> ModelCard:
    """A model card with what is known at the end of a run.

    Args:
        name: of the run.
        base_model: what training started from, or None.
        names: the classes.
        results: metric -> value of the last evaluation.
        per_class_iou: class -> IoU; None where the class does not occur.
        protocol: how it was evaluated.
        num_channels: of the images.
        facts: further lines of the training section.
    """
    data = ModelCardData(
        library_name="transformers",
        pipeline_tag="image-segmentation",
        tags=["segformer", "semantic-segmentation", "vision"],
        base_model=base_model,
    )
    lines = [
        f"# {name}",
        "",
        f"SegFormer for semantic segmentation, {len(names)} classes.",
        "",
        "## Results",
        "",
        *(f"- {key}: {_percent(value)}" for key, value in results.items()),
        "",
        f"Protocol: {protocol.describe()}.",
        "",
        "| class | IoU |",
        "| --- | --- |",
        *(f"| {_cell(key)} | {_percent(value)} |" for key, value in per_class_iou.items()),
        "",
        "## Training",
        "",
        *(f"- {key}: {value}" for key, value in facts.items()),
        "- everything else: `recipe.yaml` beside this file",
        "",
        "## Use",
        "",
        *_usage(num_channels),
        "",
    ]
    return ModelCard(f"---\n{data.to_yaml()}\n---\n\n" + "\n".join(lines))


def _usage(num_channels: int) -> list[str]:
    if num_channels == 3:
        return _PIPELINE.splitlines()
    # tifffile drops the axis of a single channel, which the processor wants to see.
    axis = "[..., None]" if num_channels == 1 else ""
    return _ARRAYS.format(channels=num_channels, axis=axis).splitlines()


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.2%}"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
