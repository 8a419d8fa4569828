"""`finetune predict`: what it writes, what it leaves alone, and what stops it."""

import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter

import av
import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as coco
from tiny import COLORS, NAMES, save_tiny
from typer.testing import CliRunner

from finetune import cli
from finetune.errors import UserError
from finetune.inference import Segmenter
from finetune.programs.predict.inputs import collect
from finetune.programs.predict.predict import predict


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("model") / "best")


def picture(height, width, seed=0):
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (6, 7, 3), np.uint8))
    return coarse.resize((width, height), Image.Resampling.BICUBIC)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    root = tmp_path_factory.mktemp("photos")
    (root / "more").mkdir()
    for i, size in enumerate([(40, 56), (40, 56), (64, 48), (75, 110), (40, 56), (41, 57)]):
        folder = root / "more" if i % 2 else root
        picture(*size, seed=i).save(folder / f"{i}.png")
    (root / ".hidden.png").write_bytes(b"")
    (root / "notes.txt").write_text("no image")
    return root


def made(folder):
    folder.mkdir(parents=True)
    return folder


def run(*arguments):
    done = CliRunner().invoke(cli.app, ["predict", *map(str, arguments)])
    if done.exception and not isinstance(done.exception, UserError | SystemExit):
        raise done.exception
    return done


