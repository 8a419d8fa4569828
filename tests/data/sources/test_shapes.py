import pickle

import cv2
import numpy as np
import pytest

from finetune.data.sources.shapes import NAMES, draw, shapes


def test_draw_is_a_pure_function_of_seed_and_index():
    image, mask = draw(3, 5, (64, 80))
    again = draw(3, 5, (64, 80))
    assert image.tobytes() == again[0].tobytes()
    assert mask.tobytes() == again[1].tobytes()
    assert image.shape == (64, 80, 3)
    assert mask.shape == (64, 80)
    assert image.dtype == mask.dtype == np.uint8
    assert image.tobytes() != draw(3, 6, (64, 80))[0].tobytes()
    assert image.tobytes() != draw(4, 5, (64, 80))[0].tobytes()


@pytest.mark.parametrize("size", [(29, 29), (33, 97), (128, 128)])
def test_every_class_turns_up_and_none_is_tiny(size):
    masks = np.stack([draw(0, i, size)[1] for i in range(200)])
    share = np.bincount(masks.ravel(), minlength=len(NAMES)) / masks.size
    assert len(share) == len(NAMES)
    assert share.min() > 0.01
    assert 0.5 < share[0] < 0.9


def test_colour_says_nothing_about_the_class():
    # the mean colour of a class over many pictures is that of every other class
    pairs = [draw(0, i, (48, 48)) for i in range(600)]
    images, masks = (np.stack(arrays) for arrays in zip(*pairs, strict=True))
    means = np.array([images[masks == i].mean(axis=0) for i in range(len(NAMES))])
    assert np.ptp(means, axis=0).max() < 25
    spread = np.array([images[masks == i].std() for i in range(len(NAMES))])
    assert np.ptp(spread) < 12


def test_the_mask_lies_where_the_image_changes():
    # outlines in the mask have far more contrast across them than the rest of the picture
    on_edge, elsewhere = [], []
    for index in range(30):
        image, mask = draw(0, index, (96, 96))
        steps = np.linalg.norm(np.diff(image.astype(float), axis=1), axis=2)
        edge = np.diff(mask, axis=1) != 0
        on_edge.append(steps[edge].mean())
        elsewhere.append(steps[~edge].mean())
    assert np.mean(on_edge) > 2 * np.mean(elsewhere)


def test_dataset_gives_samples_on_access():
    dataset = shapes("train", num_samples=20, size=(40, 48), seed=7)
    assert len(dataset) == 20
    assert dataset.column_names == ["index"]
    sample = dataset[12]
    assert sample["id"] == "shapes-train-000012"
    assert sample["image"].shape == (40, 48, 3)
    assert sample["mask"].shape == (40, 48)
    chosen = dataset.select([12, 3])[0]
    assert chosen["id"] == sample["id"]
    assert chosen["image"].tobytes() == sample["image"].tobytes()


def test_dataset_survives_pickling():
    dataset = shapes("val", num_samples=3, size=(32, 32), seed=0)
    copy = pickle.loads(pickle.dumps(dataset))
    assert copy[2]["image"].tobytes() == dataset[2]["image"].tobytes()


def test_splits_and_seeds_share_no_picture():
    seen = set()
    for seed in (0, 1, 2):
        for split in ("train", "val"):
            dataset = shapes(split, num_samples=10, size=(32, 32), seed=seed)
            seen |= {sample["image"].tobytes() for sample in dataset}
    assert len(seen) == 60


def test_the_number_of_opencv_threads_does_not_matter():
    threads = cv2.getNumThreads()
    try:
        cv2.setNumThreads(1)
        one = draw(0, 0, (128, 128))[0].tobytes()
        cv2.setNumThreads(4)
        assert draw(0, 0, (128, 128))[0].tobytes() == one
    finally:
        cv2.setNumThreads(threads)
