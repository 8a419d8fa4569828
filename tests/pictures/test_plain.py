"""cv2 decodes what most files are; Pillow is the truth."""

import warnings
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from finetune.errors import UserError
from finetune.pictures.plain import decode_plain
from finetune.pictures.reading import read_colors, read_image, read_mask


def save(array: np.ndarray, path: Path, **options) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path, **options)
    return path


def random_image(seed: int = 0, height: int = 12, width: int = 16) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def as_pillow_reads_it(path: Path) -> np.ndarray | None:
    """None for a damaged file, of which Pillow says by errors of any kind."""
    try:
        with Image.open(path) as image:
            return np.array(ImageOps.exif_transpose(image).convert("RGB"))
    except Exception:
        return None


def as_we_read_it(path: Path) -> np.ndarray | None:
    try:
        return read_image(path)
    except UserError:
        return None


@pytest.mark.parametrize("subsampling", [0, 1, 2, "keep RGB"])
@pytest.mark.parametrize("progressive", [False, True])
def test_a_jpeg_has_the_pixels_that_pillow_gives_it(tmp_path, subsampling, progressive):
    options = {"subsampling": subsampling} if subsampling != "keep RGB" else {"keep_rgb": True}
    fast = 0
    for seed, (height, width) in enumerate([(64, 96), (37, 53), (101, 40), (120, 161)]):
        for quality in (30, 75, 96):
            coarse = Image.fromarray(random_image(seed, 9, 13)).resize((width, height))
            array = np.clip(coarse + np.random.default_rng(seed).normal(0, 9, (1, 1, 3)), 0, 255)
            path = save(
                array.astype(np.uint8),
                tmp_path / "x.jpg",
                quality=quality,
                progressive=progressive,
                **options,
            )
            assert np.array_equal(read_image(path), as_pillow_reads_it(path))
            fast += decode_plain(path) is not None
    assert fast == (0 if progressive else 12)  # several scans are left to Pillow


def test_real_jpegs_have_the_pixels_that_pillow_gives_them(shared_data):
    paths = sorted(shared_data.glob("camvid/val/*.jpg"))[::10]
    paths += sorted(shared_data.glob("ade20k_sample/*/images/validation/*.jpg"))
    assert len(paths) > 8
    for path in paths:
        assert np.array_equal(decode_plain(path), as_pillow_reads_it(path))
    masks = sorted(shared_data.glob("ade20k_sample/*/annotations/validation/*.png"))
    assert len(masks) == 3
    for path in masks:
        assert np.array_equal(decode_plain(path), np.array(Image.open(path)))


@pytest.mark.parametrize("name", ["x.jpg", "x.png"])
def test_damage_that_pillow_sees_is_seen(tmp_path, name):
    # cv2 gives half a picture for some of these, without a word
    coarse = Image.fromarray(random_image(0, 9, 13)).resize((90, 70))
    if name == "x.png":
        coarse = coarse.convert("L")
    whole = save(np.array(coarse), tmp_path / name).read_bytes()
    rng = np.random.default_rng(0)
    refused = fast = 0
    for turn in range(600):
        data = bytearray(whole)
        for _ in range(rng.integers(1, 4)):
            first = 2 if turn % 2 else len(data) * 2 // 5
            data[rng.integers(first, len(data) - 2)] ^= rng.integers(1, 256)
        if turn % 7 == 0:
            cut = rng.integers(20, len(data))
            data = data[:cut] + whole[-12 if name == "x.png" else -2 :]
        if name == "x.jpg" and turn % 5 == 0:  # a marker in the middle of the picture
            place = rng.integers(len(whole) * 2 // 3, len(whole) - 4)
            data[place : place + 2] = bytes([0xFF, rng.integers(1, 255)])
        path = tmp_path / name
        path.write_bytes(data)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's, about sizes and EXIF data
            expected, found = as_pillow_reads_it(path), as_we_read_it(path)
            fast += decode_plain(path) is not None
        if name == "x.jpg":
            assert (found is None) == (expected is None)
            assert found is None or np.array_equal(found, expected)
        else:  # whose checksums we ask, and Pillow does not
            assert found is None or np.array_equal(found[..., 0], np.array(coarse))
        refused += found is None
    assert refused > 50
    assert fast > 50 or name == "x.png"


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["grey", "palette", "16 bit", "colors"])
def test_no_bit_of_a_png_can_be_wrong_unseen(tmp_path, mode):
    """Pillow alone decodes some damaged masks without a word, into other labels."""
    mask = np.kron(np.random.default_rng(0).integers(0, 3, (3, 4)), np.ones((2, 2)))
    kinds = {"16 bit": np.uint16}
    image = Image.fromarray(mask.astype(kinds.get(mode, np.uint8)))
    if mode == "palette":
        image.putpalette([10, 20, 30] * 256)
    image = image.convert("RGB") if mode == "colors" else image
    path = tmp_path / "mask.png"
    image.save(path)
    read = read_colors if mode == "colors" else read_mask
    expected, whole = read(path), path.read_bytes()
    unseen = 0
    for place in range(len(whole) * 8):
        data = bytearray(whole)
        data[place // 8] ^= 1 << place % 8
        path.write_bytes(data)
        with suppress(UserError):
            assert np.array_equal(read(path), expected)
            unseen += 1
    assert unseen <= 32  # the checksum of an end that holds nothing
