"""A run as `finetune train` leaves it, with names that want escaping, and what is made of it."""

import shutil
from collections.abc import Iterator

import numpy as np
import pytest
from hub import TOKEN, Hub
from huggingface_hub import constants
from PIL import Image

from finetune.programs.push import push as program
from finetune.recipe import load_recipe
from finetune.train import fit

NASTY = 'a|b <script> "x": #'
NAMES = (NASTY, "sn_ow_y", "*tri* `angle`", "[star](x)", "never & nowhere")
COLORS = ((200, 40, 40), (40, 180, 60), (50, 70, 210), (230, 220, 80), (9, 5, 2))
SETTINGS = {
    "name": "nasty | <b>run</b>",
    "model.variant": "b0",
    "labels.names": list(NAMES),
    "labels.colors": [list(color) for color in COLORS],
    "model.depths": [1, 1, 1, 1],
    "model.hidden_sizes": [8, 16, 40, 64],
    "model.decoder_hidden_size": 32,
    "data.source": "folder",
    "data.workers": 0,
    "data.cache": "none",
    "augment.crop": [64, 64],
    "train.global_batch": 4,
    "train.steps": 4,
    "train.eval_every": 2,
    "train.log_every": 1,
    "train.warmup_steps": 1,
}


def write_data(folder):
    """Images of patches of the first four classes, more or less noisy, with their masks."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 12), ("val", 9)):
        for kind in ("images", "masks"):
            (folder / kind / split).mkdir(parents=True)
        for number in range(count):
            mask = rng.integers(0, 4, (4, 5)).repeat(16, 0).repeat(16, 1).astype(np.uint8)
            mask[:3, :4] = 255
            noise = rng.normal(0, 12 * number, (*mask.shape, 3))
            image = np.array(COLORS, float)[np.minimum(mask, 4)] + noise
            name = f"{split}-{number}.png"
            Image.fromarray(image.clip(0, 255).astype(np.uint8)).save(
                folder / "images" / split / name
            )
            Image.fromarray(mask).save(folder / "masks" / split / name)


@pytest.fixture(scope="session")
def run(tmp_path_factory):
    """A run folder, not to be written to, in a place whose name nobody needs to know."""
    place = tmp_path_factory.mktemp("private-place")
    write_data(place / "patches")
    more = {"data.path": str(place / "patches"), "output": str(place / "run")}
    fit(load_recipe("folder", {**SETTINGS, **more}))
    return place / "run"


@pytest.fixture
def hub(tmp_path, monkeypatch) -> Iterator[Hub]:
    """The Hub that this process knows, with a token for it. Large files go in parts."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no_token"))
    with Hub(tmp_path / "hub", part_size=100_000) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield hub


@pytest.fixture
def own_run(run, tmp_path):
    """A copy of it that may be changed."""
    return shutil.copytree(run, tmp_path / "private-place" / "run")


@pytest.fixture(scope="session")
def pushed(run, tmp_path_factory):
    """What a push of it would send, and what `push` says of it."""
    folder = tmp_path_factory.mktemp("push") / "staged"
    return folder, program.push(run, "me/shapes", with_code=True, dry_run=folder)
