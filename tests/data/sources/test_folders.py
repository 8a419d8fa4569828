import io
import pickle
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from finetune.data.samples import preflight
from finetune.data.sources.folders import image_folder
from finetune.errors import UserError
from finetune.labels.translation import Labels

LABELS = Labels.build(["a", "b", "c"])


def save(array: np.ndarray, path: Path, **options) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path, **options)
    return path


def random_image(seed: int = 0, height: int = 12, width: int = 16) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def random_mask(seed: int = 0, height: int = 12, width: int = 16) -> np.ndarray:
    return np.random.default_rng(seed).choice([0, 1, 2, 255], (height, width)).astype(np.uint8)


@pytest.fixture
def folder(tmp_path):
    """Three pairs, one of them nested."""
    for seed, name in enumerate(["one", "two", "deep/er/three"]):
        save(random_image(seed), tmp_path / f"images/train/{name}.png")
        save(random_mask(seed), tmp_path / f"masks/train/{name}.png")
    return tmp_path


def one_pair(root: Path, image: Path | None = None, mask: Path | None = None):
    """A data set of one pair, with the default for what is not given."""
    if image is None:
        save(random_image(), root / "images/train/x.png")
    if mask is None:
        save(random_mask(), root / "masks/train/x.png")
    return image_folder(root, "train", LABELS)


