"""`review.html`: the doubted regions as cards, in one file that opens offline."""

import base64
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import cv2
import numpy as np

from finetune.data.samples import reader_of
from finetune.pictures.drawing import IGNORED, Color, as_rgb, overlay
from finetune.pictures.encoding import as_jpeg
from finetune.programs.review.listing import Found, Review
from finetune.run.pages import render

NUM_PAIRS = 12
"""Pairs of classes in the table."""
_PICTURE = (320, 240)  # width and height that a picture is fitted into
_LEAST = 1 / 4  # of the image's sides that a picture shows
_CONTEXT = 1.8  # sides of a picture over those of the region


def draw(facts: Mapping[str, Any], review: Review, num_shown: int) -> str:
    """Draws the whole page.

    Args:
        facts: the content of review.json.
        review: the models and samples; the images on the page are shown to the models again.
        num_shown: regions on the page, the first ones.
    """
    shown = facts["regions"][:num_shown]
    pairs = Counter((row["labelled"], row["predicted"]) for row in shown)
    return render(
        "programs/review/review.html",
        title=facts["name"],
        facts=facts,
        cards=[
            {**row, "pictures": pictures}
            for row, pictures in zip(
                shown, _pictures(review, review.found[:num_shown]), strict=True
            )
        ],
        pairs=pairs.most_common(NUM_PAIRS),
        colors=dict(zip(review.labels.names, review.labels.colors, strict=True)),
        ignored=IGNORED,
    )


def _pictures(review: Review, found: Sequence[Found]) -> Iterator[dict[str, str]]:
    """Image, labels and prediction around each region, as JPEG in base64."""
    last, parts = None, (np.empty(0),) * 3
    for one in found:
        if last != (one.part, one.index):  # else the regions follow each other
            last, parts = (one.part, one.index), _read(review, one)
        image, truth, ids = parts
        left, top, right, bottom = around(one.region.box, truth.shape)
        size = _fitted(right - left, bottom - top)
        cut = np.s_[top:bottom, left:right]
        small = cv2.resize(image[cut], size, interpolation=_smooth(size, image[cut]))
        colors: Sequence[Color] = review.labels.colors
        shown = {"image": small}
        for name, mask in (("labels", truth), ("model", ids)):
            nearest = cv2.resize(mask[cut], size, interpolation=cv2.INTER_NEAREST)
            shown[name] = overlay(small, nearest, colors)
        corner, scale = np.array([left, top]), np.array(size) / (right - left, bottom - top)
        lines = [((np.array(p) - corner + 0.5) * scale).astype(int) for p in one.region.outlines]
        for picture in shown.values():
            for color, width in (((0, 0, 0), 4), ((255, 255, 255), 2)):
                cv2.polylines(picture, lines, True, color, width, cv2.LINE_AA)
        yield {
            name: base64.b64encode(as_jpeg(picture, quality=80)).decode()
            for name, picture in shown.items()
        }


def _read(review: Review, one: Found) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The image for display, its labels and the prediction."""
    samples, segmenter = review.samples[one.part], review.segmenters[one.part]
    row = samples.with_format(None)[one.index]
    image, truth = reader_of(samples).read(row["image"], row["mask"])
    ids, _ = segmenter.masks(segmenter.views([image]), truth.shape)
    return as_rgb(image), truth, ids[0]


def around(box: Sequence[int], shape: tuple[int, ...]) -> tuple[int, int, int, int]:
    """Left, top, right and bottom of a part of an image (H, W) that shows a region's box."""
    sides = []
    for start, length, whole in ((box[0], box[2], shape[1]), (box[1], box[3], shape[0])):
        wanted = min(whole, max(round(_CONTEXT * length), round(_LEAST * whole), 1))
        first = min(max(0, start + (length - wanted) // 2), whole - wanted)
        sides.append((first, first + wanted))
    (left, right), (top, bottom) = sides
    return left, top, right, bottom


def _fitted(width: int, height: int) -> tuple[int, int]:
    scale = min(_PICTURE[0] / width, _PICTURE[1] / height)
    return max(1, round(width * scale)), max(1, round(height * scale))


def _smooth(size: tuple[int, int], picture: np.ndarray) -> int:
    return cv2.INTER_AREA if size[0] < picture.shape[1] else cv2.INTER_LINEAR
