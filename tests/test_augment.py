import pickle
import random

import cv2
import numpy as np
import pytest
from PIL import Image

from finetune.augment import RGB_MEAN, TrainTransform

FILL = (124, 116, 104)
IGNORE = 255


def build(crop=(32, 48), **options) -> TrainTransform:
    return TrainTransform(crop, **({"ignore_index": IGNORE, "image_fill": FILL} | options))


def sample(height=60, width=80, num_classes=4, seed=0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 256, (height, width, 3), np.uint8)
    mask = rng.integers(0, num_classes, (height // 10 + 1, width // 10 + 1), np.uint8)
    mask = np.kron(mask, np.ones((10, 10), np.uint8))[:height, :width]  # patches of one class
    return image, np.ascontiguousarray(mask)


def only(**options) -> TrainTransform:
    """Nothing random but what the options switch on."""
    return build(
        **({"scale": (1, 1), "flip": 0, "photometric": False, "cat_max_ratio": 1} | options)
    )


# Randomness


def test_the_same_seed_gives_the_same_bytes():
    image, mask = sample()
    before = image.copy(), mask.copy()
    transform = build()
    first = transform(image, mask, 11)
    transform(image, mask, 12)  # what came before must not matter
    for again in (transform(image, mask, 11), build()(image, mask, 11)):
        assert again[0].tobytes() == first[0].tobytes()
        assert again[1].tobytes() == first[1].tobytes()
    assert np.array_equal(image, before[0])
    assert np.array_equal(mask, before[1])


def test_different_seeds_differ():
    image, mask = sample()
    transform = build()
    assert len({transform(image, mask, seed)[0].tobytes() for seed in range(50)}) == 50


def test_global_random_state_is_neither_read_nor_changed():
    image, mask = sample()
    transform = build()
    random.seed(0)
    np.random.seed(0)
    states = random.getstate(), np.random.get_state()[1].tolist()
    first = transform(image, mask, 3)[0].tobytes()
    assert (random.getstate(), np.random.get_state()[1].tolist()) == states
    random.seed(1)
    np.random.seed(1)
    assert transform(image, mask, 3)[0].tobytes() == first


def test_survives_pickling():
    image, mask = sample()
    transform = build()
    copy = pickle.loads(pickle.dumps(transform))
    assert copy(image, mask, 5)[0].tobytes() == transform(image, mask, 5)[0].tobytes()


def test_flips_half_of_the_images_and_independently_of_the_rest():
    # Compose.set_random_seed would give scale, flip and brightness the same first draw
    image = np.zeros((32, 48, 3), np.uint8)
    image[:, :24] = 100
    mask = np.zeros((32, 48), np.uint8)
    mask[:, :24] = 1
    transform = build(scale=(1, 1), cat_max_ratio=1)
    outputs = [transform(image, mask, seed) for seed in range(400)]
    flipped = np.array([out[1][0, 0] == 0 for out in outputs])
    darker = np.array([out[0].max() < 95 for out in outputs])
    assert 0.42 < flipped.mean() < 0.58
    assert 0.2 < darker.mean() < 0.6
    assert abs(np.corrcoef(flipped, darker)[0, 1]) < 0.15


# Geometry


@pytest.mark.parametrize("size", [(60, 80), (20, 30), (200, 20), (32, 48), (1, 1)])
@pytest.mark.parametrize("channels", [1, 3, 4, 6])
def test_the_output_has_the_size_of_the_crop(size, channels):
    image = np.full((*size, channels), 7, np.uint8)
    fill = tuple(range(50, 50 + channels))
    transform = build(image_fill=fill)
    for seed in range(10):
        out, out_mask = transform(image, np.zeros(size, np.uint8), seed)
        assert out.shape == (32, 48, channels)
        assert out_mask.shape == (32, 48)
        assert out.flags.c_contiguous
        assert out.dtype == out_mask.dtype == np.uint8


def test_image_and_mask_move_together():
    # an image that holds the ids of its mask; away from outlines, bilinear and nearest agree
    _, mask = sample(120, 160, num_classes=5)
    image = np.repeat(mask[..., None] * 50, 3, axis=2)
    transform = build((48, 64), photometric=False, image_fill=(250,) * 3, ignore_index=5)
    for seed in range(40):
        out, out_mask = transform(image, mask, seed)
        flat = cv2.morphologyEx(out_mask, cv2.MORPH_GRADIENT, np.ones((5, 5))) == 0
        flat[:2] = flat[-2:] = flat[:, :2] = flat[:, -2:] = False  # the outline may lie beyond
        assert flat.mean() > 0.05
        assert np.array_equal(out[flat][:, 0], out_mask[flat] * 50)


def test_without_randomness_the_crop_is_a_window_of_the_input():
    image, mask = sample()
    windows = set()
    for seed in range(30):
        out, out_mask = only()(image, mask, seed)
        matches = [
            (top, left)
            for top in range(60 - 32 + 1)
            for left in range(80 - 48 + 1)
            if np.array_equal(image[top : top + 32, left : left + 48], out)
        ]
        assert len(matches) == 1
        (top, left) = matches[0]
        assert np.array_equal(mask[top : top + 32, left : left + 48], out_mask)
        windows.add((top, left))
    assert len(windows) > 25


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((100, 200), (50, 100)),
        ((200, 100), (100, 50)),
        ((100, 600), (30, 180)),
        ((25, 50), (50, 100)),
    ],
)
def test_base_size_is_the_long_and_the_short_edge(size, expected):
    # mmcv's rule: as large as fits into 180 (long) by 50 (short), aspect ratio kept
    image = np.zeros((*size, 3), np.uint8)
    transform = only(crop=(200, 200), base_size=(180, 50))
    _, out_mask = transform(image, np.zeros(size, np.uint8), 0)
    rows, columns = np.nonzero(out_mask != IGNORE)
    assert (rows.max() + 1, columns.max() + 1) == expected


