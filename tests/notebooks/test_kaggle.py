"""`03_kaggle.ipynb`, with folders instead of Kaggle's: two days, and two processes.

Not here: Kaggle itself, GPUs, and the installation from a data set of packages.
"""

import json
from pathlib import Path

import pytest
import torch
from nbclient.exceptions import CellExecutionError
from PIL import Image
from safetensors.torch import load_file

from finetune.data.sources.shapes import NAMES, draw
from finetune.programs.init import draft
from finetune.recipe import load_recipe
from finetune.train import fit

from .execution import NOTEBOOKS, execute, text

KAGGLE = NOTEBOOKS / "03_kaggle.ipynb"
STEPS = 12


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("input") / "my-images"
    for split, seed in (("train", 0), ("val", 1)):
        for kind in ("images", "masks"):
            (folder / kind / split).mkdir(parents=True)
        for i in range(8):
            image, mask = draw(seed=seed, index=i, size=(64, 64))
            Image.fromarray(image).save(folder / "images" / split / f"{i}.png")
            Image.fromarray(mask).save(folder / "masks" / split / f"{i}.png")
    (folder / "classes.txt").write_text("".join(f"{i}: {n}\n" for i, n in enumerate(NAMES)))
    return folder


def parameters(inputs: Path, **more) -> dict:
    return {"images": str(inputs), "working": ".", "earlier": "", "steps": STEPS, **more}


def rows(run: Path) -> list[dict]:
    """Without what depends on the machine's speed."""
    timed = {"seconds", "train/images_per_second"}
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k not in timed} for line in lines]


@pytest.mark.slow
def test_it_stops_in_time_and_goes_on_the_next_day(inputs, tmp_path):
    days = [tmp_path / "monday", tmp_path / "tuesday"]
    for day in days:
        day.mkdir()
    said = text(execute(KAGGLE, parameters(inputs, minutes=1e-9), days[0]))
    assert f"stopped at step 1 of {STEPS} (train.max_minutes=1e-09)" in said
    assert "to be continued" in said
    assert not (days[0] / "run" / "panel.png").exists()

    # A path that is mistyped does not begin anew in silence.
    with pytest.raises(CellExecutionError, match="no-such-day"):
        execute(KAGGLE, parameters(inputs, earlier=str(tmp_path / "no-such-day")), days[1])
    assert not (days[1] / "training.yaml").exists()

    said = text(execute(KAGGLE, parameters(inputs, earlier=str(days[0])), days[1]))
    assert "going on from step-00000001" in said
    assert f"saved step-{STEPS:08} of {STEPS}" in said
    assert not (days[0] / "run" / "panel.png").exists()  # inputs are left alone

    # As if there had been no night.
    whole = tmp_path / "whole"
    same = [f"output={whole}", f"train.steps={STEPS}", "data.cache=none"]
    fit(load_recipe(days[1] / "training.yaml", same))
    assert rows(days[1] / "run") == rows(whole)
    assert [row["step"] for row in rows(whole)] == [10, STEPS, STEPS]
    runs = (days[1] / "run", whole)
    mine, other = (load_file(run / "last" / "model.safetensors") for run in runs)
    assert mine.keys() == other.keys()
    assert all(torch.equal(mine[name], other[name]) for name in mine)


@pytest.mark.slow
def test_the_launcher_starts_two_processes(inputs, tmp_path):
    draft(inputs, tmp_path / "training.yaml", lambda layouts: layouts[0])
    values = parameters(inputs, processes=2, minutes=1e-9)
    on_cpu = {"ACCELERATE_USE_CPU": "true"}
    said = text(execute(KAGGLE, values, tmp_path, environment=on_cpu))
    assert json.loads((tmp_path / "run" / "environment.json").read_text())["world_size"] == 2
    assert said.count("stopped at step 1 of") == 1
    state = tmp_path / "run" / "checkpoints" / "step-00000001"
    assert json.loads((state / "manifest.json").read_text())["world_size"] == 2
