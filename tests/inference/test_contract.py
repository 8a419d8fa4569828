"""One picture through all paths: the same mask from training's evaluation to stock's pipeline."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
import transformers
from PIL import Image

from finetune.inference import InferenceProtocol, Preprocessing, Segmenter
from finetune.inference.scores import score_bands
from finetune.programs.predict.predict import predict
from finetune.recipe import load_recipe
from finetune.segformer import SegformerForSemanticSegmentation
from finetune.train import fit

PROTOCOLS = {
    "none": [],
    "fixed": ["evaluation.fixed_size=[72,96]"],
    "shortest": ["evaluation.shortest_edge=61"],
    "longest": ["evaluation.shortest_edge=61", "evaluation.longest_edge=83"],
}

# Runs without this package: what a stranger does with the folder.
STRANGER = """
import sys, numpy as np
from pathlib import Path
from transformers import pipeline
assert not any(name.split(".")[0] == "finetune" for name in sys.modules)
folder, out, *files = sys.argv[1:]
segment = pipeline("image-segmentation", model=folder)
assert "transformers" in type(segment.model).__module__
ids = segment.model.config.label2id
for file in files:
    parts = segment(file)
    mask = np.full(np.asarray(parts[0]["mask"]).shape, 255, np.uint8)
    for part in parts:
        mask[np.asarray(part["mask"]) > 0] = ids[part["label"]]
    np.save(Path(out) / f"{Path(file).stem}.npy", mask)
"""


@pytest.fixture(scope="module")
def pictures(tmp_path_factory, shared_data):
    """Real pictures of odd sizes, in the forms that stock reads as RGB."""
    folder = tmp_path_factory.mktemp("pictures")
    source = sorted((shared_data / "camvid/val").glob("*.jpg"))[0]
    image = Image.open(source).convert("RGB")
    image.crop((0, 0, 251, 173)).save(folder / "odd.jpg", quality=95)
    image.crop((100, 40, 357, 341)).save(folder / "tall.png")
    image.convert("L").crop((0, 0, 301, 215)).save(folder / "grey.png")
    alpha = image.crop((20, 20, 220, 181))
    alpha.putalpha(128)
    alpha.save(folder / "alpha.png")
    image.convert("P", palette=Image.Palette.ADAPTIVE).save(folder / "palette.png")
    image.convert("CMYK").crop((0, 0, 199, 231)).save(folder / "cmyk.jpg")
    exif = Image.Exif()
    exif[0x0112] = 6
    image.crop((0, 0, 333, 201)).save(folder / "turned.jpg", exif=exif)
    return sorted(folder.iterdir())


@pytest.fixture(scope="module", params=PROTOCOLS)
def trained(request, tmp_path_factory):
    """A model that has learned next to nothing, so that its masks are of many classes."""
    output = tmp_path_factory.mktemp(request.param) / "run"
    recipe = load_recipe(
        "shapes",
        [
            f"output={output}",
            "model.depths=[1,1,1,1]",
            "model.hidden_sizes=[8,16,40,64]",
            "model.decoder_hidden_size=32",
            "augment.crop=[64,64]",
            "train.steps=2",
            "train.global_batch=4",
            "train.eval_every=2",
            "train.lr=1e-5",
            *PROTOCOLS[request.param],
        ],
    )
    fit(recipe)
    return output / "last"


@pytest.mark.slow
def test_all_paths_give_one_mask(trained, pictures, tmp_path):
    files = list(map(str, pictures))
    (tmp_path / "stranger").mkdir()
    subprocess.run(
        [sys.executable, "-c", STRANGER, trained, tmp_path / "stranger", *files],
        check=True,
        cwd=tmp_path,
    )
    ours = transformers.pipeline("image-segmentation", model=str(trained))
    assert isinstance(ours.model, SegformerForSemanticSegmentation)
    segmenter = Segmenter.load(trained)
    outcome = predict(segmenter, files, tmp_path / "predicted", writes=[], batch_size=1)
    assert outcome.made == len(files)
    table = {}
    for path in pictures:
        found = segmenter(path).mask
        assert len(np.unique(found)) > 1, "a mask of one class would compare nothing"
        written = np.asarray(Image.open(tmp_path / "predicted/ids" / f"{path.stem}.png"))
        piped = np.full(found.shape, 255, np.uint8)
        for part in ours(str(path)):
            piped[np.asarray(part["mask"]) > 0] = ours.model.config.label2id[part["label"]]
        stock = np.load(tmp_path / "stranger" / f"{path.stem}.npy")
        assert stock.shape == found.shape
        table[path.name] = {
            "predict": float((written == found).mean()),
            "pipeline": float((piped == found).mean()),
            "pipeline without us": float((stock == found).mean()),
        }
    print(json.dumps(table, indent=1))
    for row in table.values():
        assert row["predict"] == 1  # the same code and the same batches: the same bits
        # Stock's logits differ by a millionth: a tie may fall on the other side.
        assert row["pipeline"] > 0.9999
        assert row["pipeline without us"] > 0.9999


@pytest.mark.slow
def test_evaluation_shows_pictures_as_the_folder_does(trained):
    """The loader of an evaluation and a `Segmenter` make the same numbers of one sample."""
    from finetune.data.loader import Whole
    from finetune.recipe import recipe_from_yaml
    from finetune.trainers.segmentation import SegmentationTask

    task = SegmentationTask(recipe_from_yaml(trained / "recipe.yaml"))
    segmenter = Segmenter.load(trained)
    assert segmenter.preprocessing == task.preprocessing
    sample = task.val_samples[0]
    images, mask, _ = Whole(task.preprocessing.protocol)(sample)
    views = segmenter.views([sample["image"]])
    assert len(images) == len(views) == 1
    assert torch.equal(torch.from_numpy(images[0].copy())[None], views[0])
    (rows, scores), *more = score_bands(
        segmenter.model, views, task.preprocessing, (mask.shape[0], mask.shape[1])
    )
    assert not more
    assert rows == slice(0, mask.shape[0])
    processor = transformers.AutoImageProcessor.from_pretrained(trained)
    inputs = processor(Image.fromarray(sample["image"]), return_tensors="pt")
    with torch.no_grad():
        expected = segmenter.model(**inputs).logits
    torch.testing.assert_close(scores, expected, rtol=1e-4, atol=1e-4)


def test_what_stock_cannot_say_is_exact_with_us(tmp_path):
    protocol = InferenceProtocol(shortest_edge=64, longest_edge=256, size_divisor=32)
    own = Preprocessing(protocol)
    assert protocol.size(75, 110) == (64, 96)
    assert own.to_stock()["size"] == {"shortest_edge": 64, "longest_edge": 256}
    assert Preprocessing.from_stock(own.to_stock(), protocol.model_dump(mode="json")) == own
