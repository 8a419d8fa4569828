"""The card of a shared model: classes, scores, predictions, training, limits and licence."""

from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

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
    base_of,
    licence_remark,
    public,
    scores_of,
    shown_path,
)
from finetune.publish.cards import card_of_lines, usage
from finetune.publish.header import TAGS, DataSet, header
from finetune.publish.markdown import escaped, fenced, percent, table
from finetune.recipe import Recipe
from finetune.segformer.configuration import smallest_side
from finetune.weights.cards import licence_fields
from finetune.weights.shapes import variant_of

PICTURES = "card"
"""The folder of the card's pictures, in the model folder."""
KEPT = ("license", "license_name", "license_link", "language")
"""Fields that are copied from the header of the model's own card."""
MEASURED = ("datasets", "metrics", "model-index")
"""Fields that are copied if there is no recipe: data and scores."""
LONG = 40
"""A longer table of classes is folded."""
WORST_CLASSES = 3
_APACHE = "[Apache-2.0](https://www.apache.org/licenses/LICENSE-2.0)"
_COLUMNS = "From left to right: image, truth, prediction, error (red: wrong, dark grey: ignored)."


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
    (folder / PICTURES).mkdir()
    recipe, data_set = public(evidence), evidence.data_set
    sections = [
        _head(evidence, data_set, space),
        _classes(evidence, folder / PICTURES / "classes.png"),
        _results(evidence, data_set, examples),
        _predictions(evidence, examples, folder / PICTURES / "examples.png"),
        _training(evidence, recipe, data_set),
        _use(evidence, repo, with_code=with_code, onnx=onnx),
        _limits(evidence, recipe, data_set),
        _licence(evidence, with_code=with_code),
        _own_words(evidence),
    ]
    lines = [line for section in sections if section for line in (*section, "")]
    write_whole(folder / "README.md", str(card_of_lines(metadata(evidence), lines)))


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


def _link(repo: str) -> str:
    return f"[{repo.removeprefix('spaces/')}](https://huggingface.co/{repo})"


def _size(evidence: Evidence) -> str:
    config = evidence.segmenter.model.config
    variant = variant_of(config.depths, config.hidden_sizes)
    return f"SegFormer-{variant.upper()}" if variant else "A SegFormer of custom size"


def _head(evidence: Evidence, data_set: DataSet | None, space: str | None) -> list[str]:
    names, results = evidence.segmenter.names, evidence.results
    text = f"{_size(evidence)} for semantic segmentation, {len(names)} classes"
    if data_set is not None and evidence.recipe is not None:
        base, _ = base_of(evidence)
        how = "trained from scratch" if evidence.recipe.model.init is None else "fine-tuned"
        how += f" from {_link(base)}" if base else ""
        text += f", {how} on {escaped(data_set.name)}"
    text += "."
    if results is not None and data_set is not None:
        score = percent(results.scores["mean_iou"])
        text += f' Mean IoU **{score}** on its split "{escaped(data_set.split)}".'
    demo = f"Try it in the browser: {_link(f'spaces/{space}')}."
    return [f"# {escaped(evidence.name)}", "", text, *(["", demo] if space else [])]


def _classes(evidence: Evidence, path: Path) -> list[str]:
    segmenter = evidence.segmenter
    entries = list(zip(segmenter.names, segmenter.colors, strict=True))
    # A legend without a picture above it.
    picture = BytesIO()
    with_legend(np.empty((0, 720, 3), np.uint8), entries).save(picture, "PNG")
    write_whole(path, picture.getvalue())
    names = ", ".join(escaped(name) for name in segmenter.names)
    return ["## What it sees", "", f"![{names}]({PICTURES}/{path.name})"]


def _results(evidence: Evidence, data_set: DataSet | None, examples: Examples | None) -> list[str]:
    segmenter, results = evidence.segmenter, evidence.results
    ious = results.per_class_iou if results else {}
    rows = [
        [escaped(name), "`#{:02X}{:02X}{:02X}`".format(*color)]
        + ([percent(ious.get(name))] if ious else [])
        for name, color in zip(segmenter.names, segmenter.colors, strict=True)
    ]
    classes = table(["class", "colour", *(["IoU"] if ious else [])], rows)
    if len(rows) > LONG:
        summary = f"<summary>All {len(rows)} classes</summary>"
        classes = ["<details>", summary, "", *classes, "", "</details>"]
    if results is None or data_set is None:
        said = "No evaluation of these weights is at hand, so no scores are shown."
        if evidence.card.header.get("model-index"):
            said = "The card that came with these weights states them: in the header, and below."
        return ["## Results", "", said, "", *classes]
    scores = [[_title(metric), percent(value)] for metric, value in results.scores.items()]
    images = f" ({examples.total} images)" if examples else ""
    where = escaped(f'split "{data_set.split}" of {data_set.name}{images}')
    return [
        "## Results",
        "",
        *table(["metric", "value"], scores),
        "",
        f"Protocol: {where}, {segmenter.preprocessing.protocol.describe()}.",
        "",
        *classes,
    ]


