"""Small inputs as people bring them: `init`, `pack`, and the class that was drawn at each pixel.

Their generators are not in the project: `NAME/make.py` in the folder `cases` beside the real
images. A generator draws pictures by number, with `scene` (ids 0 to 2) or, where it has one, with
`blob` (two values). What is right is stated here; what was packed is read with pyarrow and Pillow.
"""

import io
import itertools
import re
import runpy
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as parquet
import pytest
import yaml
from PIL import Image, ImageOps
from typer.testing import CliRunner

from finetune import cli

ELSEWHERE = {"checkpoints", "small_shm", "hidden_states_gradient"}
"""Generators that are not about labels."""
LOSSY = 0.985
"""Share of a picture's pixels, where masks are damaged. Polygons have corners on whole pixels."""
TRAIN_VAL = {"train": range(8), "val": range(100, 103)}
ORIENTED = {"train": range(6), "val": range(100, 102)}
FLOOR = ("floor", "box", "bin", "x", "y")
BACKGROUND = ("background", "box", "bin")
GREY = ("model.num_channels=1", "data.image_mean=[0.5]", "data.image_std=[0.25]")
GREYS = "grey levels that nobody painted"


def at_most_one(ids: np.ndarray) -> np.ndarray:
    return (ids > 0).astype(np.uint8)


def of_two_runs(ids: np.ndarray) -> np.ndarray:
    """`29 10 93 10` in columns of 64 from 1: ten pixels of the first column, and of the second."""
    truth = np.zeros_like(ids)
    truth[28:38, :2] = 1
    return truth


def of_trimaps(ids: np.ndarray) -> np.ndarray:
    """Painted are 1 for id 1, 2 for id 0 and 3 for id 2."""
    return np.array([1, 0, 2], np.uint8)[ids]


@dataclass(frozen=True)
class Case:
    splits: dict[str, range] | int
    """The pictures of each split, or the number of all, some of which are held back."""
    names: tuple[str, ...] | int
    """Of the values of the truth, in their order; their number if the folder names none."""
    truth: Callable[[np.ndarray], np.ndarray] = lambda ids: ids
    """The place in `names` of each pixel, from the ids that were drawn."""
    share: float = 1.0
    """Of a picture's pixels, that have their class at least."""
    said: str = ""
    """What `init` says of the folder."""
    drawn: dict[str, Any] = field(default_factory=dict)
    """Arguments of `scene`."""
    folders: tuple[str, ...] = (".",)
    overrides: tuple[str, ...] = ()


def black_and_white(names: tuple[str, ...] | int = 2) -> Case:
    return Case(12, names, at_most_one, LOSSY, GREYS)


CASES = {
    "binary_antialiased": black_and_white(),
    "coco_annotator_points": Case(8, BACKGROUND, said="2 annotations have points or lines"),
    "coco_bom": Case(8, BACKGROUND),
    "coco_category_string": Case(8, BACKGROUND),
    "coco_panoptic_many": Case(
        {"train2017": range(40), "val2017": range(100, 110)}, FLOOR, drawn={"classes": 5}
    ),
    "coco_string_image_ids": Case(8, BACKGROUND),
    "cvat_segmask": Case(10, ("background", "box", "bin: large")),
    "cvat_ultralytics": Case(TRAIN_VAL, BACKGROUND),
    "grey_exif": Case(ORIENTED, 3, folders=("o3", "o6"), overrides=GREY),
    "isic_smoothed_grey_png": black_and_white(),
    "isic_with_list": black_and_white(("background", "lesion")),
    "jfif_images": Case(TRAIN_VAL, 3),
    "kaggle_rle_csv": Case(8, 2, of_two_runs),
    "kvasir_grey_jpeg": black_and_white(),
    "kvasir_rgb_jpeg": black_and_white(),
    "labelme2voc": Case(10, ("_background_", "box", "bin")),
    "labelme_json": Case(8, ("background", "box"), at_most_one),
    "labelstudio_windows": Case(8, BACKGROUND),
    "labelstudio_yolo": Case(10, BACKGROUND),
    "list_latin1": Case(TRAIN_VAL, ("Straße", "Kiste", "Tonne")),
    "list_v7": Case(TRAIN_VAL, ("__background__", "box", "bin")),
    "npy_masks": Case(10, 3),
    "pets": Case({"trainval": range(9), "test": range(9, 12)}, 3, of_trimaps),
    "rectlabel_masks": Case(8, BACKGROUND),
    "supervisely_names": Case(10, BACKGROUND),
    "tiff_cog_masks": Case(10, 3, drawn={"size": (256, 256)}),
    "tiff_float_masks": Case(10, 3),
    "tiff_orientation": Case(ORIENTED, 3, folders=("raw", "tiff_lzw", "tiff_deflate", "jpeg")),
    "via_coco": Case(8, BACKGROUND),
}