def test_scales_fill_their_range():
    image, mask = np.zeros((100, 100, 3), np.uint8), np.zeros((100, 100), np.uint8)
    transform = only(crop=(200, 200), scale=(0.5, 2.0))
    sides = [int(np.sqrt((transform(image, mask, s)[1] == 0).sum())) for s in range(300)]
    assert 50 <= min(sides) < 60
    assert 190 < max(sides) <= 200
    assert abs(np.mean(sides) - 125) < 10


def test_padding_lies_right_and_below_with_its_own_values():
    image, mask = np.full((20, 30, 3), 9, np.uint8), np.full((20, 30), 2, np.uint8)
    out, out_mask = only()(image, mask, 0)
    assert (out_mask[:20, :30] == 2).all()
    assert (out[:20, :30] == 9).all()
    padded = np.ones((32, 48), bool)
    padded[:20, :30] = False
    assert (out_mask[padded] == IGNORE).all()
    assert (out[padded] == FILL).all()


def test_uint16_masks_and_images_keep_their_type():
    image = np.full((20, 30, 4), 40000, np.uint16)
    mask = np.full((20, 30), 300, np.uint16)
    out, out_mask = build(image_fill=(1, 2, 3, 60000), ignore_index=65535, scale=(1, 1))(
        image, mask, 0
    )
    assert out.dtype == out_mask.dtype == np.uint16
    assert out[0, 0].tolist() == [40000] * 4
    assert out[-1, -1].tolist() == [1, 2, 3, 60000]
    assert np.unique(out_mask).tolist() == [300, 65535]


def test_a_mask_never_gets_an_id_that_was_not_there():
    image, mask = sample()
    mask = np.where(mask == 3, 200, mask).astype(np.uint8)
    for seed in range(30):
        assert set(np.unique(build()(image, mask, seed)[1])) <= {0, 1, 2, 200, IGNORE}


# Crops of one class


def test_one_class_crops_are_avoided():
    # class 1 is in a corner of a picture of class 0: most crops see nothing but class 0
    image, mask = np.zeros((200, 200, 3), np.uint8), np.zeros((200, 200), np.uint8)
    mask[:60, :60] = 1

    def share_of_one_class_crops(cat_max_ratio: float) -> float:
        transform = only(crop=(50, 50), cat_max_ratio=cat_max_ratio)
        masks = [transform(image, mask, seed)[1] for seed in range(200)]
        return float(np.mean([np.bincount(m.ravel()).max() >= 0.75 * m.size for m in masks]))

    once = share_of_one_class_crops(1)
    assert once > 0.8
    # eleven draws instead of one: all of them fail with the eleventh power
    assert abs(share_of_one_class_crops(0.75) - once**11) < 0.12


