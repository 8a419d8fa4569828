"""Every form of data, names that are no plain text, the two files, and mistakes."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import cv2
import numpy as np
import pytest
import yaml
from PIL import Image
from typer.testing import CliRunner

from finetune import cli
from finetune.errors import UserError
from finetune.programs.doctor import doctor
from finetune.programs.doctor.doctor import examine

ROOT = Path(__file__).resolve().parents[3]
COUNT = 6
COLORS = ["#0000FF", "#00FF00", "#FF0000"]


def picture(number: int) -> np.ndarray:
    """Noise of its own at every scale, so that no two look alike."""
    rng = np.random.default_rng(number)
    coarse = Image.fromarray(rng.integers(0, 256, (8, 8, 3)).astype(np.uint8))
    return np.array(coarse.resize((96, 64), Image.Resampling.BICUBIC))


def regions(number: int) -> np.ndarray:
    mask = np.zeros((64, 96), np.uint8)
    mask[number : 30 + number, 10:60] = 1
    mask[40:, 50:] = 2
    return mask


def save(array: np.ndarray, path: Path, **options) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path, **options)
    return path


def folder(root: Path, name: str = "{}", splits=("train", "val")) -> Path:
    for s, split in enumerate(splits):
        for i in range(COUNT):
            save(picture(100 * s + i), root / f"images/{split}/{name.format(i)}.png")
            save(regions(i), root / f"masks/{split}/{name.format(i)}.png")
    return root


def recipe(root: Path, **sections) -> str:
    file = root / "recipe.yaml"
    data = {"path": str(root), **sections.pop("data", {})}
    labels = {"names": ["a", "b", "c"], **sections.pop("labels", {})}
    augment = {"crop": [64, 64]}
    file.write_text(yaml.safe_dump({"data": data, "labels": labels, "augment": augment}))
    return str(file)


def kinds(done: doctor.Examination) -> dict[str, set[str]]:
    return {finding.kind: {Path(f).name for f in finding.files} for finding in done.findings}


class Links(HTMLParser):
    """What a page would load, its tags and its text."""

    def __init__(self, page: str):
        super().__init__()
        self.loads: list[str] = []
        self.tags: set[str] = set()
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.loads += [v or "" for k, v in attrs if k in ("src", "href", "srcset", "data")]

    def handle_data(self, data):
        self.text += data


# ------------------------------------------------------------------------------------------- forms


def test_colors_within_the_tolerance_are_counted(tmp_path):
    palette = np.array([[0, 0, 255], [0, 255, 0], [255, 0, 0]], np.uint8)
    for split in ("train", "val"):
        for i in range(COUNT):
            number = i + 100 * (split == "val")
            save(picture(number), tmp_path / f"images/{split}/{i}.png")
            save(palette[regions(i)], tmp_path / f"masks/{split}/{i}.png")
    damaged = palette[regions(0)].copy()
    damaged[5, 5:12, 0] += 6
    damaged[6, 3] = (90, 90, 90)
    save(damaged, tmp_path / "masks/train/0.png")
    labels = {"kind": "colors", "colors": palette.tolist(), "tolerance": 8}
    done = examine(recipe(tmp_path, labels=labels))
    assert kinds(done) == {"uncovered-value": {"0.png"}, "mended-values": {"0.png"}}
    whats = {finding.kind: finding.places[0].what for finding in done.findings}
    assert whats["mended-values"].startswith("7 pixels")
    assert whats["uncovered-value"] == "#5A5A5A (1 pixel)"
    save(regions(1), tmp_path / "masks/train/1.png")
    save(np.ones((64, 96), np.uint16), tmp_path / "masks/train/2.png")
    assert kinds(examine(recipe(tmp_path, labels=labels)))["mask-not-colors"] == {"2.png"}


def test_one_file_a_class(tmp_path):
    for split in ("train", "val"):
        for i in range(COUNT):
            save(picture(i + 100 * (split == "val")), tmp_path / f"images/{split}/{i}.png")
            for value, name in enumerate("abc"):
                mask = (regions(i) == value).astype(np.uint8) * 255
                save(mask, tmp_path / f"masks/{split}/{name}/{i}.png")
    setting = recipe(tmp_path, data={"masks": "masks/{split}/{class}"})
    assert kinds(examine(setting)) == {}
    save(np.zeros((3, 3), np.uint8), tmp_path / "masks/train/b/0.png")
    (tmp_path / "masks/train/c/1.png").write_bytes(b"")
    save(regions(0), tmp_path / "masks/train/d/0.png")
    save(regions(0), tmp_path / "masks/train/a/lonely.png")
    found = kinds(examine(setting))
    assert found == {
        "size-mismatch": {"0.png"},
        "empty-file": {"1.png"},
        "mask-of-no-class": {"d"},
        "mask-without-image": {"lonely.png"},
    }


def test_polygons(tmp_path):
    for split in ("train", "val"):
        for i in range(COUNT):
            save(picture(i + 100 * (split == "val")), tmp_path / f"images/{split}/{i}.png")
            text = tmp_path / f"labels/{split}/{i}.txt"
            text.parent.mkdir(parents=True, exist_ok=True)
            text.write_text("0 0 0 1 0 1 0.5\n1 0 0.9 0.5 0.5 0.9 0.9\n")
    content = {"train": "images/train", "val": "images/val", "names": ["x", "y"]}
    (tmp_path / "data.yaml").write_text(yaml.safe_dump(content))
    assert kinds(examine(str(tmp_path))) == {}
    (tmp_path / "labels/train/1.txt").write_text("0 0.5 0.5 0.2 0.2\n")
    (tmp_path / "images/val/2.png").write_bytes(b"")
    found = kinds(examine(str(tmp_path)))
    assert found == {"bad-annotation": {"1.txt"}, "empty-file": {"2.png"}}


def test_coco(tmp_path):
    for split in ("train", "val"):
        content = {"images": [], "annotations": [], "categories": [{"id": 1, "name": "x"}]}
        for i in range(COUNT):
            save(picture(i + 100 * (split == "val")), tmp_path / f"{split}/{i}.png")
            entry = {"id": i, "file_name": f"{i}.png", "height": 64, "width": 96}
            content["images"].append(entry)
            square = [0, 0, 50, 0, 50, 40, 0, 40]
            row = {"id": i, "image_id": i, "category_id": 1, "segmentation": [square]}
            content["annotations"].append(row)
        if split == "train":
            content["annotations"][0]["image_id"] = 99
            content["annotations"][1]["segmentation"] = []
            content["images"][2]["height"] = 60
            os.unlink(tmp_path / "train/3.png")
        file = tmp_path / f"annotations/{split}.json"
        file.parent.mkdir(exist_ok=True)
        file.write_text(json.dumps(content))
    found = examine(str(tmp_path))
    assert {finding.kind for finding in found.findings} == {
        "bad-annotation",
        "size-mismatch",
        "listed-but-missing",
    }
    bad = next(f for f in found.findings if f.kind == "bad-annotation")
    assert len(bad.places) == 2
    assert kinds(found)["size-mismatch"] == {"2.png"}
    assert kinds(found)["listed-but-missing"] == {"3.png"}


def test_lists_of_names(tmp_path):
    for i in range(COUNT):
        save(picture(i), tmp_path / f"JPEGImages/{i}.jpg", quality=95)
        save(regions(i), tmp_path / f"SegmentationClass/{i}.png")
    lists = tmp_path / "ImageSets/Segmentation"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("0\n1\n2\nnowhere\n")
    (lists / "val.txt").write_text("3\n4\n5\n")
    os.unlink(tmp_path / "SegmentationClass/4.png")
    os.unlink(tmp_path / "JPEGImages/5.jpg")
    found = kinds(examine(str(tmp_path)))
    del found["class-never-seen"]  # of VOC's
    assert found == {
        "listed-but-missing": {"nowhere.jpg"},
        "image-without-mask": {"4.jpg"},
        "mask-without-image": {"5.png"},
    }


def test_a_mask_in_a_type_that_changes_its_values_is_named(tmp_path):
    folder(tmp_path)
    (tmp_path / "masks/train/0.png").unlink()
    save(regions(0), tmp_path / "masks/train/0.jpg")
    done = examine(recipe(tmp_path))
    assert [(f.kind, [Path(name).name for name in f.files]) for f in done.findings] == [
        ("image-without-mask", ["0.png", "0.jpg"])
    ]
    assert done.findings[0].places[0].what == ".jpg is not a file type for masks"


def test_an_image_lying_on_its_side_has_another_size_than_its_mask(tmp_path):
    folder(tmp_path)
    exif = Image.Exif()
    exif[0x0112] = 6
    save(picture(0), tmp_path / "images/train/0.png", exif=exif)
    assert kinds(examine(recipe(tmp_path))) == {"size-mismatch": {"0.png"}}


def test_a_share_that_is_held_back_names_each_fault_once(tmp_path):
    folder(tmp_path, splits=["train"])
    (tmp_path / "masks/train/0.png").unlink()
    data = {"val_fraction": 0.3, "val_split": "held_back"}
    done = examine(recipe(tmp_path, data=data))
    assert [len(split) for split in done.splits] == [3, 2]
    assert [(f.kind, len(f.places)) for f in done.findings] == [("image-without-mask", 1)]


def test_a_name_in_both_lists_is_in_both_splits(tmp_path):
    folder(tmp_path, splits=["all"])
    (tmp_path / "train.txt").write_text("0\n1\n2\n3\n")
    (tmp_path / "val.txt").write_text("3\n4\n5\n6\n")
    data = {"images": "images/all", "masks": "masks/all", "split_list": "{split}.txt"}
    found = kinds(examine(recipe(tmp_path, data=data)))
    assert found == {"duplicate-across-splits": {"3.png"}, "listed-but-missing": {"6"}}


def test_one_split_for_both_is_a_warning_and_read_once(tmp_path):
    folder(tmp_path)
    done = examine(recipe(tmp_path, data={"val_split": "train"}))
    assert done.clean
    assert kinds(done) == {"same-split": set()}
    assert [split.name for split in done.splits] == ["train"]


def test_a_split_that_is_missing_does_not_hide_the_other(tmp_path):
    folder(tmp_path)
    shutil.rmtree(tmp_path / "images/val")
    (tmp_path / "images/train/0.png").write_bytes(b"")
    found = kinds(examine(recipe(tmp_path)))
    assert found == {"split-missing": set(), "empty-file": {"0.png"}}
    shutil.rmtree(tmp_path / "images")
    with pytest.raises(UserError, match=r"there is no folder .*images"):
        examine(recipe(tmp_path))


def test_a_folder_takes_overrides(tmp_path):
    """Labels that somebody states are no guess: what they leave out is a problem."""
    folder(tmp_path / "data")
    assert kinds(examine(str(tmp_path / "data"))) == {}
    overrides = ["labels.names=[a,b]", "labels.map={0: 0, 1: 1}"]
    assert kinds(examine(str(tmp_path / "data"), overrides)).keys() == {"uncovered-value"}
    found = kinds(examine(str(tmp_path / "data"), ["augment.crop=[96,96]"]))
    assert found.keys() == {"smaller-than-crop"}


# --------------------------------------------------------------------------------------- the files

NASTY = '<script>alert("{0}")</script>&amp; {{{{ 7 * 7 }}}} [red]\x1b[31m {0}'


def test_names_are_text_everywhere(tmp_path):
    """A file may be called anything: markup of HTML and of the terminal stay what they are."""
    folder(tmp_path / "data", NASTY.replace("/", "\N{FRACTION SLASH}"))
    first = min((tmp_path / "data/masks/train").iterdir())
    first.write_bytes(b"")
    setting = recipe(tmp_path / "data", labels={"names": ["<b>a</b>", "{{ b }}", "c"]})
    done = CliRunner().invoke(cli.app, ["doctor", setting, "-o", str(tmp_path / "out")])
    assert done.exit_code == 2, done.exception
    assert "[red]\\x1b[31m" in done.stdout
    page = Links((tmp_path / "out/doctor.html").read_text())
    assert "script" not in page.tags
    assert "<b>a</b>" in page.text
    assert "{{ b }}" in page.text
    assert first.name in page.text
    written = json.loads((tmp_path / "out/doctor.json").read_text())
    assert written["findings"][0]["files"] == [str(first)]


def test_a_name_that_is_no_text(tmp_path):
    folder(tmp_path / "data")
    try:
        (tmp_path / "data/images/train").joinpath(os.fsdecode(b"\xff.png")).write_bytes(b"")
    except OSError:
        pytest.skip("this file system takes valid names only")
    arguments = ["doctor", recipe(tmp_path / "data"), "-o", str(tmp_path / "out")]
    done = CliRunner().invoke(cli.app, arguments)
    assert done.exit_code == 2, done.exception
    assert "\\udcff" in done.stdout or "\\xff" in done.stdout
    written = json.loads((tmp_path / "out/doctor.json").read_text())
    assert written["findings"][0]["files"][0].endswith("\\xff.png")


def test_the_page_needs_nothing_else_and_the_json_is_strict(tmp_path):
    folder(tmp_path / "data")
    folder_out = tmp_path / "deep/out"
    done = examine(recipe(tmp_path / "data"))
    files = done.write(folder_out)
    assert sorted(folder_out.iterdir()) == sorted(files)
    page = Links(files[1].read_text())
    assert page.loads
    assert all(target.startswith("data:image/jpeg;base64,") for target in page.loads)
    assert not re.search(r"url\(|@import|http-equiv", files[1].read_text())
    assert {"svg", "table", "figure"} <= page.tags
    assert len(page.loads) == 2 * COUNT
    assert "crop 64 x 64" in page.text

    def refuse(name):
        raise AssertionError(name)

    written = json.loads(files[0].read_text(), parse_constant=refuse)
    assert written == json.loads(json.dumps(done.to_json()))
    assert written["version"] == doctor.VERSION
    assert written["sizes"]["most_common"] == [[64, 96, 2 * COUNT]]
    images = np.stack([picture(i) for i in range(COUNT)]).reshape(-1, 3) / 255
    assert np.allclose(written["colors"]["mean"], images.mean(0), atol=1e-6)
    assert np.allclose(written["colors"]["std"], images.std(0), atol=1e-6)
    masks = np.stack([regions(i) for i in range(COUNT)])
    for row in written["classes"]:
        assert row["train"] == {"pixels": int((masks == row["id"]).sum()), "images": COUNT}


# ---------------------------------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["shapes"], "data.source=shapes"),
        (["nowhere"], "no recipe 'nowhere' here or among the shipped ones"),
        (["nowhere"], "nowhere is not a folder either."),
        (["camvid", "data.pth=x"], "did you mean data.path"),
        (["camvid", "data.path=gone"], "does not exist"),
        (["shapes", "--choice", "3"], "--choice 3: goes with a folder"),
        (["empty"], "no pairs of images and masks"),
        (["nowhere", "-o", "file"], "file is not a folder; choose another folder"),
        (["nowhere", "-o", "file/in/it"], "file is not a folder; choose another folder"),
        (["camvid"], "is a folder here and also the recipe camvid.yaml"),
    ],
)
def test_mistakes_are_one_message(tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    folder(tmp_path / "data")
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("mine")
    if arguments == ["camvid"]:
        (tmp_path / "camvid").mkdir()
    done = CliRunner().invoke(cli.app, ["doctor", *arguments])
    assert isinstance(done.exception, UserError)
    assert message in str(done.exception)
    assert not (tmp_path / "runs").exists()
    assert (tmp_path / "file").read_text() == "mine"


def test_the_default_folder_is_checked_before_the_data_is_read(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").write_text("mine")
    done = CliRunner().invoke(cli.app, ["doctor", "nowhere"])
    assert isinstance(done.exception, UserError)
    assert "runs is not a folder; choose another folder" in str(done.exception)


def test_only_a_set_without_warnings_is_called_clean(tmp_path):
    target = recipe(folder(tmp_path / "data"))
    arguments = ["doctor", target, "-o", str(tmp_path / "out")]
    assert (
        CliRunner().invoke(cli.app, arguments).stdout.endswith("Clean: no problem, 0 warnings.\n")
    )
    same = CliRunner().invoke(cli.app, [*arguments, "data.val_split=train"])
    assert same.exit_code == 0
    assert same.stdout.endswith("\nNo problem, 1 warning.\n")
    assert "clean</span>" not in (tmp_path / "out/doctor.html").read_text()


def test_a_list_of_classes_that_one_mask_contradicts(tmp_path):
    root = folder(tmp_path / "data")
    (root / "classes.txt").write_text("sky\nroad\ncar\n")
    stray = regions(3)
    stray[:20] = 7
    save(stray, root / "masks/train/3.png")
    reason = "classes.txt lists 3 names, but masks hold 0, 1, 2, 7"
    assert [line for line in examine(str(root)).seen if reason in line]
    # A few pixels are a slip: the list holds without them.
    stray = regions(3)
    stray[0, :5] = 7
    save(stray, root / "masks/train/3.png")
    done = examine(str(root))
    assert done.expected.labels.names == ("sky", "road", "car")
    assert kinds(done)["rare-value"] == {"3.png"}


def test_an_ambiguous_folder_is_a_question(tmp_path):
    root = folder(tmp_path / "data")
    shutil.copytree(root / "masks", root / "other")
    arguments = ["doctor", str(root), "-o", str(tmp_path / "out")]
    done = CliRunner().invoke(cli.app, arguments)
    assert "choose one with --choice" in str(done.exception)
    done = CliRunner().invoke(cli.app, [*arguments, "--choice", "3"])
    assert "--choice 3: these layouts fit:" in str(done.exception)
    assert CliRunner().invoke(cli.app, [*arguments, "--choice", "1"]).exit_code == 0
    with pytest.raises(UserError, match="2 layouts fit"):
        examine(str(root))


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="signals as POSIX has them")
def test_ctrl_c_ends_it_at_once_and_leaves_nothing(tmp_path):
    folder(tmp_path / "data")
    source = min((tmp_path / "data/images/train").iterdir())
    mask = tmp_path / "data/masks/train" / source.name
    for i in range(5000):
        os.link(source, tmp_path / f"data/images/train/more{i}.png")
        os.link(mask, tmp_path / f"data/masks/train/more{i}.png")
    command = [sys.executable, "-m", "finetune.cli", "doctor", recipe(tmp_path / "data")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        [*command, "-o", str(tmp_path / "out")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        cwd=tmp_path,
    )
    assert "examining" in process.stderr.read(12)  # its bar stands: samples are being read
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "nothing was written" in errors
    assert "Traceback" not in errors
    assert not (tmp_path / "out").exists()


def test_damaged_masks_are_counted_and_blurred_ones_named(tmp_path):
    rng = np.random.default_rng(0)
    for i in range(12):
        mask = np.zeros((96, 128), np.uint8)
        mask[20 + i : 70, 30 : 90 - i] = 255
        smooth = cv2.GaussianBlur(mask, (0, 0), 12 if i == 7 else 1)
        photo = rng.integers(0, 256, (96, 128, 3), np.uint8)
        for path, array in (("images", photo), ("masks", smooth)):
            (tmp_path / "d" / path).mkdir(parents=True, exist_ok=True)
            Image.fromarray(array).save(tmp_path / f"d/{path}/{i:02}.png")
    done = CliRunner().invoke(cli.app, ["doctor", str(tmp_path / "d"), "-o", str(tmp_path / "o")])
    assert done.exit_code == 0, done.output
    found = json.loads((tmp_path / "o/doctor.json").read_text())["findings"]
    places = {finding["kind"]: finding["places"] for finding in found}
    assert len(places["mended-values"]) == 12
    assert [Path(place["files"][0]).name for place in places["far-values"]] == ["07.png"]
    assert "painted values are 0, 255" in done.output
