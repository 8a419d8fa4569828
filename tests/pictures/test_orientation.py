"""Every format is turned upright by the same rule, EXIF's own."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from finetune.pictures.orientation import orientation_of, swaps_sides, upright
from finetune.pictures.reading import image_size, read_image
from finetune.pictures.references import Encoded

# EXIF 2.32, tag 274: which side of the scene the first row shows, and which the first column.
SIDES = {
    1: ("top", "left"),
    2: ("top", "right"),
    3: ("bottom", "right"),
    4: ("bottom", "left"),
    5: ("left", "top"),
    6: ("right", "top"),
    7: ("right", "bottom"),
    8: ("left", "bottom"),
}
FORMS = [
    ("jpg", "RGB", {"quality": 100, "subsampling": 0}),
    ("jpg", "L", {"quality": 100}),
    ("png", "RGB", {}),
    ("png", "L", {}),
    ("png", "RGBA", {}),
    ("webp", "RGB", {"lossless": True}),
    *(("tif", mode, {}) for mode in ("RGB", "L", "RGBA", "CMYK")),
    *(("tif", mode, {"compression": "tiff_lzw"}) for mode in ("RGB", "L")),
]


def stored(scene: np.ndarray, orientation: int) -> np.ndarray:
    """The scene as a camera stores it that writes this orientation, by the table above."""
    row, column = SIDES[orientation]
    if row in ("left", "right"):
        scene = np.transpose(scene, (1, 0, *range(2, scene.ndim)))
        return scene[:: 1 if row == "left" else -1, :: 1 if column == "top" else -1]
    return scene[:: 1 if row == "top" else -1, :: 1 if column == "left" else -1]


@pytest.mark.parametrize("orientation", SIDES)
@pytest.mark.parametrize("channels", [1, 2, 3, 4, 5, 13])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_arrays(dtype, channels, orientation):
    scene = np.arange(2 * 3 * channels, dtype=dtype).reshape(2, 3, channels)
    found = upright(stored(scene, orientation), orientation)
    assert np.array_equal(found, scene)
    assert found.dtype == dtype
    assert found.flags.c_contiguous
    assert swaps_sides(orientation) == (stored(scene, orientation).shape[:2] != scene.shape[:2])


@pytest.mark.parametrize("orientation", [*SIDES, 0, 9])
@pytest.mark.parametrize(("suffix", "mode", "options"), FORMS, ids=str)
def test_files(tmp_path: Path, suffix, mode, options, orientation):
    levels = np.add.outer(np.arange(20) * 5, np.arange(30) * 3).astype(np.uint8)
    scene = np.array(Image.fromarray(levels).convert("RGB").convert(mode))
    exif = Image.Exif()
    exif[274] = orientation
    path = tmp_path / f"x.{suffix}"
    raw = np.ascontiguousarray(stored(scene, orientation if orientation in SIDES else 1))
    picture = Image.fromarray(raw, mode if mode == "CMYK" else None)
    try:
        picture.save(path, exif=exif, **options)
    except RuntimeError:
        pytest.skip("libtiff writes no such tag")
    expected = np.array(Image.fromarray(scene, mode if mode == "CMYK" else None).convert("RGB"))
    for source in (path, Encoded("row 1", path.read_bytes())):
        found = read_image(source)
        assert image_size(source) == expected.shape[:2] == found.shape[:2]
        assert np.abs(found.astype(int) - expected).max() <= (3 if suffix == "jpg" else 0)


def test_an_image_in_memory(tmp_path):
    exif = Image.Exif()
    exif[274] = 6
    Image.new("RGB", (4, 3)).save(tmp_path / "x.png", exif=exif)
    with Image.open(tmp_path / "x.png") as image:
        assert orientation_of(image) == 6
        assert orientation_of(ImageOps.exif_transpose(image)) == 1
