"""Images of other than three channels and of 16 bit, from a folder to the saved model."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
import transformers
from PIL import Image
from safetensors.torch import load_file
from typer.testing import CliRunner

from finetune import cli
from finetune.errors import UserError
from finetune.programs import evaluate as evaluation
from finetune.programs.doctor.doctor import examine
from finetune.recipe import load_recipe
from finetune.segformer import SegformerForSemanticSegmentation
from finetune.train import fit
from finetune.trainers.segmentation import SegmentationTask

ROOT = Path(__file__).resolve().parents[2]
SIZE = (70, 90)
SMALL = [
    "data.workers=0",
    "augment.crop=[64,64]",
    "train.global_batch=2",
    "train.steps=5",
    "train.eval_every=5",
    "train.log_every=1",
    "train.warmup_steps=0",
]
TINY = ["model.depths=[1,1,1,1]", "model.hidden_sizes=[8,16,40,64]", "model.decoder_hidden_size=32"]


def write_set(root: Path, channels: int, dtype, *, top: float = 1.0) -> None:
    """Six pictures of things that differ from their background in every channel."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 4), ("val", 2)):
        for index in range(count):
            mask = np.zeros(SIZE, np.uint8)
            row, column = rng.integers(0, 30, 2)
            mask[row : row + 35, column : column + 40] = 1
            light = rng.uniform(0.1, 0.4, (*SIZE, channels)) + 0.5 * mask[..., None]
            image = (light * top * np.iinfo(dtype).max).astype(dtype)
            for kind in ("images", "masks"):
                (root / kind / split).mkdir(parents=True, exist_ok=True)
            path = root / f"images/{split}/{index}.tif"
            options = {"planarconfig": "contig"} if channels > 1 else {}
            pixels = image if channels > 1 else image[..., 0]
            tifffile.imwrite(path, pixels, photometric="minisblack", **options)
            Image.fromarray(mask).save(root / f"masks/{split}/{index}.png")


def overrides(root: Path, channels: int, *more: str) -> list[str]:
    return [
        f"data.path={root}",
        f"output={root / 'run'}",
        f"model.num_channels={channels}",
        f"data.image_mean={[0.4] * channels}",
        f"data.image_std={[0.25] * channels}",
        *SMALL,
        *more,
    ]


def recipe_file(folder: Path) -> Path:
    path = folder / "bands.yaml"
    path.write_text("labels: {names: [ground, thing]}\n")
    return path


def rows(run: Path) -> list[dict]:
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    timed = ("seconds", "train/images_per_second")
    return [{key: value for key, value in row.items() if key not in timed} for row in lines]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("FINETUNE_CACHE", str(tmp_path / "cache"))


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("channels", [1, 2, 4, 6])
def test_training_from_a_folder_to_the_saved_model(channels, dtype, tmp_path):
    write_set(tmp_path, channels, dtype)
    recipe = load_recipe(recipe_file(tmp_path), overrides(tmp_path, channels))
    assert recipe.model.variant == "b0"
    fit(recipe)
    run, last = tmp_path / "run", tmp_path / "run/last"
    scored = rows(run)[-1]
    assert 0 < scored["eval/mean_iou"] <= 1
    assert (run / "panel.png").is_file()

    image = tifffile.imread(tmp_path / "images/val/0.tif").reshape(*SIZE, channels)
    processor = transformers.AutoImageProcessor.from_pretrained(last)
    inputs = processor(image, input_data_format="channels_last", return_tensors="pt")
    stock = transformers.SegformerForSemanticSegmentation.from_pretrained(last).eval()
    ours = SegformerForSemanticSegmentation.from_pretrained(last).eval()
    assert type(stock) is not type(ours)
    assert stock.config.num_channels == channels
    with torch.no_grad():
        expected = stock(**inputs).logits
        found = ours(**inputs).logits
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()

    # what the loader shows the model in an evaluation is what stock's processor makes of the file
    task = SegmentationTask(recipe)
    pixels = torch.from_numpy(task.val_samples[0]["image"][None].astype(np.int32))
    pixels = pixels.to(torch.uint8) if dtype == np.uint8 else pixels
    assert torch.allclose(task.preprocessing.normalise(pixels), inputs["pixel_values"], atol=1e-5)

    again = evaluation.evaluate(str(last), recipe).metrics
    for key in ("eval/mean_iou", "eval/overall_accuracy", "eval/loss"):
        assert again[key] == pytest.approx(scored[key], rel=1e-5)


@pytest.mark.slow
def test_the_cache_and_the_workers_change_nothing(tmp_path):
    write_set(tmp_path, 5, np.uint16)
    found = []
    for index, options in enumerate([["auto", 0], ["auto", 2], ["none", 2], ["none", 0]]):
        run = f"output={tmp_path / f'run{index}'}"
        more = [run, f"data.cache={options[0]}", f"data.workers={options[1]}", *TINY]
        fit(load_recipe(recipe_file(tmp_path), overrides(tmp_path, 5, *more)))
        found.append(rows(tmp_path / f"run{index}"))
    assert found[0] == found[1] == found[2] == found[3]


@pytest.mark.slow
def test_it_learns_from_a_small_part_of_sixteen_bit(tmp_path):
    write_set(tmp_path, 2, np.uint16, top=0.05)  # as a 12 bit sensor does
    output = tmp_path / "recipe.yaml"
    done = CliRunner().invoke(cli.app, ["init", str(tmp_path), "-o", str(output)])
    assert done.exit_code == 0, done.output
    more = [f"output={tmp_path / 'run'}", *SMALL, *TINY, "train.steps=60", "train.eval_every=60"]
    fit(load_recipe(output, [*more, "train.lr=0.005"]))
    assert rows(tmp_path / "run")[-1]["eval/mean_iou"] > 0.8


