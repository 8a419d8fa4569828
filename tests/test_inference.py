"""Sizes, windows and small images against the published rules and plain loops."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import transformers
from PIL import Image

from finetune.inference import Protocol, normalise, predict_mask, predict_scores
from finetune.segformer import SegformerConfig, SegformerForSemanticSegmentation


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    config = SegformerConfig(
        depths=[1, 1, 1, 1], hidden_sizes=[8, 16, 40, 64], decoder_hidden_size=32, num_labels=5
    )
    return SegformerForSemanticSegmentation(config).eval()


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((512, 683), (512, 704)),  # 683 is rounded up to a multiple of 32
        ((300, 400), (512, 704)),  # 683 again
        ((1024, 2048), (512, 1024)),
        ((500, 4000), (256, 2048)),  # the longer edge limits
        ((512, 512), (512, 512)),
    ],
)
def test_the_ade20k_protocol(size, expected):
    protocol = Protocol(shortest_edge=512, longest_edge=2048, size_divisor=32)
    assert protocol.size(*size) == expected


def test_no_resize_is_the_default():
    assert Protocol().size(361, 487) == (361, 487)
    image = np.zeros((36, 48, 3), np.uint8)
    assert Protocol().resize(image) is image


def test_resize_and_normalise_equal_the_stock_processor():
    rng = np.random.default_rng(0)
    image = rng.integers(0, 255, (90, 121, 3), dtype=np.uint8)
    processor = transformers.SegformerImageProcessorPil(
        size={"shortest_edge": 64}, do_reduce_labels=False
    )
    expected = processor(image, return_tensors="pt")["pixel_values"]
    resized = Protocol(shortest_edge=64).resize(image)
    mean = torch.tensor([0.485, 0.456, 0.406])
    std = torch.tensor([0.229, 0.224, 0.225])
    mine = normalise(torch.from_numpy(resized.copy())[None], mean, std)
    assert mine.shape == expected.shape
    torch.testing.assert_close(mine, expected, rtol=0, atol=1e-5)
    assert mine.is_contiguous(memory_format=torch.channels_last)


def test_sliding_window_equals_a_plain_loop(model):
    pixels = torch.randn(1, 3, 75, 110)
    protocol = Protocol(window=(48, 64), stride=(32, 40))
    scores = predict_scores(model, pixels, protocol)
    # mmsegmentation's slide_inference, written out: the last window is moved back to the edge.
    total, count = torch.zeros(1, 5, 75, 110), torch.zeros(1, 1, 75, 110)
    for i in range(2):  # ceil((75 - 48) / 32) + 1
        for j in range(3):  # ceil((110 - 64) / 40) + 1
            bottom, right = min(i * 32 + 48, 75), min(j * 40 + 64, 110)
            top, left = max(bottom - 48, 0), max(right - 64, 0)
            with torch.no_grad():
                logits = model(pixels[:, :, top:bottom, left:right]).logits
            total[:, :, top:bottom, left:right] += F.interpolate(
                logits, size=(48, 64), mode="bilinear", align_corners=False
            )
            count[:, :, top:bottom, left:right] += 1
    assert (count > 0).all()
    torch.testing.assert_close(scores, total / count, rtol=1e-5, atol=1e-6)


def test_a_window_larger_than_the_image_sees_it_whole(model):
    pixels = torch.randn(1, 3, 40, 50)
    whole = predict_scores(model, pixels, Protocol())
    window = predict_scores(model, pixels, Protocol(window=(64, 64), stride=(48, 48)))
    expected = F.interpolate(whole, size=(40, 50), mode="bilinear", align_corners=False)
    torch.testing.assert_close(window, expected, rtol=1e-5, atol=1e-6)


def test_small_images_are_padded(model):
    pixels = torch.randn(1, 3, 20, 45)
    mask = predict_mask(model, pixels, Protocol(), (20, 45))
    padded = F.pad(pixels, (0, 0, 0, 9))  # 29 is the smallest side
    with torch.no_grad():
        logits = model(padded).logits
    full = F.interpolate(logits, size=(29, 45), mode="bilinear", align_corners=False)
    assert torch.equal(mask, full[:, :, :20].argmax(1))


def test_the_mask_has_the_size_that_is_asked_for(model):
    pixels = torch.randn(2, 3, 64, 96)
    mask = predict_mask(model, pixels, Protocol(), (91, 123))
    with torch.no_grad():
        logits = model(pixels).logits
    expected = F.interpolate(logits, size=(91, 123), mode="bilinear", align_corners=False)
    assert mask.shape == (2, 91, 123)
    assert (mask == expected.argmax(1)).float().mean() > 0.999


def test_a_protocol_says_what_it_is():
    text = Protocol(shortest_edge=512, longest_edge=2048, size_divisor=32).describe()
    assert "512" in text
    assert "32" in text
    sliding = Protocol(window=(1024, 1024), stride=(768, 768)).describe()
    assert "1024 x 1024" in sliding
    assert "own size" in sliding


@pytest.mark.parametrize(
    ("channels", "dtype"), [(1, np.uint8), (2, np.uint8), (4, np.uint8), (6, np.uint8)]
)
def test_channels_are_resized_one_by_one(channels, dtype):
    rng = np.random.default_rng(channels)
    image = rng.integers(0, 256, (90, 121, channels), dtype)
    for edge in (40, 64, 200):
        resized = Protocol(shortest_edge=edge).resize(image)
        size = resized.shape[1::-1]
        for index in range(channels):
            plane = Image.fromarray(image[..., index]).resize(size, Image.Resampling.BILINEAR)
            assert np.array_equal(resized[..., index], plane)


@pytest.mark.parametrize("channels", [1, 3, 6])
def test_sixteen_bit_are_resized_by_the_same_filter(channels):
    rng = np.random.default_rng(channels)
    image = rng.integers(0, 65536, (90, 121, channels), np.uint16)
    image[:20] = 65535
    for edge in (40, 64, 200):
        resized = Protocol(shortest_edge=edge).resize(image)
        assert resized.dtype == np.uint16
        size = resized.shape[1::-1]
        for index in range(channels):
            plane = Image.fromarray(image[..., index]).resize(size, Image.Resampling.BILINEAR)
            assert abs(resized[..., index].astype(int) - np.asarray(plane).astype(int)).max() <= 1
        assert (resized[: 15 * edge // 90] == 65535).all()


def test_sixteen_bit_are_normalised_by_their_own_range():
    deep = np.random.default_rng(0).integers(0, 65536, (2, 5, 7, 6), np.uint16)
    mean, std = torch.linspace(0.1, 0.6, 6), torch.linspace(0.2, 0.3, 6)
    found = normalise(torch.from_numpy(deep.astype(np.int32)), mean, std)
    expected = (deep / 65535 - mean.double().numpy()) / std.double().numpy()
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found.permute(0, 2, 3, 1).numpy(), expected, atol=1e-6)
    # 8 bit, spread over 16, are the same light
    shallow = torch.from_numpy((deep >> 8).astype(np.uint8))
    assert torch.allclose(
        normalise(shallow, mean, std), normalise(shallow.int() * 257, mean, std), atol=1e-6
    )