def _predictions(evidence: Evidence, examples: Examples | None, path: Path) -> list[str]:
    title = ["## Good and bad predictions", ""]
    picture = [f"![image, truth, prediction and error]({PICTURES}/{path.name})", ""]
    if examples is not None:
        segmenter = evidence.segmenter
        panel(examples.rows, segmenter.names, segmenter.colors, examples.ignore_index, path)
        chosen = f"the {BEST} best and the {WORST} worst"
        if len(examples.rows) < BEST + WORST:
            chosen = "those with counted pixels, best first"
        among = f"Out of the {examples.total} validation images"
        if examples.looked_at < examples.total:
            among = (
                f"Out of {examples.looked_at} images, evenly spread over the {examples.total} of "
                "the validation split"
            )
        return [*title, *picture, f"{among}, {chosen}, by the image's own mean IoU. {_COLUMNS}"]
    drawn = evidence.run / "panel.png" if evidence.run else None
    if drawn is not None and drawn.is_file():
        write_whole(path, drawn.read_bytes())
        said = (
            "Validation images evenly spread over the split, not chosen, as the training drew them "
            f"at its end, with its last weights. {_COLUMNS}"
        )
        return [*title, *picture, said]
    return [*title, "None are shown: no validation images were at hand for this card."]


def _training(evidence: Evidence, recipe: Recipe | None, data_set: DataSet | None) -> list[str]:
    if recipe is None or data_set is None:
        return ["## Training", "", "It is not known how these weights were trained."]
    train, results, environment = recipe.train, evidence.results, evidence.environment
    facts = {
        "started from": _started_from(evidence, recipe),
        "data": escaped(f'{data_set.name}, split "{data_set.train_split}"'),
        "each step": f"{train.global_batch} crops of {recipe.augment.crop[0]} x "
        f"{recipe.augment.crop[1]} pixels, learning rate {train.lr:g}, {train.precision}",
    }
    if results is not None:
        of = f"{results.step} of {train.steps}"
        facts["steps"] = of
        if evidence.folder.resolve().name != "last" and results.evaluations > 1:
            facts["steps"] += f", the best of {results.evaluations} evaluations"
        facts["images seen"] = f"{results.step * train.global_batch:,}"
        if results.seconds is not None:
            facts["time in training steps until then"] = _duration(results.seconds)
    devices = [escaped(name) for name in environment.get("devices") or []]
    if devices:
        world, threads = environment.get("world_size", 1), environment.get("threads")
        facts["hardware"] = f"{', '.join(devices)}; {world} process{'es' * (world > 1)}" + (
            f" of {threads} thread{'s' * (threads > 1)}" if threads else ""
        )
    packages = environment.get("packages") or {}
    if packages:
        told = [f"{name} {version}" for name, version in packages.items() if version]
        facts["versions"] = escaped(", ".join(told))
    rows = [[key, value] for key, value in facts.items()]
    return [
        "## Training",
        "",
        *table(["", ""], rows),
        "",
        "<details>",
        "<summary>Everything else: <code>recipe.yaml</code></summary>",
        "",
        *fenced(recipe.to_yaml(), "yaml"),
        "",
        "</details>",
    ]


def _started_from(evidence: Evidence, recipe: Recipe) -> str:
    base, card = base_of(evidence)
    if recipe.model.init is None:
        return "random weights"
    licence = card.header.get("license")
    told = f", whose card states the licence {escaped(licence)}" if licence else ""
    return (_link(base) if base else "a local model") + told


def _duration(seconds: float) -> str:
    hours, minutes = divmod(round(seconds / 60), 60)
    if hours:
        return f"{hours} h {minutes:02} min"
    return f"{minutes} min" if minutes else f"{seconds:.0f} s"


