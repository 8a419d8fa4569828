"""`finetune pack`: what comes out is what went in, whatever stops it in between."""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import datasets
import fsspec
import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from typer.testing import CliRunner

from finetune import cli
from finetune.data.sources.hub import hub_shards
from finetune.data.sources.opening import open_split, stream_split
from finetune.errors import UserError
from finetune.labels.translation import Labels
from finetune.programs import pack
from finetune.recipe import Recipe, load_recipe
from finetune.train import fit

ROOT = Path(__file__).resolve().parents[2]
SPLITS = {"train": 11, "val": 4}


@pytest.fixture(autouse=True)
def small(tmp_path, monkeypatch):
    """Files of five samples in row groups of two, so that a handful makes several."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "hf"))
    monkeypatch.setattr(pack, "SHARD", 5)
    monkeypatch.setattr(pack, "ROW_GROUP", 2)


@pytest.fixture
def source(shared_data, tmp_path) -> Path:
    """A few pictures of CamVid."""
    for split, count in SPLITS.items():
        for folder in (split, f"{split}annot"):
            (tmp_path / "set" / folder).mkdir(parents=True)
        for image in sorted((shared_data / "camvid" / split).glob("*.jpg"))[:count]:
            mask = shared_data / "camvid" / f"{split}annot" / f"{image.stem}.png"
            shutil.copy(image, tmp_path / "set" / split)
            shutil.copy(mask, tmp_path / "set" / f"{split}annot")
    return tmp_path / "set"


def camvid(source: Path, *more: str) -> Recipe:
    return load_recipe("camvid", [f"data.path={source}", *more])


def samples_of(recipe: Recipe, split: str) -> list[dict]:
    data = open_split(recipe.data, recipe.labels.build(), split)
    return [data[i] for i in range(len(data))]


def assert_same(found: list[dict], expected: list[dict]) -> None:
    assert [sample["id"] for sample in found] == [sample["id"] for sample in expected]
    for one, other in zip(found, expected, strict=True):
        assert np.array_equal(one["image"], other["image"])
        assert np.array_equal(one["mask"], other["mask"])
        assert one["mask"].dtype == other["mask"].dtype


def files(output: Path) -> dict[str, tuple[bytes, int]]:
    return {
        path.name: (path.read_bytes(), path.stat().st_mtime_ns)
        for path in sorted((output / "data").iterdir())
    }


def test_the_same_samples_come_out(source, tmp_path):
    output = tmp_path / "packed"
    done = pack.pack(camvid(source), output, workers=2)
    assert done.samples == SPLITS
    assert [path.name for path in sorted((output / "data").iterdir())] == [
        *(f"train-0000{i}-of-00003.parquet" for i in range(3)),
        "val-00000-of-00001.parquet",
    ]
    whole, streamed = (
        load_recipe(output / "recipe.yaml", [f"data.streaming={s}"]) for s in ("false", "true")
    )
    for split in SPLITS:
        expected = samples_of(camvid(source), split)
        assert_same(samples_of(whole, split), expected)
        stream = stream_split(streamed.data, streamed.labels.build(), split)
        assert_same(list(stream.samples(stream.shards, 0, len(stream))), expected)
    assert whole.labels.names == camvid(source).labels.names
    assert whole.train == camvid(source).train
    assert whole.output != camvid(source).output


def test_images_are_the_bytes_that_they_were_and_others_can_read_it(source, tmp_path):
    """By `datasets` alone, which finds the splits by the card."""
    pack.pack(camvid(source), tmp_path / "packed", workers=1)
    data = datasets.load_dataset(str(tmp_path / "packed"))
    assert {split: len(rows) for split, rows in data.items()} == SPLITS
    encoded = data["val"].cast_column("image", datasets.Image(decode=False))
    for row, decoded in zip(encoded, data["val"], strict=True):
        file = source / "val" / f"{row['id']}.jpg"
        assert row["image"] == {"bytes": file.read_bytes(), "path": file.name}
        raw = np.asarray(Image.open(source / "valannot" / f"{row['id']}.png"))
        assert np.array_equal(np.asarray(decoded["mask"]), np.where(raw == 11, 255, raw))


def test_a_class_is_one_row_of_the_card():
    labels = Labels.build(["a\nb|c", "<i>"])
    rows = [line for line in pack._card("x", labels, {"train": 1}).splitlines() if line[:1] == "|"]
    assert rows[2:] == [r"| 0 | a b\|c |", "| 1 | &lt;i&gt; |"]


def test_the_output_is_checked_before_the_data_is_read(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UserError, match="file is not a folder; choose another folder"):
        pack.pack(camvid(tmp_path / "gone"), tmp_path / "file")


def test_the_index(source, tmp_path):
    output = tmp_path / "packed"
    pack.pack(camvid(source), output)
    index = json.loads((output / "index.json").read_text())
    assert index["labels"]["names"] == camvid(source).labels.names
    assert index["labels"]["ignore"] == [255]
    for split, count in SPLITS.items():
        assert index["splits"][split]["num_samples"] == count
        for shard in index["splits"][split]["shards"]:
            path = output / shard["file"]
            assert shard["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
            assert shard["bytes"] == path.stat().st_size
            assert shard["num_samples"] == pq.read_metadata(path).num_rows
            assert max(shard["row_groups"]) <= 2


def test_from_a_bucket(source, tmp_path):
    output = tmp_path / "packed"
    pack.pack(camvid(source), output)
    memory = fsspec.filesystem("memory")
    memory.put(str(output), "/cluster", recursive=True)
    recipe = load_recipe(
        output / "recipe.yaml", ["data.path=memory://cluster", "data.streaming=true"]
    )
    stream = stream_split(recipe.data, recipe.labels.build(), "train")
    found = list(stream.samples(stream.shards, 0, len(stream)))
    assert_same(found, samples_of(camvid(source), "train"))
    with pytest.raises(UserError, match=r"no split 'test'; there are train, val"):
        hub_shards("memory://cluster", "test")


def test_what_is_written_does_not_depend_on_threads_and_is_not_written_again(source, tmp_path):
    first = pack.pack(camvid(source), tmp_path / "one", workers=1)
    pack.pack(camvid(source), tmp_path / "three", workers=3)
    one, three = files(tmp_path / "one"), files(tmp_path / "three")
    assert {name: data for name, (data, _) in one.items()} == {
        name: data for name, (data, _) in three.items()
    }
    again = pack.pack(camvid(source), tmp_path / "one")
    assert (first.kept, again.kept) == (0, 4)
    assert files(tmp_path / "one") == one


def test_only_what_has_changed_is_written_again(source, tmp_path):
    output = tmp_path / "packed"
    pack.pack(camvid(source), output)
    before = files(output)
    mask = sorted((source / "trainannot").iterdir())[7]
    Image.fromarray(np.zeros((360, 480), np.uint8)).save(mask)
    damaged = bytearray(before["train-00000-of-00003.parquet"][0])
    damaged[len(damaged) // 2] ^= 1
    (output / "data/train-00000-of-00003.parquet").write_bytes(damaged)
    assert pack.pack(camvid(source), output).kept == 2
    after = files(output)
    assert after["train-00000-of-00003.parquet"][0] == before["train-00000-of-00003.parquet"][0]
    assert after["train-00001-of-00003.parquet"] != before["train-00001-of-00003.parquet"]
    for name in ("train-00002-of-00003.parquet", "val-00000-of-00001.parquet"):
        assert after[name] == before[name]
    for image in sorted((source / "train").iterdir())[:3]:
        image.unlink()
        (source / "trainannot" / f"{image.stem}.png").unlink()
    pack.pack(camvid(source), output)
    assert_same(
        samples_of(load_recipe(output / "recipe.yaml"), "train"),
        samples_of(camvid(source), "train"),
    )
    assert len(files(output)) == 3  # 8 samples: two files, and the one of val


def test_a_pack_that_is_not_finished_is_no_set(source, tmp_path):
    """Neither the first one, nor one over an older, whole one."""
    output = tmp_path / "packed"
    pack.pack(camvid(source), output)
    for image in sorted((source / "train").iterdir())[:2]:
        image.unlink()
        (source / "trainannot" / f"{image.stem}.png").unlink()
    bad = sorted((source / "train").iterdir())[-1]
    whole = bad.read_bytes()
    bad.write_bytes(whole[:2000])
    with pytest.raises(UserError, match="cannot be read"):
        pack.pack(camvid(source), output)
    recipe = load_recipe(output / "recipe.yaml")
    for opened in (open_split, stream_split):
        with pytest.raises(UserError, match=r"an unfinished pack"):
            opened(recipe.data, recipe.labels.build(), "train")
    bad.write_bytes(whole)
    pack.pack(camvid(source), output)
    found = load_recipe(output / "recipe.yaml")
    assert_same(samples_of(found, "train"), samples_of(camvid(source), "train"))
    shard = output / "data/train-00001-of-00002.parquet"
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(UserError, match=r"00001-of-00002\.parquet: differs from .*index\.json"):
        samples_of(found, "train")


# It stops in the middle of the second file until a file `go` appears.
HELD = """
import sys, time
from pathlib import Path
from finetune.programs import pack
from finetune.recipe import load_recipe
source, output, reached, go = map(Path, sys.argv[1:])
pack.SHARD, pack.ROW_GROUP = 5, 2
in_order = pack.in_order
def held(*arguments):
    for number, row in enumerate(in_order(*arguments)):
        if number == 3 and (output / "data/train-00000-of-00003.parquet").exists():
            reached.touch()
            while not go.exists():
                time.sleep(0.01)
        yield row
