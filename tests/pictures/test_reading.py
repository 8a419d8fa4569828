"""Images of any number of channels in 8 and 16 bit, against what wrote them."""

import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile
from PIL import Image, ImageOps

from finetune.data.samples import check_one_depth, first_dtype, preflight, with_channels
from finetune.data.sources.folders import image_folder
from finetune.errors import UserError
from finetune.labels.translation import Labels
from finetune.pictures.reading import channels_to_keep, image_dtype, image_size, read_image
from finetune.pictures.references import Encoded

LABELS = Labels.build(["a", "b"])
SIZE = (21, 34)
DTYPES = [np.uint8, np.uint16]


def noise(channels: int, dtype=np.uint8, size=SIZE) -> np.ndarray:
    rng = np.random.default_rng(channels)
    return rng.integers(0, np.iinfo(dtype).max, (*size, channels), dtype, True)


def write_tiff(path: Path, array: np.ndarray, form: str = "side by side", **options) -> Path:
    """An (H, W, C) array in one of the ways in which TIFFs keep channels."""
    options = {"photometric": "minisblack", **options}
    if form == "side by side":
        tifffile.imwrite(path, array, planarconfig="contig", **options)
    elif form == "planes":
        tifffile.imwrite(path, np.moveaxis(array, 2, 0), planarconfig="separate", **options)
    else:
        tifffile.imwrite(path, np.moveaxis(array, 2, 0), **options)
    return path


def check(path: Path, expected: np.ndarray) -> None:
    """What is read, and what the header says of it; from a file and from bytes."""
    channels = expected.shape[2]
    for picture in (path, Encoded("row 7", path.read_bytes())):
        found = read_image(picture, channels)
        assert found.dtype == expected.dtype
        assert np.array_equal(found, expected)
        assert found.flags.c_contiguous
        assert image_size(picture) == expected.shape[:2]
        assert image_dtype(picture, channels) == expected.dtype


# TIFF


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("form", ["side by side", "planes", "pages"])
@pytest.mark.parametrize("channels", [2, 4, 5, 6, 13])
def test_a_tiff_of_any_number_of_channels(tmp_path, channels, form, dtype):
    array = noise(channels, dtype)
    path = write_tiff(tmp_path / "x.tif", array, form)
    check(path, array)
    assert channels_to_keep(path) == channels


@pytest.mark.parametrize(
    "options",
    [
        {"compression": "zlib"},
        {"compression": "zlib", "predictor": True},
        {"compression": "lzma"},
        {"tile": (16, 16)},
        {"rowsperstrip": 4, "compression": "zlib"},
        {"byteorder": ">"},
        {"bigtiff": True},
        {"extrasamples": ["unassalpha", "unspecified", "unspecified"], "photometric": "rgb"},
    ],
    ids=str,
)
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_tiff_stored_in_other_ways(tmp_path, options, dtype):
    array = noise(6, dtype)
    check(write_tiff(tmp_path / "x.tiff", array, **options), array)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_tiff_is_turned_upright(tmp_path, orientation, dtype):
    array = noise(6, dtype)
    tag = (274, 3, 1, orientation, True)
    path = write_tiff(tmp_path / "x.tif", array, extratags=[tag])
    # Pillow's own idea of the eight, channel by channel
    exif = Image.Exif()
    exif[274] = orientation
    turned = []
    for channel in np.moveaxis(array >> (0 if dtype == np.uint8 else 8), 2, 0):
        Image.fromarray(channel.astype(np.uint8)).save(tmp_path / "plane.png", exif=exif)
        with Image.open(tmp_path / "plane.png") as plane:
            turned.append(np.array(ImageOps.exif_transpose(plane)))
    found = read_image(path, 6)
    assert np.array_equal(found >> (0 if dtype == np.uint8 else 8), np.stack(turned, 2))
    assert image_size(path) == found.shape[:2]


