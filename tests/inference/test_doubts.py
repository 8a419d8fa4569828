"""Regions of doubted labels: found, measured and ranked as worked out by hand."""

import math

import cv2
import numpy as np
import pytest

from finetune.inference.doubts import MOST_PER_IMAGE, Region, doubted_regions, scores_of


def doubted(*regions, shape=(180, 200)):
    """Truth 0 everywhere; `regions` are (slice, predicted, doubt)."""
    truth, predicted = np.zeros(shape, np.uint8), np.zeros(shape, np.uint8)
    doubts = np.zeros(shape, np.float32)
    for place, label, doubt in regions:
        predicted[place], doubts[place] = label, doubt
    return predicted, doubts, truth


def test_a_region_without_its_rim():
    predicted, doubts, truth = doubted((np.s_[10:30, 40:90], 3, 2.0))
    doubts[10, 40:90] = 50.0  # a careless edge does not count
    truth[10:30, 40:90] = 1
    (region,) = doubted_regions(predicted, doubts, truth)
    assert (region.given, region.predicted) == (1, 3)
    assert region.doubt == pytest.approx(2.0)
    assert region.box == [41, 11, 48, 18]
    assert region.pixels == 48 * 18
    assert region.share == pytest.approx(48 * 18 / (180 * 200))
    drawn = np.zeros(truth.shape, np.uint8)
    cv2.fillPoly(drawn, [np.array(line) for line in region.outlines], 1)
    assert drawn[11:29, 41:89].all()
    assert drawn.sum() == region.pixels


def test_the_outlines_leave_holes_out():
    predicted, doubts, truth = doubted((np.s_[10:110, 10:110], 2, 1.0))
    truth[40:70, 50:80] = 2
    doubts[40:70, 50:80] = 0
    (region,) = doubted_regions(predicted, doubts, truth)
    drawn = np.zeros(truth.shape, np.uint8)
    cv2.fillPoly(drawn, [np.array(line) for line in region.outlines], 1)
    assert not drawn[40:70, 50:80].any()
    assert drawn.sum() == region.pixels < 98 * 98 - 30 * 30


def test_slivers_and_specks_are_no_regions():
    sliver, speck = (np.s_[20:22, 0:200], 1, 9.0), (np.s_[50:52, 50:52], 1, 9.0)
    assert doubted_regions(*doubted(sliver, speck)) == []
    assert len(doubted_regions(*doubted(sliver, speck, (np.s_[80:90, 3:20], 1, 0.1)))) == 1


def test_the_rim_grows_with_the_image():
    bar = np.s_[200:205, 100:800]
    assert len(doubted_regions(*doubted((bar, 1, 9.0), shape=(220, 900)))) == 1
    assert not doubted_regions(*doubted((bar, 1, 9.0), shape=(900, 900)))


def test_a_region_at_the_edge_of_the_image_keeps_it():
    (region,) = doubted_regions(*doubted((np.s_[0:20, 0:20], 1, 1.0)))
    assert region.box == [0, 0, 19, 19]


def test_regions_end_where_either_class_changes():
    predicted, doubts, truth = doubted((np.s_[10:40, 10:40], 1, 1.0), (np.s_[10:40, 40:70], 2, 3.0))
    truth[10:25] = 3
    found = doubted_regions(predicted, doubts, truth)
    doubt = {(one.given, one.predicted): one.doubt for one in found}
    assert doubt == {(3, 1): 1.0, (0, 1): 1.0, (3, 2): 3.0, (0, 2): 3.0}


def test_ids_that_are_ignored_and_many_regions():
    places = [np.s_[y : y + 8, x : x + 8] for y in range(4, 160, 16) for x in range(4, 190, 16)]
    regions = [(place, 1, 1.0 + i) for i, place in enumerate(places)]
    predicted, doubts, truth = doubted(*regions)
    truth[:], predicted[:] = 255, 4
    doubts[:] = 0
    assert doubted_regions(predicted, doubts, truth) == []  # nothing is doubted
    found = doubted_regions(*doubted(*regions))
    assert [round(one.doubt) for one in found] == list(range(len(places), 0, -1))[:MOST_PER_IMAGE]


def region(given, predicted, doubt, share):
    return Region(given, predicted, doubt, 1, share, [0, 0, 1, 1], [])


def test_scores_by_hand():
    confusion = np.array([[900, 90, 10], [0, 50, 50], [1, 0, 99]])
    found = scores_of([region(0, 1, 3.0, 0.002), region(1, 2, 3.0, 0.006)], confusion)
    assert found == pytest.approx([(3 + math.log(1000 / 90)) * 0.5, (3 + math.log(2)) * 0.75])


def test_a_pair_that_a_model_mixes_up_everywhere_comes_last():
    confusion = np.array([[900, 90, 10], [0, 50, 50], [1, 0, 99]])
    rare, common = scores_of([region(0, 2, 3.0, 0.01), region(1, 2, 3.0, 0.01)], confusion)
    assert rare > 1.5 * common