pack.in_order = held
pack.pack(load_recipe("camvid", [f"data.path={source}"]), output, workers=1)
"""


def held(source, output):
    """A call in the middle of its second file."""
    reached, go = output.with_name("reached"), output.with_name("go")
    process = subprocess.Popen(
        [sys.executable, "-c", HELD, *map(str, (source, output, reached, go))],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stderr=subprocess.DEVNULL,
    )
    while not reached.exists():
        assert process.poll() is None
        time.sleep(0.01)
    return process


@pytest.mark.slow
def test_two_at_once(source, tmp_path):
    output = tmp_path / "packed"
    process = held(source, output)
    with pytest.raises(UserError, match="another `finetune pack` is writing there"):
        pack.pack(camvid(source), output)
    (tmp_path / "go").touch()
    assert process.wait(120) == 0
    assert pack.pack(camvid(source), output).kept == 4


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (".pack.json", "", r"\.pack\.json: is damaged"),
        (".pack.json", "[1]", r"\.pack\.json: is damaged"),
        ("index.json", '{"finetune": "1", "labels": {}, "splits": {"train": {}}}', "is damaged"),
    ],
)
def test_damaged_descriptions(source, tmp_path, name, content, message):
    output = tmp_path / "packed"
    pack.pack(camvid(source), output)
    (output / name).write_text(content)
    recipe = load_recipe(output / "recipe.yaml")
    again = {
        ".pack.json": lambda: pack.pack(camvid(source), output),
        "index.json": lambda: samples_of(recipe, "train"),
    }
    with pytest.raises(UserError, match=message):
        again[name]()


def test_an_index_names_files_of_its_folder_only(source, tmp_path):
    output = tmp_path / "packed"
    pack.pack(camvid(source), output)
    index = json.loads((output / "index.json").read_text())
    for name in ("../x.parquet", "/x.parquet", "data/../../x.parquet", "s3://x/y.parquet"):
        index["splits"]["train"]["shards"][0]["file"] = name
        (output / "index.json").write_text(json.dumps(index))
        with pytest.raises(UserError, match="lies outside its folder"):
            hub_shards(str(output), "train")


def test_names_of_splits_that_nobody_could_read(source, tmp_path):
    with pytest.raises(UserError, match=r"data\.val_split: 'held-back' cannot name a split"):
        pack.pack(
            camvid(source, "data.val_fraction=0.2", "data.val_split=held-back"), tmp_path / "p"
        )
    assert not (tmp_path / "p").exists()


def test_a_bad_sample_stops_it_and_loses_nothing(source, tmp_path):
    output = tmp_path / "packed"
    bad = sorted((source / "train").iterdir())[7]
    whole = bad.read_bytes()
    bad.write_bytes(whole[:2000])
    with pytest.raises(UserError, match=rf"{bad.name}: cannot be read"):
        pack.pack(camvid(source), output)
    assert list(files(output)) == ["train-00000-of-00003.parquet"]
    assert not (output / "index.json").exists()
    bad.write_bytes(whole)
    assert pack.pack(camvid(source), output).kept == 1
    assert_same(
        samples_of(load_recipe(output / "recipe.yaml"), "train"),
        samples_of(camvid(source), "train"),
    )


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_killed_and_run_again(source, tmp_path, number):
    output = tmp_path / "packed"
    process = held(source, output)
    process.send_signal(number)
    assert process.wait(60) != 0
    assert not (output / "index.json").exists()
    assert pack.pack(camvid(source), output).kept == 1
    assert not list(output.glob("data/.*"))
    pack.pack(camvid(source), tmp_path / "other")
    assert {name: data for name, (data, _) in files(output).items()} == {
        name: data for name, (data, _) in files(tmp_path / "other").items()
    }


def test_folders_of_something_else_are_refused(source, tmp_path):
    output = tmp_path / "packed"
    pack.pack(camvid(source), output)
    with pytest.raises(UserError, match=r"something else \(labels\.unknown differs\)"):
        pack.pack(camvid(source, "labels.unknown=ignore"), output)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.tex").write_text("")
    with pytest.raises(UserError, match=r"holds other files \(thesis\.tex\)"):
        pack.pack(camvid(source), tmp_path / "mine")
    with pytest.raises(UserError, match="draws its pictures"):
        pack.pack(load_recipe("shapes"), tmp_path / "new")
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["thesis.tex"]


@pytest.mark.slow
def test_the_command_and_training_on_what_it_wrote(source, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(cli.app, ["pack", "camvid", "packed", f"data.path={source}"])
    assert done.exit_code == 0, done.output
    assert "train: 11 images" in done.stdout
    small = ["model.depths=[1,1,1,1]", "model.hidden_sizes=[8,16,40,64]", "data.workers=0"]
    small += ["train.steps=2", "train.global_batch=2", "augment.crop=[64,64]"]
    run = fit(load_recipe("packed/recipe.yaml", [*small, "data.streaming=true", "output=run"]))
    assert 0 <= run.metrics["eval/mean_iou"] <= 1
