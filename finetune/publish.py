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
from finetune.drawing import Color
from finetune.errors import UserError
from finetune.inference.preprocessing import Preprocessing
from finetune.inference.protocol import Protocol


def save_model_folder(
    folder: Path,
    model: PreTrainedModel,
    *,
    preprocessing: Preprocessing,
    colors: Sequence[Color],
    card: ModelCard,
    recipe: str | None = None,
) -> None:
    """Writes a stock `segformer` folder, aside, and swaps it in by rename.

    config.json, model.safetensors (float32), preprocessor_config.json, README.md and recipe.yaml.

    Args:
        folder: where it goes; an older one is replaced whole.
        model: with its labels in the config.
        preprocessing: how images are to be shown to it; what stock's file cannot say stands in
            config.json under `finetune_eval`.
        colors: of the classes; in config.json under `finetune_colors`. Stock ignores both.
        card: README.md.
        recipe: recipe.yaml, resolved; None: there is none.

    Raises:
        UserError: the folder cannot be written.
    """
    folder = folder.resolve()  # "." has no name, and a link's target is what is replaced
    temp = folder.with_name(f".{folder.name}.new")
    try:
        shutil.rmtree(temp, ignore_errors=True)
        temp.mkdir(parents=True)
        model.config.finetune_eval = preprocessing.protocol.to_dict()
        model.config.finetune_colors = [list(color) for color in colors]
        model.save_pretrained(temp)
        processor = json.dumps(preprocessing.to_stock(), indent=2)
        (temp / "preprocessor_config.json").write_text(processor + "\n", encoding="utf-8")
        (temp / "README.md").write_text(str(card), encoding="utf-8")
        if recipe is not None:
            (temp / "recipe.yaml").write_text(recipe, encoding="utf-8")
        if folder == Path.cwd() and not any(folder.iterdir()):  # a shell stands in it: it stays
            for file in temp.iterdir():
                file.rename(folder / file.name)
            temp.rmdir()
        else:
            swap_folder(temp, folder)
    except (OSError, SafetensorError) as error:  # safetensors has an error of its own
        shutil.rmtree(temp, ignore_errors=True)
        reason = getattr(error, "strerror", None) or error
        raise UserError(
            f"cannot write the model folder {folder}: {reason}; free some space, or let `output` "
            "point elsewhere"
        ) from error


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
    licence: str = "",
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
        licence: what restricts the use of the weights that training started from, or empty.
        facts: further lines of the training section.
    """
    data = ModelCardData(
        license="other" if licence else None,
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
        *_licence(licence),
        "## Use",
        "",
        *_usage(num_channels),
        "",
    ]
    return ModelCard(f"---\n{data.to_yaml()}\n---\n\n" + "\n".join(lines))


def conversion_card(
    *,
    name: str,
    purpose: str,
    facts: Mapping[str, Any],
    metadata: Mapping[str, Any],
    licence: str = "",
    protocol: Protocol | None = None,
    num_channels: int = 3,
) -> ModelCard:
    """A model card of weights that were brought into this form and not changed.

    Args:
        name: of the folder.
        purpose: what the model does, in a sentence.
        facts: lines about where it comes from and what is assumed.
        metadata: of the card, besides the library; None values are left out.
        licence: what is known to restrict its use, or empty.
        protocol: how images are shown to a segmentor; None: it is none.
        num_channels: of the images.
    """
    data = ModelCardData(library_name="transformers", **metadata)
    usage = ["## Use", "", *_usage(num_channels), ""] if protocol is not None else []
    shown = [f"- images: {protocol.describe()}"] if protocol is not None else []
    lines = [
        f"# {name}",
        "",
        purpose,
        "",
        "## Origin",
        "",
        *(f"- {key}: {value}" for key, value in facts.items()),
        *shown,
        "",
        *_licence(licence),
        *usage,
    ]
    return ModelCard(f"---\n{data.to_yaml()}\n---\n\n" + "\n".join(lines))


def _licence(remark: str) -> list[str]:
    return ["## Licence", "", remark, ""] if remark else []


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
