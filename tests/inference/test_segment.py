"""`segment`: any kind of image to one and the same mask, and folders that are broken."""

import json
import os
import shutil
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import COLORS, NAMES, save_tiny

from finetune.errors import UserError
from finetune.inference import InferenceProtocol, Preprocessing, Segmenter, segment
from finetune.pictures.drawing import overlay
from finetune.segformer import SegformerForSemanticSegmentation


def save(folder, protocol=InferenceProtocol(), channels=3):  # noqa: B008 - frozen
    preprocessing = Preprocessing(protocol, (0.4,) * channels, (0.2,) * channels)
    return save_tiny(folder, preprocessing, num_channels=channels)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save(tmp_path_factory.mktemp("model") / "best", InferenceProtocol(shortest_edge=64))


def picture(height=75, width=110, seed=0):
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (9, 11, 3), np.uint8))
    return np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC))


def test_every_kind_of_image_gives_the_same_mask(folder, tmp_path):
    pixels = picture()
    image = Image.fromarray(pixels)
    image.save(tmp_path / "a.png")
    image.save(tmp_path / "b.webp", lossless=True)
    transparent = image.copy()
    transparent.putalpha(Image.fromarray(pixels[..., 0]))
    turned = Image.fromarray(np.rot90(pixels))  # and a note in the file to turn it back
    exif = Image.Exif()
    exif[0x0112] = 6
    turned.save(tmp_path / "turned.png", exif=exif)
    transparent.save(tmp_path / "alpha.png")
    tensor = torch.from_numpy(pixels.copy()).permute(2, 0, 1)
    segmenter = Segmenter.load(folder)
    expected = segmenter(pixels).mask
    assert expected.shape == (75, 110)
    assert expected.dtype == np.uint8
    assert len(np.unique(expected)) > 1
    images = {
        "path": tmp_path / "a.png",
        "text": str(tmp_path / "a.png"),
        "webp": tmp_path / "b.webp",
        "bytes": (tmp_path / "a.png").read_bytes(),
        "pil": image,
        "alpha": transparent,
        "alpha file": tmp_path / "alpha.png",
        "turned": tmp_path / "turned.png",
        "turned pil": Image.open(tmp_path / "turned.png"),
        "alpha array": np.dstack([pixels, pixels[..., 0]]),
        "16 bit array": pixels.astype(np.uint16) * 257,
        "tensor": tensor,
        "float tensor": tensor.float() / 255,
    }
    for kind, one in images.items():
        assert np.array_equal(segment(segmenter, one).mask, expected), kind
    assert np.array_equal(segment(folder, pixels).mask, expected)
    assert np.array_equal(segment(str(folder), pixels).mask, expected)
    from_model = SegformerForSemanticSegmentation.from_pretrained(folder)
    assert np.array_equal(segment(from_model, pixels).mask, expected)


def test_grey_and_sixteen_bit_are_made_rgb_as_in_training(folder, tmp_path):
    grey = picture()[..., 1]
    Image.fromarray(grey).save(tmp_path / "grey.png")
    Image.fromarray(grey.astype(np.uint16) * 256 + 77).save(tmp_path / "deep.png")
    segmenter = Segmenter.load(folder)
    expected = segmenter(np.repeat(grey[..., None], 3, 2)).mask
    for one in (grey, grey[..., None], tmp_path / "grey.png", tmp_path / "deep.png"):
        assert np.array_equal(segmenter(one).mask, expected)
    assert np.array_equal(segmenter(Image.open(tmp_path / "deep.png")).mask, expected)


def test_what_a_segmentation_tells(folder):
    pixels = picture(40, 64)
    found = segment(folder, pixels)
    assert found.names == NAMES
    assert found.colors == COLORS
    areas = found.areas()
    assert list(areas) == list(NAMES)
    assert sum(area["pixels"] for area in areas.values()) == 40 * 64
    for i, name in enumerate(NAMES):
        assert areas[name]["pixels"] == (found.mask == i).sum()
        assert areas[name]["share"] == pytest.approx((found.mask == i).mean())
    assert found.confidence.shape == (40, 64)
    assert found.confidence.min() >= 0.2 - 1e-3  # the largest of five
    assert found.confidence.max() <= 1
    plain = np.asarray(found.overlay(legend=False))
    assert np.array_equal(plain, overlay(pixels, found.mask, COLORS))
    assert np.array_equal(np.asarray(found.overlay())[:40, :64], plain)
    assert np.array_equal(np.asarray(found.colored()), np.array(COLORS, np.uint8)[found.mask])
    assert found._repr_png_()[:4] == b"\x89PNG"
    largest = max(NAMES, key=lambda name: areas[name]["pixels"])
    assert f"64 x 40: {largest}" in repr(found)
    assert segment(folder, pixels, confidence=False).confidence is None


