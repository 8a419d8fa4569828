"""`02_your_own_images.ipynb`, with a handful of steps."""

import csv
import json

import numpy as np
import pytest
import yaml
from PIL import Image

from finetune.data.sources.shapes import draw

from .execution import NOTEBOOKS, execute, outputs, text


@pytest.mark.slow
def test_your_own_images(tmp_path):
    path = NOTEBOOKS / "02_your_own_images.ipynb"
    notebook = execute(path, {"folder": "photos", "new": "more", "steps": 4}, tmp_path)
    said = text(notebook)

    recipe = yaml.safe_load((tmp_path / "my_recipe.yaml").read_text())
    assert recipe["labels"]["names"] == ["background", "shape"]
    assert recipe["data"]["path"] == str(tmp_path / "photos")

    # The doctor finds the spoilt mask, and nothing once it is whole again.
    assert "masks/042.png: 7 (40 pixels)" in said
    assert said.index("042.png: 7") < said.index("Clean: no problem")
    assert json.loads((tmp_path / "doctor" / "doctor.json").read_text())["verdict"] == "clean"
    _, mask = draw(seed=11, index=42, size=(96, 96))
    whole = np.array(Image.open(tmp_path / "photos" / "masks" / "042.png"))
    np.testing.assert_array_equal(whole, mask > 0)

    assert "my_recipe: 4 steps, 32 images" in said
    assert (tmp_path / "runs" / "my_images" / "best" / "model.safetensors").is_file()
    assert sum("image/png" in output.get("data", {}) for output in outputs(notebook)) == 5

    # Areas are those of the masks beside them.
    counted = {}
    with (tmp_path / "predictions" / "areas.csv").open() as file:
        for row in csv.DictReader(file):
            counted.setdefault(row["name"], {})[int(row["class_id"])] = int(row["pixels"])
    assert len(counted) == 4
    for name, areas in counted.items():
        ids = np.array(Image.open(tmp_path / "predictions" / "ids" / f"{name}.png"))
        values, counts = np.unique(ids, return_counts=True)
        assert areas == dict(zip(values.tolist(), counts.tolist(), strict=True))
