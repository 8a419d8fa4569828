"""Planted label errors are what they are called, and are counted as they would be by hand."""

import numpy as np
import pytest

from benchmarks.label_errors import LEAST_CHANGED, Planted, at_random, counted, figures, plant
from finetune.errors import UserError

KINDS = ("region of another class", "missing object", "shifted mask", "mask of another image")


def masks():
    """Twenty masks: ground 0, a house 1, a small object 2, a stripe of ignored pixels."""
    made = {}
    for number in range(20):
        mask = np.zeros((90, 120), np.uint8)
        left = 62 * (number % 2) + number // 4
        mask[5:60, left : left + 50] = 1
        mask[70:80, 3 * number : 3 * number + 16] = 2
        mask[:, 118:] = 255
        made[f"m{number:02}"] = mask
    return made


def test_each_kind_is_planted_in_samples_of_its_own():
    clean = masks()
    found = plant(clean, num_labels=3, ignored=255, each=3, seed=0)
    assert [error.kind for error in found] == [kind for kind in KINDS for _ in range(3)]
    assert len({error.id for error in found}) == 12
    for error in found:
        own = clean[error.id]
        assert np.array_equal(error.changed, error.mask != own)
        before, after = (np.unique(m[error.changed]) for m in (own, error.mask))
        if error.kind == KINDS[0]:
            assert len(before) == len(after) == 1
            assert after[0] < 3
        elif error.kind == KINDS[1]:
            assert (before.tolist(), after.tolist()) == ([2], [0])
        elif error.kind == KINDS[3]:
            assert any(np.array_equal(error.mask, other) for other in clean.values())
            assert error.changed.mean() >= LEAST_CHANGED
    again = plant(clean, num_labels=3, ignored=255, each=3, seed=0)
    assert all(np.array_equal(a.mask, b.mask) for a, b in zip(found, again, strict=True))
    assert [a.id for a in plant(clean, num_labels=3, ignored=255, each=3, seed=1)] != [
        a.id for a in found
    ]


def test_a_shift_is_a_shift():
    (error,) = [
        e for e in plant(masks(), num_labels=3, ignored=255, each=1, seed=3) if e.kind == KINDS[2]
    ]
    own = masks()[error.id]
    moves = [(y, x) for y in range(-8, 9) for x in range(-8, 9) if (y, x) != (0, 0)]
    inner = np.s_[10:-10, 10:-10]
    assert any(
        np.array_equal(np.roll(own, move, (0, 1))[inner], error.mask[inner]) for move in moves
    )


def test_too_few_samples():
    with pytest.raises(UserError, match="too few samples for 6 errors"):
        plant(masks(), num_labels=3, ignored=255, each=6, seed=0)


def planted(kind, name, rows):
    changed = np.zeros((20, 20), bool)
    changed[rows] = True
    return Planted(kind, name, changed.astype(np.uint8), changed)


def region(name, top, bottom):
    return {"id": name, "outlines": [[[0, top], [19, top], [19, bottom - 1], [0, bottom - 1]]]}


def test_a_region_counts_if_most_of_its_pixels_are_planted():
    errors = [planted("a", "x", np.s_[0:10]), planted("b", "y", np.s_[5:6])]
    listed = [region("x", 0, 4), region("x", 4, 16), region("x", 4, 17), region("y", 6, 9)]
    assert counted([*listed, region("z", 0, 4)], errors) == [0, 0, None, None, None]


def test_figures_by_hand():
    errors = [planted("a", "x", np.s_[0:1]), planted("b", "y", np.s_[0:1])]
    found = [0, 0, None, 0] + [None] * 95 + [0, 1]
    expected = {"precision at 20": 0.15, "precision at 40": 0.075, "recall at 100": 0.5}
    got = figures(found, errors)
    assert got.pop("found") == {"a": 1, "b": 0}
    assert got == pytest.approx(expected)
    drawn = at_random(found, errors, seed=0)
    assert drawn["precision at 20"] == pytest.approx(5 / 101, abs=0.01)
    assert drawn["recall at 100"] == pytest.approx((1 + 100 / 101) / 2, abs=0.02)
