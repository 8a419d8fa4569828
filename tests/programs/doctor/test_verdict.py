"""Facts to findings, without a file: every kind when it must, and not when it must not."""

from dataclasses import replace

import numpy as np
import pytest

from finetune.data.faults import Fault
from finetune.labels.rules import NO_OBJECT
from finetune.labels.translation import Labels
from finetune.programs.doctor import figures, scan
from finetune.programs.doctor.figures import Split
from finetune.programs.doctor.kinds import KINDS, message_of
from finetune.programs.doctor.scan import Facts
from finetune.programs.doctor.verdict import Expectations, judge, smeared_values

LABELS = Labels.build(["road", "car", "tree"])
EXPECTED = Expectations(LABELS, smallest_side=29)
NUMBER = 40


def facts(number: int, values: dict[int, int] | None = None, **changes) -> Facts:
    """Of a sample of its own, 100 x 100, with all three classes."""
    values = dict(sorted((values or {0: 5000, 1: 3000, 2: 2000}).items()))
    rng = np.random.default_rng(number)
    whole = Facts(
        size=(100, 100),
        mean=(0.4, 0.43, 0.47),
        deviation=(0.2, 0.2, 0.2),
        digest=rng.bytes(16),
        look=rng.bytes(8),
        stored="8 bit grey",
        mask_digest=rng.bytes(16),
        values=np.array(list(values), np.int64),
        counts=np.array(list(values.values()), np.int64),
    )
    return replace(whole, **changes)


def split(name: str, rows: list[Facts], faults=()) -> Split:
    ids = [str(i) for i in range(len(rows))]
    images, masks = ([f"{name}/{i}.{suffix}" for i in ids] for suffix in ("jpg", "png"))
    return Split(name, ids, images, masks, rows, faults)