def test_the_protocol_can_be_changed(folder):
    pixels = picture(150, 170)
    segmenter = Segmenter.load(folder, window=(40, 48), flip=True)
    protocol = segmenter.preprocessing.protocol
    assert (protocol.shortest_edge, protocol.window, protocol.stride) == (64, (40, 48), (30, 36))
    assert not np.array_equal(segmenter(pixels).mask, segment(folder, pixels).mask)
    for changes, named in [
        ({"stride": (8, 8)}, r"--stride .* has no window; add --window"),
        ({"window": (40, 40), "stride": (41, 8)}, "gaps"),
        ({"window": (20, 40)}, "29 pixels"),
    ]:
        with pytest.raises(UserError, match=named):
            Segmenter.load(folder, **changes)


@pytest.mark.parametrize(
    ("image", "named"),
    [
        (np.zeros((4, 5, 2), np.uint8), "2 channels"),
        (np.zeros((4, 5, 3), np.float32), "float32"),
        (np.zeros((0, 5, 3), np.uint8), "shape"),
        (torch.full((3, 4, 5), 1.5), r"0 to 1"),
        (torch.full((3, 4, 5), float("nan")), r"0 to 1"),
        (b"no image", "the image: cannot be read"),
        (b"", "the image: cannot be read"),
        (7, "is a int"),
        ("nowhere.png", "nowhere.png"),
    ],
)
def test_what_is_no_image_is_refused(folder, image, named):
    with pytest.raises(UserError, match=named):
        segment(folder, image)


def test_more_pixels_than_the_limit_are_refused_unless_it_is_raised(folder, tmp_path):
    Image.fromarray(picture(100, 120)).save(tmp_path / "a.png")
    before = Image.MAX_IMAGE_PIXELS
    with pytest.raises(UserError, match=r"a\.png: 120 x 100 pixels, more than the 9,000"):
        segment(folder, tmp_path / "a.png", max_pixels=9_000)
    assert segment(folder, tmp_path / "a.png", max_pixels=12_000).mask.shape == (100, 120)
    assert before == Image.MAX_IMAGE_PIXELS


def test_models_of_other_channels(tmp_path):
    save(tmp_path / "six", channels=6)
    image = np.random.default_rng(0).integers(0, 256, (40, 50, 6), np.uint8)
    assert segment(tmp_path / "six", image).mask.shape == (40, 50)
    with pytest.raises(UserError, match="3 channels, but the model reads 6"):
        segment(tmp_path / "six", image[..., :3])


def cut(path, keep):
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * keep)])


@pytest.mark.parametrize(
    ("name", "damage", "named"),
    [
        ("config.json", os.remove, "config.json"),
        ("config.json", lambda path: cut(path, 0.5), "not a model folder"),
        ("model.safetensors", os.remove, "weights cannot be read"),
        ("model.safetensors", lambda path: cut(path, 0.7), "weights cannot be read"),
        ("model.safetensors", lambda path: cut(path, 0), "weights cannot be read"),
        ("preprocessor_config.json", os.remove, "preprocessor_config.json"),
        ("preprocessor_config.json", lambda path: cut(path, 0.5), "preprocessor_config.json"),
        ("preprocessor_config.json", lambda path: path.write_text("[]"), "preprocessor_config"),
    ],
)
def test_a_broken_model_folder_is_named(folder, tmp_path, name, damage, named):
    broken = shutil.copytree(folder, tmp_path / "broken")
    damage(broken / name)
    with pytest.raises(UserError, match=named) as raised:
        segment(broken, picture())
    assert str(broken) in str(raised.value)