def write_grey_png(path: Path, values: np.ndarray, bits: int) -> None:
    """A grey PNG of 1, 2 or 4 bits, which Pillow cannot write."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = b""
    for row in values:
        packed = "".join(f"{v:0{bits}b}" for v in row)
        packed += "0" * (-len(packed) % 8)
        rows += b"\0" + int(packed, 2).to_bytes(len(packed) // 8, "big")

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    height, width = values.shape
    header = struct.pack(">IIBBBBB", width, height, bits, 0, 0, 0, 0)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


# Pairing


def test_pairs_by_relative_path_and_reads_on_access(folder):
    dataset = image_folder(folder, "train", LABELS)
    assert [sample["id"] for sample in dataset] == ["deep/er/three", "one", "two"]
    for sample, seed in zip(dataset, [2, 0, 1], strict=True):
        assert sample["image"].dtype == np.uint8
        assert sample["image"].tolist() == random_image(seed).tolist()
        assert sample["mask"].tolist() == random_mask(seed).tolist()
    preflight(dataset)


def test_hidden_files_and_other_types_are_left_alone(folder):
    (folder / "images/train/._one.png").write_bytes(b"rubbish")
    (folder / "images/train/.cache").mkdir()
    (folder / "images/train/.cache/x.png").write_bytes(b"rubbish")
    (folder / "images/train/notes.txt").write_text("rubbish")
    assert len(image_folder(folder, "train", LABELS)) == 3


def test_patterns_and_suffixes_in_one_folder(tmp_path):
    save(random_image(), tmp_path / "val/a_img.PNG")
    save(random_mask(), tmp_path / "val/a_mask.png")
    dataset = image_folder(
        str(tmp_path),
        "val",
        LABELS,
        images="{split}",
        masks="{split}",
        image_suffix="_img",
        mask_suffix="_mask",
    )
    assert dataset[0]["id"] == "a"
    save(random_image(), tmp_path / "test/b.png")
    save(random_mask(), tmp_path / "test/b_mask.png")
    dataset = image_folder(
        tmp_path, "test", LABELS, images="{split}", masks="{split}", mask_suffix="_mask"
    )
    assert [sample["id"] for sample in dataset] == ["b"]


def test_survives_pickling(folder):
    dataset = image_folder(folder, "train", LABELS)
    assert pickle.loads(pickle.dumps(dataset))[1]["mask"].tolist() == random_mask(0).tolist()


# What is wrong with a folder


def test_missing_root_names_the_field_and_what_was_expected(tmp_path):
    with pytest.raises(UserError) as error:
        image_folder(tmp_path / "nowhere", "train", LABELS)
    message = str(error.value)
    assert "data.path" in message
    assert str(tmp_path / "nowhere") in message
    assert "images/train and masks/train" in message


def test_a_root_that_is_a_file(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"data\.path: .* is a file"):
        image_folder(tmp_path / "file", "train", LABELS)


def test_missing_split_lists_what_is_there(folder):
    with pytest.raises(UserError, match=r"data\.path: .*'val'.*holds train\."):
        image_folder(folder, "val", LABELS)


def test_no_images(tmp_path):
    (tmp_path / "images/train").mkdir(parents=True)
    (tmp_path / "masks/train").mkdir(parents=True)
    with pytest.raises(UserError, match=r"data\.path: no images found in .*images/train.*\.jpg"):
        image_folder(tmp_path, "train", LABELS)


def test_images_without_a_mask_and_masks_without_an_image_are_counted(folder):
    for i in range(7):
        save(random_image(), folder / f"images/train/extra{i}.png")
    save(random_mask(), folder / "masks/train/orphan.png")
    with pytest.raises(UserError) as error:
        image_folder(folder, "train", LABELS)
    message = str(error.value)
    assert (
        "7 of 10 images have no mask: extra0, extra1, extra2, extra3, extra4 and 2 more" in message
    )
    assert "1 of 4 masks have no image: orphan." in message
    assert "Rename" in message


def test_two_images_of_one_name(folder):
    save(random_image(), folder / "images/train/one.jpg")
    with pytest.raises(UserError, match=r"one\.(jpg|png) and .*one\.(jpg|png) differ"):
        image_folder(folder, "train", LABELS)


def test_images_and_masks_in_one_folder_need_a_suffix(folder):
    with pytest.raises(UserError, match="suffix such as _mask"):
        image_folder(folder, "train", LABELS, masks="images/{split}")


# What is wrong with a file: on reading and in preflight alike


@pytest.mark.parametrize("kind", ["images", "masks"])
@pytest.mark.parametrize("damage", ["empty", "text", "truncated", "gone"])
def test_a_damaged_file_is_named(folder, kind, damage):
    path = folder / kind / "train/one.png"
    dataset = image_folder(folder, "train", LABELS)
    if damage == "gone":
        path.unlink()
    else:
        whole = path.read_bytes()
        path.write_bytes({"empty": b"", "text": b"hello", "truncated": whole[:-40]}[damage])
    for read in (lambda: dataset[1], lambda: preflight(dataset)):
        with pytest.raises(UserError, match=str(path)):
            read()


def test_a_truncated_jpeg_is_named(tmp_path):
    path = save(random_image(0, 100, 100), tmp_path / "images/train/x.jpg")
    path.write_bytes(path.read_bytes()[:2000])
    save(random_mask(0, 100, 100), tmp_path / "masks/train/x.png")
    dataset = image_folder(tmp_path, "train", LABELS)
    for read in (lambda: dataset[0], lambda: preflight(dataset)):
        with pytest.raises(UserError, match=r"x\.jpg.*truncated"):
            read()


def test_sizes_that_differ_name_both_files(tmp_path):
    mask = save(random_mask(0, 12, 17), tmp_path / "masks/train/x.png")
    dataset = one_pair(tmp_path, mask=mask)
    for read in (lambda: dataset[0], lambda: preflight(dataset)):
        with pytest.raises(UserError) as error:
            read()
        message = str(error.value)
        assert "masks/train/x.png is 17 x 12" in message
        assert "images/train/x.png is 16 x 12" in message


@pytest.mark.parametrize("channels", [3, 4])
def test_a_coloured_mask_is_refused(tmp_path, channels):
    colours = np.zeros((12, 16, channels), np.uint8)
    dataset = one_pair(tmp_path, mask=save(colours, tmp_path / "masks/train/x.png"))
    for read in (lambda: dataset[0], lambda: preflight(dataset)):
        with pytest.raises(UserError, match=r"masks/train/x\.png.*masks must hold class ids"):
            read()


@pytest.mark.parametrize(
    ("form", "options", "is_read"),
    [
        ("JPEG", {"quality": 100}, False),
        ("WEBP", {"quality": 100}, False),
        ("AVIF", {"quality": 100}, False),
        ("BMP", {}, True),
    ],
)
def test_ids_in_a_lossy_file_are_refused_whatever_its_name(tmp_path, form, options, is_read):
    values = np.zeros((16, 16), np.uint8)  # one value a block: these would come back right
    values[:, 8:] = 1
    file = io.BytesIO()
    Image.fromarray(values).save(file, form, **options)
    image = save(random_image(0, 16, 16), tmp_path / "images/train/x.png")
    mask = tmp_path / "masks/train/x.png"
    mask.parent.mkdir(parents=True)
    mask.write_bytes(file.getvalue())
    data = one_pair(tmp_path, image, mask)
    if is_read:
        assert np.array_equal(data[0]["mask"], values)
        return
    with pytest.raises(UserError, match=rf"{mask.name}: the mask is JPEG or WebP.*tolerance"):
        data[0]


def test_an_unknown_value_names_the_mask(tmp_path):
    mask = np.full((12, 16), 9, np.uint8)
    dataset = one_pair(tmp_path, mask=save(mask, tmp_path / "masks/train/x.png"))
    for read in (lambda: dataset[0], lambda: preflight(dataset)):
        with pytest.raises(UserError, match=r"masks/train/x\.png.*9 \(192 pixels\)"):
            read()


def test_preflight_reads_the_header_of_every_file(tmp_path):
    for i in range(40):
        save(random_image(), tmp_path / f"images/train/{i:02d}.png")
        save(random_mask(), tmp_path / f"masks/train/{i:02d}.png")
    dataset = image_folder(tmp_path, "train", LABELS)
    preflight(dataset)
    save(random_mask(0, 5, 5), tmp_path / "masks/train/07.png")
    with pytest.raises(UserError, match=r"07\.png is 5 x 5"):
        preflight(dataset)
    with pytest.raises(UserError, match=r"07\.png is 5 x 5"):
        preflight(dataset.select([7]))


# Kinds of masks


def test_a_palette_mask_gives_indices_not_colours(tmp_path):
    indices = np.random.default_rng(0).integers(0, 3, (12, 16), np.uint8)
    mask = Image.fromarray(indices, mode="P")
    mask.putpalette([200, 10, 10, 10, 200, 10, 10, 10, 200])
    (tmp_path / "masks/train").mkdir(parents=True)
    mask.save(tmp_path / "masks/train/x.png")
    dataset = one_pair(tmp_path, mask=tmp_path / "masks/train/x.png")
    assert dataset[0]["mask"].tolist() == indices.tolist()


@pytest.mark.parametrize("name", ["x.png", "x.tif"])
def test_a_16_bit_mask(tmp_path, name):
    raw = np.random.default_rng(0).choice([0, 1000, 40000], (12, 16)).astype(np.uint16)
    save(raw, tmp_path / "masks/train" / name)
    save(random_image(), tmp_path / "images/train/x.png")
    labels = Labels.build(["a", "b"], map={0: None, 1000: 0, 40000: 1})
    dataset = image_folder(tmp_path, "train", labels)
    preflight(dataset)
    expected = np.select([raw == 1000, raw == 40000], [0, 1], 255)
    assert dataset[0]["mask"].tolist() == expected.tolist()


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_a_grey_mask_of_few_bits_keeps_its_values(tmp_path, bits):
    # Pillow reads the 4 bit value 1 as 17, and so on
    raw = np.random.default_rng(0).integers(0, 2**bits, (12, 16))
    write_grey_png(tmp_path / "masks/train/x.png", raw, bits)
    save(random_image(), tmp_path / "images/train/x.png")
    labels = Labels.build([str(i) for i in range(16)])
    dataset = image_folder(tmp_path, "train", labels)
    preflight(dataset)
    assert dataset[0]["mask"].tolist() == raw.tolist()


# Kinds of images: all become upright 8 bit RGB


@pytest.mark.parametrize("mode", ["L", "1", "LA", "RGBA", "P"])
def test_every_mode_becomes_rgb(tmp_path, mode):
    image = Image.fromarray(random_image()).convert(mode)
    (tmp_path / "images/train").mkdir(parents=True)
    image.save(tmp_path / "images/train/x.png")
    sample = one_pair(tmp_path, image=tmp_path / "images/train/x.png")[0]
    assert sample["image"].dtype == np.uint8
    assert sample["image"].tolist() == np.array(image.convert("RGB")).tolist()


def test_cmyk(tmp_path):
    (tmp_path / "images/train").mkdir(parents=True)
    Image.new("CMYK", (16, 12), (0, 255, 255, 0)).save(tmp_path / "images/train/x.jpg", quality=95)
    image = one_pair(tmp_path, image=tmp_path / "images/train/x.jpg")[0]["image"].astype(int)
    assert abs(image - (255, 0, 0)).max() < 12


@pytest.mark.parametrize("name", ["x.png", "x.tif"])
def test_16_bit_grey_is_scaled_not_clipped(tmp_path, name):
    grey = np.random.default_rng(0).integers(0, 65536, (12, 16), np.uint16)
    dataset = one_pair(tmp_path, image=save(grey, tmp_path / "images/train" / name))
    preflight(dataset)
    expected = np.repeat((grey // 256)[..., None], 3, axis=2)
    assert dataset[0]["image"].tolist() == expected.tolist()


def test_floating_point_images_are_refused(tmp_path):
    path = save(np.zeros((12, 16), np.float32), tmp_path / "images/train/x.tif")
    with pytest.raises(UserError, match=r"x\.tif.*float32"):
        one_pair(tmp_path, image=path)[0]


@pytest.mark.parametrize("name", ["x.jpg", "x.png"])
def test_exif_orientation_is_applied(tmp_path, name):
    stored = random_image(0, 16, 12)  # lies on its side: upright it is 12 high and 16 wide
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees clockwise to show
    path = save(stored, tmp_path / "images/train" / name, exif=exif)
    decoded = np.array(Image.open(path).convert("RGB"))
    dataset = one_pair(tmp_path, image=path)
    preflight(dataset)
    assert dataset[0]["image"].tolist() == np.rot90(decoded, -1).tolist()


def test_exif_behind_the_pixels_of_a_png(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    path = save(random_image(0, 16, 12), tmp_path / "images/train/x.png", exif=exif)
    whole = path.read_bytes()
    start = whole.index(b"eXIf") - 4
    end = start + 12 + int.from_bytes(whole[start : start + 4], "big")
    path.write_bytes(whole[:start] + whole[end:-12] + whole[start:end] + whole[-12:])  # before IEND
    dataset = one_pair(tmp_path, image=path)
    preflight(dataset)
    assert dataset[0]["image"].shape == (12, 16, 3)