def test_smaller_copies_in_a_tiff_are_no_channels(tmp_path):
    array, path = noise(2, np.uint16), tmp_path / "x.tif"
    with tifffile.TiffWriter(path) as file:
        file.write(array[..., 0], photometric="minisblack", metadata=None)
        file.write(array[::2, ::2, 0], subfiletype=1, photometric="minisblack", metadata=None)
        file.write(array[..., 1], photometric="minisblack", metadata=None)
    check(path, array)


def test_a_tiff_in_which_zero_is_white(tmp_path):
    array = noise(1, np.uint16)
    tifffile.imwrite(tmp_path / "x.tif", array[..., 0], photometric="miniswhite")
    check(tmp_path / "x.tif", 65535 - array)


@pytest.mark.parametrize("form", ["side by side", "planes"])
def test_sixteen_bit_colour_in_a_tiff_keeps_its_high_byte_as_rgb(tmp_path, form):
    for channels in (3, 4):
        array = noise(channels)
        path = write_tiff(tmp_path / "x.tif", array, form, photometric="rgb")
        check(path, array[..., :3])
        check(path, array[..., :channels])
        array = noise(channels, np.uint16)
        path = write_tiff(tmp_path / "x.tif", array, form, photometric="rgb")
        check(path, (array[..., :3] >> 8).astype(np.uint8))
        assert channels_to_keep(path) == 3
    check(path, array)  # all four of them
    grey = Image.fromarray((array[..., :3] >> 8).astype(np.uint8)).convert("L")
    check(path, np.array(grey)[..., None])


def test_three_channels_that_are_no_colours(tmp_path):
    for dtype in DTYPES:
        array = noise(3, dtype)
        path = write_tiff(tmp_path / "x.tif", array)
        check(path, array if dtype == np.uint8 else (array >> 8).astype(np.uint8))
        with pytest.raises(UserError, match=r"x.tif: has 3 channels .* model.num_channels is 1"):
            read_image(path, 1)


@pytest.mark.parametrize("compression", ["tiff_lzw", "packbits", "tiff_adobe_deflate", None])
@pytest.mark.parametrize("mode", ["L", "I;16", "RGBA", "CMYK"])
def test_what_pillow_writes_is_read(tmp_path, compression, mode):
    array = noise({"L": 1, "I;16": 1}.get(mode, 4), np.uint16 if mode == "I;16" else np.uint8)
    picture = Image.fromarray(array[..., 0] if array.shape[2] == 1 else array)
    if mode == "CMYK":
        picture = Image.frombytes(mode, picture.size, picture.tobytes())
    picture.save(tmp_path / "x.tif", compression=compression)
    check(tmp_path / "x.tif", array)


# Grey


def color_pictures(folder: Path) -> list[Path]:
    rgb = noise(3)
    picture, exif = Image.fromarray(rgb), Image.Exif()
    exif[274] = 6
    picture.save(folder / "a.jpg")
    picture.save(folder / "turned.jpg", exif=exif)
    picture.convert("CMYK").save(folder / "cmyk.jpg")
    picture.save(folder / "a.webp", lossless=True)
    picture.quantize(16).save(folder / "palette.png")
    picture.convert("L").save(folder / "grey.png")
    picture.convert("L").save(folder / "grey.jpg")
    picture.convert("1").save(folder / "bits.png")
    Image.fromarray(noise(4)).save(folder / "alpha.png")
    Image.fromarray(noise(2), "LA").save(folder / "grey_alpha.png")
    picture.save(folder / "a.tif")
    picture.convert("1").save(folder / "bits.tif")
    picture.quantize(16).save(folder / "palette.tif")
    picture.save(folder / "jpeg.tif", compression="jpeg")
    picture.save(folder / "a.bmp")
    return sorted(folder.iterdir())


def test_one_channel_of_any_picture_is_what_pillow_makes_of_it(tmp_path):
    paths = color_pictures(tmp_path)
    assert len(paths) == 15
    for path in paths:
        with Image.open(path) as picture:
            expected = np.array(ImageOps.exif_transpose(picture).convert("L"))[..., None]
        check(path, expected)
        assert channels_to_keep(path) == 3


