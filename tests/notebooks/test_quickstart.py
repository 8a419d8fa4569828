"""`01_quickstart.ipynb`, with a handful of steps."""

import json

import numpy as np
import torch
import torch.nn.functional as F
import transformers

from finetune.data.shapes import NAMES, draw

from .execution import NOTEBOOKS, execute, outputs, text


def test_quickstart(tmp_path):
    notebook = execute(NOTEBOOKS / "01_quickstart.ipynb", {"steps": 6, "output": "here"}, tmp_path)
    said = text(notebook)
    rows = [json.loads(line) for line in (tmp_path / "here" / "metrics.jsonl").open()]
    assert [row["step"] for row in rows if "eval/mean_iou" in row] == [6]
    assert "shapes: 6 steps, 96 images" in said
    assert sum("image/png" in output.get("data", {}) for output in outputs(notebook)) == 3

    # The stock model, normalised and upsampled by hand, finds what the notebook says.
    drawn = [draw(seed=2026, index=i, size=(64, 64)) for i in range(10)]
    picture, truth = (
        np.vstack([np.hstack([pair[kind] for pair in row]) for row in (drawn[:5], drawn[5:])])
        for kind in (0, 1)
    )
    best = tmp_path / "here" / "best"
    model = transformers.models.segformer.modeling_segformer.SegformerForSemanticSegmentation
    processor = json.loads((best / "preprocessor_config.json").read_text())
    mean, std = (np.array(processor[key]) for key in ("image_mean", "image_std"))
    pixels = torch.tensor((picture / 255 - mean) / std).permute(2, 0, 1)[None].float()
    with torch.no_grad():
        logits = model.from_pretrained(best).eval()(pixels).logits
    mask = F.interpolate(logits, size=(128, 320), mode="bilinear").argmax(1)[0].numpy()
    counts = np.bincount(mask.ravel(), minlength=len(NAMES))
    found = [f"{NAMES[i]} {counts[i] / mask.size:.1%}" for i in np.argsort(-counts, kind="stable")]
    shown = ", ".join(found[: np.count_nonzero(counts)])
    assert f"Segmentation(320 x 128: {shown})" in said
    assert f"{(mask == truth).mean():.1%} of the pixels are right" in said
    assert "transformers.models.segformer.modeling_segformer\n100.00% of the pixels" in said