def test_ignored_pixels_do_not_count_as_a_class():
    # a class and ignored pixels: nothing to choose, so the tries run out and any crop is taken
    image, mask = np.zeros((100, 100, 3), np.uint8), np.full((100, 100), IGNORE, np.uint8)
    mask[40:] = 1
    masks = [only(crop=(50, 50), cat_max_ratio=0.75)(image, mask, seed)[1] for seed in range(40)]
    assert len({(m == 1).sum() for m in masks}) > 10
    # two classes in equal shares among many ignored pixels are fine
    mask[:] = IGNORE
    mask[45:55:2, 45:55] = 0
    mask[46:56:2, 45:55] = 1
    out = only(crop=(90, 90), cat_max_ratio=0.75)
    assert out(image, mask, 0)[1].tobytes() == only(crop=(90, 90))(image, mask, 0)[1].tobytes()


# Photometric distortion


def test_photometric_distortion_leaves_the_mask_alone_and_stays_in_range():
    image, mask = sample()
    extremes = np.where(image > 127, 255, 0).astype(np.uint8)
    changed = 0
    for seed in range(60):
        plain = build(photometric=False)(extremes, mask, seed)
        out = build()(extremes, mask, seed)
        assert out[0].dtype == np.uint8
        assert np.array_equal(out[1], plain[1])  # geometry is drawn first: it is the same
        changed += not np.array_equal(out[0], plain[0])
    assert 45 <= changed < 60  # of 16 combinations one does nothing


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("channels", [1, 2, 4, 6])
def test_other_numbers_of_channels_get_brightness_and_contrast(channels, dtype):
    full = np.iinfo(dtype).max
    values = np.random.default_rng(0).integers(0, full, (32, 48, channels), dtype, True)
    mean = tuple(full * (i + 1) // 9 for i in range(channels))
    transform = build(image_fill=mean, scale=(1, 1), cat_max_ratio=1, flip=0)
    changed = 0
    for seed in range(40):
        out = transform(values, sample(32, 48)[1], seed)[0]
        assert out.dtype == dtype
        parts = transform.compose.transforms[2].params
        share = (parts["brightness"] or 0) / RGB_MEAN
        expected = np.clip(values + np.multiply(mean, share), 0, full) * (parts["contrast"] or 1)
        assert abs(out - np.clip(expected, 0, full)).max() <= 1 + full * 1e-6
        changed += not np.array_equal(out, values)
    assert 20 < changed < 40  # with neither of the two it stays as it is


def test_sixteen_bit_rgb_has_no_hue_to_turn():
    image = np.full((32, 48, 3), 30000, np.uint16)
    transform = build(image_fill=(30000,) * 3, scale=(1, 1), cat_max_ratio=1)
    for seed in range(20):
        assert np.ptp(transform(image, sample(32, 48)[1], seed)[0].astype(int)) == 0


def distort_as_published(image: np.ndarray, parts: dict) -> np.ndarray:
    """mmsegmentation's arithmetic (float32, clip, truncate) in plain numpy."""

    def convert(array, alpha=1.0, beta=0.0):
        return np.clip(array.astype(np.float32) * alpha + beta, 0, 255).astype(np.uint8)

    if parts["brightness"] is not None:
        image = convert(image, beta=parts["brightness"])
    if parts["contrast"] is not None and parts["contrast_first"]:
        image = convert(image, alpha=parts["contrast"])
    if parts["saturation"] is not None:
        hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV)
        hsv[..., 1] = convert(hsv[..., 1], alpha=parts["saturation"])
        image = cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)
    if parts["hue"] is not None:
        hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV)
        hsv[..., 0] = (hsv[..., 0].astype(int) + parts["hue"]) % 180
        image = cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)
    if parts["contrast"] is not None and not parts["contrast_first"]:
        image = convert(image, alpha=parts["contrast"])
    return image


def test_photometric_distortion_is_the_published_arithmetic():
    image, mask = sample(32, 48)
    transform = build(scale=(1, 1), cat_max_ratio=1, flip=0)
    distortion = next(t for t in transform.compose.transforms if "Photo" in type(t).__name__)
    seen = {name: [] for name in ("brightness", "contrast", "saturation", "hue")}
    for seed in range(400):
        out = transform(image, mask, seed)[0]
        parts = distortion.params
        if seed < 60:
            assert np.array_equal(out, distort_as_published(image, parts))
        for name, values in seen.items():
            if parts[name] is not None:
                values.append(parts[name])
    bounds = {
        "brightness": (-32, 32),
        "contrast": (0.5, 1.5),
        "saturation": (0.5, 1.5),
        "hue": (-18, 17),
    }
    for name, (low, high) in bounds.items():
        assert 150 < len(seen[name]) < 250
        assert low <= min(seen[name]) < low + 0.1 * (high - low)
        assert high - 0.1 * (high - low) < max(seen[name]) <= high


