"""`04_colab_to_hub.ipynb`, with a small model, a handful of steps and a Hub on the loopback.

Not here: Colab itself, a GPU, logging in by a browser, and a Space that runs.
"""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hub import TOKEN, Hub
from PIL import ExifTags, Image
from safetensors.torch import load_file

from finetune.data.sources.shapes import NAMES, draw
from finetune.programs.push.push import push

from .execution import NOTEBOOKS, execute, outputs, text, with_hub

REPO, SPACE = "user/parts", "user/parts-demo"
PARAMETERS = {
    "repository": "parts",
    "steps": 4,
    "overrides": [
        "model.depths=[1,1,1,1]",
        "model.hidden_sizes=[8,16,40,64]",
        "model.decoder_hidden_size=32",
        "data.train_samples=24",
        "data.val_samples=6",
        "data.workers=0",
        "train.eval_every=4",
    ],
}
# A process that knows nothing of the package, and the Hub's id of the model.
STRANGER = """
import sys
sys.modules["finetune"] = None
from transformers import pipeline

found = pipeline("image-segmentation", model=sys.argv[1])
assert type(found.model).__module__ == "transformers.models.segformer.modeling_segformer"
for part in found(sys.argv[2]):
    part["mask"].save(f"{part['label']}.png")
"""


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


@pytest.mark.slow
def test_colab_to_hub(tmp_path):
    here = tmp_path / "here"
    with Hub(tmp_path / "hub") as hub:
        environment = with_hub(hub.endpoint, TOKEN)
        path = NOTEBOOKS / "04_colab_to_hub.ipynb"
        picture = of_a_phone(tmp_path / "picture.png")
        values = {**PARAMETERS, "picture": str(picture)}
        notebook = execute(path, values, here, environment=environment)
        masks = by_a_stranger(environment, tmp_path / "stranger", picture)
    said = text(notebook)
    run = here / "runs" / "parts"

    # One model and one Space. Training pushed once, at its end; then the card came to name the
    # Space; and nothing failed and was tried again.
    made = {path.relative_to(hub.root / "repos").as_posix() for path in hub.root.rglob("*.json")}
    assert made == {f"models/{REPO}.json", f"spaces/{SPACE}.json"}
    titles = [commit["title"] for commit in hub.commits(REPO)]
    assert len(titles) == 3
    assert titles[0] == "initial commit"
    assert re.fullmatch(r"shapes: step 4, mean IoU [\d.]+%", titles[1])
    assert titles[2] == titles[1]
    assert len(hub.commits(SPACE, "space")) == 2
    assert hub.is_private(REPO)
    assert hub.is_private(SPACE, "space")
    assert {status for _, _, status in hub.log} <= {200, 206, 404}
    listed = [f"{commit['oid'][:7]} {commit['title']}" for commit in hub.commits(REPO)[1::-1]]
    assert "\n".join(listed) in said

    # What is there is what lies here.
    files = hub.files(REPO)
    for name in ("model.safetensors", "preprocessor_config.json"):
        assert files[name] == (run / "best" / name).read_bytes()
    push(run, REPO, space=True, dry_run=tmp_path / "shown")
    assert files == contents(tmp_path / "shown")
    assert hub.files(SPACE, "space") == contents(tmp_path / "shown-space")
    fetched = here / ".cache/huggingface/hub/models--user--parts/snapshots"
    assert {path.name for path in fetched.iterdir()} == {hub.commits(REPO)[-1]["oid"]}
    for path, content in contents(next(fetched.iterdir())).items():
        assert content == files[path]

    # The card and its picture, as they came back.
    shown = [output.data for output in outputs(notebook) if "data" in output]
    card = next(data["text/markdown"] for data in shown if "text/markdown" in data)
    assert card in files["README.md"].decode()
    assert all(name in card for name in NAMES)
    assert sum("image/png" in data for data in shown) == 2

    # Somebody else's process, the notebook's stock classes and ours find the same.
    assert "transformers.models.segformer.modeling_segformer\n" in said
    assert "100.00% of the pixels have the same class" in said
    counts = {name: int(mask.sum()) for name, mask in masks.items()}
    assert sum(counts.values()) == 96 * 64
    areas = sorted(counts, key=lambda name: (-counts[name], NAMES.index(name)))
    areas = ", ".join(f"{name} {counts[name] / (96 * 64):.1%}" for name in areas)
    assert f"Segmentation(64 x 96: {areas})" in said

    assert TOKEN not in json.dumps(notebook)
    assert not [name for name, content in contents(here).items() if TOKEN.encode() in content]
    assert load_file(run / "best" / "model.safetensors")
    assert "no GPU here, so the CPU with fp32" in said


def of_a_phone(path: Path) -> Path:
    """A picture held upright: stored lying on its side, with a word about it."""
    upright = Image.fromarray(draw(seed=2026, index=3, size=(96, 64))[0])
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    upright.transpose(Image.Transpose.ROTATE_90).save(path, exif=exif)
    return path


def by_a_stranger(
    environment: dict[str, str | None], folder: Path, picture: Path
) -> dict[str, np.ndarray]:
    """Masks of a picture by class, from stock's pipeline in a process of its own."""
    folder.mkdir()
    variables = {**os.environ, "HF_HOME": str(folder / "cache"), **environment}
    subprocess.run(
        [sys.executable, "-c", STRANGER, REPO, str(picture)],
        env={key: value for key, value in variables.items() if value is not None},
        cwd=folder,
        check=True,
    )
    return {path.stem: np.array(Image.open(path)) > 0 for path in folder.glob("*.png")}