def names_of(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.*"))


def test_what_is_written(model, photos, tmp_path):
    out = tmp_path / "out"
    done = run(
        model, photos, "-o", out, "--write", "overlay,palette,confidence,coco,areas", "--json"
    )
    assert done.exit_code == 0, done.output
    facts = json.loads(done.stdout)
    assert (facts["made"], facts["there"], facts["failed"], facts["missing"]) == (6, 0, [], 0)
    expected = ["0", "2", "4", "more/1", "more/3", "more/5"]
    for folder, suffix in [
        ("ids", ".png"),
        ("palette", ".png"),
        ("confidence", ".png"),
        ("overlay", ".jpg"),
    ]:
        assert names_of(out / folder) == [name + suffix for name in expected]
    segmenter = Segmenter.load(model)
    areas = json.loads((out / "areas.json").read_text())
    with open(out / "areas.csv", newline="") as file:
        table = list(csv.DictReader(file))
    objects = json.loads((out / "coco.json").read_text())
    files = {image["file_name"]: image for image in objects["images"]}
    assert [category["name"] for category in objects["categories"]] == list(NAMES)
    for name in expected:
        image = photos / f"{name}.png"
        found = segmenter(image)
        ids = Image.open(out / f"ids/{name}.png")
        assert ids.mode == "L"
        assert np.array_equal(ids, found.mask)
        palette = Image.open(out / f"palette/{name}.png")
        assert palette.mode == "P"
        assert np.array_equal(palette, found.mask)
        assert np.array_equal(palette.convert("RGB"), found.colored())
        sure = np.asarray(Image.open(out / f"confidence/{name}.png")) / 255
        np.testing.assert_allclose(sure, found.confidence.astype(float), atol=0.003)
        shown = np.asarray(Image.open(out / f"overlay/{name}.jpg")).astype(int)
        drawn = np.asarray(found.overlay(legend=False)).astype(int)
        assert abs(shown[: drawn.shape[0], : drawn.shape[1]] - drawn).mean() < 12  # JPEG
        counted = {k: v["pixels"] for k, v in found.areas().items() if v["pixels"]}
        assert {k: v["pixels"] for k, v in areas[name].items()} == counted
        rows = [row for row in table if row["name"] == name]
        assert {row["class"]: int(row["pixels"]) for row in rows} == counted
        assert sum(float(row["share"]) for row in rows) == pytest.approx(1, abs=1e-5)
        own = files[str(image)]
        rebuilt = np.full(found.mask.shape, 255, np.uint8)
        for annotation in objects["annotations"]:
            if annotation["image_id"] == own["id"]:
                rebuilt[coco.decode(annotation["segmentation"]) > 0] = annotation["category_id"]
        assert np.array_equal(rebuilt, found.mask)
    summary = json.loads((out / "predict.json").read_text())
    assert summary["done"] == 6
    assert summary["names"] == list(NAMES)
    assert not [path for path in out.rglob(".*") if path.is_file() and ".predict" not in path.parts]


def test_annotation_tools_take_it_back(model, photos, tmp_path):
    out = tmp_path / "out"
    forms = "coco-polygons,cvat,label-studio,labelme"
    assert run(model, photos, "-o", out, "--write", forms).exit_code == 0
    files = {"coco-polygons.json", "cvat.xml", "label-studio.json", "label_config.xml"}
    before = {name: (out / name).read_bytes() for name in files}
    expected = {"0", "2", "4", "more/1", "more/3", "more/5"}
    objects = json.loads(before["coco-polygons.json"])
    assert {image["file_name"] for image in objects["images"]} == {f"{n}.png" for n in expected}
    for image in objects["images"]:
        name, size = image["file_name"].removesuffix(".png"), (image["height"], image["width"])
        ids, rebuilt = np.asarray(Image.open(out / f"ids/{name}.png")), np.full(size, 255)
        for own in objects["annotations"]:
            if own["image_id"] == image["id"]:
                rle = coco.merge(coco.frPyObjects(own["segmentation"], *size))
                rebuilt[coco.decode(rle) > 0] = own["category_id"] - 1
        assert np.array_equal(rebuilt, ids)
        shapes = json.loads((out / f"labelme/{name}.json").read_text())
        opened = (out / f"labelme/{name}.json").parent / shapes["imagePath"]
        assert opened.resolve() == (photos / f"{name}.png").resolve()
    (out / "cvat.xml").unlink()
    journal = out / ".predict/rank-0.jsonl"
    lines = [line for line in journal.read_text().splitlines() if '"pixels"' not in line]
    journal.write_text("\n".join(lines) + "\n")  # as a kill leaves it before the lines are written
    done = run(model, photos, "-o", out, "--write", forms, "--json")
    assert json.loads(done.stdout)["there"] == 6
    for name, content in before.items():  # images may be numbered in another order
        both = [
            re.sub(rb'id"?(: |=")\d+', b"", text) for text in ((out / name).read_bytes(), content)
        ]
        assert sorted(both[0]) == sorted(both[1])


def test_nothing_is_done_twice_and_what_is_new_is_done(model, photos, tmp_path):
    out = tmp_path / "out"
    assert run(model, photos / "0.png", "-o", out).exit_code == 0
    before = {path: path.stat().st_mtime_ns for path in (out / "ids").rglob("*.png")}
    done = run(model, photos, "-o", out, "--json")
    facts = json.loads(done.stdout)
    assert (facts["made"], facts["there"]) == (5, 1)
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert len(json.loads((out / "areas.json").read_text())) == 6
    # A picture whose line was lost, as by a kill between its last file and the journal.
    journal = out / ".predict/rank-0.jsonl"
    lines = journal.read_text().splitlines(keepends=True)
    last = max(i for i, line in enumerate(lines) if "pixels" in line)
    journal.write_text("".join(lines[:last]) + lines[last][:20])
    done = run(model, photos, "-o", out, "--json")
    facts = json.loads(done.stdout)
    assert (facts["made"], facts["there"]) == (0, 6)
    assert len(json.loads((out / "areas.json").read_text())) == 6


def test_batches_of_several_sizes_give_the_same_masks(model, photos, tmp_path, monkeypatch):
    segmenter = Segmenter.load(model)
    for batch_size, large in [(1, 2**25), (2, 2**25), (8, 2**25), (4, 41 * 57 - 1)]:
        monkeypatch.setattr("finetune.programs.predict.predict.LARGE", large)
        out = tmp_path / f"{batch_size}-{large}"
        predict(segmenter, [str(photos)], out, writes=[], batch_size=batch_size)
        for path in (out / "ids").rglob("*.png"):
            own = photos / path.relative_to(out / "ids")
            equal = np.asarray(Image.open(path)) == segmenter(own).mask
            assert equal.mean() > 0.999  # a tie may fall otherwise in a batch


def test_more_classes_than_a_byte_holds(tmp_path, photos):
    model = save_tiny(tmp_path / "many", names=[f"class {i}" for i in range(300)])
    out = tmp_path / "out"
    done = run(model, photos / "0.png", "-o", out, "--write", "coco")
    assert done.exit_code == 0, done.output
    ids = Image.open(out / "ids/0.png")
    assert ids.mode.startswith("I")
    assert np.array_equal(np.asarray(ids), Segmenter.load(model)(photos / "0.png").mask)
    done = run(model, photos / "0.png", "-o", tmp_path / "other", "--write", "palette")
    assert isinstance(done.exception, UserError)
    assert "--write palette" in str(done.exception)


def write_bad(folder):
    """Files that cannot be predicted, and what their message names."""
    good = picture(60, 80)
    good.save(folder / "cut.jpg")
    content = (folder / "cut.jpg").read_bytes()
    (folder / "cut.jpg").write_bytes(content[: len(content) // 2])
    (folder / "empty.png").write_bytes(b"")
    (folder / "text.png").write_text("no image")
    good.save(folder / "moving.gif", save_all=True, append_images=[picture(60, 80, 9)])
    # A PNG that claims 40,000 x 40,000 pixels, as real bombs do, in a few bytes.
    bomb = Image.new("1", (40_000, 40_000))
    Image.MAX_IMAGE_PIXELS, limit = None, Image.MAX_IMAGE_PIXELS
    bomb.save(folder / "bomb.png")
    Image.MAX_IMAGE_PIXELS = limit
    return {
        "cut.jpg": "cannot be read",
        "empty.png": "cannot be read (0 bytes)",
        "text.png": "cannot be read (8 bytes)",
        "moving.gif": "animation of 2 frames",
        "bomb.png": "more than the 178,956,970",
    }


def test_bad_files_are_named_and_the_rest_is_done(model, tmp_path):
    folder, out = tmp_path / "photos", tmp_path / "out"
    folder.mkdir()
    bad = write_bad(folder)
    picture(60, 80, 1).convert("CMYK").save(folder / "inks.jpg")
    deep = np.asarray(picture(60, 80, 2).convert("L")).astype(np.uint16) * 257
    Image.fromarray(deep).save(folder / "deep.tiff")
    picture(60, 80, 3).save(folder / "good.png")
    done = run(model, folder, folder / "moving.gif", "-o", out)
    assert done.exit_code == 2
    assert names_of(out / "ids") == ["deep.png", "good.png", "inks.png"]
    failed = json.loads((out / "predict.json").read_text())["failed"]
    assert {name.split(".")[0] for name in bad} == set(failed)
    for name, reason in bad.items():
        message = failed[name.split(".")[0]]
        assert str(folder / name) in message
        assert reason in message
        assert message.count(str(folder / name)) == 1
    assert "5 cannot be predicted" in done.output
    assert done.output.count("not predicted: ") == 5
    assert done.output.count("empty.png: cannot be read (0 bytes)") == 1
    assert "mask" not in done.stderr
    # mended, it is done
    picture(60, 80, 4).save(folder / "empty.png")
    done = run(model, folder, "-o", out, "--json")
    assert done.exit_code == 2
    facts = json.loads(done.stdout)
    assert (facts["made"], facts["there"], len(facts["failed"])) == (1, 3, 4)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["nowhere"], "nowhere: does not exist"),
        (["*.nothing"], "holds no images"),
        (["{out}"], "is also the folder of the results (-o), or lies in it; choose another"),
        (["{out}/more/*.png"], "is also the folder of the results (-o), or lies in it"),
        (["{photos}/notes.txt", "{photos}/0.png", "{copy}/0.png"], "would both be written as 0"),
        (["{photos}", "--write", "masks"], "--write masks"),
        (["{photos}", "--write", "coco,none"], "--write none: goes alone"),
        (["{photos}", "--window", "wide"], "--window 'wide'"),
        (["{photos}", "--window", "16"], "29 pixels"),
        (["{photos}", "--stride", "16"], "has no window; add --window (window), such as 1024"),
        (["{photos}", "--scales", "0,1"], "--scales"),
        (["{photos}", "--dtype", "int8"], "dtype int8"),
        (["{photos}", "--device", "cuda:7"], "cuda:7"),
        (["{photos}", "--device", "tpu9"], "device tpu9: choose cpu, cuda or cuda:N"),
        (["{photos}", "--split", "train"], "--split"),
    ],
)
def test_mistakes(model, photos, tmp_path, arguments, named):
    picture(40, 56).save(tmp_path / "0.png")
    places = {"photos": str(photos), "copy": str(tmp_path), "out": str(tmp_path / "out")}
    picture(40, 56).save(made(tmp_path / "out/more") / "1.png")
    arguments = [text.format(**places) for text in arguments]
    done = run(model, *arguments, "-o", tmp_path / "out")
    assert done.exit_code != 0
    assert isinstance(done.exception, UserError)
    assert named in str(done.exception)
    assert not (tmp_path / "out" / "ids").exists()


