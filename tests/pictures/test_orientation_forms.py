"""Format x orientation x channels x depth: pixels, sizes and masks as Pillow's exif_transpose."""

import io
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image, ImageOps
from PIL.PngImagePlugin import PngInfo

from finetune.data.masks import PictureMasks
from finetune.pictures.reading import image_dtype, image_size, read_colors, read_image, read_mask
from finetune.pictures.references import Encoded

ORIENTATIONS = range(1, 9)
MODES = {"L": 1, "LA": 2, "RGB": 3, "RGBA": 4, "I;16": 1, "P": 0, "1": 0}
SAVED = [
    ("jpg", ("L", "RGB"), {"quality": 100, "subsampling": 0}),
    ("jfif", ("L", "RGB"), {"quality": 100, "subsampling": 0, "format": "JPEG"}),
    ("png", tuple(MODES), {}),
    ("webp", ("RGB", "RGBA"), {"lossless": True}),
    *(
        ("tif", modes, {"compression": name})
        for name, modes in (
            ("raw", ("L", "LA", "RGB", "RGBA", "I;16", "P", "1")),
            ("tiff_lzw", ("L", "RGB", "RGBA", "I;16", "P")),
            ("tiff_deflate", ("L", "RGB", "P")),
            ("jpeg", ("L", "RGB")),
        )
    ),
]
CASES = [(suffix, mode, options) for suffix, modes, options in SAVED for mode in modes]
XMP = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf tiff:Orientation="%s"/></x:xmpmeta>'