def test_sixteen_bit_grey_keeps_its_sixteen_bits(tmp_path):
    array = noise(1, np.uint16)
    for name in ("x.png", "x.tif"):
        Image.fromarray(array[..., 0]).save(tmp_path / name)
        check(tmp_path / name, array)
        assert channels_to_keep(tmp_path / name) == 1
    rgb = np.repeat((array >> 8).astype(np.uint8), 3, axis=2)
    assert np.array_equal(read_image(tmp_path / "x.png"), rgb)  # as ever


# Alpha, CMYK


@pytest.mark.parametrize("name", ["x.png", "x.webp", "x.tif"])
def test_four_channels_are_rgb_and_alpha(tmp_path, name):
    array = noise(4)
    options = {"lossless": True, "exact": True} if name == "x.webp" else {}
    Image.fromarray(array).save(tmp_path / name, **options)
    check(tmp_path / name, array)
    assert np.array_equal(read_image(tmp_path / name), array[..., :3])
    assert channels_to_keep(tmp_path / name) == 3


def test_four_channels_are_the_inks_of_cmyk(tmp_path):
    Image.fromarray(noise(4), "CMYK").save(tmp_path / "x.jpg", quality=95)
    with Image.open(tmp_path / "x.jpg") as picture:
        check(tmp_path / "x.jpg", np.array(picture))


def test_a_palette_may_be_transparent(tmp_path):
    Image.fromarray(noise(3)).quantize(8).save(tmp_path / "x.png", transparency=3)
    with Image.open(tmp_path / "x.png") as picture:
        expected = np.array(picture.convert("RGBA"))
    assert set(np.unique(expected[..., 3])) == {0, 255}
    check(tmp_path / "x.png", expected)


def test_grey_and_alpha(tmp_path):
    array = noise(2)
    Image.fromarray(array, "LA").save(tmp_path / "x.png")
    check(tmp_path / "x.png", array)


@pytest.mark.parametrize("orientation", [1, 6])
def test_sixteen_bit_alpha_in_a_png(tmp_path, orientation):
    rgba, path = noise(4, np.uint16), tmp_path / "x.png"
    cv2.imwrite(str(path), rgba[..., [2, 1, 0, 3]])
    if orientation == 6:
        exif = Image.Exif()
        exif[274] = 6
        data, chunk = path.read_bytes(), b"eXIf" + exif.tobytes()[6:]
        length = (len(chunk) - 4).to_bytes(4, "big")
        whole = length + chunk + zlib.crc32(chunk).to_bytes(4, "big")
        path.write_bytes(data[:33] + whole + data[33:])
        rgba = np.ascontiguousarray(np.rot90(rgba, -1))
    check(path, rgba)
    assert np.array_equal(read_image(path), (rgba[..., :3] >> 8).astype(np.uint8))


# Mistakes


def test_other_channels_are_a_message_that_names_both(tmp_path):
    Image.fromarray(noise(3)).save(tmp_path / "x.jpg")
    write_tiff(tmp_path / "x.tif", noise(6, np.uint16))
    write_tiff(tmp_path / "rgb.tif", noise(6), photometric="rgb")  # which Pillow opens as RGB
    write_tiff(tmp_path / "stack.tif", noise(5), "pages")
    for name, channels, has in [
        ("x.jpg", 4, r"3 channels \(RGB\)"),
        ("x.jpg", 2, r"3 channels \(RGB\)"),
        ("x.jpg", 7, r"3 channels \(RGB\)"),
        ("x.tif", 3, "6 channels of 16 bit"),
        ("x.tif", 1, "6 channels of 16 bit"),
        ("x.tif", 5, "6 channels of 16 bit"),
        ("rgb.tif", 3, "6 channels of 8 bit"),
        ("stack.tif", 4, r"5 channels of 8 bit \(5 pages\)"),
    ]:
        expected = rf"{name}: has {has}, but model.num_channels is {channels}. Set model.num"
        for read in (read_image, image_dtype):
            with pytest.raises(UserError, match=expected):
                read(tmp_path / name, channels)