def test_a_colour_turns_in_hue_by_at_most_36_degrees():
    image = np.full((32, 48, 3), (200, 40, 40), np.uint8)
    transform = build(scale=(1, 1), cat_max_ratio=1)
    hues = []
    for seed in range(200):
        pixel = Image.fromarray(transform(image, np.zeros((32, 48), np.uint8), seed)[0][:1, :1])
        hue = pixel.convert("HSV").getpixel((0, 0))[0] / 256 * 360  # Pillow's own conversion
        hues.append((hue + 180) % 360 - 180)
    assert min(hues) < -25
    assert max(hues) > 25
    assert max(abs(hue) for hue in hues) < 40


# Crop before resize


def whole_then_window(image: np.ndarray, mask: np.ndarray, size, window):
    """The plain way: the whole picture is resized, and most of it thrown away."""
    big = cv2.resize(image, size[::-1], interpolation=cv2.INTER_LINEAR).reshape(*size, -1)
    return big[window], cv2.resize(mask, size[::-1], interpolation=cv2.INTER_NEAREST)[window]


@pytest.mark.parametrize("scale", [(0.5, 2.0), (0.5, 0.5), (2.0, 2.0), (1.0, 1.0), (0.07, 6.0)])
@pytest.mark.parametrize(
    ("dtype", "channels"), [(np.uint8, 3), (np.uint8, 1), (np.uint16, 5), (np.uint16, 2)]
)
def test_crops_are_those_of_the_resized_whole(scale, dtype, channels):
    rng = np.random.default_rng(channels)
    worst, sums, compared, cut = 0, 0.0, 0, 0
    for seed in range(60):
        height, width = rng.integers(1, [8, 8] if seed % 6 == 0 else [260, 340])
        image = rng.integers(0, np.iinfo(dtype).max, (height, width, channels), dtype, True)
        mask = rng.integers(0, 9, (height, width)).astype(np.uint16 if seed % 2 else np.uint8)
        crop = (32, 48) if seed % 3 else (150, 90)
        base = (420, 130) if seed % 4 == 0 else None
        transform = only(
            crop=crop, scale=scale, base_size=base, image_fill=(0,) * channels, cat_max_ratio=0.5
        )
        out, out_mask = transform(image, mask, seed)
        params = transform.compose.transforms[0].params
        expected, expected_mask = whole_then_window(image, mask, params["size"], params["window"])
        h, w = expected_mask.shape
        assert np.array_equal(out_mask[:h, :w], expected_mask)
        difference = abs(out[:h, :w].astype(int) - expected) / (np.iinfo(dtype).max / 255)
        worst = max(worst, difference.max())
        sums, compared = sums + difference.sum(), compared + difference.size
        cut += expected_mask.shape != params["size"]
    # noise is the worst case: neighbours differ by up to 255
    assert worst <= 2
    assert sums / compared < 0.2
    assert cut > 10


def test_a_photograph_moves_by_at_most_one_grey_level(shared_data):
    path = "ade20k_sample/ADEChallengeData2016/images/validation/ADE_val_00000001.jpg"
    image = np.array(Image.open(shared_data / path))
    mask = np.zeros(image.shape[:2], np.uint8)
    transform = only(crop=(512, 512), base_size=(2048, 512), scale=(0.5, 2.0))
    differences = []
    for seed in range(20):
        out, _ = transform(image, mask, seed)
        params = transform.compose.transforms[0].params
        expected, _ = whole_then_window(image, mask, params["size"], params["window"])
        h, w = expected.shape[:2]
        differences.append(abs(out[:h, :w].astype(int) - expected))
    assert max(d.max() for d in differences) <= 1
    assert np.mean([d.mean() for d in differences]) < 0.06


def test_the_draws_of_a_seed_are_what_they_always_were():
    # recorded before the crop came before the resize: a run that goes on must see the same crops
    patches = np.random.default_rng(0).integers(0, 4, (7, 9), np.uint8)
    mask = np.ascontiguousarray(np.kron(patches, np.ones((10, 10), np.uint8))[:60, :80])
    transform = build(cat_max_ratio=0.45)
    expected = {
        0: ((98, 130), 53, 5),
        1: ((106, 141), 15, 63),
        2: ((115, 153), 77, 27),
        3: ((78, 104), 37, 4),
        2**64 + 5: ((109, 145), 65, 12),
    }
    for seed, drawn in expected.items():
        transform(np.zeros((60, 80, 3), np.uint8), mask, seed)
        params = transform.compose.transforms[0].params
        assert (params["size"], *(part.start for part in params["window"])) == drawn


