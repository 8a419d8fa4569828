"""`doctor.html`: findings, classes, sizes and a contact sheet in one file that opens offline."""

import base64
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import cv2
import datasets
import numpy as np

from finetune.data.samples import ReadSamples, reader_of
from finetune.errors import UserError
from finetune.labels.translation import Labels
from finetune.pictures.drawing import IGNORED, as_rgb, overlay
from finetune.pictures.reading import read_image
from finetune.programs.doctor.figures import Split
from finetune.programs.doctor.verdict import Expectations, Finding
from finetune.run.pages import Axes, render, ticks

NUM_PICTURES = 36
"""Samples of the contact sheet."""
NUM_WITH_FINDINGS = 18
"""At most so many of them are chosen for a finding."""
MAX_LISTED = 200
"""Places of a finding that the page lists; doctor.json has them all."""
_PICTURE = (240, 180)  # width and height that an image of the sheet is fitted into
_QUALITY = 80  # of JPEG


def draw(
    facts: Mapping[str, Any],
    expected: Expectations,
    splits: Sequence[Split],
    findings: Sequence[Finding],
    data: Sequence[datasets.Dataset],
) -> str:
    """Draws the whole page.

    Args:
        facts: The content of doctor.json.
        expected: Labels and crop.
        splits: The splits' facts.
        findings: The data set's faults.
        data: The splits' samples; those of the contact sheet are read again.
    """
    classes, masks = facts["classes"], facts["masks"]
    most = {
        key: max((row[name][key] for row in classes for name in facts["splits"]), default=1)
        for key in ("pixels", "images")
    }
    return render(
        "programs/doctor/doctor.html",
        title=facts["name"],
        facts=facts,
        verdict=_verdict(facts),
        summary=summary(facts),
        labels=expected.labels,
        ignored=IGNORED,
        max_listed=MAX_LISTED,
        most=most,
        total={name: sum(row[name]["pixels"] for row in classes) for name in facts["splits"]},
        share=lambda count, total: f"{count / (total or 1):.2%}",
        log_share=lambda count, highest: (
            f"{100 * math.log1p(count) / math.log1p(max(1, highest)):.1f}"
        ),
        **_sizes(facts["sizes"]),
        colors=_colors(facts["colors"]),
        stored=", ".join(f"{count:,} {kind}" for kind, count in masks["stored"].items()),
        values=sorted(masks["values"], key=lambda row: -row["pixels"])[:MAX_LISTED],
        pictures=list(_pictures(expected.labels, splits, findings, data)),
    )


def summary(facts: Mapping[str, Any]) -> str:
    """The numbers of images and classes, in one line."""
    splits = ", ".join(f"{name} {split['samples']:,}" for name, split in facts["splits"].items())
    return f"images with masks: {splits}; {len(facts['classes'])} classes"


def _verdict(facts: Mapping[str, Any]) -> str:
    if facts["verdict"] == "clean":
        return "clean"
    return f"{facts['problems']} problem{'s' if facts['problems'] > 1 else ''}"


def _sizes(found: Mapping[str, Any]) -> dict[str, Any]:
    """Width against height of the images; larger circles stand for more images."""
    if "most_common" not in found:
        return {"axes": None}
    crop = found["crop"] or (0, 0)
    high, wide = (max(found["largest"][side], crop[side]) * 1.05 for side in (0, 1))
    columns = ticks(0, wide)
    axes = Axes(
        columns, ticks(0, high), columns[-1], 560, 360, top=16, right=16, bottom=40, left=56
    )
    most = max(count for *_, count in found["most_common"])
    grows = 8 * (len(found["most_common"]) < 200)
    circles = [
        (height, width, count, round(2.5 + grows * math.sqrt(count / most), 1))
        for height, width, count in found["most_common"]
    ]
    names = ("smallest", "median", "largest")
    sizes = {name: f"{found[name][1]:g} x {found[name][0]:g}" for name in names}
    sizes["different sizes"] = f"{found['different']:,}"
    return {"axes": axes, "circles": circles, "sizes": sizes}


