"""`finetune convert`: stock transformers gives the original's logits from what it writes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import originals
import pytest
import torch
import transformers
import yaml
from PIL import Image
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from finetune import cli
from finetune.errors import UserError
from finetune.inference import InferenceProtocol, Preprocessing, Segmenter
from finetune.labels.presets import PRESETS
from finetune.programs import convert as convert_module

ROOT = Path(__file__).resolve().parents[2]


def convert(*arguments):
    return CliRunner().invoke(cli.app, ["convert", *map(str, arguments)])


def saved(folder: Path, model, **meta) -> Path:
    path = folder / "original.pth"
    torch.save({"meta": {"epoch": 3, **meta}, "state_dict": model.state_dict()}, path)
    return path


def assert_same_logits(folder: Path, original, stock=transformers.SegformerForSemanticSegmentation):
    """Of stock transformers, on images whose sides no stride divides."""
    model = stock.from_pretrained(folder).eval()
    assert type(model).__module__.startswith("transformers.")
    torch.manual_seed(1)
    for shape in ((97, 130), (64, 64)):
        image = torch.randn(2, model.config.num_channels, *shape)
        with torch.no_grad():
            expected, found = original(image), model(image).logits
        assert found.shape == expected.shape
        assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()


# ------------------------------------------------------------------------------- what it becomes


@pytest.mark.parametrize("size", ["B0", "SMALL", "ODD"])
def test_nvlabs_segmentors(size, tmp_path):
    original = originals.nvlabs(getattr(originals, size), 7)
    path, out = saved(tmp_path, original), tmp_path / "made" / "out"
    done = convert(path, out)
    assert done.exit_code == 0, done.output
    assert_same_logits(out, original)
    assert sorted(os.listdir(out)) == [
        *["README.md", "config.json", "model.safetensors", "preprocessor_config.json"]
    ]
    assert os.listdir(out.parent) == ["out"]
    assert "the head of 7 classes" in done.output
    assert "class_0 and so on" in done.output
    assert "non-commercially" in done.output
    assert ("attention heads in the stages" in done.output) == (size != "B0")
    tensors = load_file(out / "model.safetensors")
    assert "segformer.encoder.block.0.0.attention.self.key.weight" in tensors
    assert {t.dtype for n, t in tensors.items() if "num_batches" not in n} == {torch.float32}
    card = (out / "README.md").read_text()
    header = yaml.safe_load(card.split("---")[1])
    assert header["license"] == "other"
    assert header["pipeline_tag"] == "image-segmentation"
    assert "non-commercially" in card
    assert "original.pth" in card
    assert str(tmp_path) not in card


@pytest.mark.parametrize("size", ["B0", "SMALL", "ODD"])
def test_mit_with_the_classifier(size, tmp_path):
    original = originals.mit(getattr(originals, size), 11)
    path, out = tmp_path / "mit.pth", tmp_path / "out"
    torch.save(original.state_dict(), path)
    done = convert(path, out)
    assert done.exit_code == 0, done.output
    assert_same_logits(out, original, transformers.SegformerForImageClassification)
    assert json.loads((out / "config.json").read_text())["architectures"] == [
        "SegformerForImageClassification"
    ]


@pytest.mark.parametrize("size", ["B0", "SMALL", "ODD"])
def test_mmsegmentation_where_no_relu_of_its_head_acts(size, tmp_path):
    original = originals.mmseg(getattr(originals, size), 5, is_inert=True)
    done = convert(saved(tmp_path, original), tmp_path / "out")
    assert done.exit_code == 0, done.output
    assert_same_logits(tmp_path / "out", original)


def test_mmsegmentation_s_head_is_refused_where_they_act(tmp_path):
    path = saved(tmp_path, originals.mmseg(originals.SMALL, 5))
    with pytest.raises(
        UserError, match=r"(?s)a ReLU between .*model\.init=.*original\.pth"
    ) as seen:
        raise convert(path, tmp_path / "out").exception
    assert "may act on" in str(seen.value)
    assert not (tmp_path / "out").exists()


def test_a_relu_that_acts_now_and_then_is_noticed(tmp_path):
    original = originals.mmseg(originals.SMALL, 5, is_inert=True)
    original.decode_head.convs[2].bn.bias.data[7] = 0.1  # one channel of 128
    done = convert(saved(tmp_path, original), tmp_path / "out")
    assert "may act on 1 of 128 channels" in str(done.exception)


def test_mmsegmentation_s_encoder_alone(tmp_path):
    original = originals.mmseg(originals.SMALL, 5).backbone
    path = tmp_path / "encoder.pth"
    torch.save(original.state_dict(), path)
    done = convert(path, tmp_path / "out")
    assert done.exit_code == 0, done.output
    stock = transformers.SegformerModel.from_pretrained(tmp_path / "out").eval()
    image = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        expected = original(image)
        found = stock(image, output_hidden_states=True).hidden_states
    for theirs, mine in zip(expected, found, strict=True):
        assert (mine - theirs).abs().max() <= 1e-5 * theirs.abs().max()


def test_the_original_s_epsilon_hardly_matters(tmp_path):
    """They use 1e-6 where stock has 1e-5: to be seen, and small on weights of this scale."""
    original = originals.nvlabs(originals.B0, 150, eps=1e-6)
    convert(saved(tmp_path, original), tmp_path / "out")
    stock = transformers.SegformerForSemanticSegmentation.from_pretrained(tmp_path / "out").eval()
    image = torch.randn(1, 3, 128, 128)
    with torch.no_grad():
        expected, found = original(image), stock(image).logits
    assert 0 < (found - expected).abs().max() <= 1e-5 * expected.abs().max()


@pytest.mark.parametrize(
    ("count", "preset", "says"),
    [
        (150, "ade20k", {"shortest_edge": 512, "longest_edge": 2048, "size_divisor": 32}),
        (19, "cityscapes", {"window": [1024, 1024], "stride": [768, 768]}),
    ],
)
def test_known_sets_are_assumed_and_said(count, preset, says, tmp_path):
    out = tmp_path / "out"
    done = convert(saved(tmp_path, originals.nvlabs(originals.SMALL, count)), out)
    config = json.loads((out / "config.json").read_text())
    assert [config["id2label"][str(i)] for i in range(count)] == PRESETS[preset]["names"]
    assert config["finetune_eval"].items() >= says.items()
    assert f"Assumed: the {count} classes are those of {preset}" in done.output
    assert f"finetune eval {out} --recipe {preset}" in done.output
    recipe = yaml.safe_load((ROOT / f"recipes/{preset}.yaml").read_text())
    assert recipe["evaluation"] == says


def test_names_and_colours_of_the_file_are_kept(tmp_path):
    classes, palette = ("sky", "sea"), [[0, 0, 255], [0, 9, 200]]
    path = saved(tmp_path, originals.nvlabs(originals.SMALL, 2), CLASSES=classes, PALETTE=palette)
    done = convert(path, tmp_path / "out", "--json")
    assert done.exit_code == 0, done.output
    said = json.loads(done.output)
    assert said["classes"] == ["sky", "sea"]
    assert said["kind"] == "segmentation"
    assert said["parameters"] > 1e5
    assert len(said["left_out"]) == 2
    assert said["output"] == str(tmp_path / "out")
    found = Segmenter.load(tmp_path / "out")(Image.new("RGB", (70, 50)))
    assert found.mask.shape == (50, 70)
    config = json.loads((tmp_path / "out/config.json").read_text())
    assert config["finetune_colors"] == palette


def test_heads_can_be_said(tmp_path):
    size = {**originals.SMALL, "heads": (2, 4, 8, 8)}
    original = originals.nvlabs(size, 3)
    path = saved(tmp_path, original)
    assert convert(path, tmp_path / "out", "--heads", "2,4,8,8").exit_code == 0
    assert_same_logits(tmp_path / "out", original)
    said = str(convert(path, tmp_path / "x", "--heads", "a").exception)
    assert "one number for each stage" in said


# ------------------------------------------------------------------------------------- folders


def stock_folder(folder: Path, architecture=transformers.SegformerForSemanticSegmentation):
    torch.manual_seed(0)
    config = transformers.SegformerConfig(
        depths=[1, 1, 1, 1],
        hidden_sizes=[8, 16, 40, 64],
        decoder_hidden_size=32,
        id2label={0: "road", 1: "car"},
        label2id={"road": 0, "car": 1},
    )
    model = architecture(config).eval()
    model.save_pretrained(folder)
    return model


def as_bin(folder: Path) -> None:
    """As transformers 4 saved: a pickle, in place of safetensors."""
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


@pytest.mark.parametrize("is_bin", [False, True])
@pytest.mark.parametrize("is_half", [False, True])
def test_stock_folders(is_bin, is_half, tmp_path):
    source = tmp_path / "source"
    model = stock_folder(source)
    if is_half:
        model.half().save_pretrained(source)
        model.float()
    if is_bin:
        as_bin(source)
    (source / "README.md").write_text("---\nlicense: mit\ndatasets: [a/b]\n---\nOurs.\n")
    done = convert(source, tmp_path / "out")
    assert done.exit_code == 0, done.output
    assert_same_logits(tmp_path / "out", lambda image: model(image).logits)
    tensors = load_file(tmp_path / "out/model.safetensors")
    assert tensors["decode_head.classifier.weight"].dtype == torch.float32
    header = yaml.safe_load((tmp_path / "out/README.md").read_text().split("---")[1])
    assert (header["license"], header["datasets"]) == ("mit", ["a/b"])
    assert "Licence" not in done.output
    if is_bin:  # the file itself is understood as the folder that it is of
        done = convert(source / "pytorch_model.bin", tmp_path / "again")
        assert done.exit_code == 0, done.output
        assert "road" in (tmp_path / "again/config.json").read_text()


def test_the_card_beside_a_file_or_of_a_hub_id_is_kept(tmp_path, monkeypatch):
    model = stock_folder(tmp_path / "source")
    card = tmp_path / "source/README.md"
    alone = tmp_path / "source/alone.pth"
    torch.save(load_file(tmp_path / "source/model.safetensors"), alone)
    done = convert(alone, tmp_path / "no-card")
    assert done.exit_code == 0, done.output
    assert "license" not in (tmp_path / "no-card/README.md").read_text()

    name = "license: other\nlicense_name: nvidia-source-code-license\n"
    card.write_text(f"---\n{name}---\n")
    done = convert(alone, tmp_path / "out")
    assert "Licence: The MiT" in done.output
    assert name in (tmp_path / "out/README.md").read_text()

    card.write_text("---\nlicense: mit\ndatasets: [a/b]\n---\n")
    monkeypatch.setattr("finetune.weights.cards.cached_file", lambda *_, **__: str(card))
    monkeypatch.setattr(convert_module, "load_config", lambda *_: model.config)
    monkeypatch.setattr(convert_module, "read_model", lambda *_: (model, []))
    monkeypatch.setattr(
        convert_module, "load_preprocessing", lambda *_: Preprocessing(InferenceProtocol())
    )
    assert convert("somebody/model", tmp_path / "hub").exit_code == 0
    header = yaml.safe_load((tmp_path / "hub/README.md").read_text().split("---")[1])
    assert (header["license"], header["base_model"]) == ("mit", "somebody/model")
    assert header["datasets"] == ["a/b"]


@pytest.mark.parametrize("ids", [(1, 2), (0, 2)])
def test_classes_that_are_not_numbered_from_0_are_a_message(ids, tmp_path):
    stock_folder(tmp_path / "source")
    path = tmp_path / "source/config.json"
    labels = dict(zip(map(str, ids), "ab", strict=True))
    path.write_text(json.dumps({**json.loads(path.read_text()), "id2label": labels}))
    with pytest.raises(UserError, match=r"id2label in config\.json must name 0 to 1"):
        raise convert(tmp_path / "source", tmp_path / "out").exception


@pytest.mark.parametrize("is_link", [False, True])
def test_here_and_links_are_folders_too(is_link, tmp_path, monkeypatch):
    path, out = saved(tmp_path, originals.mit(originals.SMALL, 2)), tmp_path / "out"
    out.mkdir()
    (tmp_path / "link").symlink_to(out)
    monkeypatch.chdir(out)
    done = convert(path, tmp_path / "link" if is_link else ".")
    assert done.exit_code == 0, done.output
    assert "config.json" in os.listdir()  # still the folder that it was
    assert "# out" in (out / "README.md").read_text()
    assert {*os.listdir(tmp_path)} == {"link", "original.pth", "out"}


def test_a_folder_of_an_encoder_and_one_of_a_classifier(tmp_path):
    for name in ("SegformerModel", "SegformerForImageClassification"):
        stock_folder(tmp_path / name, getattr(transformers, name))
        done = convert(tmp_path / name, tmp_path / f"{name}-out")
        assert done.exit_code == 0, done.output
        config = json.loads((tmp_path / f"{name}-out/config.json").read_text())
        assert config["architectures"] == [name]
        before = load_file(tmp_path / name / "model.safetensors")
        after = load_file(tmp_path / f"{name}-out/model.safetensors")
        assert before.keys() == after.keys()
        assert all(torch.equal(tensor, after[key]) for key, tensor in before.items())


def test_the_preprocessing_of_a_folder_is_kept(tmp_path):
    first = tmp_path / "first"
    convert(saved(tmp_path, originals.nvlabs(originals.SMALL, 150)), first)
    convert(first, tmp_path / "second")
    for name in ("config.json", "preprocessor_config.json"):
        before, after = (json.loads((tmp_path / f / name).read_text()) for f in ("first", "second"))
        assert before == after, name
    done = convert(first, tmp_path / "third")
    assert "Assumed" not in done.output
    assert "Licence" in done.output  # the card of the first says so


class Bomb:
    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def spoil(folder: Path, how: str) -> None:
    weights = folder / "model.safetensors"
    if how == "no config":
        (folder / "config.json").unlink()
    elif how == "cut config":
        text = (folder / "config.json").read_text()
        (folder / "config.json").write_text(text[:100])
    elif how == "no weights":
        weights.unlink()
    elif how == "cut weights":
        weights.write_bytes(weights.read_bytes()[:-1000])
    elif how == "cut header":
        weights.write_bytes(weights.read_bytes()[:50])
    elif how == "empty weights":
        weights.write_bytes(b"")
    elif how == "cut bin":
        as_bin(folder)
        path = folder / "pytorch_model.bin"
        path.write_bytes(path.read_bytes()[:-5000])
    elif how == "bomb":
        weights.unlink()
        torch.save({"a": Bomb(folder / "ran")}, folder / "pytorch_model.bin")
    elif how == "missing tensor":
        tensors = load_file(weights)
        del tensors["decode_head.classifier.weight"]
        save_file(tensors, weights, {"format": "pt"})
    elif how == "nan":
        tensors = load_file(weights)
        tensors["decode_head.classifier.weight"][0] = float("nan")
        save_file(tensors, weights, {"format": "pt"})
    elif how == "other model":
        (folder / "config.json").write_text('{"model_type": "bert"}')
    elif how == "cut preprocessor":
        (folder / "preprocessor_config.json").write_text("{")


SPOILS = [
    ("no config", "not a model folder"),
    ("cut config", "not a model folder"),
    ("no weights", "weights cannot be read"),
    ("cut weights", "weights cannot be read"),
    ("cut header", "weights cannot be read"),
    ("empty weights", "weights cannot be read"),
    ("cut bin", "weights cannot be read"),
    ("bomb", "could run code"),
    ("missing tensor", "decode_head.classifier.weight"),
    ("nan", "hold NaN or infinity"),
    ("other model", "a model of type bert"),
    ("cut preprocessor", "preprocessor_config.json cannot be read"),
]


@pytest.mark.parametrize(("how", "message"), SPOILS)
def test_damaged_folders_are_messages(how, message, tmp_path):
    source = tmp_path / "source"
    stock_folder(source)
    spoil(source, how)
    with pytest.raises(UserError, match=rf"(?s)source.*{message}"):
        raise convert(source, tmp_path / "out").exception
    assert not (tmp_path / "out").exists()
    assert not (source / "ran").exists()


def test_the_output_is_new_or_empty(tmp_path):
    path = saved(tmp_path, originals.nvlabs(originals.SMALL, 2))
    taken, empty = tmp_path / "taken", tmp_path / "empty"
    taken.mkdir()
    empty.mkdir()
    (taken / "mine.txt").write_text("mine")
    for out in (taken, taken / "mine.txt"):
        with pytest.raises(UserError, match="is there already"):
            raise convert(path, out).exception
    assert os.listdir(taken) == ["mine.txt"]
    assert convert(path, empty).exit_code == 0


@pytest.mark.slow
@pytest.mark.parametrize("what", ["bomb", "cut", "empty", "text", "missing", "other", "folder"])
def test_mistakes_end_with_one_message_and_exit_2(what, tmp_path):
    path = tmp_path / "weights.pth"
    torch.save({"w": torch.zeros(9)}, path)
    if what == "bomb":
        torch.save({"w": Bomb(tmp_path / "ran")}, path)
    elif what == "cut":
        path.write_bytes(path.read_bytes()[:-300])
    elif what == "empty":
        path.write_bytes(b"")
    elif what == "text":
        path.write_text("weights")
    elif what in ("missing", "folder"):
        path.unlink()
        path = tmp_path / "nothing" / "here" if what == "folder" else path
    command = [sys.executable, "-m", "finetune.cli", "convert", str(path), str(tmp_path / "out")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    assert done.stderr.count("error:") == 1
    assert path.name in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "ran").exists()
    assert not (tmp_path / "out").exists()


def test_other_verbs_name_this_one(tmp_path):
    path = saved(tmp_path, originals.nvlabs(originals.SMALL, 2))
    with pytest.raises(UserError, match=r"`finetune convert .*original\.pth OUT` makes a folder"):
        Segmenter.load(path)
