"""The same picture twice: by bytes, by pixels, by its look."""

import itertools
import os
import warnings
from pathlib import Path

import imagehash
import numpy as np
import pytest
from PIL import Image

from finetune.data.duplicates import digest, groups, nearest, perceptual_hash, same_files
from finetune.recipe import load_recipe
from finetune.trainers.segmentation import SegmentationTask


def test_a_digest_tells_shape_type_and_values():
    arrays = [np.zeros((2, 3), np.uint8), np.zeros((3, 2), np.uint8), np.zeros((2, 3), np.int32)]
    arrays += [np.ones((2, 3), np.uint8)]
    assert len({digest(array) for array in arrays}) == 4
    assert digest(arrays[0]) == digest(np.zeros((4, 3), np.uint8)[::2])


def test_groups_are_of_equal_keys_and_none_equals_nothing():
    assert groups(["a", None, "b", "a", None, "c", "b", "a"]) == [[0, 3, 7], [2, 6]]


def test_perceptual_hash_is_the_librarys(shared_data):
    file = min((shared_data / "camvid" / "val").glob("*.jpg"))
    image = Image.open(file)
    bits = np.unpackbits(np.frombuffer(perceptual_hash(np.array(image)), np.uint8))
    assert np.array_equal(bits.reshape(8, 8), imagehash.phash(image).hash)


@pytest.mark.parametrize("distance", [0, 8, 30])
def test_nearest_against_every_pair_compared(distance, monkeypatch):
    monkeypatch.setattr("finetune.data.duplicates._BLOCK", 7)
    rng = np.random.default_rng(0)
    train = [rng.bytes(8) for _ in range(40)]
    val = [rng.bytes(8) for _ in range(10)] + [train[3], train[39]]
    val += [(int.from_bytes(train[20], "big") ^ 0b1011).to_bytes(8, "big")]

    def differing(a, b):
        return (int.from_bytes(a, "big") ^ int.from_bytes(b, "big")).bit_count()

    expected = []
    for v, own in enumerate(val):
        distances = [differing(own, other) for other in train]
        if min(distances) <= distance:
            near = sum(d <= distance for d in distances)
            expected.append((v, distances.index(min(distances)), min(distances), near))
    assert nearest(train, val, distance) == expected
    assert len(expected) >= 2
    assert nearest([], val, distance) == nearest(train, [], distance) == []


def test_same_files_whatever_they_are_called(tmp_path):
    rng = np.random.default_rng(0)
    content = [rng.bytes(20_000) for _ in range(4)]
    content.append(content[0][:-1] + b"x")  # the same size and middle, another end
    files = []
    for number, data in enumerate([*content, content[1], b"", b""]):
        (tmp_path / f"{number}.jpg").write_bytes(data)
        files.append(str(tmp_path / f"{number}.jpg"))
    gone = str(tmp_path / "gone.jpg")
    train, val = [*files[:4], files[6], gone], [files[4], files[5], files[7], gone]
    assert same_files(train, val) == [(files[1], files[5])]
    pairs = itertools.product(train[:4], val[:2])
    naive = [(a, b) for a, b in pairs if Path(a).read_bytes() == Path(b).read_bytes()]
    assert same_files(train, val) == naive


def data_set(root, *, shared: bool):
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        for number in range(4):
            for folder in ("images", "masks"):
                (root / folder / split).mkdir(parents=True, exist_ok=True)
            image = rng.integers(0, 256, (64, 64, 3)).astype(np.uint8)
            Image.fromarray(image).save(root / f"images/{split}/{number}.png")
            Image.fromarray(image[..., 0] // 128).save(root / f"masks/{split}/{number}.png")
    if shared:
        os.replace(root / "images/val/2.png", root / "images/val/9.png")
        os.replace(root / "masks/val/2.png", root / "masks/val/9.png")
        (root / "images/val/9.png").write_bytes((root / "images/train/1.png").read_bytes())
    overrides = [f"data.path={root}", "labels.names=[a,b]", "data.cache=none"]
    return load_recipe("folder", overrides)


def test_a_training_warns_of_what_it_is_evaluated_on(tmp_path):
    task = SegmentationTask(data_set(tmp_path / "shared", shared=True))
    with pytest.warns(
        UserWarning, match=r"1 of 4 validation images .*9\.png is .*1\.png.*`finetune doctor`"
    ):
        task.check()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        SegmentationTask(data_set(tmp_path / "apart", shared=False)).check()
