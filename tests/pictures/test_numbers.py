"""`.npy` files, and TIFFs of numbers that GIS tools write: masks and images."""

import io
import itertools
import math
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from finetune.data.sources.opening import open_split
from finetune.discover.labels.layout_labels import guess
from finetune.discover.recognise import recognise
from finetune.errors import UserError
from finetune.labels.rules import UNCOUNTED
from finetune.pictures.numbers import as_picture, main_pages, whole_numbers
from finetune.pictures.reading import image_dtype, image_size, read_colors, read_image, read_mask
from finetune.pictures.references import Encoded
from finetune.programs.pack import pack
from finetune.recipe import Recipe, load_recipe

IDS = np.arange(6 * 8).reshape(6, 8) % 5
RGB = np.random.default_rng(0).integers(0, 256, (6, 8, 3), np.uint8)
WHOLE = ["u1", "u2", "u4", "u8", "i1", "i2", "i4", "i8", "f2", "f4", "f8"]


def npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("dtype", WHOLE)
def test_ids_of_any_type(tmp_path: Path, dtype, order):
    stored = IDS.astype(order + dtype)
    np.save(tmp_path / "x.npy", stored)
    assert np.array_equal(read_mask(tmp_path / "x.npy"), IDS)
    assert np.array_equal(read_mask(Encoded("row", npy(stored))), IDS)
    assert np.array_equal(read_mask(Encoded("row", npy(np.asfortranarray(stored)))), IDS)
    assert image_size(tmp_path / "x.npy") == (6, 8)
    if dtype != "f2":
        tifffile.imwrite(tmp_path / "x.tif", stored.astype(dtype), byteorder=order)
        assert np.array_equal(read_mask(tmp_path / "x.tif"), IDS)


def test_bits_and_colours(tmp_path: Path):
    assert np.array_equal(read_mask(Encoded("row", npy(IDS > 2))), IDS > 2)
    assert np.array_equal(read_mask(Encoded("row", npy(IDS[..., None]))), IDS)
    assert np.array_equal(read_mask(Encoded("row", npy(IDS[None]))), IDS)
    packed = RGB.astype(int) @ [65536, 256, 1]
    assert np.array_equal(read_colors(Encoded("row", npy(RGB))), packed)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (npy(np.array([[{}]])), "holds object values"),
        (npy(np.array([["a", "b"]])), "not numbers"),
        (npy(IDS)[:-8], "its size is not that of"),
        (npy(IDS) + b"more", "its size is not that of"),
        (npy(np.zeros((3, 6, 8), np.uint8)), r"shape \(3, 6, 8\) and uint8 is no picture"),
        (npy(np.zeros(5)), "is no picture"),
        (npy(np.zeros((0, 5))), "is no picture"),
        (npy(IDS + 2**40), "beyond 32 bit"),
        (npy(IDS + 0.5), "no class id"),
        (npy(np.where(IDS == 3, np.nan, IDS)), "no class id"),
        (npy(IDS - 2), "stands for pixels that do not count"),
        (npy(RGB), "labels.kind=colors"),
        (npy(IDS).replace(b"(6, 8)", b"(9**9, )"), "cannot be read"),
        (b"\x93NUMPY", "cannot be read"),
    ],
)
def test_other_arrays_are_named(content, message):
    with pytest.raises(UserError, match=f"the row: .*{message}"):
        read_mask(Encoded("the row", content))


def test_a_header_that_promises_too_much():
    file = io.BytesIO()
    header = {"descr": "|u1", "fortran_order": False, "shape": (10**6, 10**6)}
    np.lib.format.write_array_header_1_0(file, header)
    with pytest.raises(UserError, match="larger than"):
        read_mask(Encoded("row", file.getvalue()))


def test_images(tmp_path: Path):
    np.save(tmp_path / "x.npy", RGB)
    assert np.array_equal(read_image(tmp_path / "x.npy"), RGB)
    deep = (IDS * 9000).astype(np.uint16)
    np.save(tmp_path / "d.npy", deep)
    assert np.array_equal(read_image(tmp_path / "d.npy", 1)[..., 0], deep)
    assert image_dtype(tmp_path / "d.npy", 1) == np.uint16
    with pytest.raises(UserError, match="range is unknown"):
        read_image(Encoded("row", npy(RGB[..., 0] / 255)))
    assert as_picture(RGB).mode == "RGB"


@pytest.mark.parametrize(
    ("dtype", "absent"),
    [
        *itertools.product(["f4", "f8", "i2", "i4", "i8"], [-9999, -1]),
        *itertools.product(["f4", "f8"], [-3.4028234663852886e38, math.nan]),
    ],
)
def test_no_data(tmp_path: Path, dtype, absent):
    stored = np.where(IDS == 3, absent, IDS).astype(dtype)
    text = repr(absent)
    tags = [(42113, "s", len(text) + 1, text, True)]
    tifffile.imwrite(tmp_path / "x.tif", stored, extratags=tags)
    assert np.array_equal(read_mask(tmp_path / "x.tif"), np.where(IDS == 3, UNCOUNTED, IDS))
    if absent == -9999:
        tifffile.imwrite(tmp_path / "x.tif", stored)
        assert np.array_equal(read_mask(tmp_path / "x.tif"), stored)