def _colors(colors: Mapping[str, Any]) -> dict[str, str]:
    if colors["mean"] is None:
        return {}
    keys = {
        "data.image_mean of the training split": "mean",
        "data.image_std of the training split": "std",
        "mean in the recipe": "recipe_mean",
        "std in the recipe": "recipe_std",
    }
    return {name: ", ".join(f"{v:.3f}" for v in colors[key]) for name, key in keys.items()}


def chosen(
    splits: Sequence[Split], findings: Sequence[Finding]
) -> list[tuple[int, int, tuple[str, ...]]]:
    """Split, place and kinds of findings of the samples to show; their images can be read.

    Takes samples of each finding in turn, then others evenly spread over the splits.
    """
    where: dict[str, tuple[int, int]] = {}
    for s, split in enumerate(splits):
        for i, names in enumerate(zip(split.images, split.masks, strict=True)):
            if split.facts[i].size is not None:
                where.update((name, (s, i)) for name in names if name not in where)
    kinds: dict[tuple[int, int], dict[str, None]] = {}
    queues = [
        iter(dict.fromkeys(where[file] for file in finding.files if file in where))
        for finding in findings
    ]
    waiting = list(zip(findings, queues, strict=True))
    while waiting and len(kinds) < NUM_WITH_FINDINGS:
        for finding, queue in list(waiting):
            place = next(queue, None)
            if place is None:
                waiting.remove((finding, queue))
            elif len(kinds) < NUM_WITH_FINDINGS or place in kinds:
                kinds.setdefault(place, {})[finding.kind] = None
    others = [place for place in dict.fromkeys(where.values()) if place not in kinds]
    number = min(len(others), NUM_PICTURES - len(kinds))
    spread = [others[int(place)] for place in np.linspace(0, len(others) - 1, max(number, 0))]
    picked = [(s, i, tuple(names)) for (s, i), names in kinds.items()]
    return picked + [(s, i, ()) for s, i in dict.fromkeys(spread)]


@dataclass(frozen=True)
class Picture:
    """A sample of the contact sheet."""

    split: str
    id: str
    kinds: tuple[str, ...]
    """Kinds of the findings that name it."""
    alt: str
    jpeg: str
    """The JPEG in base64; empty if the image cannot be read."""


def _pictures(
    labels: Labels,
    splits: Sequence[Split],
    findings: Sequence[Finding],
    data: Sequence[datasets.Dataset],
) -> Iterator[Picture]:
    readers = []
    for part in data:
        own = reader_of(part)
        lenient = replace(labels, ignores_unknown=True)
        readers.append(ReadSamples(lenient, own.form, own.pictures, own.num_channels))
    for s, i, kinds in chosen(splits, findings):
        row = data[s].with_format(None)[i]
        alt, jpeg = _image_and_overlay(readers[s], row["image"], row["mask"])
        yield Picture(splits[s].name, splits[s].ids[i], kinds, alt, jpeg)


def _image_and_overlay(reader: ReadSamples, image: str, mask: str) -> tuple[str, str]:
    """The picture's alternative text and JPEG; a grey half replaces an overlay without a mask."""
    try:
        pixels = as_rgb(read_image(reader.pictures.open(image), reader.num_channels))
    except UserError:
        return "the image cannot be read any more", ""
    scale = min(1.0, *(limit / n for limit, n in zip(_PICTURE, pixels.shape[1::-1], strict=True)))
    size = max(1, round(pixels.shape[1] * scale)), max(1, round(pixels.shape[0] * scale))
    small = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)
    try:
        ids = reader.read(image, mask)[1]
    except UserError:
        return "its mask cannot be used", _jpeg(np.hstack([small, np.full_like(small, 128)]))
    ids = cv2.resize(ids, size, interpolation=cv2.INTER_NEAREST)
    return "image and overlay", _jpeg(np.hstack([small, overlay(small, ids, reader.labels.colors)]))


def _jpeg(pixels: np.ndarray) -> str:
    written, data = cv2.imencode(
        ".jpg", cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, _QUALITY]
    )
    assert written
    return base64.b64encode(data.tobytes()).decode()
