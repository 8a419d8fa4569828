import copy
import pickle
import warnings

import numpy as np
import pytest
import torch

from finetune.metrics import MeanIoU

KEYS = ["mean_iou", "mean_accuracy", "overall_accuracy"]
LIST_KEYS = ["per_category_iou", "per_category_accuracy"]


def naive_mean_iou(predictions, references, num_labels, ignore_index):
    """One class at a time, with masks: nothing shared with the code under test."""
    predictions = np.concatenate([np.asarray(p).ravel() for p in predictions]).astype(np.int64)
    references = np.concatenate([np.asarray(r).ravel() for r in references]).astype(np.int64)
    valid = references != ignore_index
    iou, accuracy = [], []
    for label in range(num_labels):
        truth = (references == label) & valid
        predicted = (predictions == label) & valid
        union = np.count_nonzero(truth | predicted)
        both = np.count_nonzero(truth & predicted)
        iou.append(both / union if union else float("nan"))
        accuracy.append(both / np.count_nonzero(truth) if truth.any() else float("nan"))
    right = np.count_nonzero((predictions == references) & valid)
    return {
        "mean_iou": np.mean([x for x in iou if x == x]),
        "mean_accuracy": np.mean([x for x in accuracy if x == x]),
        "overall_accuracy": right / np.count_nonzero(valid),
        "per_category_iou": np.array(iou),
        "per_category_accuracy": np.array(accuracy),
    }


def assert_same(result, expected, tolerance=1e-12):
    assert list(result) == KEYS + LIST_KEYS
    for key in KEYS + LIST_KEYS:
        np.testing.assert_allclose(result[key], expected[key], rtol=0, atol=tolerance)
        assert result[key].dtype == np.float64