def test_whole_numbers_beyond_float():
    with pytest.raises(ValueError, match="no class id"):
        whole_numbers(np.full((1, 1), 2.0**30, np.float32), None, -2)


def pyramid(path: Path, array: np.ndarray, kind: int = 1) -> None:
    """A cloud-optimised GeoTIFF: tiles, and smaller copies as further pages."""
    grey = "rgb" if array.ndim == 3 else "minisblack"
    with tifffile.TiffWriter(path) as file:
        file.write(array, tile=(64, 64), photometric=grey)
        for step in (2, 4):
            small = array[::step, ::step]
            file.write(small, tile=(16, 16), photometric=grey, subfiletype=kind)


@pytest.mark.parametrize("dtype", ["u1", "u2", "i4", "i8", "f4"])
def test_smaller_copies_do_not_count(tmp_path: Path, dtype):
    ids = (np.arange(128 * 96).reshape(128, 96) // 1000).astype(dtype)
    pyramid(tmp_path / "x.tif", ids)
    with tifffile.TiffFile(tmp_path / "x.tif") as file:
        assert main_pages(file) == 1
    assert np.array_equal(read_mask(tmp_path / "x.tif"), ids)
    pyramid(tmp_path / "x.tif", ids, kind=0)
    with pytest.raises(UserError, match=r"3 (frames or )?pages"):
        read_mask(tmp_path / "x.tif")


FOLDERS = {
    "npy": lambda path, ids: np.save(path.with_suffix(".npy"), ids),
    "npy_bool": lambda path, ids: np.save(path.with_suffix(".npy"), ids > 0),
    "float": lambda path, ids: Image.fromarray(ids.astype(np.float32)).save(f"{path}.tif"),
    "int64": lambda path, ids: tifffile.imwrite(f"{path}.tif", ids.astype(np.int64)),
    "cog": lambda path, ids: pyramid(Path(f"{path}.tif"), ids),
    "no_data": lambda path, ids: tifffile.imwrite(
        f"{path}.tif",
        np.where(ids == 2, -9999, ids.astype(int)).astype(np.int16),
        extratags=[(42113, "s", 6, "-9999", True)],
    ),
    "negative": lambda path, ids: tifffile.imwrite(
        f"{path}.tif", np.where(ids == 2, -9999, ids.astype(int)).astype(np.float32)
    ),
    "no_data_99": lambda path, ids: tifffile.imwrite(
        f"{path}.tif", np.where(ids == 2, 99, ids), extratags=[(42113, "s", 3, "99", True)]
    ),
}


@pytest.mark.parametrize("form", FOLDERS)
def test_folders_of_them(tmp_path: Path, form):
    truth = {}
    for split, count in (("train", 5), ("val", 2)):
        for number in range(count):
            ids = np.zeros((128, 96), np.uint8)
            ids[10 + number : 60, 10:50], ids[70:, 20 + number :] = 1, 2
            image = np.random.default_rng(number).integers(0, 256, (128, 96, 3), np.uint8)
            for kind in ("images", "masks"):
                (tmp_path / kind / split).mkdir(parents=True, exist_ok=True)
            FOLDERS[form](tmp_path / f"masks/{split}/p{number}", ids)
            if form == "npy":
                np.save(tmp_path / f"images/{split}/p{number}.npy", image)
            else:
                Image.fromarray(image).save(tmp_path / f"images/{split}/p{number}.jfif", "JPEG")
            truth[split, f"p{number}"] = ids
    (layout,) = recognise(tmp_path)
    labels = guess(tmp_path, layout).labels
    values = {"data": layout.data, "labels": labels}
    recipe = Recipe.model_validate(values)
    ignored = 2 if "no_data" in form or form == "negative" else None
    assert len(recipe.labels.names) == (2 if form == "npy_bool" or ignored else 3)
    for split in ("train", "val"):
        found = open_split(recipe.data, recipe.labels.build(), split)
        assert len(found) == sum(own == split for own, _ in truth)
        for sample in found:
            ids = truth[split, sample["id"]]
            ids = (ids > 0).astype(int) if form == "npy_bool" else ids
            assert np.array_equal(sample["mask"], np.where(ids == ignored, 255, ids))
    if form == "npy":
        pack(recipe, tmp_path / "packed")
        packed = load_recipe(str(tmp_path / "packed/recipe.yaml"), [])
        for sample in open_split(packed.data, packed.labels.build(), "train"):
            number = int(sample["id"][1:])
            image = np.random.default_rng(number).integers(0, 256, (128, 96, 3), np.uint8)
            assert np.array_equal(sample["image"], image)
            assert np.array_equal(sample["mask"], truth["train", sample["id"]])