@pytest.fixture(scope="session")
def generators(shared_data) -> Path:
    folder = shared_data.parent / "cases"
    if not folder.is_dir():
        pytest.skip(f"no generators of inputs at {folder}")
    return folder


def test_every_generator_is_covered(generators):
    found = {file.parent.name for file in generators.glob("*/make.py")}
    assert found == CASES.keys() | ELSEWHERE


def finetune(*arguments: Any) -> str:
    done = CliRunner().invoke(cli.app, [*map(str, arguments)])
    assert done.exit_code == 0, done.output or done.exception
    return " ".join(done.output.split())


@pytest.mark.parametrize("name", CASES)
def test_packed_classes_are_those_that_were_drawn(generators, tmp_path, monkeypatch, name):
    monkeypatch.setattr(sys, "path", [*sys.path])  # generators add to it
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    case = CASES[name]
    made = runpy.run_path(str(generators / name / "make.py"))
    (tmp_path / "data").mkdir()
    made["make"](tmp_path / "data")

    def drawn(number: int) -> tuple[np.ndarray, np.ndarray]:
        return (made.get("blob") or made["scene"])(number, **case.drawn)

    for folder in case.folders:
        root, recipe = tmp_path / "data" / folder, tmp_path / f"{folder}/recipe.yaml"
        packed = tmp_path / folder / "packed"
        assert case.said in finetune("init", root, "-o", recipe)
        finetune("pack", recipe, packed, *case.overrides)
        check(packed, case, drawn)


def check(packed: Path, case: Case, drawn: Callable[[int], tuple[np.ndarray, np.ndarray]]) -> None:
    """Every picture is there once, in its split, with its own pixels and classes."""
    names = yaml.safe_load((packed / "recipe.yaml").read_text(encoding="utf-8"))["labels"]["names"]
    if isinstance(case.names, int):
        assert len(names) == case.names
        expected = np.array(names)
    else:
        assert {*names} == {*case.names}
        expected = np.array(case.names)
    found: dict[str, list[int]] = {}
    for file in (packed / "data").glob("*.parquet"):
        split = file.name.partition("-")[0]
        for row in parquet.read_table(file).to_pylist():
            digits = re.search(r"\d+$", row["id"])
            number = int(digits[0]) + 100 * split.startswith("val")
            found.setdefault(split, []).append(number)
            image, ids = drawn(number)
            classes = np.array(names)[np.array(Image.open(io.BytesIO(row["mask"]["bytes"])))]
            right = classes == expected[case.truth(ids)]
            assert right.mean() >= case.share, (split, row["id"])
            assert_pictures_are_alike(row["image"]["bytes"], image)
    if isinstance(case.splits, int):
        assert len(found) == 2
        assert sorted(itertools.chain(*found.values())) == [*range(case.splits)]
    else:
        assert {split: sorted(numbers) for split, numbers in found.items()} == {
            split: [*numbers] for split, numbers in case.splits.items()
        }


def assert_pictures_are_alike(stored: bytes, drawn: np.ndarray) -> None:
    """Upright, the stored picture is the drawn one but for compression."""
    picture = ImageOps.exif_transpose(Image.open(io.BytesIO(stored)))
    shown = Image.fromarray(drawn)
    if picture.mode == "L":
        shown = shown.convert("L")
    difference = np.abs(np.array(picture.convert(shown.mode), int) - np.array(shown, int)).mean()
    assert difference < 8  # noise of JPEG