def random_maps(num_labels, ignore_index, sizes, seed=0):
    """Maps of the given sizes; the last third of the classes never occurs."""
    generator = np.random.default_rng(seed)
    present = max(1, num_labels * 2 // 3)
    predictions, references = [], []
    for size in sizes:
        reference = generator.integers(0, present, size)
        prediction = np.where(
            generator.random(size) < 0.6, reference, generator.integers(0, present, size)
        )
        reference[generator.random(size) < 0.1] = ignore_index
        predictions.append(prediction)
        references.append(reference)
    return predictions, references


@pytest.mark.parametrize(
    ("num_labels", "ignore_index"), [(1, 255), (2, 255), (3, -100), (150, 255), (300, 65535)]
)
def test_equals_a_naive_count_per_class(num_labels, ignore_index):
    predictions, references = random_maps(num_labels, ignore_index, [(17, 23), (40, 31), (5, 5)])
    metric = MeanIoU(num_labels, ignore_index)
    for prediction, reference in zip(predictions, references, strict=True):
        metric.add_batch(predictions=prediction, references=reference)
    expected = naive_mean_iou(predictions, references, num_labels, ignore_index)
    assert_same(metric.compute(), expected)


def test_by_hand():
    metric = MeanIoU(4)
    metric.add_batch(
        predictions=np.array([[0, 0, 1], [1, 2, 9]]), references=np.array([[0, 1, 1], [1, 0, 255]])
    )
    # truth 0: pixels predicted 0 and 2; truth 1: pixels predicted 0, 1, 1; the 9 is ignored.
    expected = [[1, 0, 1, 0], [1, 2, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]]
    assert metric.confusion.tolist() == expected
    assert metric.confusion.dtype == np.int64
    result = metric.compute()
    # Class 2 was predicted and never true: IoU 0, no accuracy. Class 3 is absent.
    np.testing.assert_array_equal(result["per_category_iou"], [1 / 3, 2 / 3, 0, np.nan])
    np.testing.assert_array_equal(result["per_category_accuracy"], [1 / 2, 2 / 3, np.nan, np.nan])
    assert result["mean_iou"] == pytest.approx(1 / 3, abs=1e-15)
    assert result["mean_accuracy"] == pytest.approx(7 / 12, abs=1e-15)
    assert result["overall_accuracy"] == 3 / 5


def test_nothing_to_count_is_nan_without_a_warning():
    metric = MeanIoU(3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        untouched = metric.compute()
        metric.add_batch(
            predictions=np.zeros((2, 4, 4)).astype(int), references=np.full((2, 4, 4), 255)
        )
        metric.add_batch(predictions=[], references=[])
        all_ignored = metric.compute()
    for result in (untouched, all_ignored):
        assert all(np.isnan(result[key]) for key in KEYS)
        assert all(np.isnan(result[key]).all() for key in LIST_KEYS)
    assert metric.confusion.sum() == 0


@pytest.mark.parametrize(
    "convert",
    [
        lambda maps: np.stack(maps).astype(np.uint8),
        lambda maps: np.stack(maps).astype(np.int64),
        lambda maps: np.stack(maps).astype(np.uint16),
        lambda maps: np.stack(maps).astype(">u2"),
        lambda maps: torch.tensor(np.stack(maps)),
        lambda maps: torch.tensor(np.stack(maps)).to(torch.uint8),
        lambda maps: torch.tensor(np.stack(maps)).to(torch.uint16),
        lambda maps: np.stack(maps).tolist(),
        lambda maps: [torch.tensor(m) for m in maps],
        lambda maps: list(maps),
    ],
)
def test_arrays_tensors_and_lists_agree(convert):
    predictions, references = random_maps(7, 255, [(9, 11)] * 3)
    expected = naive_mean_iou(predictions, references, 7, 255)
    both, one = MeanIoU(7), MeanIoU(7)
    both.add_batch(predictions=convert(predictions), references=convert(references))
    one.add_batch(predictions=np.stack(predictions), references=convert(references))
    assert_same(both.compute(), expected)
    assert_same(one.compute(), expected)


def test_maps_of_different_sizes():
    predictions, references = random_maps(5, 255, [(4, 6), (9, 3), (1, 1)])
    metric = MeanIoU(5)
    metric.add_batch(
        predictions=[torch.tensor(p) for p in predictions],
        references=[r.astype(np.uint8) for r in references],
    )
    expected = naive_mean_iou(predictions, references, 5, 255)
    assert_same(metric.compute(), expected)
    single = MeanIoU(5)
    for prediction, reference in zip(predictions, references, strict=True):
        single.add(prediction=prediction.tolist(), reference=reference)
    assert_same(single.compute(), expected)


def test_merge_equals_one_pass():
    predictions, references = random_maps(6, 255, [(8, 8)] * 4)
    whole, first, second, from_matrix = (MeanIoU(6) for _ in range(4))
    whole.add_batch(predictions=predictions, references=references)
    first.add_batch(predictions=predictions[:3], references=references[:3])
    second.add_batch(predictions=predictions[3:], references=references[3:])
    from_matrix.merge(first.confusion)
    from_matrix.merge(torch.tensor(second.confusion))
    alone = second.confusion
    first.merge(second)
    for merged in (first, from_matrix):
        np.testing.assert_array_equal(merged.confusion, whole.confusion)
    np.testing.assert_array_equal(second.confusion, alone)
    with pytest.raises(ValueError, match="6 labels"):
        first.merge(MeanIoU(5))


def test_compute_keeps_the_counts_and_reset_clears_them():
    metric = MeanIoU(2)
    assert metric.compute(predictions=[0, 1], references=[0, 0])["overall_accuracy"] == 0.5
    assert metric.compute()["overall_accuracy"] == 0.5
    metric.reset()
    assert metric.confusion.sum() == 0


@pytest.mark.parametrize(
    ("predictions", "references", "message"),
    [
        ([0, 1], [0, 3], "reference id 3 "),
        ([0, 1], [-1, 0], "reference id -1 "),
        ([0, 2**32], [0, 0], f"prediction id {2**32} "),
        ([0, 3], [0, 0], "prediction id 3 "),
        ([-1, 1], [0, 0], "prediction id -1 "),
        (np.uint8([0, 255]), np.uint8([0, 0]), "prediction id 255 "),
        (np.float32([0, 1]), np.uint8([0, 0]), "integer"),
        (np.zeros((2, 2), int), np.zeros((2, 3), int), r"\(2, 2\).*\(2, 3\)"),
        ([np.zeros((2, 2), int)], [], "1 predictions for 0 references"),
    ],
)
def test_a_bad_id_is_named_and_nothing_is_counted(predictions, references, message):
    metric = MeanIoU(3)
    metric.add_batch(predictions=[0, 1], references=[0, 1])
    before = metric.confusion
    with pytest.raises(ValueError, match=message):
        metric.add_batch(predictions=predictions, references=references)
    np.testing.assert_array_equal(metric.confusion, before)


def test_touches_no_disk_and_survives_copies(tmp_path, monkeypatch):
    monkeypatch.setattr("evaluate.config.HF_METRICS_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    metric = MeanIoU(2)
    metric.add_batch(predictions=[0, 1], references=[0, 0])
    metric.compute()
    assert list(tmp_path.iterdir()) == []
    assert metric  # evaluate's own __len__ is always 0 here
    for twin in (copy.deepcopy(metric), pickle.loads(pickle.dumps(metric))):
        twin.add_batch(predictions=[1], references=[1])
        assert twin.confusion.sum() == 3
    assert metric.confusion.sum() == 2


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_counts_on_the_gpu():
    predictions, references = random_maps(150, 255, [(64, 64)] * 3)
    metric = MeanIoU(150)
    for prediction, reference in zip(predictions, references, strict=True):
        metric.add_batch(
            predictions=torch.tensor(prediction).cuda(), references=torch.tensor(reference).byte()
        )
    assert_same(metric.compute(), naive_mean_iou(predictions, references, 150, 255))
    with pytest.raises(ValueError, match="200"):
        metric.add_batch(
            predictions=torch.tensor([0]).cuda(), references=torch.tensor([200]).cuda()
        )


@pytest.mark.network
def test_equals_hugging_face():
    import evaluate

    predictions, references = random_maps(150, 255, [(40, 50)] * 3)
    expected = evaluate.load("mean_iou").compute(
        predictions=predictions, references=references, num_labels=150, ignore_index=255
    )
    metric = MeanIoU(150)
    metric.add_batch(predictions=predictions, references=references)
    result = metric.compute()
    assert set(result) == set(expected)
    for key in result:
        np.testing.assert_allclose(result[key], expected[key], rtol=0, atol=1e-12)
