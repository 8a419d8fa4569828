"""The card of a shared model: classes, scores, predictions, training, limits and licence.

card.md holds its words.
"""

from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from huggingface_hub import ModelCardData

from finetune.disk import write_whole
from finetune.pictures.drawing import panel, with_legend
from finetune.programs.push.evidence import (
    BEST,
    METRICS,
    WORST,
    Evidence,
    Examples,
    Results,
    base_of,
    licence_remark,
    public,
    scores_of,
    shown_path,
)
from finetune.publish.cards import rendered
from finetune.publish.header import TAGS, header
from finetune.segformer.configuration import smallest_side
from finetune.weights.cards import licence_fields
from finetune.weights.shapes import variant_of

PICTURES = "card"
"""The folder of the card's pictures, in the model folder."""
KEPT = ("license", "license_name", "license_link", "language")
"""Fields that are copied from the header of the model's own card."""
MEASURED = ("datasets", "metrics", "model-index")
"""Fields that are copied if there is no recipe: data and scores."""
WORST_CLASSES = 3


def write_card(
    folder: Path,
    evidence: Evidence,
    examples: Examples | None,
    repo: str,
    *,
    with_code: bool = False,
    onnx: bool = False,
    space: str | None = None,
) -> None:
    """Writes README.md and its pictures.

    Args:
        folder: the staged model.
        evidence: the facts.
        examples: predictions; None: the training's panel is shown, if there is one.
        repo: OWNER/NAME of the model.
        with_code: whether the folder holds the model's code.
        onnx: whether it holds onnx/model.onnx.
        space: OWNER/NAME of the demo, if there is one.
    """
    pictures = folder / PICTURES
    pictures.mkdir()
    segmenter, results = evidence.segmenter, evidence.results
    config, protocol = segmenter.model.config, segmenter.preprocessing.protocol
    variant = variant_of(config.depths, config.hidden_sizes)
    base, base_card = base_of(evidence)
    _draw_classes(evidence, pictures / "classes.png")
    beyond_stock = {
        "rounded sides": protocol.size_divisor > 1,
        "a sliding window": protocol.window,
        "several scales": protocol.scales != (1.0,),
        "mirrored pictures": protocol.flip,
    }
    is_last = evidence.folder.resolve().name == "last"
    card = rendered(
        "programs/push/card.md",
        metadata(evidence),
        **{**vars(evidence), "recipe": public(evidence)},  # without paths of this machine
        examples=examples,
        own=evidence.card.header,
        own_words=_own_words(evidence),
        repo=repo,
        with_code=with_code,
        onnx=onnx,
        space=space,
        size=f"SegFormer-{variant.upper()}" if variant else "A SegFormer of custom size",
        classes=list(zip(segmenter.names, segmenter.colors, strict=True)),
        num_channels=segmenter.preprocessing.num_channels,
        protocol=protocol,
        beyond_stock=[words for words, is_used in beyond_stock.items() if is_used],
        one_logit=config.num_labels == 1,
        smallest_side=smallest_side(config),
        is_drawn=_draw_examples(evidence, examples, pictures / "examples.png"),
        best=BEST,
        worst=WORST,
        base=base,
        base_licence=base_card.header.get("license"),
        licence=licence_remark(evidence),
        is_chosen=results is not None and results.evaluations > 1 and not is_last,
        **(_measured(results) if results else {"ious": {}}),
    )
    write_whole(folder / "README.md", str(card))


def metadata(evidence: Evidence) -> ModelCardData:
    """The card's header."""
    own, results = evidence.card.header, evidence.results
    fields = {key: own[key] for key in KEPT if own.get(key)}
    if licence := licence_remark(evidence):
        fields = {**licence_fields(licence), **fields, "license": "other"}
    if evidence.recipe is None:  # the same weights have the same scores
        fields |= {key: own[key] for key in MEASURED if own.get(key)}
    if evidence.recipe is None and isinstance(own.get("base_model"), list):  # a merged model
        fields["base_model"] = [str(base) for base in own["base_model"]]
    scores = results.scores if results else scores_of(evidence.card)
    tags = own["tags"] if isinstance(own.get("tags"), list) else []
    return header(
        name=evidence.name,
        base_model=base_of(evidence)[0],
        data_set=evidence.data_set,
        results={_title(metric): scores.get(metric) for metric in METRICS},
        more={**fields, "tags": [*TAGS, *map(str, tags)]},
    )


def _title(metric: str) -> str:
    return metric.replace("_", " ").replace("iou", "IoU")


def _measured(results: Results) -> dict[str, Any]:
    """The card's variables about an evaluation."""
    ious = results.per_class_iou
    counted = [(iou, name) for name, iou in ious.items() if iou is not None]
    return {
        "scores": {_title(metric): value for metric, value in results.scores.items()},
        "ious": ious,
        "weakest": [(name, iou) for iou, name in sorted(counted)[:WORST_CLASSES]],
        "unseen": [name for name, iou in ious.items() if iou is None],
        "duration": None if results.seconds is None else _duration(results.seconds),
    }


def _duration(seconds: float) -> str:
    hours, minutes = divmod(round(seconds / 60), 60)
    if hours:
        return f"{hours} h {minutes:02} min"
    return f"{minutes} min" if minutes else f"{seconds:.0f} s"


def _draw_classes(evidence: Evidence, path: Path) -> None:
    """A legend without a picture above it."""
    entries = list(zip(evidence.segmenter.names, evidence.segmenter.colors, strict=True))
    picture = BytesIO()
    with_legend(np.empty((0, 720, 3), np.uint8), entries).save(picture, "PNG")
    write_whole(path, picture.getvalue())


def _draw_examples(evidence: Evidence, examples: Examples | None, path: Path) -> bool:
    """Draws predictions, or copies the training's panel; False if there is neither."""
    if examples is not None:
        names, colors = evidence.segmenter.names, evidence.segmenter.colors
        panel(examples.rows, names, colors, examples.ignore_index, path)
        return True
    drawn = evidence.run / "panel.png" if evidence.run else None
    if drawn is None or not drawn.is_file():
        return False
    write_whole(path, drawn.read_bytes())
    return True


def _own_words(evidence: Evidence) -> str:
    """The text of the card that came with weights of others."""
    if evidence.results is not None:
        return ""
    text, init = evidence.card.text.strip(), evidence.recipe and evidence.recipe.model.init
    if init:  # older trainings wrote its path
        text = text.replace(init, base_of(evidence)[0] or shown_path(init) or "")
    return text
