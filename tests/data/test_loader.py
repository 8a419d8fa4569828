"""The order and the crops: pure functions of the seed and the position."""

import itertools
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
import torch

from finetune.augment import TrainTransform
from finetune.data.loader import eval_loader, train_loader
from finetune.data.order import GlobalOrder
from finetune.data.sources.opening import open_split
from finetune.data.sources.shapes import shapes
from finetune.errors import UserError
from finetune.inference import InferenceProtocol
from finetune.recipe import load_recipe

SAMPLES = 24


def order(rank=0, world_size=1, micro_batch=4, accumulation=1, first=0, last=12, seed=7):
    return GlobalOrder(
        SAMPLES,
        seed=seed,
        micro_batch=micro_batch,
        accumulation=accumulation,
        rank=rank,
        world_size=world_size,
        first_step=first,
        last_step=last,
    )


def transform():
    return TrainTransform((32, 32), scale=(0.5, 2.0), ignore_index=255, image_fill=(124, 116, 104))


def crops(workers, **kwargs):
    samples = shapes("train", num_samples=SAMPLES, size=(48, 48), seed=0)
    loader = train_loader(samples, transform(), order(**kwargs), workers=workers, pin_memory=False)
    return list(loader)


@pytest.mark.slow
def test_the_same_crops_with_any_number_of_workers_and_none_repeated():
    runs = [crops(workers) for workers in (0, 2, 3)]  # 12 steps of 4: two epochs of 24
    assert [len(run) for run in runs] == [12, 12, 12]
    for run in runs[1:]:
        for one, other in zip(runs[0], run, strict=True):
            assert one["ids"] == other["ids"]
            assert torch.equal(one["pixel_values"], other["pixel_values"])
            assert torch.equal(one["labels"], other["labels"])
    ids = [name for batch in runs[0] for name in batch["ids"]]
    assert sorted(ids[:SAMPLES]) == sorted(ids[SAMPLES:]) == sorted(set(ids))
    assert ids[:SAMPLES] != ids[SAMPLES:]
    pictures = {image.tobytes() for batch in runs[0] for image in batch["pixel_values"].numpy()}
    assert len(pictures) == 2 * SAMPLES


def test_a_batch_is_bytes():
    batch = crops(0)[0]
    assert batch["pixel_values"].dtype == torch.uint8
    assert batch["pixel_values"].shape == (4, 32, 32, 3)
    assert batch["labels"].dtype == torch.uint8
    assert batch["labels"].shape == (4, 32, 32)


@pytest.mark.parametrize(("world_size", "micro_batch", "accumulation"), [(1, 2, 2), (2, 2, 1)])
def test_processes_and_accumulation_share_the_same_steps(world_size, micro_batch, accumulation):
    whole = [sorted(step) for step in order()]
    shares = [
        list(
            order(
                rank=rank,
                world_size=world_size,
                micro_batch=micro_batch,
                accumulation=accumulation,
            )
        )
        for rank in range(world_size)
    ]
    assert all(len(share) == 12 * accumulation for share in shares)
    for step in range(12):
        turns = slice(step * accumulation, (step + 1) * accumulation)
        joined = itertools.chain.from_iterable(
            itertools.chain.from_iterable(share[turns]) for share in shares
        )
        assert sorted(joined) == whole[step]


def test_a_resume_goes_on_where_it_stopped():
    assert list(order(first=5)) == list(order())[5:]
    assert len(order(first=5)) == 7


def test_every_epoch_holds_every_sample_once_in_another_order():
    addresses = list(itertools.chain.from_iterable(order(last=18)))  # three epochs
    assert [position for position, _ in addresses] == list(range(72))
    epochs = [[index for _, index in addresses[i : i + 24]] for i in (0, 24, 48)]
    for epoch in epochs:
        assert sorted(epoch) == list(range(SAMPLES))
    assert len({tuple(epoch) for epoch in epochs}) == 3
    assert list(order(seed=8)) != list(order(seed=7))


class Files:
    """Samples of different sizes, as a folder has them."""

    def __init__(self, bad=None):
        self.bad = bad

    def __len__(self):
        return 7

    def __getitem__(self, index):
        if index == self.bad:
            raise UserError(f"picture-{index}.png: cannot be read")
        size = (40, 60) if index % 3 else (60, 40)
        return {
            "image": np.full((*size, 3), index, np.uint8),
            "mask": np.full(size, index, np.uint8),
            "id": str(index),
        }


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("batch_size", [1, 3])
def test_evaluation_serves_every_image_once(world_size, batch_size):
    seen, compositions = Counter(), set()
    for rank in range(world_size):
        for batch in eval_loader(
            Files(),
            InferenceProtocol(),
            batch_size=batch_size,
            rank=rank,
            world_size=world_size,
            workers=0,
            pin_memory=False,
        ):
            seen.update(batch["ids"])
            compositions.add(tuple(batch["ids"]))
            for image, labels, name in zip(
                batch["pixel_values"], batch["labels"], batch["ids"], strict=True
            ):
                assert (image == int(name)).all()
                assert (labels == int(name)).all()
                assert image.shape[:2] == labels.shape
    assert seen == Counter(map(str, range(7)))
    if batch_size == 3:  # cut by index first: the same forward passes on any number of processes
        assert compositions == {("0",), ("1", "2"), ("3",), ("4", "5"), ("6",)}


@pytest.mark.parametrize("workers", [0, 1])
def test_a_bad_file_is_one_message(workers):
    with pytest.raises(UserError) as caught:
        list(
            eval_loader(
                Files(bad=4),
                InferenceProtocol(),
                batch_size=1,
                rank=0,
                world_size=1,
                workers=workers,
                pin_memory=False,
            )
        )
    assert str(caught.value) == "picture-4.png: cannot be read"


def test_shapes_splits_do_not_depend_on_the_training_seed():
    pictures = []
    for overrides in ([], ["seed=5"]):
        recipe = load_recipe("shapes", overrides)
        labels = recipe.labels.build()
        train = open_split(recipe.data, labels, "train")
        val = open_split(recipe.data, labels, "val")
        assert len(train) == recipe.data.train_samples
        assert len(val) == recipe.data.val_samples
        assert train[0]["id"] != val[0]["id"]
        assert not np.array_equal(train[0]["image"], val[0]["image"])
        pictures.append(val[0]["image"])
    assert np.array_equal(*pictures)


PROGRAM = """
from finetune.augment import TrainTransform
from finetune.data.loader import train_loader
from finetune.data.order import GlobalOrder
from finetune.data.sources.shapes import shapes

loader = train_loader(
    shapes("train", num_samples=4, size=(48, 48), seed=0),
    TrainTransform((32, 32), ignore_index=255, image_fill=(0, 0, 0)),
    GlobalOrder(
        4, seed=0, micro_batch=2, accumulation=1, rank=0, world_size=1, first_step=0, last_step=99
    ),
    workers=1,
    pin_memory=False,
)
next(loader)
print("left", flush=True)
{end}
"""


@pytest.mark.slow
@pytest.mark.parametrize("end", ["", "raise RuntimeError('a failure that nobody catches')"])
def test_a_program_that_leaves_its_loader_open_ends(end):
    """Workers ignore the SIGTERM of a scheduler, but not that of their own process at its end."""
    ended = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(end=end)], capture_output=True, text=True, timeout=60
    )
    assert ended.stdout == "left\n", ended.stderr
    assert ended.returncode == bool(end)