@pytest.mark.parametrize(
    ("channels", "dtype"), [(1, np.uint16), (2, np.uint8), (4, np.uint16), (7, np.uint8)]
)
def test_init_sees_channels_and_measures_them(channels, dtype, tmp_path):
    write_set(tmp_path, channels, dtype)
    output = tmp_path / "recipe.yaml"
    done = CliRunner().invoke(cli.app, ["init", str(tmp_path), "-o", str(output)])
    assert done.exit_code == 0, done.output
    bits = 8 * np.dtype(dtype).itemsize
    assert f"images have {channels} channel{'s' * (channels > 1)} of {bits} bit" in done.output
    recipe = load_recipe(output)
    assert recipe.model.num_channels == channels
    files = sorted((tmp_path / "images/train").iterdir())
    values = np.concatenate([tifffile.imread(file).reshape(-1, channels) for file in files])
    values = values / np.iinfo(dtype).max
    np.testing.assert_allclose(recipe.data.image_mean, values.mean(0), rtol=1e-3)
    np.testing.assert_allclose(recipe.data.image_std, values.std(0), rtol=1e-3)
    fit(load_recipe(output, [f"output={tmp_path / 'run'}", *SMALL, *TINY, "train.steps=1"]))


def test_init_leaves_photographs_at_three_channels(tmp_path):
    write_set(tmp_path, 1, np.uint8)
    output = tmp_path / "recipe.yaml"
    assert CliRunner().invoke(cli.app, ["init", str(tmp_path), "-o", str(output)]).exit_code == 0
    assert "num_channels" not in output.read_text()
    assert "image_mean" not in output.read_text()


def test_a_checkpoint_of_rgb_gets_a_new_first_convolution(tmp_path):
    write_set(tmp_path, 4, np.uint8)
    torch.manual_seed(0)
    rgb = transformers.SegformerConfig(
        depths=[1, 1, 1, 1], hidden_sizes=[8, 16, 40, 64], decoder_hidden_size=32, num_labels=9
    )
    transformers.SegformerForSemanticSegmentation(rgb).save_pretrained(tmp_path / "rgb")
    more = [*TINY, f"model.init={tmp_path / 'rgb'}"]
    recipe = load_recipe(recipe_file(tmp_path), overrides(tmp_path, 4, *more))
    first = "segformer.encoder.patch_embeddings.0.proj.weight"
    expected = "except for its first convolution, which reads 4 channels here and 3 there, new are"
    with pytest.warns(UserWarning, match=expected) as caught:
        model = SegmentationTask(recipe).build()
    (text,) = [str(warning.message) for warning in caught if "new are" in str(warning.message)]
    assert text.endswith(f"decode_head.classifier.bias, decode_head.classifier.weight, {first}")
    theirs, mine = load_file(tmp_path / "rgb/model.safetensors"), model.state_dict()
    assert mine[first].shape == (8, 4, 7, 7)
    assert mine[first].std() > 0
    new = {first, "decode_head.classifier.bias", "decode_head.classifier.weight"}
    for name in theirs.keys() - new:
        assert torch.equal(mine[name], theirs[name]), name


@pytest.mark.slow
def test_mistakes_are_messages_before_anything_is_trained(tmp_path):
    write_set(tmp_path, 4, np.uint16)
    recipe = recipe_file(tmp_path)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "finetune.train", "--recipe", str(recipe)]
    done = subprocess.run(
        [*command, *overrides(tmp_path, 6, *TINY)], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 2
    assert "0.tif: has 4 channels of 16 bit, but model.num_channels is 6" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run").exists()

    shallow = (tifffile.imread(tmp_path / "images/val/1.tif") >> 8).astype(np.uint8)
    for path in sorted((tmp_path / "images/val").iterdir()):
        tifffile.imwrite(path, shallow, photometric="minisblack", planarconfig="contig")
    with pytest.raises(
        UserError, match=r"the split train has 16 bit a channel, but the split val has 8"
    ):
        fit(load_recipe(recipe, overrides(tmp_path, 4, *TINY)))


def test_a_model_of_other_channels_is_not_scored(tmp_path):
    write_set(tmp_path, 2, np.uint8)
    recipe = load_recipe(recipe_file(tmp_path), overrides(tmp_path, 2, *TINY))
    task = SegmentationTask(recipe)
    task.build().save_pretrained(tmp_path / "model")
    values = json.dumps(task.preprocessing.to_stock())
    (tmp_path / "model/preprocessor_config.json").write_text(values)
    other = load_recipe(recipe_file(tmp_path), overrides(tmp_path, 1))
    with pytest.raises(UserError, match=r"reads images of 2 channels, .*model.num_channels is 1"):
        evaluation.evaluate(str(tmp_path / "model"), other)


def test_the_doctor_reads_them(tmp_path):
    write_set(tmp_path, 6, np.uint16)
    done = examine(str(tmp_path))
    assert done.clean, done.findings
    found = done.to_json()
    files = sorted((tmp_path / "images/train").iterdir())
    values = np.concatenate([tifffile.imread(file).reshape(-1, 6) for file in files]) / 65535
    np.testing.assert_allclose(found["colors"]["mean"], values.mean(0), atol=1e-6)
    np.testing.assert_allclose(found["colors"]["std"], values.std(0), atol=1e-6)
    done.write(tmp_path / "out")
    assert "data:image/jpeg" in (tmp_path / "out/doctor.html").read_text()
