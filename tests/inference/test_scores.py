"""Sizes, windows and small images against the published rules and plain loops."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import transformers
from PIL import Image

from finetune.errors import UserError
from finetune.inference import InferenceProtocol, Preprocessing
from finetune.inference.preprocessing import normalise
from finetune.inference.scores import predict_doubts, predict_masks, score_bands
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
    protocol = InferenceProtocol(shortest_edge=512, longest_edge=2048, size_divisor=32)
    assert protocol.size(*size) == expected


def test_no_resize_is_the_default():
    assert InferenceProtocol().size(361, 487) == (361, 487)
    image = np.zeros((36, 48, 3), np.uint8)
    assert InferenceProtocol().resize(image)[0] is image


def test_resize_and_normalise_equal_the_stock_processor():
    rng = np.random.default_rng(0)
    image = rng.integers(0, 255, (90, 121, 3), dtype=np.uint8)
    processor = transformers.SegformerImageProcessorPil(
        size={"shortest_edge": 64}, do_reduce_labels=False
    )
    expected = processor(image, return_tensors="pt")["pixel_values"]
    resized = InferenceProtocol(shortest_edge=64).resize(image)[0]
    mean = torch.tensor([0.485, 0.456, 0.406])
    std = torch.tensor([0.229, 0.224, 0.225])
    mine = normalise(torch.from_numpy(resized.copy())[None], mean, std)
    assert mine.shape == expected.shape
    torch.testing.assert_close(mine, expected, rtol=0, atol=1e-5)
    assert mine.is_contiguous(memory_format=torch.channels_last)


# Pixels of which one step is one step of a plain model's input: no rescaling in between.
PLAIN = {"image_mean": (0.5, 0.5, 0.5), "image_std": (0.25, 0.25, 0.25)}


def pictures(*shape):
    rng = np.random.default_rng(sum(shape))
    coarse = torch.from_numpy(rng.random((shape[0], 3, 9, 9), np.float32))
    smooth = F.interpolate(coarse, shape[1:], mode="bicubic", align_corners=False)
    noisy = smooth * 255 + torch.from_numpy(rng.normal(0, 9, smooth.shape))
    return noisy.clamp(0, 255).byte().permute(0, 2, 3, 1).contiguous()


def plain(pixels):
    """What a model is shown, in one line."""
    return (pixels.permute(0, 3, 1, 2).float() / 255 - 0.5) / 0.25


def scores_of(model, pixels, protocol, size):
    """All bands put together, upsampled: (B, K, H, W)."""
    parts = []
    for rows, scores in score_bands(model, pixels, Preprocessing(protocol, **PLAIN), size):
        if scores.shape[2:] != (rows.stop - rows.start, size[1]):
            assert rows == slice(0, size[0])
            scores = F.interpolate(scores, size=size, mode="bilinear", align_corners=False)
        parts.append(scores)
    return torch.cat(parts, 2)


def logits_of(model, pixels, size):
    with torch.no_grad():
        logits = model(plain(pixels)).logits
    return F.interpolate(logits, size=size, mode="bilinear", align_corners=False)


def windows_by_hand(model, pixels, rows, columns):
    """mmsegmentation's slide_inference, written out: the last window is moved back to the edge."""
    batch, height, width, _ = pixels.shape
    total, count = torch.zeros(batch, 5, height, width), torch.zeros(1, 1, height, width)
    for i in range(-(-(height - rows[0]) // rows[1]) + 1):
        for j in range(-(-(width - columns[0]) // columns[1]) + 1):
            bottom = min(i * rows[1] + rows[0], height)
            right = min(j * columns[1] + columns[0], width)
            top, left = max(bottom - rows[0], 0), max(right - columns[0], 0)
            crop = pixels[:, top:bottom, left:right]
            total[:, :, top:bottom, left:right] += logits_of(model, crop, crop.shape[1:3])
            count[:, :, top:bottom, left:right] += 1
    assert (count > 0).all()
    return total / count


@pytest.mark.parametrize("band", [1, 2**12, 2**24])
def test_sliding_window_equals_a_plain_loop(model, band, monkeypatch):
    monkeypatch.setattr("finetune.inference.scores._BAND", band)
    pixels = pictures(2, 75, 110)
    protocol = InferenceProtocol(window=(48, 64), stride=(32, 40))
    scores = scores_of(model, [pixels], protocol, (75, 110))
    expected = windows_by_hand(model, pixels, (48, 32), (64, 40))
    torch.testing.assert_close(scores, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("band", [1, 2**12, 2**24])
def test_windows_of_a_resized_picture_are_averaged_before_they_are_upsampled(
    model, band, monkeypatch
):
    monkeypatch.setattr("finetune.inference.scores._BAND", band)
    pixels = pictures(1, 75, 110)
    protocol = InferenceProtocol(shortest_edge=75, window=(48, 64), stride=(32, 40))
    scores = scores_of(model, [pixels], protocol, (131, 190))
    mean = windows_by_hand(model, pixels, (48, 32), (64, 40))
    expected = F.interpolate(mean, size=(131, 190), mode="bilinear", align_corners=False)
    torch.testing.assert_close(scores, expected, rtol=1e-5, atol=1e-6)


def test_a_window_larger_than_the_image_sees_it_whole(model):
    pixels = pictures(1, 40, 50)
    window = scores_of(
        model, [pixels], InferenceProtocol(window=(64, 64), stride=(48, 48)), (40, 50)
    )
    torch.testing.assert_close(window, logits_of(model, pixels, (40, 50)), rtol=1e-5, atol=1e-6)


def test_scales_and_mirrors_are_the_mean_of_probabilities(model, monkeypatch):
    monkeypatch.setattr("finetune.inference.scores._BAND", 2**12)
    image = pictures(1, 64, 90)[0].numpy()
    protocol = InferenceProtocol(scales=(0.75, 1.0, 1.5), flip=True)
    views = [torch.from_numpy(view.copy())[None] for view in protocol.resize(image)]
    assert [tuple(view.shape[1:3]) for view in views] == [(48, 68), (64, 90), (96, 135)]
    scores = scores_of(model, views, protocol, (64, 90))
    total = torch.zeros(1, 5, 64, 90)
    for view in views:
        total += logits_of(model, view, (64, 90)).softmax(1)
        total += logits_of(model, view.flip(2), (64, 90)).softmax(1).flip(3)
    torch.testing.assert_close(scores.exp(), total / 6, rtol=1e-4, atol=1e-6)


def test_mirrored_windows_are_those_of_the_mirrored_picture(model):
    pixels = pictures(1, 75, 110)
    protocol = InferenceProtocol(window=(48, 64), stride=(32, 40), flip=True)
    scores = scores_of(model, [pixels], protocol, (75, 110))
    one, other = (
        windows_by_hand(model, image, (48, 32), (64, 40)).softmax(1)
        for image in (pixels, pixels.flip(2))
    )
    torch.testing.assert_close(scores.exp(), (one + other.flip(3)) / 2, rtol=1e-4, atol=1e-6)


def test_huge_pictures_are_shown_in_windows(model, monkeypatch):
    monkeypatch.setattr("finetune.inference.scores.MAX_WHOLE", 75 * 110 - 1)
    monkeypatch.setattr("finetune.inference.scores.WINDOW", (48, 64))
    monkeypatch.setattr("finetune.inference.scores.STRIDE", (32, 40))
    pixels = pictures(1, 75, 110)
    # One step of 27 (of 32 at most) down, two of 23 (of 40 at most) across.
    expected = windows_by_hand(model, pixels, (48, 27), (64, 23))
    found = scores_of(model, [pixels], InferenceProtocol(), (75, 110))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_small_images_are_padded(model):
    pixels = pictures(1, 20, 45)
    mask, _ = predict_masks(model, [pixels], Preprocessing(**PLAIN), (20, 45))
    padded = F.pad(plain(pixels), (0, 0, 0, 9))  # 29 is the smallest side
    with torch.no_grad():
        logits = model(padded).logits
    full = F.interpolate(logits, size=(29, 45), mode="bilinear", align_corners=False)
    assert torch.equal(mask.long(), full[:, :, :20].argmax(1))


@pytest.mark.parametrize(
    "protocol",
    [
        InferenceProtocol(),
        InferenceProtocol(window=(48, 64), stride=(32, 40)),
        InferenceProtocol(flip=True),
    ],
)
def test_the_mask_has_the_size_that_is_asked_for_and_knows_how_sure_it_is(
    model, protocol, monkeypatch
):
    monkeypatch.setattr("finetune.inference.scores._BAND", 2**12)
    pixels = pictures(2, 64, 96)
    arguments = model, [pixels], Preprocessing(protocol, **PLAIN), (91, 123)
    mask, confidence = predict_masks(*arguments, confidence=True)
    scores = scores_of(model, [pixels], protocol, (91, 123))
    assert mask.shape == confidence.shape == (2, 91, 123)
    assert mask.dtype == torch.uint8
    assert (mask == scores.argmax(1)).float().mean() > 0.999
    torch.testing.assert_close(confidence.float(), scores.softmax(1).amax(1), rtol=0, atol=1e-3)
    alone, nothing = predict_masks(*arguments)
    assert nothing is None
    assert torch.equal(alone, mask)


def test_the_binary_head_of_stock(model):
    torch.manual_seed(1)
    config = SegformerConfig(
        depths=[1, 1, 1, 1], hidden_sizes=[8, 16, 40, 64], decoder_hidden_size=32, num_labels=1
    )
    binary = SegformerForSemanticSegmentation(config).eval()
    pixels = pictures(1, 64, 64)
    with torch.no_grad():
        chance = binary(plain(pixels)).logits
    chance = F.interpolate(chance, size=(64, 64), mode="bilinear", align_corners=False)[:, 0]
    for protocol in (InferenceProtocol(), InferenceProtocol(window=(48, 48), stride=(32, 32))):
        preprocessing = Preprocessing(protocol, **PLAIN)
        mask, confidence = predict_masks(binary, [pixels], preprocessing, (64, 64), confidence=True)
        assert ((confidence >= 0.5) & (confidence <= 1)).all()
    mask, confidence = predict_masks(
        binary, [pixels], Preprocessing(**PLAIN), (64, 64), confidence=True
    )
    assert torch.equal(mask.bool(), chance > 0)
    sure = torch.maximum(chance.sigmoid(), 1 - chance.sigmoid())
    torch.testing.assert_close(confidence.float(), sure, rtol=0, atol=1e-3)


def test_a_protocol_says_what_it_is():
    text = InferenceProtocol(shortest_edge=512, longest_edge=2048, size_divisor=32).describe()
    assert "512" in text
    assert "32" in text
    sliding = InferenceProtocol(window=(1024, 1024), stride=(768, 768)).describe()
    assert "1024 x 1024" in sliding
    assert "own size" in sliding


STOCKS = [  # the protocols that stock's processor knows
    InferenceProtocol(),
    InferenceProtocol(fixed_size=(40, 56)),
    InferenceProtocol(shortest_edge=64),
    InferenceProtocol(shortest_edge=64, longest_edge=80),
    InferenceProtocol(shortest_edge=71, longest_edge=97),
]


def stock_size(protocol, image):
    """The height and width that stock's processor resizes an image to."""
    processor = transformers.SegformerImageProcessorPil(**Preprocessing(protocol).to_stock())
    return tuple(processor(image, return_tensors="pt")["pixel_values"].shape[2:])


@pytest.mark.parametrize("protocol", STOCKS)
def test_sizes_are_stocks_to_the_pixel(protocol):
    rng = np.random.default_rng(0)
    sizes = [(71, 97), (97, 71), (64, 64), (64, 200), *rng.integers(20, 300, (60, 2)).tolist()]
    for height, width in sizes:
        image = np.zeros((height, width, 3), np.uint8)
        assert protocol.size(height, width) == stock_size(protocol, image), (height, width)


@pytest.mark.parametrize("protocol", STOCKS)
def test_what_is_saved_for_stock_is_read_back(protocol):
    own = Preprocessing(protocol, (0.1, 0.2, 0.3, 0.4), (0.5, 0.6, 0.7, 0.8), 65535)
    assert Preprocessing.from_stock(own.to_stock()) == own
    more = Preprocessing(
        InferenceProtocol(
            shortest_edge=64, longest_edge=80, size_divisor=32, scales=(0.5, 1.0), flip=True
        )
    )
    assert Preprocessing.from_stock(more.to_stock(), more.protocol.model_dump(mode="json")) == more


def test_a_changed_preprocessor_config_counts():
    own = Preprocessing(InferenceProtocol(shortest_edge=64, size_divisor=32))
    changed = {**own.to_stock(), "size": {"shortest_edge": 96}}
    with pytest.warns(UserWarning, match="the first one is used"):
        found = Preprocessing.from_stock(changed, own.protocol.model_dump(mode="json"))
    assert found.protocol == InferenceProtocol(shortest_edge=96)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"resample": 3}, "resample=3"),
        ({"rescale_factor": 1.0}, "rescale_factor"),
        ({"do_rescale": False}, "do_rescale"),
        ({"size": {"max_height": 3, "max_width": 3}}, "max_height"),
        ({"size": {"shortest_edge": 0}}, "shortest_edge"),
        ({"image_std": [0.1, 0.2, 0.0]}, "image_std"),
    ],
)
def test_what_is_not_done_here_is_refused(change, named):
    with pytest.raises(UserError, match=named):
        Preprocessing.from_stock({**Preprocessing().to_stock(), "do_resize": True, **change})


def test_stock_folders_of_transformers_4_are_understood():
    old = {"do_resize": True, "size": 512, "image_mean": [0.485, 0.456, 0.406]}
    assert Preprocessing.from_stock(old).protocol == InferenceProtocol(fixed_size=(512, 512))


@pytest.mark.parametrize(
    ("channels", "dtype"), [(1, np.uint8), (2, np.uint8), (4, np.uint8), (6, np.uint8)]
)
def test_channels_are_resized_one_by_one(channels, dtype):
    rng = np.random.default_rng(channels)
    image = rng.integers(0, 256, (90, 121, channels), dtype)
    for edge in (40, 64, 200):
        resized = InferenceProtocol(shortest_edge=edge).resize(image)[0]
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
        resized = InferenceProtocol(shortest_edge=edge).resize(image)[0]
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


@pytest.mark.parametrize("band", [1, 2**24])
@pytest.mark.parametrize("keys", [{}, {"window": (48, 64), "stride": (32, 40)}, {"flip": True}])
def test_doubts_are_differences_of_logarithms_of_probabilities(model, keys, band, monkeypatch):
    monkeypatch.setattr("finetune.inference.scores._BAND", band)
    pixels, size = pictures(2, 75, 110), (90, 132)
    preprocessing = Preprocessing(InferenceProtocol(**keys), **PLAIN)
    truths = torch.from_numpy(np.random.default_rng(0).integers(0, 6, (2, *size)))
    truths[truths == 5] = 255
    ids, doubts = predict_doubts(model, [pixels], preprocessing, truths)
    chances = scores_of(model, [pixels], InferenceProtocol(**keys), size).softmax(1).double()
    given = chances.gather(1, truths.clamp(max=4)[:, None])[:, 0]
    expected = (chances.amax(1).log() - given.log()).masked_fill(truths == 255, 0)
    torch.testing.assert_close(doubts.double(), expected, rtol=1e-4, atol=1e-4)
    assert torch.equal(ids, predict_masks(model, [pixels], preprocessing, size)[0])
    assert (doubts[ids == truths] == 0).all()
    assert (doubts > 0).float().mean() > 0.3


def test_doubts_of_the_binary_head():
    torch.manual_seed(0)
    config = SegformerConfig(
        depths=[1, 1, 1, 1], hidden_sizes=[8, 16, 40, 64], decoder_hidden_size=32, num_labels=1
    )
    model, pixels = SegformerForSemanticSegmentation(config).eval(), pictures(1, 64, 64)
    logit = logits_of(model, pixels, (64, 64))
    with torch.no_grad():  # both classes occur
        model.decode_head.classifier.bias -= logit.median()
    logit = logits_of(model, pixels, (64, 64))[:, 0]
    truths = torch.from_numpy(np.random.default_rng(0).integers(0, 2, (1, 64, 64)))
    preprocessing = Preprocessing(InferenceProtocol(), **PLAIN)
    ids, doubts = predict_doubts(model, [pixels], preprocessing, truths)
    assert torch.equal(ids, (logit > 0).byte())
    expected = torch.where(truths == (logit > 0), 0, logit.abs())
    torch.testing.assert_close(doubts, expected, rtol=1e-4, atol=1e-5)
