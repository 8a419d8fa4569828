"""Thirty faults of twelve kinds, planted into copies of CamVid: found all, and nothing else."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from finetune import cli
from finetune.programs.doctor.doctor import Examination, examine

COUNTS = {"train": 60, "val": 20}
STRAY = 77


@pytest.fixture(scope="module")
def clean(shared_data, tmp_path_factory) -> Path:
    """Some pictures of both splits of CamVid, evenly spread."""
    root = tmp_path_factory.mktemp("clean") / "street"
    for split, count in COUNTS.items():
        source = shared_data / "camvid"
        images = sorted((source / split).glob("*.jpg"))
        for folder in (split, f"{split}annot"):
            (root / folder).mkdir(parents=True)
        for image in images[:: len(images) // count][:count]:
            shutil.copy(image, root / split)
            shutil.copy(source / f"{split}annot" / f"{image.stem}.png", root / f"{split}annot")
    return root


class Planter:
    """Spoils one sample after another, and remembers what must be found."""

    def __init__(self, root: Path):
        self.root = root
        self.expected: dict[str, set[frozenset[str]]] = {}
        self.stems = {s: sorted(f.stem for f in (root / s).glob("*.jpg")) for s in COUNTS}
        self.position = dict.fromkeys(COUNTS, 0)

    def next(self, split: str = "train") -> tuple[Path, Path]:
        """Image and mask of a sample that is still whole; the very first is the first to go."""
        stem = self.stems[split][self.position[split]]
        self.position[split] += 1
        return self.root / split / f"{stem}.jpg", self.root / f"{split}annot" / f"{stem}.png"

    def expect(self, kind: str, *files: Path) -> None:
        self.expected.setdefault(kind, set()).add(frozenset(map(str, files)))


def pixels(path: Path) -> np.ndarray:
    return np.array(Image.open(path))


def save(array: np.ndarray, path: Path) -> None:
    Image.fromarray(array).save(path)


def plant(root: Path) -> dict[str, set[frozenset[str]]]:
    """Thirty faults of twelve kinds."""
    planter = Planter(root)
    for split in ("train", "val"):
        image, _ = planter.next(split)
        image.write_bytes(b"")
        planter.expect("empty-file", image)
    _, mask = planter.next()
    mask.write_bytes(b"")
    planter.expect("empty-file", mask)

    for split in ("train", "val"):  # cut off
        image, _ = planter.next(split)
        image.write_bytes(image.read_bytes()[:-3000])
        planter.expect("unreadable-file", image)
    _, mask = planter.next()  # one byte of the pixels changed
    data = bytearray(mask.read_bytes())
    data[len(data) // 2] ^= 255
    mask.write_bytes(data)
    planter.expect("unreadable-file", mask)
    _, mask = planter.next()
    mask.write_text("<html>404: not found</html>")
    planter.expect("unreadable-file", mask)

    for change in (
        lambda mask: mask[:-8],
        lambda mask: np.ascontiguousarray(mask.T),
        lambda mask: mask[::2, ::2],
    ):
        image, mask = planter.next()
        save(change(pixels(mask)), mask)
        planter.expect("size-mismatch", image, mask)

    for split in ("train", "val"):
        image, mask = planter.next(split)
        mask.unlink()
        planter.expect("image-without-mask", image)
        image, mask = planter.next(split)
        image.unlink()
        planter.expect("mask-without-image", mask)
        image, _ = planter.next(split)
        twin = image.with_suffix(".png")
        save(pixels(image), twin)
        planter.expect("same-name", image, twin)

    for split in ("train", "val"):
        _, mask = planter.next(split)
        colors = np.random.default_rng(0).integers(0, 256, (12, 3)).astype(np.uint8)
        save(colors[pixels(mask)], mask)
        planter.expect("mask-not-ids", mask)

    for split, value, size in (("train", STRAY, 3), ("train", STRAY + 1, 9), ("val", STRAY, 1)):
        _, mask = planter.next(split)
        values = pixels(mask)
        values[100 : 100 + size, 200 : 200 + size] = value
        save(values, mask)
        planter.expect("uncovered-value", mask)

    for split in ("train", "val"):
        _, mask = planter.next(split)
        save(np.full_like(pixels(mask), 11), mask)
        planter.expect("no-labelled-pixel", mask)

    for number in range(3):  # a file copied, and the same pixels in another file type
        image, mask = planter.next()
        copy = root / "val" / f"another_{number}{'.jpg' if number else '.png'}"
        shutil.copy(image, copy) if number else save(pixels(image), copy)
        shutil.copy(mask, root / "valannot" / f"another_{number}.png")
        planter.expect("duplicate-across-splits", image, copy)

    for number in range(2):
        image, mask = planter.next()
        copy = root / "train" / f"again_{number}.jpg"
        other = root / "trainannot" / f"again_{number}.png"
        shutil.copy(image, copy)
        save(np.roll(pixels(mask), 40, axis=1), other)
        planter.expect("conflicting-masks", image, copy, mask, other)

    for split in ("train", "val"):
        image, mask = planter.next(split)
        save(pixels(image)[::20, ::20], image)
        save(pixels(mask)[::20, ::20], mask)
        planter.expect("tiny-image", image)

    assert len(planter.expected) == 12
    assert sum(map(len, planter.expected.values())) == 30
    return planter.expected


@pytest.fixture(scope="module")
def planted(clean, tmp_path_factory) -> tuple[Path, dict[str, set[frozenset[str]]]]:
    root = tmp_path_factory.mktemp("planted") / "street"
    shutil.copytree(clean, root)
    return root, plant(root)


def problems(done: Examination) -> dict[str, set[frozenset[str]]]:
    return {
        finding.kind: {frozenset(place.files) for place in finding.places}
        for finding in done.findings
        if finding.severity == "problem"
    }


def as_recipe(root: Path, **options) -> Examination:
    return examine("camvid", [f"data.path={root}"], **options)


def as_folder(root: Path, **options) -> Examination:
    return examine(str(root), **options)


@pytest.fixture(scope="module")
def found(planted) -> Examination:
    return as_recipe(planted[0], workers=1)


def test_a_recipe_finds_all_thirty_and_names_the_files(planted, found):
    assert problems(found) == planted[1]


def test_a_folder_without_a_recipe_finds_them_too(planted):
    """Nobody says what 77 means, but it stands in few pixels of few masks."""
    root, expected = planted
    done = as_folder(root)
    expected = {**expected, "rare-value": expected["uncovered-value"]}
    del expected["uncovered-value"]
    # Nor does anybody say that 11 is no class.
    del expected["no-labelled-pixel"]
    assert problems(done) == expected
    assert done.expected.labels.num_labels == 12


@pytest.mark.parametrize("how", [as_recipe, as_folder])
def test_the_clean_set_raises_nothing(clean, how: Callable[..., Examination]):
    done = how(clean)
    assert done.clean
    assert not done.findings
    assert [len(split) for split in done.splits] == list(COUNTS.values())


def test_the_number_of_workers_changes_nothing(planted, found):
    assert as_recipe(planted[0], workers=3).to_json() == found.to_json()


def test_the_command_writes_its_files_and_exits_with_2(planted, tmp_path):
    root, expected = planted
    arguments = ["doctor", "camvid", f"data.path={root}", "-o", str(tmp_path / "out")]
    done = CliRunner().invoke(cli.app, arguments)
    assert done.exit_code == 2
    assert "30 problems" in done.stdout
    for kind in expected:
        assert f"[{kind}]" in done.stdout
    written = json.loads((tmp_path / "out/doctor.json").read_text())
    assert written["verdict"] == "problems"
    assert written["problems"] == 30
    assert (tmp_path / "out/doctor.html").read_text().count('class="finding problem"') == 12


def test_a_clean_set_exits_with_0(clean, tmp_path):
    done = CliRunner().invoke(cli.app, ["doctor", str(clean), "-o", str(tmp_path), "--json"])
    assert done.exit_code == 0
    assert json.loads(done.stdout)["verdict"] == "clean"
    assert json.loads(done.stdout) == json.loads((tmp_path / "doctor.json").read_text())


def test_three_pictures_of_ade20k_raise_no_problem(shared_data):
    """Most classes are in none of them, and some in the one that is held back only: warnings."""
    done = as_folder(shared_data / "ade20k_sample")
    assert done.clean
    assert {finding.kind for finding in done.findings} <= {"class-never-seen", "class-only-in-val"}