def test_values_of_no_known_range_are_refused(tmp_path):
    for dtype in (np.float32, np.int16, np.uint32):
        for channels in (2, 6):
            write_tiff(tmp_path / "x.tif", np.ones((*SIZE, channels), dtype))
            with pytest.raises(UserError, match=rf"x.tif: a TIFF with {np.dtype(dtype)} values"):
                read_image(tmp_path / "x.tif", channels)
    Image.fromarray(np.ones(SIZE, np.float32)).save(tmp_path / "x.tif")
    with pytest.raises(UserError, match=r"x.tif: .*float32 values.*8 or 16 bit"):
        read_image(tmp_path / "x.tif", 1)


def test_a_compression_that_takes_another_package_is_named(tmp_path):
    pytest.importorskip("tifffile")
    # libtiff writes LZW for Pillow; the header is then made to say six channels' worth of grey
    Image.fromarray(noise(4, np.uint8)).save(tmp_path / "x.tif", compression="tiff_lzw")
    data = bytearray((tmp_path / "x.tif").read_bytes())
    with tifffile.TiffFile(tmp_path / "x.tif") as file:
        tag = file.pages[0].tags["PhotometricInterpretation"]
        data[tag.valueoffset : tag.valueoffset + 2] = (1).to_bytes(2, "little")
    (tmp_path / "x.tif").write_bytes(data)
    try:
        import imagecodecs  # noqa: F401
    except ImportError:
        with pytest.raises(UserError, match=r"x.tif: its compression \(LZW\).*imagecodecs"):
            read_image(tmp_path / "x.tif", 4)
    else:
        assert np.array_equal(read_image(tmp_path / "x.tif", 4), noise(4))


@pytest.mark.parametrize("options", [{}, {"compression": "zlib", "rowsperstrip": 8}])
def test_a_damaged_tiff_is_named(tmp_path, options):
    path = write_tiff(tmp_path / "x.tif", noise(6, np.uint16), **options)
    whole = path.read_bytes()
    for cut in (len(whole) - 30, len(whole) // 2, 300, 9, 0):
        path.write_bytes(whole[:cut])
        with pytest.raises(UserError, match=r"x.tif: cannot be read|x.tif: has"):
            read_image(path, 6)
    path.unlink()
    for call in (read_image, image_dtype):
        with pytest.raises(UserError, match=r"x.tif: the file is gone"):
            call(path, 6)


# Sets


def write_set(root: Path, arrays: dict[str, np.ndarray], split="train") -> None:
    for name, array in arrays.items():
        for kind in ("images", "masks"):
            (root / kind / split).mkdir(parents=True, exist_ok=True)
        write_tiff(root / f"images/{split}/{name}.tif", array)
        mask = np.indices(array.shape[:2]).sum(0) % 2
        Image.fromarray(mask.astype(np.uint8)).save(root / f"masks/{split}/{name}.png")


def test_a_set_reads_as_many_channels_as_it_is_told(tmp_path):
    arrays = {name: noise(6, np.uint16, (20 + i, 30)) for i, name in enumerate("abc")}
    write_set(tmp_path, arrays)
    samples = with_channels(image_folder(tmp_path, "train", LABELS), 6)
    preflight(samples)
    for sample in samples:
        assert np.array_equal(sample["image"], arrays[sample["id"]])
        assert sample["image"].dtype == np.uint16
    with pytest.raises(UserError, match=r"a.tif: has 6 channels of 16 bit, .* is 4"):
        preflight(with_channels(samples, 4))


def test_eight_and_sixteen_bit_in_one_set_are_refused_by_name(tmp_path):
    write_set(tmp_path, {"a": noise(6, np.uint16), "b": noise(6, np.uint16), "c": noise(6)})
    write_set(tmp_path, {"d": noise(6)}, "val")
    train, val = (with_channels(image_folder(tmp_path, s, LABELS), 6) for s in ("train", "val"))
    with pytest.raises(UserError, match=r"a.tif has 16 bit a channel, but .*c.tif has 8"):
        preflight(train)
    with pytest.raises(UserError, match=r"train has 16 bit a channel, but val has 8"):
        check_one_depth([first_dtype(train), first_dtype(val)], ["train", "val"])