def test_a_pickle_does_not_run(folder, tmp_path):
    broken = shutil.copytree(folder, tmp_path / "broken")
    (broken / "model.safetensors").unlink()

    class Harmful:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "ran"),)

    torch.save({"segformer.x": Harmful()}, broken / "pytorch_model.bin")
    with pytest.raises(UserError, match="pickle"):
        segment(broken, picture())
    assert not (tmp_path / "ran").exists()


def test_sense_of_finetune_eval(folder, tmp_path):
    broken = shutil.copytree(folder, tmp_path / "broken")
    config = json.loads((broken / "config.json").read_text())
    config["finetune_eval"] = {"shortest_edge": "wide"}
    (broken / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="finetune_eval"):
        segment(broken, picture())


@pytest.mark.parametrize(
    ("found", "named"),
    [
        ({"scales": []}, "scales"),
        ({"scales": ["a"]}, "scales"),
        ({"scales": [0]}, "scales"),
        ({"window": [64, 64], "stride": [0, 0]}, "stride"),
        ({"window": [64, 64], "stride": [80, 64]}, "gaps"),
        ({"stride": [64, 64]}, "stride: needs window"),
        ({"window": [4, 4]}, "29 pixels"),
        ({"zoom": 2}, "zoom"),
        ([1], r"\[1\]"),
    ],
)
def test_every_wrong_finetune_eval_is_named(folder, tmp_path, found, named):
    broken = shutil.copytree(folder, tmp_path / "broken")
    config = json.loads((broken / "config.json").read_text())
    if isinstance(found, dict):
        found = {**config["finetune_eval"], **found}
    config["finetune_eval"] = found
    (broken / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=named):
        segment(broken, picture())


def test_names_of_classes(folder, tmp_path):
    broken = shutil.copytree(folder, tmp_path / "broken")
    config = json.loads((broken / "config.json").read_text())
    config["id2label"] = {"0": "a", "1": "b", "2": "a", "3": "c", "4": "d"}
    (broken / "config.json").write_text(json.dumps(config))
    found = segment(broken, picture())
    assert found.names == ("a", "b", "a (2)", "c", "d")
    assert sum(area["pixels"] for area in found.areas().values()) == found.mask.size
    config["id2label"] = {"0": "a", "1": "b", "2": "a", "3": "c", "7": "d"}
    (broken / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="id2label"):
        segment(broken, picture())


def test_limits_of_threads_do_not_mix(folder, tmp_path):
    Image.fromarray(picture(100, 120)).save(tmp_path / "a.png")
    segmenter, before = Segmenter.load(folder), Image.MAX_IMAGE_PIXELS
    limits = [None, 9_000, 20_000, None, 11_999] * 20

    def read(limit):
        try:
            return segmenter.read(tmp_path / "a.png", max_pixels=limit).shape
        except UserError as error:
            return str(error)

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(read, limits))
    assert before == Image.MAX_IMAGE_PIXELS
    for limit, answer in zip(limits, found, strict=True):
        if limit is None or limit >= 12_000:
            assert answer == (100, 120, 3)
        else:
            assert f"more than the {limit:,}" in answer
    with pytest.raises(UserError, match="more than the 9,000"):
        segmenter.read(picture(100, 120), max_pixels=9_000)


def test_a_training_model_stays_one(folder):
    net = SegformerForSemanticSegmentation.from_pretrained(folder).train()
    segment(net, picture())
    assert net.training


def test_depths_do_not_mix(tmp_path):
    save(tmp_path / "four", channels=4)
    deep = np.random.default_rng(0).integers(0, 65536, (40, 50, 4), np.uint16)
    with pytest.raises(UserError, match="16 bits per channel, but rescale_factor"):
        segment(tmp_path / "four", deep)


@pytest.mark.parametrize(
    "colors", [7, [1, 2], [["0 0 0) url(/x", 1, 2]], [[0, 0, 256]], [[True, 0, 0]], "red"]
)
def test_colors_are_numbers(folder, tmp_path, colors):
    """They go into pages and pictures."""
    broken = shutil.copytree(folder, tmp_path / "broken")
    config = json.loads((broken / "config.json").read_text())
    config["finetune_colors"] = colors
    (broken / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="finetune_colors"):
        segment(broken, picture())
