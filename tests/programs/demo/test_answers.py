"""What the demo's page is told of a picture."""

import io
import struct
import zlib

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from tiny import NAMES, save_tiny

from finetune.inference import Segmenter, segment
from finetune.pictures.references import Encoded
from finetune.programs.demo import answers
from finetune.programs.demo.answers import Model, answer


def picture(height, width, seed=0):
    """Blurred noise: a fresh model sees several classes in it."""
    noise = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    return cv2.normalize(cv2.GaussianBlur(noise, (0, 0), 6), None, 0, 255, cv2.NORM_MINMAX)


def encoded(pixels, name="street.png"):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return Encoded(name, buffer.getvalue())


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    return [
        Model(f"model {seed}", Segmenter.load(save_tiny(folder / str(seed), seed=seed)))
        for seed in (0, 1)
    ]


def unpacked(path, dtype, size):
    return np.frombuffer(zlib.decompress(path.read_bytes()), dtype).reshape(size[::-1])


def test_the_page_is_told_what_segment_finds(models, tmp_path):
    pixels = picture(90, 130)
    told = answer(models, encoded(pixels), tmp_path)
    assert (told["name"], told["size"], told["drawn"]) == ("street.png", [130, 90], [130, 90])
    shown = np.asarray(Image.open(told["picture"])).astype(int)
    assert np.abs(shown - pixels).mean() < 6  # a JPEG
    masks = []
    for model, result in zip(models, told["results"], strict=True):
        found = segment(model.segmenter, pixels)
        masks.append(found.mask)
        assert len(np.unique(found.mask)) > 1
        assert result["model"] == model.name
        assert (np.asarray(Image.open(result["mask"])) == found.mask).all()
        assert result["id_bytes"] == 1
        assert (unpacked(result["ids"], np.uint8, told["drawn"]) == found.mask).all()
        sure = unpacked(result["confidence"], np.uint8, told["drawn"])
        assert np.abs(sure / 255 - found.confidence.astype(float)).max() < 0.5 / 255 + 1e-6
        ids, counts = np.unique(found.mask, return_counts=True)
        expected = sorted(zip(counts.tolist(), ids.tolist(), strict=True), reverse=True)
        assert [(one["pixels"], one["id"]) for one in result["classes"]] == expected
        for one in result["classes"]:
            assert one["name"] == NAMES[one["id"]]
            assert tuple(one["color"]) == model.segmenter.colors[one["id"]]
            assert one["share"] == one["pixels"] / found.mask.size
        count, first = expected[0]
        assert result["summary"].startswith(f"{NAMES[first]} {count / found.mask.size:.0%}"[:-1])
    assert told["agreement"] == (masks[0] == masks[1]).mean() < 1


def test_models_with_other_classes_are_not_compared(models, tmp_path):
    other = save_tiny(tmp_path / "other", names=["road", "not road"])
    both = [models[0], Model("other", Segmenter.load(other))]
    (tmp_path / "out").mkdir()
    assert answer(both, encoded(picture(60, 60)), tmp_path / "out")["agreement"] is None
    (tmp_path / "one").mkdir()
    assert answer(both[:1], encoded(picture(60, 60)), tmp_path / "one")["agreement"] is None


def test_a_large_picture_is_drawn_small_and_its_mask_is_whole(models, tmp_path, monkeypatch):
    monkeypatch.setattr(answers, "SHOWN", 64)
    pixels = picture(96, 160)
    told = answer(models[:1], encoded(pixels), tmp_path)
    assert (told["size"], told["drawn"]) == ([160, 96], [64, 38])
    assert Image.open(told["picture"]).size == (64, 38)
    result = told["results"][0]
    mask = segment(models[0].segmenter, pixels).mask
    assert (np.asarray(Image.open(result["mask"])) == mask).all()
    ids = unpacked(result["ids"], np.uint8, told["drawn"])
    rows = ((np.arange(38) + 0.5) * 96 / 38).astype(int)
    columns = ((np.arange(64) + 0.5) * 160 / 64).astype(int)
    assert (ids == mask[rows[:, None], columns]).all()


def test_more_than_256_classes(tmp_path):
    names = [f"class {i}" for i in range(300)]
    model = Model("many", Segmenter.load(save_tiny(tmp_path / "model", names=names)))
    with torch.no_grad():
        model.segmenter.model.decode_head.classifier.bias[250:] += 2
    (tmp_path / "out").mkdir()
    pixels = picture(70, 90)
    result = answer([model], encoded(pixels), tmp_path / "out")["results"][0]
    mask = segment(model.segmenter, pixels).mask
    assert mask.max() > 255
    assert result["id_bytes"] == 2
    assert (unpacked(result["ids"], "<u2", (90, 70)) == mask).all()
    assert (np.asarray(Image.open(result["mask"])) == mask).all()
    assert result["summary"].endswith("more")


def claims(width, height):
    """A PNG of some bytes that says it has so many pixels; reading them would be a mistake."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    parts = [(b"IHDR", header), (b"IDAT", zlib.compress(bytes(1000))), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in parts
    )


def moving():
    frames = [Image.fromarray(picture(50, 50, seed)) for seed in (0, 1)]
    buffer = io.BytesIO()
    frames[0].save(buffer, "WEBP", save_all=True, append_images=frames[1:])
    return buffer.getvalue()


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        ("note.txt", b"not a picture", "note.txt cannot be read as a still picture"),
        ("empty.jpg", b"", "empty.jpg cannot be read as a still picture"),
        ("half.png", encoded(picture(50, 50)).data[:-900], "half.png cannot be read as a still"),
        ("moves.webp", moving(), "moves.webp cannot be read as a still picture"),
        ("bomb.png", claims(40_000, 40_000), "bomb.png is too large: this page takes up to 25"),
        ("large.png", claims(5001, 5000), "large.png is too large: this page takes up to 25"),
        ("thin.png", claims(25_000_001, 1), "thin.png is too large: this page takes up to 25"),
    ],
    ids=["text", "empty", "cut off", "moving", "bomb", "large", "thin"],
)
def test_what_is_no_picture_is_answered_in_words(models, tmp_path, name, data, words):
    told = answer(models, Encoded(name, data), tmp_path)
    assert set(told) == {"problem"}
    assert told["problem"].startswith(words)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("allocator", [torch.empty, np.empty], ids=["torch", "numpy"])
def test_memory_that_does_not_suffice_is_said(models, tmp_path, monkeypatch, allocator):
    def fails(*_, **__):
        allocator(10**15)

    monkeypatch.setattr(models[0].segmenter.preprocessing.protocol.__class__, "resize", fails)
    told = answer(models, encoded(picture(50, 50)), tmp_path)
    assert "needs too much memory" in told["problem"]
