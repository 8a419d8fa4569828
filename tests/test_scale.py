"""Twenty thousand images, and a huge one: memory and time of what reads them.

    pytest -m scale -s                 # seven minutes on two cores, 7 GB of disk
    SCALE_IMAGES=2000 pytest -m scale -s

Prints what it measured, for the pages in docs/; asserts memory, and no time.
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest

from finetune.data.loader import Batch
from finetune.data.threads import in_order
from finetune.recipe import load_recipe
from finetune.trainers import Share
from finetune.trainers.segmentation import SegmentationTask

pytestmark = [pytest.mark.scale, pytest.mark.timeout(5400)]
ROOT = Path(__file__).resolve().parents[1]
COUNT = int(os.environ.get("SCALE_IMAGES", "20000"))
GIB = 2**30


@pytest.fixture(scope="module")
def data(shared_data, tmp_path_factory) -> Path:
    """Crops of CamVid, no two alike, at ADE20K's usual size: JPEG and PNG, a tenth held back."""
    sources = sorted((shared_data / "camvid/train").glob("*.jpg"))
    masks = [shared_data / "camvid/trainannot" / f"{path.stem}.png" for path in sources]
    root = tmp_path_factory.mktemp("scale")
    for folder in ("train", "trainannot", "val", "valannot"):
        (root / folder).mkdir()

    def write(number: int) -> None:
        rng = np.random.default_rng(number)
        # Held back are pictures of their own: near duplicates would be a warning for each.
        held_back = number % 10 == 0
        pool = range(330, len(sources)) if held_back else range(330)
        which = int(rng.choice(pool))
        image, mask = cv2.imread(str(sources[which])), cv2.imread(str(masks[which]), 0)
        height, width = int(rng.integers(150, 360)), int(rng.integers(200, 480))
        top, left = int(rng.integers(361 - height)), int(rng.integers(481 - width))
        window = slice(top, top + height), slice(left, left + width)
        image = cv2.resize(image[window], (683, 512), interpolation=cv2.INTER_CUBIC)
        mask = cv2.resize(mask[window], (683, 512), interpolation=cv2.INTER_NEAREST)
        image = np.clip(image * rng.uniform(0.6, 1.4), 0, 255).astype(np.uint8)
        split = "val" if held_back else "train"
        cv2.imwrite(str(root / split / f"{number:05d}.jpg"), image, [cv2.IMWRITE_JPEG_QUALITY, 85])
        cv2.imwrite(str(root / f"{split}annot" / f"{number:05d}.png"), mask)

    for _ in in_order(write, range(COUNT), os.cpu_count() or 1):
        pass
    return root


def run(*arguments: str) -> tuple[subprocess.CompletedProcess, float, int]:
    """What a command said, its seconds, and the most memory that it or a child of it had."""
    begun = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", MEASURED, *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    seconds = time.monotonic() - begun
    return done, seconds, int(done.stderr.rsplit("peak", 1)[-1]) * 1024


MEASURED = """
import resource, subprocess, sys
status = subprocess.run([sys.executable, "-m", "finetune.cli", *sys.argv[1:]]).returncode
print("peak", resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss, file=sys.stderr)
sys.exit(status)
"""


def report(what: str, seconds: float, memory: float, count: int = COUNT) -> None:
    speed = count / seconds
    line = f"{what}: {count} images, {seconds:.0f} s ({speed:.0f} a second)"
    print(f"\n{line}, {memory / GIB:.2f} GiB")


def test_doctor(data, tmp_path):
    done, seconds, peak = run("doctor", "camvid", f"data.path={data}", "-o", str(tmp_path / "out"))
    report("doctor", seconds, peak)
    found = json.loads((tmp_path / "out/doctor.json").read_text())
    print([(f["kind"], f["severity"], len(f["files"])) for f in found["findings"]])
    assert done.returncode == 0, done.stdout[-2000:]
    assert peak < 1.5 * GIB


def test_pack(data, tmp_path):
    done, seconds, peak = run("pack", "camvid", str(tmp_path / "packed"), f"data.path={data}")
    assert done.returncode == 0, done.stderr[-2000:]
    report("pack", seconds, peak)
    assert peak < 1.5 * GIB


@pytest.mark.parametrize("source", ["files", "stream"])
def test_loader(data, tmp_path, source):
    """Memory of this process and four workers, each page counted once, over an epoch."""
    settings = [f"data.path={data}", "data.workers=4", "data.cache=none", "train.global_batch=8"]
    settings += [f"train.steps={COUNT * 9 // 10 // 8}", "augment.crop=[256,256]"]
    recipe = load_recipe("camvid", settings)
    if source == "stream":
        done, _, _ = run("pack", "camvid", str(tmp_path / "packed"), *settings)
        assert done.returncode == 0, done.stderr[-2000:]
        recipe = load_recipe(tmp_path / "packed/recipe.yaml", ["data.streaming=true"])
    task = SegmentationTask(recipe)
    seen: list[int] = []
    begun = time.monotonic()
    batches = task.batches(Share(), 0)
    for step, batch in enumerate(batches):
        assert_whole(batch)
        if step % (recipe.train.steps // 20) == 0:
            seen.append(proportional_memory())
    report(f"loader from {source}", time.monotonic() - begun, max(seen), recipe.train.steps * 8)
    print([f"{memory / GIB:.2f}" for memory in seen])
    # After the first tenth, in which workers start and buffers fill.
    assert max(seen[2:]) < 1.1 * seen[2] + 0.05 * GIB


def assert_whole(batch: Batch) -> None:
    assert batch["pixel_values"].shape == (8, 256, 256, 3)


def proportional_memory() -> int:
    """Bytes of this process and its children; of a shared page each one's share."""
    own = os.getpid()
    children = Path(f"/proc/{own}/task/{own}/children").read_text().split()
    total = 0
    for process in (own, *children):
        rollup = Path(f"/proc/{process}/smaps_rollup").read_text()
        total += int(rollup.partition("\nPss:")[2].split()[0]) * 1024
    return total


HUGE = """
import resource, sys, time
import torch
from finetune.inference import Preprocessing, Segmenter
from finetune.segformer import VARIANTS, SegformerConfig, SegformerForSemanticSegmentation

torch.manual_seed(0)
model = SegformerForSemanticSegmentation(SegformerConfig(**VARIANTS["b0"], num_labels=150))
segmenter = Segmenter(model, Preprocessing(), names=[str(i) for i in range(150)])
begun = time.monotonic()
found = segmenter(sys.argv[1])
assert found.mask.shape == found.confidence.shape == (8000, 12000)
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
print(time.monotonic() - begun, peak)
"""


def test_huge_picture(tmp_path):
    """12,000 x 8,000 pixels, 150 classes, the confidence too: less than 3 GiB."""
    coarse = np.random.default_rng(0).integers(0, 256, (80, 120, 3), dtype=np.uint8)
    large = cv2.resize(coarse, (12_000, 8_000), interpolation=cv2.INTER_CUBIC)
    cv2.imwrite(str(tmp_path / "huge.jpg"), large)
    command = [sys.executable, "-c", HUGE, str(tmp_path / "huge.jpg")]
    out = subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT).stdout
    seconds, peak = map(float, out.split())
    print(f"\nhuge picture: {seconds:.0f} s, {peak / GIB:.2f} GiB")
    assert peak < 3 * GIB
