"""Large TIFFs by rows, and masks in the place of their image; against tifffile's whole reading."""

import itertools

import numpy as np
import pytest
import tifffile

from finetune.errors import UserError
from finetune.pictures.geotiff import TiffRows, georeference, write_mask_tiff

RNG = np.random.default_rng(0)
# A north-up grid of 10 m in UTM zone 33N (EPSG:32633).
KEYS = (1, 1, 0, 3, 1024, 0, 1, 1, 1025, 0, 1, 1, 3072, 0, 1, 32633)
PLACE = (
    (33550, 12, 3, (10.0, 10.0, 0.0), True),
    (33922, 12, 6, (0.0, 0.0, 0.0, 399960.0, 5600040.0, 0.0), True),
    (34735, 3, len(KEYS), KEYS, True),
    (34737, 2, 0, "WGS 84 / UTM zone 33N|", True),
)


def rgb(height=150, width=130, channels=3, dtype=np.uint8) -> np.ndarray:
    return RNG.integers(0, np.iinfo(dtype).max + 1, (height, width, channels)).astype(dtype)


FORMS = {
    "strips": {"rowsperstrip": 7},
    "tiles": {"tile": (32, 48)},
    "deflate tiles": {"tile": (64, 64), "compression": "zlib", "predictor": True},
    "deflate strips": {"rowsperstrip": 16, "compression": "zlib"},
    "one strip": {"rowsperstrip": 1000},
    "big": {"tile": (32, 32), "bigtiff": True},
    "big endian": {"rowsperstrip": 5, "byteorder": ">"},
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("planes", [False, True])
@pytest.mark.parametrize(("channels", "dtype"), [(3, np.uint8), (5, np.uint16), (3, np.uint16)])
def test_rows_are_those_of_the_whole_file(tmp_path, form, planes, channels, dtype):
    pixels = rgb(channels=channels, dtype=dtype)
    options = {"photometric": "rgb" if channels == 3 else "minisblack", **FORMS[form]}
    stored = np.moveaxis(pixels, 2, 0) if planes else pixels
    path = tmp_path / "x.tif"
    order = options.pop("byteorder", None)
    with tifffile.TiffWriter(path, bigtiff=options.pop("bigtiff", False), byteorder=order) as file:
        config = "separate" if planes else "contig"
        file.write(stored, planarconfig=config, metadata=None, **options)
    rows = TiffRows.of(path, channels)
    assert rows is not None
    assert rows.shape == pixels.shape
    expected = (pixels >> 8).astype(np.uint8) if (channels, dtype) == (3, np.uint16) else pixels
    for first, last in [(0, 150), (0, 1), (149, 150), (30, 70), (64, 128)]:
        found = rows.rows(slice(first, last))
        assert found.dtype == rows.dtype == expected.dtype
        assert np.array_equal(found, expected[first:last])


def test_transparency_is_dropped(tmp_path):
    pixels = rgb(channels=4)
    path = tmp_path / "x.tif"
    tifffile.imwrite(path, pixels, photometric="rgb", extrasamples=["unassalpha"], tile=(32, 32))
    rows = TiffRows.of(path, 3)
    assert np.array_equal(rows.rows(slice(10, 60)), pixels[10:60, :, :3])


def test_what_is_not_read_by_rows(tmp_path):
    turned, pages, damaged = (tmp_path / f"{name}.tif" for name in ("turned", "pages", "damaged"))
    tifffile.imwrite(turned, rgb(), extratags=[(274, 3, 1, 6, True)])
    tifffile.imwrite(pages, RNG.integers(0, 9, (3, 20, 30), np.uint8), photometric="minisblack")
    damaged.write_bytes(b"II*\0nothing")
    assert TiffRows.of(turned, 3) is None
    assert TiffRows.of(pages, 3) is None
    assert TiffRows.of(tmp_path / "x.png", 3) is None
    with pytest.raises(UserError, match=r"damaged\.tif"):
        TiffRows.of(damaged, 3)


@pytest.mark.parametrize(("dtype", "top"), [(np.uint8, 5), (np.uint16, 300)])
def test_a_mask_lies_where_its_image_lies(tmp_path, dtype, top):
    image, path = tmp_path / "image.tif", tmp_path / "mask.tif"
    tifffile.imwrite(image, rgb(600, 130), extratags=PLACE)
    where = georeference(image)
    mask = RNG.integers(0, top, (600, 130)).astype(dtype)
    cuts = [0, 100, 101, 513, 600]
    bands = (mask[a:b] for a, b in itertools.pairwise(cuts))
    colors = [(number % 256, 2, 3) for number in range(top)]
    write_mask_tiff(path, bands, mask.shape, np.dtype(dtype), where, colors)
    with tifffile.TiffFile(path) as file, tifffile.TiffFile(image) as source:
        page = file.pages.first
        assert np.array_equal(page.asarray(), mask)
        assert file.geotiff_metadata == source.geotiff_metadata
        assert file.geotiff_metadata["ProjectedCSTypeGeoKey"] == 32633
        if dtype == np.uint8:
            assert page.colormap[:, 4].tolist() == [4 * 257, 2 * 257, 3 * 257]


def test_text_of_the_place_is_kept_byte_for_byte(tmp_path):
    """Keys count bytes of the text, and GDAL writes names in any encoding."""
    image, path = tmp_path / "image.tif", tmp_path / "mask.tif"
    text = "Gr\xfcnland|WGS 84|".encode("latin-1")
    tifffile.imwrite(image, rgb(20, 20), extratags=[*PLACE[:3], (34737, 2, 0, text, True)])
    write_mask_tiff(
        path, [np.zeros((20, 20), np.uint8)], (20, 20), np.dtype(np.uint8), georeference(image), []
    )
    assert text in image.read_bytes()
    assert text in path.read_bytes()
    with tifffile.TiffFile(path) as file, tifffile.TiffFile(image) as source:
        assert file.pages.first.tags[34737].value == source.pages.first.tags[34737].value


def test_other_pictures_have_no_place(tmp_path):
    plain, turned = tmp_path / "plain.tif", tmp_path / "turned.tif"
    tifffile.imwrite(plain, rgb())
    tifffile.imwrite(turned, rgb(), extratags=[*PLACE, (274, 3, 1, 6, True)])
    assert georeference(plain) is None
    assert georeference(turned) is None
    assert georeference(tmp_path / "x.png") is None