def test_the_input_may_be_read_only():
    # as it is when it comes from a memory map
    image, mask = sample()
    expected = [build()(image, mask, seed) for seed in range(20)]
    image.flags.writeable = mask.flags.writeable = False
    for seed, (out, out_mask) in enumerate(expected):
        again = build()(image, mask, seed)
        assert np.array_equal(again[0], out)
        assert np.array_equal(again[1], out_mask)
        assert again[0].flags.writeable or again[0].base is not image


# The same distribution as the plain pipeline, seen from outside


def plain_pipeline(image, mask, crop, scale, cat_max_ratio, rng):
    """mmsegmentation's RandomResize and RandomCrop as they are written there, in plain numpy."""
    factor = rng.uniform(*scale)
    factor = min(int(side * factor) / side for side in mask.shape)  # mmcv's rescale_size
    size = [int(side * factor + 0.5) for side in mask.shape]
    image = cv2.resize(image, size[::-1], interpolation=cv2.INTER_LINEAR)
    mask = cv2.resize(mask, size[::-1], interpolation=cv2.INTER_NEAREST)

    def draw():
        top, left = (rng.integers(0, max(s - c, 0) + 1) for s, c in zip(size, crop, strict=True))
        return np.s_[top : top + crop[0], left : left + crop[1]]

    window = draw()
    for _ in range(10):
        _, counts = np.unique(mask[window][mask[window] != IGNORE], return_counts=True)
        if len(counts) > 1 and counts.max() / counts.sum() < cat_max_ratio:
            break
        window = draw()
    return image[window], mask[window]


def kolmogorov_smirnov(one, other) -> float:
    """The largest distance of two empirical distribution functions."""
    values = np.sort(np.concatenate([one, other]))
    sides = [np.searchsorted(np.sort(x), values, side="right") / len(x) for x in (one, other)]
    return float(abs(sides[0] - sides[1]).max())


def measure(image, mask) -> list[float]:
    """Scale, position and class mix of a crop of a picture of its own coordinates."""
    rows, columns = (mask < IGNORE).sum(0).max(), (mask < IGNORE).sum(1).max()
    image = image[:rows, :columns].astype(float)
    middle = slice(rows // 4, max(rows // 4 + 2, rows * 3 // 4))  # away from repeated edges
    slope = np.diff(image[middle, 0, 0]).mean()
    counts = np.bincount(mask[mask < IGNORE], minlength=3)
    height = np.rint(100 * 256 / slope)  # of the resized whole
    position = np.rint([image[rows // 2, 0, 0] / 256, image[0, columns // 2, 1] / 256])
    return [height, *position, *counts / counts.sum()]


def test_scale_position_and_class_mix_are_distributed_as_in_the_plain_pipeline():
    height, width, crop, count = 100, 140, (48, 64), 1500
    y, x = np.mgrid[:height, :width]
    image = (np.stack([y, x], 2) * 256).astype(np.uint16)
    mask = np.where((x > 90) & (y < 40), 1, np.where(y > 80, 2, 0)).astype(np.uint8)
    rng = np.random.default_rng(0)
    plain = [plain_pipeline(image, mask, crop, (0.4, 2.0), 0.75, rng) for _ in range(count)]
    transform = only(crop=crop, scale=(0.4, 2.0), cat_max_ratio=0.75, image_fill=(0, 0))
    ours = [transform(image, mask, seed) for seed in range(count)]
    expected, found = (np.array([measure(*pair) for pair in crops]).T for crops in (plain, ours))
    limit = 1.63 * np.sqrt(2 / count)  # what equal distributions exceed once in a hundred times
    names = ("scale", "top", "left", "class 0", "class 1", "class 2")
    for name, one, other in zip(names, expected, found, strict=True):
        assert kolmogorov_smirnov(one, other) < limit, name
    # and the test would notice: another range of scales, no second draws, and never the right edge
    other = only(crop=crop, scale=(0.5, 2.0), cat_max_ratio=1, image_fill=(0, 0))
    wrong = [other(image[:, :130], mask[:, :130], seed) for seed in range(count)]
    different = np.array([measure(*pair) for pair in wrong]).T
    for index in (0, 2, 3, 4):
        assert kolmogorov_smirnov(expected[index], different[index]) > limit, names[index]
