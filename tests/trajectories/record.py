"""Pinned trajectories: twenty steps of six small runs, which a change of the code must keep.

    python tests/trajectories/record.py                  # runs all and records them anew: a minute
    python tests/trajectories/record.py bf16 streaming   # these alone
    python tests/trajectories/record.py --compare        # says what has moved, and writes nothing

A run is a recipe beside this file. Its trajectory, in the JSON of the same name, is the loss of
every step, the loss and mean IoU of both evaluations, and the norms of the final weights. The runs
are started as people start them and read from their run folders; nothing of the package is
imported, so that these files outlive its modules.

Record anew only if a change is meant to move the numbers, and say in the commit why it does.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from safetensors.numpy import load_file

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
STEPS = 20

# Their gradients are zero but for rounding, and AdamW makes steps of such noise: softmax ignores
# what is added to all keys, and the head's batch norm what is added to a channel everywhere. The
# mean that batch norm keeps walks with them.
NOISE = re.compile(
    r"attention\.self\.key\.bias$|decode_head\.linear_c\.\d\.proj\.bias$"
    r"|encoder\.layer_norm\.3\.bias$|batch_norm\.running_mean$"
)


# ---------------------------------------------------------------------------------------- running


def start(folder: Path, *arguments: str | Path) -> str:
    """Runs Python to its end in `folder`; returns what it said."""
    done = subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=folder,
        env={
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "ACCELERATE_USE_CPU": "true",
            "HF_HUB_OFFLINE": "1",
            "HF_DATASETS_CACHE": str(folder / "datasets"),
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def train(folder: Path, name: str, *overrides: str, processes: int = 1) -> Path:
    """Trains by the recipe `name`; returns the run folder, below `folder`."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    start(
        folder,
        *(launcher if processes > 1 else []),
        *["-m", "finetune.train", "--recipe", HERE / f"{name}.yaml"],
        *["output=run", *overrides],
    )
    environment = json.loads((folder / "run" / "environment.json").read_text())
    assert environment["world_size"] == processes
    return folder / "run"


def shapes(folder: Path) -> Path:
    return train(folder, "shapes")


def weighted(folder: Path) -> Path:
    return train(folder, "weighted", f"data.path={draw(folder / 'drawn')}")


def processes(folder: Path) -> Path:
    return train(folder, "processes", processes=2)


def streaming(folder: Path) -> Path:
    path = f"data.path={draw(folder / 'drawn')}"
    start(folder, "-m", "finetune.cli", "pack", HERE / "drawn.yaml", "packed", path)
    return train(folder, "streaming", "data.path=packed")


def bf16(folder: Path) -> Path:
    return train(folder, "bf16")


def resumed(folder: Path) -> Path:
    """As a kill in the middle leaves it, and on from there."""
    path = f"data.path={draw(folder / 'drawn')}"
    run = train(folder, "resumed", path)
    for later in ("checkpoints/step-00000020", "last", "best"):
        shutil.rmtree(run / later)
    half = run / "checkpoints" / "step-00000010"
    kept = metrics(run)[:10]
    train(folder, "resumed", path)
    assert half.is_dir()
    assert metrics(run)[:10] == kept, "it went on, and did not begin again"  # the times too
    return run


RUNS: dict[str, Callable[[Path], Path]] = {
    run.__name__: run for run in (shapes, weighted, processes, streaming, bf16, resumed)
}


# ---------------------------------------------------------------------------------------- drawing


def draw(folder: Path) -> Path:
    """Streets in CamVid's layout: bands of sky, building and road, cars and people before them."""
    random = np.random.default_rng(7)
    colors = random.integers(30, 226, (12, 3))
    for split, count in {"train": 18, "val": 5}.items():
        (folder / split).mkdir(parents=True)
        (folder / f"{split}annot").mkdir()
        for index in range(count):
            mask = street(random)
            noise = random.integers(-30, 31, (*mask.shape, 3))
            image = (colors[mask] + noise).clip(0, 255).astype(np.uint8)
            Image.fromarray(image).save(folder / split / f"{index:02}.png")
            Image.fromarray(mask).save(folder / f"{split}annot" / f"{index:02}.png")
    return folder


def street(random: np.random.Generator) -> np.ndarray:
    """Class ids (H, W) of one picture; 11 is unlabelled."""
    height, width = 72, 96
    y, x = np.mgrid[:height, :width]
    mask = np.full((height, width), 3, np.uint8)  # road
    mask[: random.integers(40, 56)] = 1  # building
    mask[: random.integers(10, 30)] = 0  # sky
    for _ in range(random.integers(1, 4)):
        top, left = random.integers(30, 56), random.integers(0, 80)
        mask[top : top + 12, left : left + 22] = 8  # car
    for _ in range(random.integers(1, 3)):
        center_y, center_x = random.integers(30, 62), random.integers(4, 92)
        mask[((y - center_y) / 11) ** 2 + ((x - center_x) / 4) ** 2 < 1] = 9  # pedestrian
    left = random.integers(0, 70)
    mask[:, left : left + random.integers(0, 24)] = 11
    return mask


# ---------------------------------------------------------------------------------------- reading


def metrics(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def trajectory(run: Path) -> dict[str, Any]:
    """What is pinned of a run folder, ready for JSON."""
    rows = metrics(run)
    weights = load_file(run / "last" / "model.safetensors")
    losses = [row for row in rows if "train/loss" in row]
    evaluations = [row for row in rows if "eval/loss" in row]
    assert [row["step"] for row in losses] == list(range(1, STEPS + 1))
    assert [row["step"] for row in evaluations] == [STEPS // 2, STEPS]
    return {
        "train/loss": [digits(row["train/loss"]) for row in losses],
        "eval/loss": [digits(row["eval/loss"]) for row in evaluations],
        "eval/mean_iou": [digits(row["eval/mean_iou"]) for row in evaluations],
        "norms": {
            name: digits(np.linalg.norm(weights[name].astype(np.float64)))
            for name in sorted(weights)
            if not NOISE.search(name)
        },
    }


def digits(value: float) -> float:
    return float(f"{value:.8g}")


def pinned(name: str) -> dict[str, Any]:
    return json.loads((HERE / f"{name}.json").read_text())


def movement(found: dict[str, Any], before: dict[str, Any]) -> Iterator[str]:
    """The largest relative difference of each kind of number, and where it is."""
    for kind, values in found.items():
        others = before[kind]
        pairs = values.items() if isinstance(values, dict) else enumerate(values)
        moved = [
            (abs(value - others[key]) / max(abs(others[key]), 1e-12), key) for key, value in pairs
        ]
        largest, key = max(moved)
        yield f"{kind} {largest:.1e} ({key})"


def main() -> None:
    parser = argparse.ArgumentParser(description="Record trajectories anew.")
    parser.add_argument("runs", nargs="*", metavar="RUN", help=f"of {', '.join(RUNS)}; all")
    parser.add_argument("--compare", action="store_true", help="say what moved, write nothing")
    options = parser.parse_args()
    if unknown := set(options.runs) - RUNS.keys():
        parser.error(f"no such run: {', '.join(sorted(unknown))}")
    for name in options.runs or RUNS:
        with tempfile.TemporaryDirectory() as folder:
            found = trajectory(RUNS[name](Path(folder)))
        path = HERE / f"{name}.json"
        before = pinned(name) if path.exists() else found
        print(f"{name}: moved by {', '.join(movement(found, before))}", flush=True)
        if not options.compare:
            path.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