def test_a_folder_belongs_to_one_model(model, photos, tmp_path):
    out = tmp_path / "out"
    assert run(model, photos / "0.png", "-o", out).exit_code == 0
    other = save_tiny(tmp_path / "other", seed=1)
    done = run(other, photos / "0.png", "-o", out)
    assert "holds predictions of another call (weights differs" in str(done.exception)
    moved = shutil.copytree(model, tmp_path / "moved")
    assert run(moved, photos / "0.png", "-o", out).exit_code == 0
    done = run(model, photos / "0.png", "-o", out, "--flip")
    assert "preprocessing" in str(done.exception)
    (tmp_path / "full").mkdir()
    (tmp_path / "full/mine.txt").write_text("mine")
    done = run(model, photos / "0.png", "-o", tmp_path / "full")
    assert str(done.exception) == (
        f"{tmp_path / 'full'}: holds other files (mine.txt). Choose a new folder."
    )
    assert os.listdir(tmp_path / "full") == ["mine.txt"]
    assert (tmp_path / "full/mine.txt").read_text() == "mine"


def test_a_name_stands_for_one_picture(model, photos, tmp_path):
    out, other = tmp_path / "out", tmp_path / "other"
    other.mkdir()
    picture(40, 56, 77).save(other / "0.png")
    assert run(model, photos / "0.png", "-o", out).exit_code == 0
    before = (out / "ids/0.png").read_bytes()
    done = run(model, other / "0.png", "-o", out)
    assert f"belongs to {photos / '0.png'}, not to {other / '0.png'}" in str(done.exception)
    assert (out / "ids/0.png").read_bytes() == before
    # taken away, it is made again, and its areas are the new ones
    (out / "ids/0.png").unlink()
    assert run(model, other / "0.png", "-o", out).exit_code == 0
    found = Segmenter.load(model)(other / "0.png")
    assert np.array_equal(np.asarray(Image.open(out / "ids/0.png")), found.mask)
    areas = json.loads((out / "areas.json").read_text())["0"]
    wanted = {k: v["pixels"] for k, v in found.areas().items() if v["pixels"]}
    assert {k: v["pixels"] for k, v in areas.items()} == wanted