def scene(mode: str) -> Image.Image:
    """A picture of 20 x 30 in which each corner differs."""
    levels = np.add.outer(np.arange(20) * 5, np.arange(30) * 3)
    if mode == "I;16":
        return Image.fromarray((levels * 250).astype(np.uint16))
    if mode == "P":
        picture = Image.fromarray((levels // 16).astype(np.uint8))
        picture.putpalette([n * 7 % 256 for n in range(768)])
        return picture
    if mode == "1":
        return Image.fromarray(levels > 90)
    picture = Image.fromarray(levels.astype(np.uint8)).convert(mode)
    if mode in ("LA", "RGBA"):
        picture.putalpha(Image.fromarray((255 - levels // 2).astype(np.uint8)))
    return picture


def turned(picture: Image.Image, orientation: int) -> np.ndarray:
    """The pixels that Pillow's own rule gives."""
    copy = picture.copy()
    copy.getexif()[274] = orientation
    return np.array(ImageOps.exif_transpose(copy))


@pytest.mark.parametrize("orientation", ORIENTATIONS)
@pytest.mark.parametrize(("suffix", "mode", "options"), CASES, ids=str)
def test_images_and_masks(tmp_path: Path, suffix, mode, options, orientation):
    path = tmp_path / f"x.{suffix}"
    exif = Image.Exif()
    exif[274] = orientation
    scene(mode).save(path, exif=exif, **options)
    expected = turned(scene(mode), orientation)
    lossy = 3 if suffix in ("jpg", "jfif") or options.get("compression") == "jpeg" else 0
    for source in (path, Encoded("row 1", path.read_bytes())):
        for channels in {1: (1, 3), 3: (1, 3), 0: ()}.get(MODES[mode], (MODES[mode], 3)):
            found = read_image(source, channels)
            assert found.shape == (*expected.shape[:2], channels)
            assert found.dtype == image_dtype(source, channels)
            if channels == MODES[mode]:
                difference = found.astype(int) - expected.reshape(found.shape)
                assert np.abs(difference).max() <= lossy
            else:
                rgb = scene("RGB") if mode != "I;16" else scene("I;16")
                shown = turned(rgb, orientation)
                shown = shown >> 8 if mode == "I;16" else shown[..., 0]
                assert np.abs(found[..., 0].astype(int) - shown).max() <= lossy
        assert image_size(source) == expected.shape[:2]
        if mode in ("L", "I;16", "P", "1") and not lossy:
            ids = PictureMasks(of_ids=True)
            assert np.array_equal(read_mask(source), expected)
            if source is path:
                assert ids.size(str(path)) == expected.shape
        elif mode in ("RGB", "RGBA") and not lossy:
            colors = expected[..., :3].astype(int) @ [65536, 256, 1]
            assert np.array_equal(read_colors(source), colors)
            if source is path:
                assert PictureMasks(of_ids=False).size(str(path)) == expected.shape[:2]


@pytest.mark.parametrize("orientation", ORIENTATIONS)
@pytest.mark.parametrize("channels", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize(
    "options", [{}, {"planar": True}, {"tiled": True}, {"bigtiff": True}], ids=str
)
def test_tiffs_of_any_depth(tmp_path: Path, options, dtype, channels, orientation):
    pixels = np.arange(20 * 30 * channels, dtype=dtype).reshape(20, 30, channels)
    stored = pixels[..., 0] if channels == 1 else pixels
    xmp, tag = XMP % str(orientation).encode(), (274, "H", 1, orientation, True)
    planar = "planar" in options and channels > 1
    with tifffile.TiffWriter(tmp_path / "x.tif", bigtiff="bigtiff" in options) as file:
        file.write(
            np.moveaxis(stored, -1, 0) if planar else stored,
            photometric="rgb" if channels in (3, 4) else "minisblack",
            planarconfig=None if channels == 1 else "separate" if planar else "contig",
            extrasamples=["unassalpha"] if channels == 4 else None,
            tile=(16, 16) if "tiled" in options else None,
            extratags=[(700, "B", len(xmp), xmp, True) if "xmp" in options else tag],
        )
    # Whole pixels are moved: Pillow turns the number of each pixel.
    places = turned(Image.fromarray(np.arange(600, dtype=np.int32).reshape(20, 30)), orientation)
    found = read_image(tmp_path / "x.tif", channels)
    expected = pixels.reshape(600, channels)[places]
    if channels == 3 and dtype == np.uint16:
        expected = (expected >> 8).astype(np.uint8)
    assert np.array_equal(found, expected)
    assert image_size(tmp_path / "x.tif") == places.shape
    if channels == 1:
        assert np.array_equal(read_mask(tmp_path / "x.tif"), expected[..., 0])


@pytest.mark.parametrize("mode", ["L", "RGB"])
@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_an_orientation_in_xmp_alone(tmp_path: Path, suffix, mode):
    xmp = XMP % b"6"
    options: dict = {"xmp": xmp, "quality": 100, "subsampling": 0}
    if suffix == "png":
        options = {"pnginfo": PngInfo()}
        options["pnginfo"].add_itxt("XML:com.adobe.xmp", xmp.decode())
    scene(mode).save(tmp_path / f"x.{suffix}", **options)
    expected = turned(scene(mode), 6)
    with Image.open(tmp_path / f"x.{suffix}") as picture:  # Pillow's own rule reads XMP too
        assert ImageOps.exif_transpose(picture).size == expected.shape[1::-1]
    for channels in (1, 3):
        found = read_image(tmp_path / f"x.{suffix}", channels)
        assert (
            np.abs(
                found[..., 0].astype(int) - expected.reshape(*expected.shape[:2], -1)[..., 0]
            ).max()
            <= 3
        )
        assert image_size(tmp_path / f"x.{suffix}") == found.shape[:2]


@pytest.mark.parametrize("orientation", ORIENTATIONS)
@pytest.mark.parametrize("channels", [1, 3])
def test_exif_behind_the_pixels_of_a_png(tmp_path: Path, channels, orientation):
    exif = Image.Exif()
    exif[274] = orientation
    with io.BytesIO() as file:
        scene("L").save(file, "PNG", exif=exif)
        data = file.getvalue()
    start = data.index(b"eXIf") - 4
    end = start + 12 + int.from_bytes(data[start : start + 4], "big")
    late = data[:start] + data[end:-12] + data[start:end] + data[-12:]
    expected = turned(scene("L"), orientation)
    found = read_image(Encoded("row 1", late), channels)
    assert np.array_equal(found[..., 0], expected)
    assert np.array_equal(read_mask(Encoded("row 1", late)), expected)