def _use(evidence: Evidence, repo: str, *, with_code: bool, onnx: bool) -> list[str]:
    channels = evidence.segmenter.preprocessing.num_channels
    one_logit = evidence.segmenter.model.config.num_labels == 1
    lines = ["## Use", ""]
    if not one_logit:  # stock would show that class everywhere
        lines += ["With transformers alone:", "", *usage(channels, repo), ""]
    lines += [
        "With the package `finetune` (not PyPI's of this name), the same logits in less time:",
        "",
        "```python",
        "from finetune.inference import segment",
        "",
        f'found = segment("{repo}", "picture.{"jpg" if channels == 3 else "tif"}")',
        "found.mask, found.confidence, found.areas(), found.overlay()",
        "```",
    ]
    if with_code:
        lines += [
            "",
            "The code of that package's model lies beside the weights (transformers 5). Read "
            "`modeling.py` and its siblings before you run them; without `trust_remote_code` they "
            "do not run.",
            "",
            "```python",
            "from transformers import AutoModelForSemanticSegmentation",
            "",
            "model = AutoModelForSemanticSegmentation.from_pretrained(",
            f'    "{repo}", trust_remote_code=True',
            ")",
            "```",
        ]
    if onnx:
        lines += [
            "",
            "`onnx/model.onnx` gives the logits at a quarter of the size in ONNX Runtime"
            # Its pipelines turn every picture into RGB.
            + (
                f' and in transformers.js: `await pipeline("image-segmentation", "{repo}")`.'
                if channels == 3 and not one_logit
                else "."
            ),
        ]
    return lines


def _limits(evidence: Evidence, recipe: Recipe | None, data_set: DataSet | None) -> list[str]:
    segmenter, results = evidence.segmenter, evidence.results
    protocol, config = segmenter.preprocessing.protocol, segmenter.model.config
    lines = []
    if results is not None and data_set is not None:
        ious = {name: iou for name, iou in results.per_class_iou.items() if iou is not None}
        worst = sorted(ious, key=lambda name: (ious[name], name))[:WORST_CLASSES]
        said = ", ".join(f"{escaped(name)} ({percent(ious[name])})" for name in worst)
        lines.append(f"Weakest, by IoU: {said}.")
        if unseen := [n for n in results.per_class_iou if results.per_class_iou[n] is None]:
            lines.append(
                "Not measured, because they occur neither in the truth nor in a prediction of that "
                f"split: {', '.join(map(escaped, unseen))}."
            )
        lines.append(
            f"Measured on one split of one data set, {escaped(data_set.name)}, after one training. "
            "Pictures from other sources were not tried."
        )
        if evidence.folder.resolve().name != "last" and results.evaluations > 1:
            lines.append(
                "These weights were chosen by their score on that split, so the score is "
                "optimistic: new pictures of the same kind may score lower."
            )
    else:
        lines.append("The quality was not measured here.")
    if recipe is not None:
        low, high = recipe.augment.scale
        crop = " x ".join(map(str, recipe.augment.crop))
        lines.append(
            f"Trained on crops of {crop} pixels, scaled by {low:g} to {high:g}; the model has not "
            "seen objects that look much larger or smaller."
        )
    if segmenter.preprocessing.num_channels != 3:
        lines.append(f"Reads images of {segmenter.preprocessing.num_channels} channels only.")
    lines.append(f"The smallest side that the model takes is {smallest_side(config)} pixels.")
    beyond = [
        *(["rounded sides"] if protocol.size_divisor > 1 else []),
        *(["a sliding window"] if protocol.window else []),
        *(["several scales"] if protocol.scales != (1.0,) else []),
        *(["mirrored pictures"] if protocol.flip else []),
    ]
    if beyond:
        lines.append(
            f"The scores were measured with {', '.join(beyond)}. Stock's image processor does "
            "not do that: its masks differ a little. `config.json` holds the exact protocol."
        )
    if config.num_labels == 1:
        lines.append(
            "The model has one logit; above 0 it means the class. Stock's pipeline cannot show it."
        )
    return ["## Limits", "", *(f"- {line}" for line in lines)]


def _licence(evidence: Evidence, *, with_code: bool) -> list[str]:
    remark, known = licence_remark(evidence), evidence.card.header.get("license")
    if remark:
        text = remark
    elif known:
        text = f"{escaped(known)}, as the header says."
    else:
        text = (
            "None is stated: the owner of this repository has to choose one (`license` in this "
            "file's header). The terms of its training data apply as well."
        )
    code = [f"The files `*.py` are {_APACHE}, under whatever licence the weights are."]
    return ["## Licence", "", text, *(["", *code] if with_code else [])]


def _own_words(evidence: Evidence) -> Sequence[str]:
    """The card that came with weights of others."""
    text = evidence.card.text.strip()
    if evidence.results is not None or not text:
        return []
    if evidence.recipe is not None and evidence.recipe.model.init is not None:
        init = evidence.recipe.model.init  # older trainings wrote its path
        text = text.replace(init, base_of(evidence)[0] or shown_path(init) or "")
    return ["---", "", "The card that came with these weights:", "", text]
