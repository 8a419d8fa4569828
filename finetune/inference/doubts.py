"""The regions of an image whose labels a model doubts, and their order over a data set.

A pixel is doubted by log p(predicted class) - log p(labelled class), the model's log-odds. Single
pixels say little: models and people both are careless at the edges of objects. So doubted pixels of
one labelled and one predicted class are joined to regions, without a rim.

A model that takes one class for another everywhere says nothing about single labels. Therefore the
log-odds of a region are added to its surprise, -log of the share of all pixels with its labelled
class that have its predicted class. Confident learning (Northcutt et al., "Confident Learning:
Estimating Uncertainty in Dataset Labels", 2021) counts the same pairs of classes. Lad and Mueller
("Estimating label quality and errors in semantic segmentation data via any model", 2023) score
whole images by the doubts of their pixels.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

RIM = 1 / 180
"""Width of the rim that does not count, as a share of the image's shorter side; 1 pixel or more."""
HALF_AREA = 1 / 500
"""Share of the image that a region covers if its area counts half as much as it could."""
MOST_PER_IMAGE = 20
"""Regions of one image that are kept: more would be about a bad model, or a mask of another image.
"""


@dataclass(frozen=True)
class Region:
    """A connected region with one labelled and one predicted class, without its rim."""

    given: int
    """Id of the labelled class."""
    predicted: int
    doubt: float
    """Mean of log p(predicted) - log p(given)."""
    pixels: int
    share: float
    """Of the image's pixels."""
    box: list[int]
    """Left, top, width and height in pixels."""
    outlines: list[list[list[int]]]
    """Polygons of x and y through the centres of the pixels along the edge, and along each hole."""

    @property
    def weight(self) -> float:
        """Grows with the area, up to 1."""
        return self.share / (self.share + HALF_AREA)


def doubted_regions(predicted: np.ndarray, doubts: np.ndarray, truth: np.ndarray) -> list[Region]:
    """The regions of one image, at most `MOST_PER_IMAGE`, those with the most doubt first.

    Args:
        predicted: ids of the predicted classes, integer (H, W).
        doubts: log p(predicted) - log p(labelled), float (H, W), above 0 where labels are doubted;
            see `predict_doubts`.
        truth: ids of the labelled classes, integer (H, W).
    """
    num_labels = 1 + int(predicted.max())
    pairs = np.where(doubts > 0, truth.astype(np.int64) * num_labels + predicted, -1)
    rim = max(1, round(RIM * min(truth.shape)))
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * rim + 1, 2 * rim + 1))
    values, counts = np.unique(pairs[pairs >= 0], return_counts=True)
    found: list[Region] = []
    for pair in values[counts >= kernel.sum()]:
        # At the edge of the image nothing is known of what lies beyond.
        core = cv2.erode((pairs == pair).view(np.uint8), kernel, borderValue=1)
        number, parts, stats, _ = cv2.connectedComponentsWithStats(core)
        for part in range(1, number):
            left, top, width, height, pixels = map(int, stats[part])
            cut = np.s_[top : top + height, left : left + width]
            inside = parts[cut] == part
            rings, _ = cv2.findContours(
                inside.view(np.uint8),
                cv2.RETR_CCOMP,
                cv2.CHAIN_APPROX_SIMPLE,
                offset=(left, top),
            )
            found.append(
                Region(
                    *divmod(int(pair), num_labels),
                    doubt=float(doubts[cut][inside].mean()),
                    pixels=pixels,
                    share=pixels / truth.size,
                    box=[left, top, width, height],
                    outlines=[ring[:, 0].tolist() for ring in rings],
                )
            )
    return sorted(found, key=lambda region: -region.doubt * region.weight)[:MOST_PER_IMAGE]


def scores_of(regions: Sequence[Region], confusion: np.ndarray) -> list[float]:
    """(log-odds + surprise) * weight of each region; see the head of this file.

    Args:
        regions: of any images of a data set.
        confusion: counted pixels of the whole data set, integer (K, K); rows are the labels,
            columns the predictions.
    """
    of_label = confusion.sum(1)
    return [
        (one.doubt + math.log(of_label[one.given] / confusion[one.given, one.predicted]))
        * one.weight
        for one in regions
    ]
