"""The message about a folder in which nothing pairs: what is there, why not, what would help."""

from pathlib import Path

import pytest

from finetune.discover.recognise import recognise
from finetune.errors import UserError
from tests.discover.test_recognise import MASK, PHOTO, put


def why(root: Path, files: dict[str, object]) -> str:
    """The message about a folder of these files: name -> array, or bytes."""
    for name, content in files.items():
        if isinstance(content, bytes):
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_bytes(content)
        else:
            put(root / name, content)
    with pytest.raises(UserError, match="no pairs of images and masks found") as caught:
        recognise(root)
    return str(caught.value)


def several(pattern: str, array, numbers=range(1, 5)) -> dict[str, object]:
    return {pattern.format(number=number): array for number in numbers}


def test_names_in_other_words_are_compared_by_their_numbers(tmp_path):
    files = several("images/img_{number:03}.jpg", PHOTO) | several("gt/lbl_{number:03}.png", MASK)
    message = why(tmp_path, files)
    assert "images (4, such as img_001.jpg: images)" in message
    assert "gt (4, such as lbl_001.png: masks)" in message
    assert "images/img_001.jpg and gt/lbl_001.png have the same number in other words" in message
    assert "Rename the masks, or the images." in message


def test_numbers_with_other_zeros(tmp_path):
    files = several("images/{number}.jpg", PHOTO) | several("masks/{number:05}_m.png", MASK)
    message = why(tmp_path, files)
    assert "images/1.jpg and masks/00001_m.png have the same number, written with other" in message


def test_upper_and_lower_case(tmp_path):
    names = ["Alpha", "Beta", "Gamma"]
    files = {f"images/{name}.jpg": PHOTO for name in names}
    files |= {f"masks/{name.lower()}.png": MASK for name in names}
    message = why(tmp_path, files)
    assert "images/Alpha.jpg and masks/alpha.png differ in upper and lower case" in message


def test_names_without_anything_in_common(tmp_path):
    files = {f"images/{name}.jpg": PHOTO for name in "abc"}
    message = why(tmp_path, files | {f"masks/{name}.png": MASK for name in "xyz"})
    assert "The names of images/a.jpg and masks/x.png were compared" in message


def test_other_splits(tmp_path):
    files = {f"images/train/{name}.jpg": PHOTO for name in "abc"}
    message = why(tmp_path, files | {f"masks/valid/{name}.png": MASK for name in "abc"})
    assert "images/train/a.jpg and masks/valid/a.png have one name, but lie in" in message


def test_too_few_names_in_common(tmp_path):
    files = several("images/{number}.jpg", PHOTO, range(20))
    files |= several("masks/{number}.png", MASK, range(10, 30))
    message = why(tmp_path, files)
    assert "have 10 of 20 names in common" in message
    assert "images/0.jpg and masks/20.png have no partner" in message


def test_images_alone_and_masks_alone(tmp_path):
    assert "None looks like a mask" in why(tmp_path / "a", several("images/{number}.jpg", PHOTO))
    assert "Put the images beside them" in why(tmp_path / "b", several("m/{number}.png", MASK))


def test_two_folders_of_photographs(tmp_path):
    files = several("images/{number}.png", PHOTO) | several("masks/{number}.png", PHOTO)
    message = why(tmp_path, files)
    assert "None looks like a mask" in message


@pytest.mark.parametrize(
    ("name", "tool"),
    [
        ("scan.nii.gz", "nibabel"),
        ("scan.nii", "nibabel"),
        ("IM0001.DCM", "pydicom"),
        ("data.zip", "unpack"),
        ("data.tar.gz", "unpack"),
        ("clip.mp4", "ffmpeg"),
        ("labels.mat", ".npy"),
        ("x.HEIC", "PNG"),
        ("x.xml", "boxes"),
        ("parcels.shp", "gdal_rasterize"),
    ],
)
def test_files_of_other_programs_are_named_with_a_tool(tmp_path, name, tool):
    (tmp_path / "sub").mkdir(parents=True)
    message = why(tmp_path, {f"sub/{name}": b"anything"})
    suffix = name.lower()[name.index(".") :]
    assert f"It holds no pictures. It holds 1 *{suffix}: each is" in message
    assert tool in message


def test_an_empty_folder(tmp_path):
    message = why(tmp_path, {})
    assert "It holds no pictures. Name the folder above the images and the masks." in message
