"""`doctor.html`: findings, classes, sizes and a contact sheet in one file that opens offline."""

import base64
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import chain, zip_longest
from typing import Any

import cv2
import datasets
import numpy as np

from finetune.data.samples import ReadSamples, reader_of
from finetune.errors import UserError
from finetune.labels.translation import Labels
from finetune.pictures.drawing import IGNORED, as_rgb, overlay
from finetune.pictures.encoding import as_jpeg
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
    classes = facts["classes"]
    most = {
        key: max((row[name][key] for row in classes for name in facts["splits"]), default=1)
        for key in ("pixels", "images")
    }
    return render(
        "programs/doctor/doctor.html",
        title=facts["name"],
        facts=facts,
        summary=summary(facts),
        labels=expected.labels,
        ignored=IGNORED,
        max_listed=MAX_LISTED,
        most=most,
        total={name: sum(row[name]["pixels"] for row in classes) for name in facts["splits"]},
        share=lambda count, total: f"{count / (total or 1):.2%}",
        log_share=lambda n, most: f"{100 * math.log1p(n) / math.log1p(max(1, most)):.1f}",
        **_sizes(facts["sizes"]),
        stored=stored(facts),
        values=sorted(facts["masks"]["values"], key=lambda row: -row["pixels"])[:MAX_LISTED],
        pictures=list(_pictures(expected.labels, splits, findings, data)),
    )


def summary(facts: Mapping[str, Any]) -> str:
    """The numbers of images and classes, in one line."""
    splits = ", ".join(f"{name} {split['samples']:,}" for name, split in facts["splits"].items())
    return f"images with masks: {splits}; {len(facts['classes'])} classes"


def stored(facts: Mapping[str, Any]) -> str:
    """The number of masks for each way of storing pixels; empty if they are drawn from objects."""
    return ", ".join(f"{count:,} {kind}" for kind, count in facts["masks"]["stored"].items())


def _sizes(found: Mapping[str, Any]) -> dict[str, Any]:
    """Width against height of the images; larger circles stand for more images."""
    if "most_common" not in found:
        return {"axes": None}
    crop = found["crop"] or (0, 0)
    high, wide = (max(found["largest"][side], crop[side]) * 1.05 for side in (0, 1))
    columns = ticks(0, wide)
    frame = {"top": 16, "right": 16, "bottom": 40, "left": 56}
    axes = Axes(columns, ticks(0, high), columns[-1], 560, 360, **frame)
    most = max(count for *_, count in found["most_common"])
    grows = 8 * (len(found["most_common"]) < 200)
    circles = [
        (*size, count, round(2.5 + grows * math.sqrt(count / most), 1))
        for *size, count in found["most_common"]
    ]
    names = ("smallest", "median", "largest")
    sizes = {name: f"{found[name][1]:g} x {found[name][0]:g}" for name in names}
    sizes["different sizes"] = f"{found['different']:,}"
    return {"axes": axes, "circles": circles, "sizes": sizes}


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
        [(place, finding.kind) for place in dict.fromkeys(map(where.get, finding.files)) if place]
        for finding in findings
    ]
    for place, kind in filter(None, chain.from_iterable(zip_longest(*queues))):
        if len(kinds) < NUM_WITH_FINDINGS or place in kinds:
            kinds.setdefault(place, {})[kind] = None
    others = [place for place in dict.fromkeys(where.values()) if place not in kinds]
    number = min(len(others), NUM_PICTURES - len(kinds))
    spread = [others[int(place)] for place in np.linspace(0, len(others) - 1, max(number, 0))]
    picked = [(s, i, tuple(names)) for (s, i), names in kinds.items()]
    return picked + [(s, i, ()) for s, i in dict.fromkeys(spread)]


def _pictures(
    labels: Labels,
    splits: Sequence[Split],
    findings: Sequence[Finding],
    data: Sequence[datasets.Dataset],
) -> Iterator[dict[str, Any]]:
    """The samples of the contact sheet; `jpeg` is base64, and empty if the image cannot be read."""
    lenient = replace(labels, ignores_unknown=True)
    readers = [
        ReadSamples(lenient, own.form, own.pictures, own.num_channels)
        for own in map(reader_of, data)
    ]
    for s, i, kinds in chosen(splits, findings):
        row = data[s].with_format(None)[i]
        alt, jpeg = _image_and_overlay(readers[s], row["image"], row["mask"])
        shown = {"alt": alt, "jpeg": base64.b64encode(jpeg).decode()}
        yield {"split": splits[s].name, "id": splits[s].ids[i], "kinds": kinds, **shown}


def _image_and_overlay(reader: ReadSamples, image: str, mask: str) -> tuple[str, bytes]:
    """The picture's alternative text and JPEG; a grey half replaces an overlay without a mask."""
    try:
        pixels = as_rgb(read_image(reader.pictures.open(image), reader.num_channels))
    except UserError:
        return "the image cannot be read any more", b""
    height, width = pixels.shape[:2]
    scale = min(1.0, _PICTURE[0] / width, _PICTURE[1] / height)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    small = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)
    alt, beside = "its mask cannot be used", np.full_like(small, 128)
    with suppress(UserError):
        ids = reader.read(image, mask)[1]
        ids = cv2.resize(ids, size, interpolation=cv2.INTER_NEAREST)
        alt, beside = "image and overlay", overlay(small, ids, reader.labels.colors)
    return alt, as_jpeg(np.hstack([small, beside]), quality=80)
