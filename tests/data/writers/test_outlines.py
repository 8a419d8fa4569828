"""Outlines against the pixels that pycocotools and Pillow fill in them."""

import cv2
import numpy as np
import pytest
from PIL import Image, ImageDraw
from pycocotools import mask as coco

from finetune.data.writers.outlines import area_of, outlines


def filled(outline, size):
    rle = coco.frPyObjects([outline.ravel().astype(float).tolist()], *size)
    return coco.decode(coco.merge(rle)).astype(bool)


def masks():
    rng = np.random.default_rng(0)
    for turn in range(200):
        height, width = rng.integers(1, 40, 2)
        smooth = cv2.GaussianBlur(rng.random((height, width)), (0, 0), 0.3 + turn % 4)
        yield smooth > np.quantile(smooth, rng.random())


def test_outlines_enclose_the_pixels_of_the_mask_and_no_others():
    with_cuts = 0
    for mask in masks():
        parts = [(outline, filled(outline, mask.shape)) for outline in outlines(mask)]
        np.testing.assert_array_equal(sum([part for _, part in parts], np.zeros(mask.shape)), mask)
        for outline, part in parts:
            assert area_of(outline) == part.sum()
            steps = np.diff(outline, axis=0, append=outline[:1])
            assert ((steps == 0).sum(1) == 1).all()  # along the edges, and no point twice
        count = cv2.connectedComponents(mask.astype(np.uint8), connectivity=8)[0] - 1
        assert len(parts) == count
        with_cuts += sum(len(np.unique(o, axis=0)) < len(o) for o, _ in parts)
    assert with_cuts > 20


@pytest.mark.parametrize("rule", ["even-odd", "nonzero"])
def test_cuts_to_holes_enclose_nothing(rule):
    """By the signed turns around each pixel's middle, counted edge by edge."""
    mask = np.ones((13, 17), bool)
    mask[2:5, 2:6] = mask[7:9, 3:15] = mask[3, 9:12] = mask[5, 5] = False
    (outline,) = outlines(mask)
    x, y = outline.T
    next_y = np.roll(y, -1)
    rows, columns = np.mgrid[: mask.shape[0], : mask.shape[1]] + 0.5
    turns, crossings = np.zeros(mask.shape, int), np.zeros(mask.shape, int)
    for left, start, end in zip(x, y, next_y, strict=True):  # level edges have start == end
        crossed = (left < columns) & (min(start, end) < rows) & (rows < max(start, end))
        turns += np.where(crossed, np.sign(end - start), 0)
        crossings += crossed
    inside = crossings % 2 == 1 if rule == "even-odd" else turns != 0
    np.testing.assert_array_equal(inside, mask)


def test_no_pixel_and_one_pixel():
    assert outlines(np.zeros((3, 4), bool)) == []
    mask = np.zeros((3, 4), bool)
    mask[1, 2] = True
    (outline,) = outlines(mask)
    assert sorted(outline.tolist()) == [[2, 1], [2, 2], [3, 1], [3, 2]]


def test_tools_that_fill_the_edge_too_add_one_pixel_at_most():
    mask = np.zeros((30, 40), bool)
    mask[5:20, 8:30] = True
    mask[10:14, 12:20] = False
    image = Image.new("1", (40, 30))
    (outline,) = outlines(mask)
    ImageDraw.Draw(image).polygon([tuple(p) for p in outline.tolist()], fill=1, outline=1)
    grown = cv2.dilate(mask.astype(np.uint8), np.ones((3, 3), np.uint8)).astype(bool)
    assert not (np.array(image) & ~grown).any()