def two(*, train=(), val=(), number=NUMBER, faults=()) -> list[Split]:
    """Two clean splits, and these samples at their ends."""
    rows = [facts(i) for i in range(number)]
    held_back = [facts(1000 + i) for i in range(number // 4)]
    return [split("train", [*rows, *train], faults), split("val", [*held_back, *val])]


def kinds(splits, expected=EXPECTED) -> dict[str, list[tuple[str, ...]]]:
    findings = judge(splits, expected)
    for finding in findings:
        assert finding.message
        assert "{" not in finding.message + finding.remedy
    assert [f.severity for f in findings] == sorted(f.severity for f in findings)
    return {finding.kind: [place.files for place in finding.places] for finding in findings}


def last(name: str, number: int = NUMBER) -> tuple[str, str]:
    return f"{name}/{number}.jpg", f"{name}/{number}.png"


def test_a_clean_set_has_no_findings():
    assert kinds(two()) == {}


def test_faults_of_pairing_and_reading_are_kept_once():
    fault = Fault("image-without-mask", ("lonely.jpg",))
    broken = Facts(faults=(Fault("empty-file", ("train/40.jpg",)),))
    found = kinds(two(train=[broken], faults=[fault, fault]))
    assert found == {"image-without-mask": [("lonely.jpg",)], "empty-file": [("train/40.jpg",)]}


def test_a_value_without_a_rule_is_named_with_its_mask():
    splits = two(train=[facts(1, {0: 9990, 9: 7, NO_OBJECT: 3}, digest=b"", look=None)])
    found = judge(splits, EXPECTED)
    assert [finding.kind for finding in found] == ["uncovered-value"]
    assert found[0].places == (
        Fault("uncovered-value", ("train/40.png",), "9 (7 pixels), no object (-1) (3 pixels)"),
    )


def test_values_that_the_recipe_ignores_are_counted_but_no_problem():
    lenient = replace(EXPECTED, labels=replace(LABELS, ignores_unknown=True))
    found = judge(two(train=[facts(77, {0: 9990, 9: 10})]), lenient)
    assert [(finding.kind, finding.severity) for finding in found] == [("ignored-value", "warning")]


def test_more_values_than_are_kept_are_still_reported():
    found = judge(two(train=[facts(77, other_values=300, other_pixels=4000)]), EXPECTED)
    assert [finding.kind for finding in found] == ["uncovered-value"]
    assert "300 more" in found[0].places[0].what


@pytest.mark.parametrize(
    ("value", "pixels", "masks", "rare"),
    [
        (200, 5, 1, True),
        (200, 5, 3, True),
        (200, 5, 12, False),  # in many masks
        (200, 900, 1, False),  # in many pixels
        (2, 5, 1, False),  # among the others: a rare class
        (255, 5, 1, False),  # what "nothing" is called
        (4, 5, 1, True),  # one beyond the last
    ],
)
def test_rare_values_where_nobody_says_what_values_mean(value, pixels, masks, rare):
    labels = Labels.build(["a", "b", "c", "d"], unknown="ignore")
    guessed = Expectations(labels, known=False)
    values = {0: 5000, 1: 3000, 3: 2000 - pixels, value: pixels}
    usual = [facts(i, {0: 5000, 1: 3000, 3: 2000}) for i in range(NUMBER - masks)]
    odd = [facts(100 + i, values) for i in range(masks)]
    found = kinds([split("train", [*usual, *odd])], guessed)
    expected = [(f"train/{NUMBER - masks + i}.png",) for i in range(masks)] if rare else None
    assert found.get("rare-value") == expected


def test_nothing_is_rare_among_a_few_masks():
    guessed = Expectations(Labels.build(["a", "b"], unknown="ignore"), known=False)
    rows = [facts(i, {0: 5000, 1: 5000}) for i in range(8)] + [facts(9, {0: 9990, 99: 10})]
    assert "rare-value" not in kinds([split("train", rows)], guessed)


def test_masks_that_were_resized_smoothly():
    guessed = Expectations(Labels.build(["a", "b"], unknown="ignore"), known=False)
    values = {0: 6000, 255: 3800, **{10 * i: 8 for i in range(1, 26)}}
    found = judge([split("train", [facts(i, values) for i in range(20)])], guessed)
    assert found[0].kind == "smeared-values"
    assert "25 values" in found[0].places[0].what
    many = {v: figures.ValueCount(pixels=100, images=5) for v in range(150)}
    assert smeared_values(many) == []


def test_a_rare_class_is_a_warning_with_its_masks():
    rows = [facts(i, {0: 5000, 1: 5000}) for i in range(NUMBER)]
    found = judge([split("train", [*rows, facts(50, {0: 9990, 2: 10})])], EXPECTED)
    assert [(finding.kind, finding.severity) for finding in found] == [("rare-class", "warning")]
    assert found[0].files == ["train/40.png"]


def test_classes_never_seen_and_seen_in_validation_only():
    train = split("train", [facts(i, {0: 10_000}) for i in range(9)])
    val = split("val", [facts(100 + i, {0: 5000, 1: 5000}) for i in range(3)])
    found = {finding.kind: finding for finding in judge([train, val], EXPECTED)}
    assert found.keys() == {"class-only-in-val", "class-never-seen"}
    assert found["class-only-in-val"].severity == "problem"
    assert found["class-only-in-val"].files == ["val/0.png", "val/1.png", "val/2.png"]
    assert found["class-never-seen"].places[0].what == "tree"
    drawn = judge([train, val], replace(EXPECTED, drawn=True))
    assert {finding.severity for finding in drawn} == {"warning"}


def test_a_mask_without_a_labelled_pixel_and_a_split_that_is_mostly_ignored():
    found = kinds(two(train=[facts(99, {255: 10_000})]))
    assert found == {"no-labelled-pixel": [("train/40.png",)]}
    rows = [facts(i, {255: 6000, 0: 2000, 1: 1000, 2: 1000}) for i in range(5)]
    assert kinds([split("train", rows)]) == {"mostly-ignored": [()]}


def test_duplicates_within_and_across_splits():
    same = {"digest": b"one", "mask_digest": b"mask"}
    found = kinds(two(train=[facts(77, **same)], val=[facts(77, **same)]))
    assert found == {"duplicate-across-splits": [("train/40.jpg", "val/10.jpg")]}
    found = kinds(two(train=[facts(77, **same), facts(77, **same)]))
    assert found == {"duplicate-in-split": [("train/40.jpg", "train/41.jpg")]}
    other = {**same, "mask_digest": b"other"}
    found = kinds(two(train=[facts(77, **same), facts(77, **other)]))
    assert found == {
        "conflicting-masks": [("train/40.jpg", "train/41.jpg", "train/40.png", "train/41.png")]
    }


def test_near_duplicates_are_a_warning_up_to_the_distance():
    one = facts(77)
    for bits, near in ((0, True), (8, True), (9, False)):
        look = int.from_bytes(one.look, "big") ^ (1 << bits) - 1
        other = replace(facts(78), look=look.to_bytes(8, "big"))
        found = judge(two(train=[one], val=[other]), EXPECTED)
        assert [(f.kind, f.severity) for f in found] == [("near-duplicate", "warning")] * near
        if near:
            assert found[0].files == ["val/10.jpg", "train/40.jpg"]
    assert kinds(two(train=[one], val=[other]), replace(EXPECTED, distance=9))


def test_blank_images_are_no_duplicates():
    blank = {"digest": b"black", "look": bytes(8), "deviation": (0.0, 0.0, 0.0)}
    found = kinds(two(train=[facts(77, **blank)], val=[facts(78, **blank)]))
    assert found == {"blank-image": [("train/40.jpg",), ("val/10.jpg",)]}


@pytest.mark.parametrize(
    ("size", "base_size", "kind"),
    [
        ((100, 100), None, None),
        ((100, 79), None, "smaller-than-crop"),
        ((60, 200), None, "smaller-than-crop"),
        ((40, 50), (200, 80), None),  # grows to 80 x 100
        ((28, 500), None, "tiny-image"),
    ],
)
def test_images_smaller_than_the_crop_or_the_model(size, base_size, kind):
    expected = replace(EXPECTED, crop=(80, 80), base_size=base_size)
    found = kinds(two(train=[facts(77, size=size)]), expected)
    assert found == ({kind: [("train/40.jpg",)]} if kind else {})


def test_mended_colors_are_counted():
    found = judge(two(train=[facts(77, mended=123)]), EXPECTED)
    assert [(f.kind, f.places[0].what) for f in found] == [("mended-values", "123 pixels, 1.23%")]


def test_masks_of_several_kinds():
    found = kinds(two(train=[facts(77, stored="palette")]))
    assert found == {"mixed-mask-kinds": [("train/40.png",)]}


def test_every_kind_says_what_and_how_to_mend_it():
    assert len(KINDS) > 30
    for kind, (_, remedy) in KINDS.items():
        assert kind == kind.lower()
        assert remedy.endswith(".")
        for number in (1, 2):
            said = message_of(kind, number)
            assert said
            assert not set(said) & set("[]{}|")
    assert message_of("empty-file", 1) == "1 file is empty (0 bytes)"
    assert message_of("empty-file", 2) == "2 files are empty (0 bytes)"


def test_figures_against_plain_counting():
    rng = np.random.default_rng(0)
    masks = [rng.choice([0, 1, 2, 255, 9], (20, 30), p=[0.5, 0.2, 0.1, 0.15, 0.05]) for _ in "abc"]
    images = [rng.integers(0, 256, (20, 30, 3)).astype(np.uint8) for _ in "abc"]
    rows = []
    for image, mask in zip(images, masks, strict=True):
        values, counts = scan.count_values(mask)
        rows.append(replace(scan.image_facts(image), values=values, counts=counts))
    own = split("train", rows)
    counts = figures.class_counts(own, LABELS)
    every = np.stack(masks)
    assert counts.pixels.tolist() == [(every == i).sum() for i in range(3)]
    assert counts.images.tolist() == [3, 3, 3]
    assert (counts.ignored, counts.uncovered) == ((every == 255).sum(), (every == 9).sum())
    assert counts.total == every.size
    mean, std = figures.mean_and_std(own)
    pixels = np.stack(images).reshape(-1, 3) / 255
    assert np.allclose(mean, pixels.mean(0), rtol=1e-12)
    assert np.allclose(std, pixels.std(0), rtol=1e-12)
    weights = figures.class_weights(np.array([75, 25, 0]))
    assert weights == [round(1 / np.log(1.77), 4), round(1 / np.log(1.27), 4), None]
    assert figures.value_counts([own])[9].pixels == (every == 9).sum()


@pytest.mark.parametrize("dtype", [bool, np.uint8, np.uint16, np.int32])
def test_values_are_counted_in_every_dtype(dtype):
    raw = np.random.default_rng(0).integers(0, 2 if dtype is bool else 200, (50, 60)).astype(dtype)
    values, counts = scan.count_values(raw)
    expected, number = np.unique(raw.astype(int), return_counts=True)
    assert np.array_equal(values, expected)
    assert np.array_equal(counts, number)
