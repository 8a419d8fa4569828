"""`pipeline('image-segmentation', folder)` of the npm package, in Node, from local files."""

import json
import subprocess

import numpy as np
import pytest
from PIL import Image

from finetune.inference import InferenceProtocol, segment
from finetune.programs.export import export as program

from .conftest import NAMES, write_model
from .pictures import picture

pytestmark = pytest.mark.slow  # every test needs an exported model

SCRIPT = """
import { env, pipeline } from "@huggingface/transformers";
env.allowRemoteModels = false;
const [folder, dtype, ...files] = process.argv.slice(2);
const found = await pipeline("image-segmentation", folder, { dtype, device: "cpu" });
const answers = [];
for (const file of files) {
  const masks = await found(file);
  answers.push(masks.map(({ label, mask }) => ({
    label,
    size: [mask.height, mask.width],
    data: Buffer.from(mask.data.buffer, mask.data.byteOffset, mask.data.length).toString("base64"),
  })));
}
console.log(JSON.stringify(answers));
"""


def masks_in_node(node_modules, folder, files, dtype="fp32"):
    """The class ids that transformers.js gives for files."""
    import base64

    script = node_modules.parent / "segment.mjs"
    script.write_text(SCRIPT)
    command = ["node", str(script), str(folder), dtype, *map(str, files)]
    run = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert run.returncode == 0, run.stderr
    found = []
    for answer in json.loads(run.stdout.splitlines()[-1]):
        ids = np.full(answer[0]["size"], 255)
        for part in answer:
            data = np.frombuffer(base64.b64decode(part["data"]), np.uint8)
            ids[data.reshape(part["size"]) > 0] = NAMES.index(part["label"])
        found.append(ids)
    return found


@pytest.mark.parametrize("dtype", ["fp32", "fp16"])
def test_pictures_that_are_not_resized_get_our_mask(node_modules, exported, tmp_path, dtype):
    folder, segmenter, _ = exported
    files = []
    for number, size in enumerate([(96, 128), (75, 101), (61, 64)]):
        files.append(tmp_path / f"{number}.png")
        Image.fromarray(picture(*size, seed=number)).save(files[-1])
    for file, found in zip(files, masks_in_node(node_modules, folder, files, dtype), strict=True):
        expected = segment(segmenter, str(file)).mask
        assert len(np.unique(expected)) > 2
        assert (found == expected).mean() > (0.9999 if dtype == "fp32" else 0.99)


def test_pictures_that_are_resized_get_most_of_it(
    node_modules, exported, tmp_path, monkeypatch, record_property
):
    """transformers.js resizes without antialias, which no file can tell it to do otherwise."""
    folder, _, _ = exported
    made = write_model(tmp_path / "model", InferenceProtocol(shortest_edge=96))
    content = (folder / "onnx" / "model.onnx").read_bytes()  # of the same weights
    monkeypatch.setattr(program, "trace", lambda *_: None)
    monkeypatch.setattr(program, "to_onnx", lambda *_: content)
    program.export(str(made))
    files = [tmp_path / "large.png"]
    Image.fromarray(picture(192, 256, seed=5)).save(files[0])
    expected = segment(str(made), files[0]).mask
    (found,) = masks_in_node(node_modules, made, files)
    assert found.shape == expected.shape
    share = (found == expected).mean()
    record_property("share", float(share))
    print(f"equal where a picture is resized: {share:.2%} of the pixels")
    assert share > 0.9