def test_globs_and_folders_name_their_results(photos):
    found = collect([f"{photos}/**/*.png"], photos / "out")
    assert sorted(item.name for item in found) == ["0", "2", "4", "more/1", "more/3", "more/5"]
    assert len(found) == 6
    assert [item.name for item in collect([str(photos / "more")], photos / "out")] == [
        "1",
        "3",
        "5",
    ]


def test_a_data_set(model, photos, tmp_path):
    files = sorted(photos.glob("[0-9].png"))
    rows = {"image": [str(file) for file in files], "number": [1, 2, 3]}
    data = datasets.Dataset.from_dict(rows).cast_column("image", datasets.Image())
    (tmp_path / "set/data").mkdir(parents=True)
    data.to_parquet(str(tmp_path / "set/data/train-00000-of-00001.parquet"))
    out = tmp_path / "out"
    done = run(model, f"hub:{tmp_path / 'set'}", "-o", out)
    assert done.exit_code == 0, done.output
    segmenter = Segmenter.load(model)
    for i, file in enumerate(files):
        ids = np.asarray(Image.open(out / f"ids/row-{i}.png"))
        assert np.array_equal(ids, segmenter(file).mask)
    other = datasets.Dataset.from_dict({"image": [str(photos / "more/1.png"), None]})
    other = other.cast_column("image", datasets.Image())
    other.to_parquet(str(tmp_path / "set/data/test-00000-of-00001.parquet"))
    done = run(model, f"hub:{tmp_path / 'set'}", "-o", out)
    assert "choose one with --split" in str(done.exception)
    done = run(model, f"hub:{tmp_path / 'set'}", "-o", out, "--split", "test")
    assert "Choose another folder" in str(done.exception)
    done = run(model, f"hub:{tmp_path / 'set'}", "-o", tmp_path / "test", "--split", "test")
    assert done.exit_code == 2
    assert os.listdir(tmp_path / "test/ids") == ["row-0.png"]
    assert "row 1, image: there are no bytes" in done.output
    done = run(
        *(model, f"hub:{tmp_path / 'set'}", "-o", out, "--image-column", "number"),
        *("--split", "train"),
    )
    assert "image, number" in str(done.exception)


