"""One picture through every path that a user may take: the masks, compared in one table.

pytest -s tests/programs/export/test_paths.py
"""

import subprocess
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from transformers import pipeline

from finetune.data.loader import Whole
from finetune.inference import InferenceProtocol, Preprocessing, Segmenter
from finetune.inference.scores import score_bands
from finetune.programs.export import export as program
from finetune.programs.export.check import session
from finetune.programs.export.web import write_page
from finetune.programs.predict.predict import predict
from finetune.segformer.functional import upsampled_argmax

from .conftest import NAMES, write_model
from .page import Page
from .test_transformers_js import masks_in_node

pytestmark = pytest.mark.slow  # every test needs an exported model

PROTOCOLS = {
    "own size": InferenceProtocol(),
    "shorter edge 115": InferenceProtocol(shortest_edge=115),
    "115, multiples of 32": InferenceProtocol(shortest_edge=115, size_divisor=32),
}

# Without this package: what a stranger does with the folder.
STRANGER = """
import sys
import numpy as np
from transformers import pipeline
segment = pipeline("image-segmentation", model=sys.argv[1])
assert not any(name.split(".")[0] == "finetune" for name in sys.modules)
parts = segment(sys.argv[2])
mask = np.full(np.asarray(parts[0]["mask"]).shape, 255)
for part in parts:
    mask[np.asarray(part["mask"]) > 0] = segment.model.config.label2id[part["label"]]
np.save(sys.argv[3], mask)
"""


@pytest.fixture(scope="module")
def street(shared_data, tmp_path_factory):
    """A real picture of odd sides; PNG, since decoders of JPEG may round differently."""
    source = sorted((shared_data / "camvid/val").glob("*.jpg"))[7]
    path = tmp_path_factory.mktemp("street") / "street.png"
    Image.open(source).convert("RGB").crop((11, 60, 318, 263)).save(path)
    return path


def of_evaluation(segmenter, path):
    """As training's evaluation does it: the loader's arrays, the bands of scores, the argmax."""
    image = np.asarray(Image.open(path))
    truth = np.zeros(image.shape[:2], np.uint8)
    protocol = segmenter.preprocessing.protocol
    arrays, _, _ = Whole(protocol)({"image": image, "mask": truth, "id": "street"})
    views = [torch.from_numpy(array.copy())[None] for array in arrays]
    size = truth.shape
    bands = score_bands(segmenter.model, views, segmenter.preprocessing, size)
    parts = [upsampled_argmax(scores, (rows.stop - rows.start, size[1])) for rows, scores in bands]
    return torch.cat(parts, 1)[0].numpy()


def of_onnx(segmenter, file, path, *, labels):
    """As a stranger would: the stated sizes, mean and std, then ONNX Runtime."""
    image = np.asarray(Image.open(path))
    how: Preprocessing = segmenter.preprocessing
    resized = how.protocol.resize(image)[0]
    values = (resized / 255 - np.array(how.image_mean)) / np.array(how.image_std)
    shown = values.astype(np.float32).transpose(2, 0, 1)[None]
    (found,) = session(file).run(None, {"pixel_values": shown})
    if labels:  # of the size that was shown
        assert found.shape[1:] == resized.shape[:2]
        return found[0]
    logits = torch.from_numpy(found)
    return F.interpolate(logits, image.shape[:2], mode="bilinear").argmax(1)[0].numpy()


@pytest.mark.parametrize("name", PROTOCOLS)
def test_every_path_gives_one_mask(
    name, street, exported, node_modules, browser, served, tmp_path, monkeypatch
):
    folder, _, _ = exported
    made = write_model(tmp_path / "model", PROTOCOLS[name])
    contents = {form: (folder / program.FILES[form]).read_bytes() for form in ("onnx", "labels")}
    monkeypatch.setattr(program, "trace", lambda *_: None)  # of the same weights: exported before
    monkeypatch.setattr(program, "to_onnx", lambda *_: contents["onnx"])
    monkeypatch.setattr(program, "with_labels", lambda *_: contents["labels"])
    program.export(str(made), options=program.Options(labels=True))
    segmenter = Segmenter.load(made)

    expected = of_evaluation(segmenter, street)
    assert len(np.unique(expected)) > 2
    found = {"segment": segmenter(street).mask}
    predict(segmenter, [str(street)], tmp_path / "out", writes=[])
    found["predict"] = np.asarray(Image.open(tmp_path / "out/ids/street.png"))
    pipe = pipeline("image-segmentation", model=str(made))
    found["pipeline"] = np.full(expected.shape, 255)
    for part in pipe(str(street)):
        found["pipeline"][np.asarray(part["mask"]) > 0] = NAMES.index(part["label"])
    command = [sys.executable, "-c", STRANGER, made, street, tmp_path / "stranger.npy"]
    subprocess.run(command, check=True, cwd=tmp_path)
    found["pipeline without us"] = np.load(tmp_path / "stranger.npy")
    found["ONNX, logits"] = of_onnx(segmenter, made / program.FILES["onnx"], street, labels=False)
    ids = of_onnx(segmenter, made / program.FILES["labels"], street, labels=True)
    if PROTOCOLS[name].resizes:  # there is no mask of that size: logits, upsampled to it
        view = segmenter.views([np.asarray(Image.open(street))])[0]
        with torch.no_grad():
            logits = segmenter.model(segmenter.preprocessing.normalise(view)).logits
        shown = F.interpolate(logits, ids.shape, mode="bilinear").argmax(1)[0].numpy()
        assert ids.shape != expected.shape
        assert (ids == shown).mean() > 0.9999
    else:
        found["ONNX, class ids"] = ids
    (found["transformers.js"],) = masks_in_node(node_modules, made, [street])
    root, address = served
    place = f"paths-{list(PROTOCOLS).index(name)}"
    runtime = node_modules / "onnxruntime-web" / "dist"
    write_page(root / place, segmenter, made / program.FILES["onnx"], runtime)
    port, profile = browser
    (profile / place).mkdir()
    with Page(port, profile / place) as tab:
        tab.open(f"{address}/{place}/")
        tab.choose(street)
        found["page in Chromium"] = np.asarray(tab.download())

    equal = {path: (mask == expected).mean() for path, mask in found.items()}
    print(f"\n{name}: pixels as training's evaluation has them")
    for path, share in equal.items():
        print(f"  {path:20} {share:9.4%}")
    assert equal.pop("segment") == equal.pop("predict") == 1  # the same code, the same batches
    near = set()
    if PROTOCOLS[name].resizes:
        near.add("transformers.js")  # it resizes without antialias
    if PROTOCOLS[name].size_divisor > 1:
        near |= {"pipeline", "pipeline without us"}  # stock cannot round up
    for path, share in equal.items():
        assert share > (0.9 if path in near else 0.9999), path
