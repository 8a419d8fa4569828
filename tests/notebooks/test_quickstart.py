"""`01_quickstart.ipynb`, with a handful of steps."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import transformers

from finetune.data.sources.shapes import NAMES, draw

from .execution import NOTEBOOKS, execute, outputs, text


@pytest.mark.slow
def test_quickstart(tmp_path):
    notebook = execute(NOTEBOOKS / "01_quickstart.ipynb", {"steps": 6, "output": "here"}, tmp_path)
    said = text(notebook)
    rows = [json.loads(line) for line in (tmp_path / "here" / "metrics.jsonl").open()]
    assert [row["step"] for row in rows if "eval/mean_iou" in row] == [6]
    assert "shapes: 6 steps, 96 images" in said
    assert sum("image/png" in output.get("data", {}) for output in outputs(notebook)) == 3

    # The stock model, normalised and upsampled by hand, finds what the notebook says.
    pictures, truths = map(np.stack, zip(*(draw(2026, i, (64, 64)) for i in range(8)), strict=True))
    best = tmp_path / "here" / "best"
    model = transformers.models.segformer.modeling_segformer.SegformerForSemanticSegmentation
    processor = json.loads((best / "preprocessor_config.json").read_text())
    mean, std = (np.array(processor[key]) for key in ("image_mean", "image_std"))
    pixels = torch.tensor((pictures / 255 - mean) / std).permute(0, 3, 1, 2).float()
    with torch.no_grad():
        logits = model.from_pretrained(best).eval()(pixels).logits
    masks = F.interpolate(logits, size=(64, 64), mode="bilinear").argmax(1).numpy()
    for name, count in zip(NAMES, np.bincount(masks[0].ravel(), minlength=len(NAMES)), strict=True):
        assert f"'{name}': {{'pixels': {count}," in said
    assert f"{(masks == truths).mean():.1%} of the pixels are right" in said
    # Two assertions: on a busy machine the two lines come in two pieces.
    assert "transformers.models.segformer.modeling_segformer\n" in said
    assert "100.00% of the pixels have the same class" in said
