"""Streaming: every sample once an epoch, the same after a stop, on any sharing of the work."""

import io
import itertools
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import datasets
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from finetune.augment import TrainTransform
from finetune.data.columns import Columns
from finetune.data.loader import eval_loader, train_loader
from finetune.data.order import StreamOrder
from finetune.data.sources.hub import hub_shards
from finetune.data.stream import BLOCK, Streamed
from finetune.errors import UserError
from finetune.inference import InferenceProtocol
from finetune.labels.translation import Labels
from finetune.recipe import load_recipe
from finetune.trainers import Share
from finetune.trainers.segmentation import SegmentationTask

ROOT = Path(__file__).resolve().parents[2]
LABELS = Labels.build(["a", "b", "c"])
COLUMNS = Columns(id="name")
SHARDS = (61, 17, 48, 90, 33, 48, 29, 58)  # 384 in all: 4, 8 and 12 divide it
COUNT = sum(SHARDS)


def encoded(array: np.ndarray) -> dict:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "PNG")
    return {"bytes": buffer.getvalue(), "path": None}


def write_shards(folder: Path, split: str, sizes=SHARDS) -> None:
    """Pictures of 16 x 16 that hold their own number."""
    folder.mkdir(parents=True, exist_ok=True)
    numbers = iter(range(sum(sizes)))
    for turn, size in enumerate(sizes):
        rows = [
            {
                "image": encoded(np.full((16, 16, 3), (n // 256, n % 256, turn), np.uint8)),
                "mask": encoded(np.full((16, 16), n % 3, np.uint8)),
                "name": f"{n}",
            }
            for n in itertools.islice(numbers, size)
        ]
        features = datasets.Features(
            {"image": datasets.Image(), "mask": datasets.Image(), "name": datasets.Value("string")}
        )
        table = datasets.Dataset.from_list(rows, features=features)
        name = f"{split}-{turn:05d}-of-{len(sizes):05d}.parquet"
        table.to_parquet(folder / name, batch_size=13)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("stream")
    write_shards(root / "data", "train")
    write_shards(root / "data", "val", (5, 9, 3))
    return root


@pytest.fixture(scope="module")
def streamed(folder) -> Streamed:
    return Streamed(hub_shards(str(folder), "train"), LABELS, COLUMNS)


def transform() -> TrainTransform:
    return TrainTransform(
        (16, 16), scale=(1, 1), photometric=False, flip=0, ignore_index=255, image_fill=(0, 0, 0)
    )


def served(streamed, *, world_size=1, workers=0, micro_batch=4, accumulation=1, first=0, last=None):
    """The batches of each process, by step."""
    orders = [
        StreamOrder(
            len(streamed),
            seed=5,
            micro_batch=micro_batch,
            accumulation=accumulation,
            rank=rank,
            world_size=world_size,
            workers=workers,
            first_step=first,
            last_step=COUNT // (micro_batch * accumulation * world_size) if last is None else last,
        )
        for rank in range(world_size)
    ]
    return [
        list(train_loader(streamed, transform(), order, workers=workers, pin_memory=False))
        for order in orders
    ]


def names(ranks) -> list[str]:
    return [name for batches in ranks for batch in batches for name in batch["ids"]]


@pytest.mark.slow
@pytest.mark.parametrize(("world_size", "workers"), [(1, 0), (2, 2), (3, 1)])
def test_every_sample_once_an_epoch(streamed, world_size, workers):
    steps = COUNT // (4 * world_size)
    ranks = served(streamed, world_size=world_size, workers=workers, last=2 * steps)
    assert [len(batches) for batches in ranks] == [2 * steps] * world_size
    first, second = (names([b[:steps] for b in ranks]), names([b[steps:] for b in ranks]))
    assert sorted(map(int, first)) == sorted(map(int, second)) == list(range(COUNT))
    assert first != second
    assert first != sorted(first, key=int)
    for batch in ranks[0][:5]:  # the picture and the mask of that very name
        numbers = torch.tensor([int(name) for name in batch["ids"]])
        pixels = batch["pixel_values"][:, 0, 0].long()
        assert torch.equal(pixels[:, 0] * 256 + pixels[:, 1], numbers)
        assert torch.equal(batch["labels"][:, 3, 3].long(), numbers % 3)


@pytest.mark.slow
@pytest.mark.parametrize(("world_size", "workers"), [(1, 0), (2, 2), (3, 1)])
def test_the_rest_of_an_epoch_is_the_same_after_a_stop(streamed, world_size, workers):
    steps = COUNT // (4 * world_size)
    whole = served(streamed, world_size=world_size, workers=workers, last=steps + 7)
    for stop in (1, steps // 2, steps - 1, steps + 2):
        rest = served(streamed, world_size=world_size, workers=workers, first=stop, last=steps + 7)
        for before, after in zip(whole, rest, strict=True):
            assert [batch["ids"] for batch in after] == [b["ids"] for b in before[stop:]]
            for one, other in zip(before[stop:], after, strict=True):
                assert torch.equal(one["pixel_values"], other["pixel_values"])


def test_what_does_not_fill_a_global_batch_is_left_out_on_every_process(streamed):
    """384 = 27 x 14 + 6: other samples each epoch."""
    left_out = []
    for epoch in range(3):
        ranks = served(
            streamed, world_size=2, micro_batch=7, first=27 * epoch, last=27 * epoch + 27
        )
        assert [len(batches) for batches in ranks] == [27, 27]
        found = Counter(names(ranks))
        assert max(found.values()) == 1
        left_out.append({str(i) for i in range(COUNT)} - found.keys())
        assert len(left_out[-1]) == 6
    assert left_out[0] != left_out[1] != left_out[2]


def test_what_is_left_out_changes_with_one_file_too(tmp_path):
    """36 of 100 in each epoch: over 50 of them each sample comes about as often as any other."""
    write_shards(tmp_path, "train", (100,))
    one = Streamed(hub_shards(str(tmp_path), "train"), LABELS, COLUMNS)
    found = Counter(names(served(one, micro_batch=64, last=50)))
    assert sum(found.values()) == 64 * 50
    assert len(found) == 100
    assert min(found.values()) > 16  # of 32 expected


def test_each_row_group_is_read_once_in_a_lane(streamed, monkeypatch):
    """Of 90 rows in groups of 13: blocks end elsewhere."""
    read = []
    iter_batches = pq.ParquetFile.iter_batches

    def counted(self, *arguments, **options):
        read.extend(options["row_groups"])
        return iter_batches(self, *arguments, **options)

    monkeypatch.setattr(pq.ParquetFile, "iter_batches", counted)
    assert len(names(served(streamed))) == COUNT
    assert len(read) == sum(len(shard.row_groups) for shard in streamed.shards)


def test_a_file_that_changes_in_between_is_named(tmp_path):
    write_shards(tmp_path, "train", (30, 30))
    samples = Streamed(hub_shards(str(tmp_path), "train"), LABELS, COLUMNS)
    shorter = tmp_path / "train-00001-of-00002.parquet"
    pq.write_table(pq.read_table(shorter).slice(0, 7), shorter)
    with pytest.raises(UserError, match=r"train-00001.*its row groups have changed"):
        list(samples.samples(samples.shards, 0, 60))
    pq.write_table(pq.read_table(shorter).drop(["mask"]), shorter)
    samples = Streamed(hub_shards(str(tmp_path), "train"), LABELS, COLUMNS)
    with pytest.raises(UserError, match=r"train-00001.*has no column 'mask'"):
        list(samples.samples(samples.shards, 0, 37))


def test_gradient_accumulation_takes_the_same_epoch(streamed):
    ranks = served(streamed, world_size=2, micro_batch=4, accumulation=3)
    assert [len(batches) for batches in ranks] == [COUNT // 8] * 2
    assert sorted(map(int, names(ranks))) == list(range(COUNT))


def test_neighbours_are_apart(streamed):
    """Within blocks the order is drawn, and so is the order of the files."""
    order = [int(name) for name in names(served(streamed))]
    follows = sum(b - a == 1 for a, b in itertools.pairwise(order))
    assert follows < 10
    assert len(order) > BLOCK  # more than one block


@pytest.mark.parametrize(("world_size", "workers"), [(1, 0), (1, 3), (2, 0), (3, 1)])
def test_evaluation_takes_every_sample_once(folder, world_size, workers):
    samples = Streamed(hub_shards(str(folder), "val"), LABELS, COLUMNS)
    batches = [
        batch["ids"]
        for rank in range(world_size)
        for batch in eval_loader(
            samples,
            InferenceProtocol(),
            batch_size=4,
            rank=rank,
            world_size=world_size,
            workers=workers,
            pin_memory=False,
        )
    ]
    expected = [[str(i) for i in range(first, min(first + 4, 17))] for first in range(0, 17, 4)]
    assert sorted(batches, key=lambda ids: int(ids[0])) == expected  # of the same composition


# In a recipe


def recipe(folder: Path, *more: str):
    path = folder / "streamed.yaml"
    path.write_text(
        json.dumps(
            {
                "data": {
                    "source": "hub",
                    "path": str(folder),
                    "id_column": "name",
                    "streaming": True,
                    "workers": 2,
                },
                "labels": {"names": ["a", "b", "c"]},
                "augment": {"crop": [32, 32]},
                "train": {"global_batch": 8, "steps": 6, "warmup_steps": 0},
            }
        )
    )
    return load_recipe(path, more)


SMALL = [
    *["model.depths=[1,1,1,1]", "model.hidden_sizes=[8,16,40,64]", "model.decoder_hidden_size=32"],
    *["train.steps=36", "train.eval_every=36", "train.checkpoint_every=4", "train.log_every=1"],
    *["train.threads=1"],
]


def start(folder: Path, output: Path) -> subprocess.Popen:
    recipe(folder)
    command = [sys.executable, "-m", "finetune.cli", "train", "--processes", "2"]
    return subprocess.Popen(
        [*command, str(folder / "streamed.yaml"), *SMALL, f"output={output}"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        text=True,
        start_new_session=True,
    )


@pytest.mark.slow
def test_killed_in_mid_epoch_it_goes_on_with_the_same_samples(folder, tmp_path):
    """Two processes of two workers: the same weights as without the kill, to the bit."""
    whole = start(folder, tmp_path / "whole")
    assert whole.wait() == 0, whole.communicate()[0]
    output = tmp_path / "killed"
    killed = start(folder, output)
    log = output / "metrics.jsonl"
    while not (log.exists() and '"step": 9,' in log.read_text()):
        assert killed.poll() is None, killed.communicate()[0]
        time.sleep(0.02)
    for rank in ranks_of(killed.pid):
        os.kill(rank, signal.SIGKILL)
    killed.communicate()
    resumed = start(folder, output)
    said = resumed.communicate()[0]
    assert resumed.returncode == 0, said
    assert 8 <= int(re.search(r"resumed .*step-0*(\d+) ", said)[1]) < 36, said
    one, other = (load_file(run / "last/model.safetensors") for run in (tmp_path / "whole", output))
    assert one.keys() == other.keys()
    for name, weight in one.items():
        assert torch.equal(weight, other[name]), name


def ranks_of(launcher: int) -> list[int]:
    """Processes that a process started."""
    return [
        int(pid) for pid in Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split()
    ]


def go_on(task: SegmentationTask, saved: dict[str, int], world_size: int, step: int) -> None:
    """What `fit` does between a checkpoint and its first batch."""
    task.load_state_dict(saved)
    task.batches(Share(world_size=world_size), step).close()


def test_a_stop_in_mid_epoch_is_not_gone_on_with_by_others(folder, recwarn):
    task = SegmentationTask(recipe(folder))
    go_on(task, {}, world_size=2, step=0)
    saved = task.state_dict()
    assert task.num_train_samples == COUNT
    go_on(task, saved, world_size=2, step=5)
    assert not [w for w in recwarn if "epoch" in str(w.message)]
    with pytest.warns(UserWarning, match="the same samples in other batches"):
        go_on(task, saved, world_size=1, step=COUNT // 8)  # at the end of an epoch
    others = {**saved, "files": saved["files"] + 1}
    with pytest.raises(UserError, match=r"step 5 is in the middle .* have changed: other files"):
        go_on(task, others, world_size=2, step=5)
    longer = {**saved, "num_samples": COUNT + 8 * 5}  # whose epochs end elsewhere
    with pytest.raises(UserError, match=r"step 48 is in the middle"):
        go_on(task, longer, world_size=2, step=48)
    with pytest.raises(
        UserError, match=r"data\.streaming: step 5 .* \(48 steps\).*world_size 2 -> 1"
    ):
        go_on(task, saved, world_size=1, step=5)
    fewer = SegmentationTask(recipe(folder, "data.workers=1"))
    with pytest.raises(UserError, match=r"workers 2 -> 1"):
        go_on(fewer, saved, world_size=2, step=5)


def test_mistakes(folder, tmp_path):
    with pytest.raises(UserError, match=r"train\.global_batch: 1000 images, but .* has 384"):
        SegmentationTask(recipe(folder, "train.global_batch=1000")).check()
    with pytest.raises(UserError, match=r"data\.cache: disk needs all samples"):
        recipe(folder, "data.cache=disk")
    with pytest.raises(UserError, match=r"data\.val_fraction: 0\.2 needs all samples"):
        recipe(folder, "data.val_fraction=0.2")
    with pytest.raises(UserError, match=r"data\.streaming: read by source hub, not shapes"):
        load_recipe("shapes", ["data.streaming=true"])
    table = datasets.Dataset.from_dict({"image": ["a"], "mask": ["b"]})
    table.to_json(tmp_path / "train.jsonl")
    with pytest.raises(UserError, match=r"train\.jsonl is not a Parquet file"):
        hub_shards(str(tmp_path), "train")
    with pytest.raises(UserError, match=r"no split 'valid'; there are train, val"):
        SegmentationTask(recipe(folder, "data.val_split=valid")).check()