def write_video(path, frames, rate=10):
    with av.open(str(path), "w") as target:
        stream = target.add_stream("libx264", rate=rate)
        stream.height, stream.width, stream.pix_fmt = (
            frames[0].shape[0],
            frames[0].shape[1],
            "yuv420p",
        )
        stream.options = {"crf": "1"}
        for frame in frames:
            target.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        target.mux(stream.encode())


def read_video(path):
    with av.open(str(path)) as source:
        return [(f.time, f.to_ndarray(format="rgb24")) for f in source.decode(video=0)]


def test_a_video(model, tmp_path):
    frames = [np.asarray(picture(48, 64, seed)) for seed in range(7)]
    write_video(tmp_path / "clip.mp4", frames)
    (tmp_path / "broken.mp4").write_bytes((tmp_path / "clip.mp4").read_bytes()[:600])
    out = tmp_path / "out"
    done = run(model, tmp_path / "clip.mp4", tmp_path / "broken.mp4", "-o", out, "--json")
    assert done.exit_code == 2
    facts = json.loads(done.stdout)
    assert (facts["made"], facts["frames"]) == (1, 7)
    assert "broken.mp4" in facts["failed"][0]
    assert names_of(out / "video") == ["clip.csv", "clip.mp4"]
    with (
        av.open(str(tmp_path / "clip.mp4")) as source,
        av.open(str(out / "video/clip.mp4")) as made,
    ):
        before = [(f.time, f.to_ndarray(format="rgb24")) for f in source.decode(video=0)]
        after = [(f.time, f.to_ndarray(format="rgb24")) for f in made.decode(video=0)]
    assert [time for time, _ in after] == pytest.approx([time for time, _ in before], abs=1e-3)
    segmenter = Segmenter.load(model)
    with open(out / "video/clip.csv", newline="") as file:
        table = list(csv.DictReader(file))
    for number, ((_, image), (_, shown)) in enumerate(zip(before, after, strict=True)):
        found = segmenter(image)
        drawn = np.asarray(found.overlay(legend=False)).astype(int)
        assert abs(shown.astype(int) - drawn).mean() < 12  # H.264 at its usual quality
        rows = {r["class"]: int(r["pixels"]) for r in table if int(r["frame"]) == number}
        assert rows == {k: v["pixels"] for k, v in found.areas().items() if v["pixels"]}
    total = json.loads((out / "areas.json").read_text())["clip"]
    assert sum(area["pixels"] for area in total.values()) == 7 * 48 * 64
    again = json.loads(run(model, tmp_path / "clip.mp4", "-o", out, "--json").stdout)
    assert (again["made"], again["there"]) == (0, 1)


