"""The official layouts of known data sets, on small copies and on the real files where they are."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from finetune.data.samples import preflight
from finetune.data.sources.archives import ade20k, camvid, cityscapes
from finetune.errors import UserError
from finetune.labels.presets import PRESETS
from finetune.labels.translation import Labels


def save(array: np.ndarray, path: Path, **options) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path, **options)
    return path


def random_image(seed: int = 0, height: int = 12, width: int = 16) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def test_ade20k_takes_both_folders_and_both_split_names(tmp_path):
    root = tmp_path / "ADEChallengeData2016"
    save(random_image(), root / "images/training/x.jpg")
    save(np.full((12, 16), 150, np.uint8), root / "annotations/training/x.png")
    labels = Labels.build(**PRESETS["ade20k"])
    for path in (tmp_path, root):
        for split in ("train", "training"):
            assert ade20k(path, split, labels)[0]["mask"].max() == 149
    with pytest.raises(UserError, match=r"validation.*holds training"):
        ade20k(tmp_path, "val", labels)


def test_cityscapes(tmp_path):
    city = tmp_path / "gtFine/train/ulm"
    save(random_image(), tmp_path / "leftImg8bit/train/ulm/ulm_000_leftImg8bit.png")
    for kind in ("labelIds", "instanceIds"):
        save(np.full((12, 16), 33, np.uint8), city / f"ulm_000_gtFine_{kind}.png")
    save(random_image(), city / "ulm_000_gtFine_color.png")
    labels = Labels.build(**PRESETS["cityscapes"])
    with pytest.raises(UserError) as error:
        cityscapes(tmp_path, "train", labels)
    assert "labelTrainIds" in str(error.value)
    assert "labels.preset=cityscapes-label-ids" in str(error.value)
    assert str(city.parent) in str(error.value)

    save(np.full((12, 16), 18, np.uint8), city / "ulm_000_gtFine_labelTrainIds.png")
    (sample,) = cityscapes(tmp_path, "train", labels)
    assert sample["id"] == "ulm/ulm_000"
    assert np.unique(sample["mask"]).tolist() == [18]


def test_cityscapes_without_masks_says_what_is_expected(tmp_path):
    with pytest.raises(UserError, match=r"data\.path.*leftImg8bit/train and gtFine/train"):
        cityscapes(tmp_path / "nowhere", "train", Labels.build(["a", "b"]))


# Real data


def test_real_camvid(shared_data):
    labels = Labels.build(**PRESETS["camvid"])
    for split, count in (("train", 367), ("val", 101)):
        dataset = camvid(shared_data / "camvid", split, labels)
        assert len(dataset) == count
        preflight(dataset)
        sample = dataset[count // 2]
        raw = np.array(Image.open(shared_data / f"camvid/{split}annot/{sample['id']}.png"))
        assert sample["image"].shape == (360, 480, 3)
        assert sample["mask"].tolist() == np.where(raw == 11, 255, raw).tolist()


def test_real_ade20k(shared_data):
    dataset = ade20k(shared_data / "ade20k_sample", "val", Labels.build(**PRESETS["ade20k"]))
    preflight(dataset)
    assert len(dataset) == 3
    annotations = shared_data / "ade20k_sample/ADEChallengeData2016/annotations/validation"
    for sample in dataset:
        raw = np.array(Image.open(annotations / f"{sample['id']}.png")).astype(int)
        assert sample["image"].shape[:2] == raw.shape
        assert sample["mask"].tolist() == np.where(raw == 0, 255, raw - 1).tolist()
