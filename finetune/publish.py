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
        processor = json.dumps(preprocessor_config(protocol, image_mean, image_std), indent=2)
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
    protocol: Protocol, image_mean: Sequence[float], image_std: Sequence[float]
) -> dict[str, Any]:
    """The stock image processor's settings that come nearest to a protocol.

    Rounding up to a multiple and sliding windows cannot be said there. Labels are translated
    already, so stock must not reduce them.
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
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(image_mean),
        "image_std": list(image_std),
        "do_reduce_labels": False,
    }


def model_card(
    *,
    name: str,
    base_model: str | None,
    names: Sequence[str],
    results: Mapping[str, float | None],
    per_class_iou: Mapping[str, float | None],
    protocol: Protocol,
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
        "```python",
        "from transformers import pipeline",
        "",
        'segment = pipeline("image-segmentation", model="path/to/this/folder")',
        'segment("picture.jpg")',
        "```",
        "",
    ]
    return ModelCard(f"---\n{data.to_yaml()}\n---\n\n" + "\n".join(lines))


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.2%}"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