def test_videos_that_are_cut_or_without_times(model, tmp_path):
    frames = [np.asarray(picture(48, 64, seed)) for seed in range(40)]
    write_video(tmp_path / "long.mkv", frames)
    content = (tmp_path / "long.mkv").read_bytes()
    (tmp_path / "cut.mkv").write_bytes(content[: len(content) // 2])
    write_video(tmp_path / "raw.h264", frames[:5])
    os.rename(tmp_path / "raw.h264", tmp_path / "raw.avi")
    out = tmp_path / "out"
    done = run(model, *sorted(tmp_path.glob("*.*")), "-o", out)
    assert done.exit_code == 2
    failed = json.loads((out / "predict.json").read_text())["failed"]
    assert list(failed) == ["cut"], failed
    assert "cut off or damaged" in failed["cut"]
    assert not (out / "video/cut.mp4").exists()
    times = [time for time, _ in read_video(out / "video/raw.mp4")]
    assert len(times) == 5
    assert min(np.diff(times)) > 0.01


def start(*arguments, program=("-m", "finetune.cli"), **environment):
    command = [sys.executable, *program, "predict", *map(str, arguments)]
    return subprocess.Popen(
        command, env={**os.environ, **environment}, stderr=subprocess.PIPE, text=True
    )


def wait_for(condition, process):
    end = time.monotonic() + 120
    while not condition():
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.mark.slow
def test_a_thousand_images_killed_twice(model, tmp_path):
    photos, out = tmp_path / "photos", tmp_path / "out"
    photos.mkdir()
    for i in range(1000):
        picture(32 + 8 * (i % 3), 40, i).save(photos / f"{i:04d}.jpg")
    seen = {}

    def there():
        return list((out / "ids").glob("*.png")) if out.is_dir() else []

    for goal in (200, 600):
        process = start(model, photos, "-o", out)
        wait_for(lambda goal=goal: len(there()) >= goal, process)
        process.send_signal(signal.SIGKILL)
        process.wait()
        for path in there():
            stat = path.stat()
            assert seen.setdefault(path, (stat.st_ino, stat.st_mtime_ns)) == (
                stat.st_ino,
                stat.st_mtime_ns,
            )
        assert goal <= len(seen) < 1000
    done = json.loads(run(model, photos, "-o", out, "--json").stdout)
    assert done["made"] + done["there"] == 1000
    assert done["there"] == len(seen)
    for path, before in seen.items():  # not written again
        assert (path.stat().st_ino, path.stat().st_mtime_ns) == before
    rows = [
        json.loads(line)["name"]
        for line in (out / ".predict/rank-0.jsonl").read_text().splitlines()
        if line.endswith("}") and "pixels" in line
    ]
    assert Counter(rows) == Counter(f"{i:04d}" for i in range(1000))
    assert len(json.loads((out / "areas.json").read_text())) == 1000
    assert len(there()) == len(list((out / "overlay").glob("*.jpg"))) == 1000
    for i in range(1000):  # whole
        with Image.open(out / f"ids/{i:04d}.png") as ids:
            assert np.asarray(ids).shape == (32 + 8 * (i % 3), 40)


def test_results_are_no_inputs(model, photos, tmp_path):
    folder = shutil.copytree(photos, tmp_path / "photos")
    (folder / "loop").symlink_to(folder)
    for _ in range(2):
        assert run(model, folder, "-o", folder / "out").exit_code == 0
        assert run(model, f"{folder}/**/*.png", "-o", folder / "out").exit_code == 0
    assert len(names_of(folder / "out/ids")) == 6
    assert run(model, folder, "-o", tmp_path / "other").exit_code == 0  # not those of another call
    assert len(names_of(tmp_path / "other/ids")) == 6
    with pytest.raises(UserError, match="an input is empty"):
        collect([""], tmp_path / "new")
    picture(40, 56).save(tmp_path / "beside.png")
    with pytest.raises(UserError, match="outside"):
        collect([f"{folder}/[m]ore/../../beside.png"], tmp_path / "new")
    # named twice, it is one
    assert len(collect([str(folder), str(folder / "0.png")], tmp_path / "new")) == 6


def test_what_is_passed_over_is_said(tmp_path):
    picture(40, 56).save(tmp_path / "0.png")
    os.mkfifo(tmp_path / "pipe.png")  # whose reader would wait for ever
    for name in ("notes.txt", "more.TXT", "LICENSE"):
        (tmp_path / name).touch()
    with pytest.warns(UserWarning, match=r"skipped \(2 \.txt, 1 no type\)"):
        found = collect([str(tmp_path)], tmp_path / "out")
    assert [item.name for item in found] == ["0"]
    with pytest.raises(UserError, match="neither a file nor a folder"):
        collect([str(tmp_path / "pipe.png")], tmp_path / "out")


def test_a_changed_picture_is_done_again(model, tmp_path):
    out = tmp_path / "out"
    picture(40, 56).save(tmp_path / "0.png")
    picture(40, 56, 1).save(tmp_path / "1.png")
    assert run(model, tmp_path / "0.png", tmp_path / "1.png", "-o", out).exit_code == 0
    picture(48, 64, 5).save(tmp_path / "0.png")
    (out / "ids/1.png").write_bytes(b"")  # as the machine's end may leave it
    facts = json.loads(
        run(model, tmp_path / "0.png", tmp_path / "1.png", "-o", out, "--json").stdout
    )
    assert (facts["made"], facts["there"]) == (2, 0)
    segmenter = Segmenter.load(model)
    for name in "01":
        mask = segmenter(tmp_path / f"{name}.png").mask
        assert np.array_equal(np.asarray(Image.open(out / f"ids/{name}.png")), mask)
    # tables are of all that is in the folder, whatever this call was about
    assert run(model, tmp_path / "1.png", "-o", out).exit_code == 0
    areas = json.loads((out / "areas.json").read_text())
    assert sum(area["pixels"] for area in areas["0"].values()) == 48 * 64
    assert list(areas) == ["0", "1"] or list(areas) == ["1", "0"]


def test_the_latest_word_on_a_picture_counts(model, photos, tmp_path, monkeypatch):
    folder, out = tmp_path / "photos", tmp_path / "out"
    folder.mkdir()
    picture(40, 56).save(folder / "a.png")
    (folder / "b.png").write_bytes(b"")
    segmenter = Segmenter.load(model)
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        predict(segmenter, [str(folder)], out)
    monkeypatch.delenv("WORLD_SIZE")
    monkeypatch.delenv("RANK")
    picture(40, 56, 1).save(folder / "b.png")
    outcome = predict(segmenter, [str(folder)], out)
    assert (outcome.made, outcome.there, outcome.failed, outcome.missing) == (1, 1, (), 0)
    assert len(json.loads((out / "areas.json").read_text())) == 2


def test_odd_names(model, tmp_path):
    folder, out = tmp_path / "photos", tmp_path / "out"
    folder.mkdir()
    image = picture(40, 56)
    image.save(folder / "plain.png")
    image.save(folder / f"{'n' * 251}.png")  # all that a name may have
    os.rename(folder / "plain.png", os.fsencode(folder) + b"/latin\xe9.png")
    image.save(folder / "two words, and\na line.png")
    done = run(model, folder, "-o", out, "--write", "overlay,areas,coco")
    assert done.exit_code == 0, done.output
    assert len(os.listdir(out / "ids")) == 3
    with open(out / "areas.csv", newline="") as file:
        assert len({row["name"] for row in csv.DictReader(file)}) == 3
    (folder / "taken.png").mkdir()
    (out / "ids/x.png").mkdir()
    image.save(folder / "x.png")
    image.save(folder / "y.png")
    done = run(model, folder, "-o", out, "--write", "overlay,areas,coco")
    assert done.exit_code == 2
    assert (out / "ids/y.png").is_file()


def test_what_does_not_fit_into_memory_is_named_and_the_rest_is_done(
    model, photos, tmp_path, monkeypatch
):
    segmenter = Segmenter.load(model)
    whole = segmenter.masks

    def masks(views, size, **options):
        if len(views[0]) > 1 or size == (75, 110):
            raise torch.OutOfMemoryError("no room")
        return whole(views, size, **options)

    monkeypatch.setattr(segmenter, "masks", masks)
    outcome = predict(segmenter, [str(photos)], tmp_path / "out", batch_size=4)
    assert outcome.made == 5
    assert "3.png: 110 x 75 pixels do not fit" in outcome.failed[0]
    narrow = Segmenter.load(model, shortest_edge=64)
    picture(1, 30).resize((20_000, 1)).save(tmp_path / "narrow.png")
    outcome = predict(narrow, [str(tmp_path / "narrow.png")], tmp_path / "other", max_pixels=10**6)
    assert "resized: 1280000 x 64 pixels" in outcome.failed[0]


@pytest.mark.slow
def test_wide_overlays_are_shrunk(model, tmp_path):
    picture(30, 66_000).save(tmp_path / "wide.png")
    out = tmp_path / "out"
    assert run(model, tmp_path / "wide.png", "-o", out, "--window", "64x512").exit_code == 0
    assert Image.open(out / "overlay/wide.jpg").width == 65_500
    assert Image.open(out / "ids/wide.png").width == 66_000


@pytest.mark.slow
def test_bad_files_of_one_process_do_not_stop_the_other(model, tmp_path):
    folder, out = tmp_path / "photos", tmp_path / "out"
    folder.mkdir()
    for i in range(60):
        if i % 2:
            picture(64, 64, i).save(folder / f"{i:03d}.png")
        else:
            (folder / f"{i:03d}.png").write_bytes(b"")
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2"]
    command += ["-m", "finetune.cli", "predict", str(model), str(folder), "-o", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "30 cannot be predicted" in done.stderr
    assert len(names_of(out / "ids")) == 30
    summary = json.loads((out / "predict.json").read_text())
    assert (summary["done"], summary["missing"], len(summary["failed"])) == (30, 0, 30)


@pytest.mark.slow
def test_two_processes_share_the_work(model, photos, tmp_path):
    out = tmp_path / "out"
    launch = ["accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    launch += ["--num_machines", "1", "--mixed_precision", "no", "-m", "finetune.cli"]
    arguments = ["predict", str(model), str(photos), "-o", str(out)]
    subprocess.run(
        [sys.executable, "-m", *launch, *arguments],
        check=True,
        env={**os.environ, "ACCELERATE_USE_CPU": "true"},
        capture_output=True,
    )
    shares = [
        {json.loads(line)["name"] for line in journal.read_text().splitlines()}
        for journal in sorted((out / ".predict").glob("rank-*.jsonl"))
    ]
    assert [len(share) for share in shares] == [3, 3]
    assert len(shares[0] | shares[1]) == 6
    assert len(json.loads((out / "areas.json").read_text())) == 6
    facts = json.loads(run(model, photos, "-o", out, "--json").stdout)
    assert (facts["made"], facts["there"]) == (0, 6)


# After 50 pictures it says so by a file and waits for the signal, while other threads write.
HELD = """
import os, time
from pathlib import Path
from finetune import cli
from finetune.programs.predict.outputs import Outputs
enter, finished = Outputs.enter, []
def held(self, row):
    enter(self, row)
    finished.extend([row] if "pixels" in row else [])
    if len(finished) == 50:
        Path(os.environ["REACHED"]).touch()
        time.sleep(600)
Outputs.enter = held
cli.main()
"""


@pytest.mark.slow
def test_ctrl_c_leaves_whole_files(model, tmp_path):
    photos, out, reached = tmp_path / "photos", tmp_path / "out", tmp_path / "reached"
    photos.mkdir()
    for i in range(100):
        picture(32, 40, i).save(photos / f"{i:04d}.jpg")
    process = start(model, photos, "-o", out, program=("-c", HELD), REACHED=str(reached))
    wait_for(reached.exists, process)
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 130
    assert "the same command resumes" in process.stderr.read()
    lines = (out / ".predict/rank-0.jsonl").read_text().splitlines()
    lines = [line for line in lines if "pixels" in line]
    ids = {path.stem for path in (out / "ids").glob("*.png")}
    assert {json.loads(line)["name"] for line in lines} == ids
    assert 50 <= len(ids) < 100


def test_two_calls_at_once_are_refused(model, photos, tmp_path):
    from finetune.programs.predict.outputs import Outputs

    segmenter = Segmenter.load(model)
    with (
        Outputs(tmp_path / "out", "", {}, [], list(NAMES), list(COLORS), rank=0),
        pytest.raises(UserError, match="another `finetune predict`"),
    ):
        predict(segmenter, [str(photos)], tmp_path / "out", writes=[])
