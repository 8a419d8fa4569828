"""8 bit, the table and the command, on the drawn shapes."""

import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from finetune import cli
from finetune.errors import UserError
from finetune.inference import InferenceProtocol, Segmenter, segment
from finetune.programs import evaluate as evaluation
from finetune.programs.export import comparison as table
from finetune.programs.export import export as program
from finetune.programs.export.check import Check, StandIn, run_in, session
from finetune.recipe import load_recipe
from finetune.trainers.segmentation import SegmentationTask

from .conftest import NAMES
from .pictures import picture
from .test_transformers_js import masks_in_node

pytestmark = pytest.mark.slow  # every test needs an exported model

OVERRIDES = ("data.train_samples=12", "data.val_samples=4", "data.workers=0")


@pytest.fixture(scope="module")
def recipe():
    return load_recipe("shapes", list(OVERRIDES))


@pytest.fixture(scope="module")
def quantised(exported, recipe, tmp_path_factory):
    """A new folder with an 8 bit form, made of the graph that is there already."""
    folder, _, _ = exported
    content = (folder / "onnx" / "model.onnx").read_bytes()
    made = tmp_path_factory.mktemp("quantised")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(program, "trace", lambda *_: None)
        patch.setattr(program, "to_onnx", lambda *_: content)
        options = program.Options(int8=True, calibration=8)
        segmenter, files = program.export(str(folder), made, options, recipe)
    return made, segmenter, files


def test_8_bit_holds_the_convolutions_in_8_bit(quantised):
    folder, _, files = quantised
    graph = onnx.load(folder / "onnx" / "model_quantized.onnx")
    known = {entry.key: json.loads(entry.value) for entry in graph.metadata_props}
    assert known["names"] == list(NAMES)
    assert (graph.producer_name, graph.graph.output[0].name) == ("finetune", "logits")
    makers = {name: node for node in graph.graph.node for name in node.output}
    convolutions = [node for node in graph.graph.node if node.op_type == "Conv"]
    assert len(convolutions) > 20
    for node in convolutions:
        assert {makers[name].op_type for name in node.input} == {"DequantizeLinear"}
    stored = {t.name: t.data_type for t in graph.graph.initializer}
    assert onnx.TensorProto.INT8 in stored.values()
    sizes = {file.form: file.bytes for file in files}
    assert sizes["int8"] < sizes["onnx"]


def test_8_bit_masks_agree_mostly(quantised):
    folder, segmenter, _ = quantised
    opened = session(folder / "onnx" / "model_quantized.onnx")
    twin = StandIn(partial(run_in, opened), segmenter.model.config)
    small = Segmenter(twin, segmenter.preprocessing, names=NAMES)
    for size in [(64, 64), (75, 101), (20, 40)]:
        image = picture(*size)
        expected, found = segment(segmenter, image).mask, segment(small, image).mask
        assert (found == expected).mean() > 0.9


def test_8_bit_is_calibrated_on_training_images_alone(quantised, recipe, monkeypatch):
    from finetune.programs.export.quantise import _shown

    _, segmenter, _ = quantised
    task = SegmentationTask(recipe)
    expected = [
        segmenter.preprocessing.normalise(torch.from_numpy(task.train_samples[i]["image"])[None])
        for i in range(12)
    ]
    monkeypatch.setattr(SegmentationTask, "val_samples", None)
    shown = list(_shown(segmenter, recipe, 100))
    assert len(shown) == 12
    for one, other in zip(shown, expected, strict=True):
        np.testing.assert_array_equal(one, other.numpy())
    assert len(list(_shown(segmenter, recipe, 5))) == 5


@pytest.mark.parametrize(
    "protocol",
    [
        InferenceProtocol(shortest_edge=20),  # below the smallest side: padded
        InferenceProtocol(window=(64, 64), stride=(40, 40)),
        InferenceProtocol(flip=True, scales=(0.5, 1.0)),
    ],
)
def test_8_bit_is_calibrated_on_what_evaluations_show(exported, recipe, monkeypatch, protocol):
    from finetune.programs.export.quantise import _shown

    _, segmenter, _ = exported
    how = replace(segmenter.preprocessing, protocol=protocol)
    other = Segmenter(segmenter.model, how, names=NAMES, device="cpu")
    expected = []
    forward = other.model.forward

    def heard(pixel_values):
        expected.append(pixel_values.numpy().copy())
        return forward(pixel_values)

    monkeypatch.setattr(other.model, "forward", heard)
    image = SegmentationTask(recipe).train_samples[0]["image"]
    other(image, confidence=False)
    found = list(_shown(other, recipe, 1))
    assert len(found) == len(expected) >= 1
    for one, another in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one, another)
        assert min(one.shape[2:]) >= 29


def test_transformers_js_takes_8_bit(quantised, node_modules, tmp_path):
    folder, segmenter, _ = quantised
    file = tmp_path / "picture.png"
    Image.fromarray(picture(96, 128)).save(file)
    (found,) = masks_in_node(node_modules, folder, [file], "q8")
    assert (found == segment(segmenter, str(file)).mask).mean() > 0.9


def test_the_table_scores_each_form_by_the_same_metric(quantised, recipe):
    folder, segmenter, files = quantised
    rows = table.measure(segmenter, files, recipe, size=(64, 96), compiled=False)
    assert [row.form for row in rows] == ["PyTorch", "onnx", "int8"]
    torchs, onnxs, int8s = rows
    with pytest.warns(UserWarning, match="images are prepared as the model's folder says"):
        stock = evaluation.evaluate(str(folder), recipe).metrics["eval/mean_iou"]
    assert torchs.mean_iou == pytest.approx(stock, abs=1e-6)
    assert onnxs.mean_iou == pytest.approx(stock, abs=1e-4)
    assert int8s.mean_iou is not None
    assert torchs.ratio == 1
    assert all(row.seconds > 0 and row.megabytes > 0 for row in rows)


def test_the_table_has_labels_beside_pytorchs_and_no_score_without_a_recipe(exported):
    _, segmenter, files = exported
    rows = table.measure(segmenter, list(files.values()), None, size=(64, 64), compiled=False)
    assert [row.form for row in rows] == [
        *("PyTorch", "PyTorch, labels", "onnx", "fp16", "labels", "pt2")
    ]
    assert {row.mean_iou for row in rows} == {None}


def test_the_command_says_what_it_wrote(exported, tmp_path, monkeypatch):
    folder, _, _ = exported
    content = (folder / "onnx" / "model.onnx").read_bytes()
    monkeypatch.setattr(program, "trace", lambda *_: None)
    monkeypatch.setattr(program, "to_onnx", lambda *_: content)
    arguments = ["export", str(folder), "-o", str(tmp_path / "out"), "--no-table"]
    said = CliRunner().invoke(cli.app, [*arguments, "--json", "--web", str(tmp_path / "page")])
    assert said.exit_code == 0, said.output
    found = json.loads(said.stdout)
    assert [file["form"] for file in found["files"]] == ["onnx"]
    assert found["files"][0]["bytes"] == len(content)
    assert found["files"][0]["difference"] < 1e-4
    assert len(found["files"][0]["sizes"]) >= 5
    assert (tmp_path / "page" / "index.html").is_file()
    said = CliRunner().invoke(cli.app, arguments)
    assert "logits within" in said.stdout
    assert "100.00% of the pixels as PyTorch's" in said.stdout


def test_json_knows_no_nan(capsys):
    nan = float("nan")
    files = [program.Exported("fp16", Path("x"), 1, Check(((1, 64, 64),), nan, 0.5))]
    table.show(
        "model", files, [table.Row("fp16", 1.0, 1.0, float("inf"), nan)], page=None, as_json=True
    )
    said = capsys.readouterr().out
    found = json.loads(said, parse_constant=lambda name: pytest.fail(name))
    assert found["files"][0]["difference"] is None
    assert found["table"][0]["ratio"] is None
    assert found["table"][0]["mean_iou"] is None


@pytest.mark.parametrize("more", [["--int8", "--no-table"], []])
def test_a_wrong_path_costs_no_export(exported, tmp_path, monkeypatch, more):
    folder, _, _ = exported
    monkeypatch.setattr(program, "trace", None)
    recipe = tmp_path / "recipe.yaml"
    data = {"source": "folder", "path": str(tmp_path / "nowhere")}
    recipe.write_text(json.dumps({"data": data, "labels": {"names": list(NAMES)}}))
    command = ["export", str(folder), "-o", str(tmp_path / "out"), "--recipe", str(recipe), *more]
    said = CliRunner().invoke(cli.app, command)
    assert isinstance(said.exception, UserError), said.exception
    assert "nowhere" in str(said.exception)
    assert not (tmp_path / "out").exists()


def test_files_are_listed_though_the_table_fails(exported, tmp_path, monkeypatch):
    folder, _, _ = exported
    content = (folder / "onnx" / "model.onnx").read_bytes()
    monkeypatch.setattr(program, "trace", lambda *_: None)
    monkeypatch.setattr(program, "to_onnx", lambda *_: content)

    def broken(*_, **__):
        raise UserError("val/7.png: is broken")

    monkeypatch.setattr(table, "measure", broken)
    said = CliRunner().invoke(cli.app, ["export", str(folder), "-o", str(tmp_path / "out")])
    assert str(said.exception) == "val/7.png: is broken"
    assert f"{tmp_path}/out/onnx/model.onnx: " in said.stdout


def test_synonyms_of_classes_are_the_same_classes(exported):
    _, segmenter, _ = exported
    names = ["television ", *NAMES[1:]]
    rows = [f"labels.names={json.dumps(names)}", "labels.preset=null", "labels.colors=null"]
    folder = ["data.path=anywhere", *rows]
    other = Segmenter(
        segmenter.model,
        segmenter.preprocessing,
        names=["television receiver", *NAMES[1:]],
        device="cpu",
    )
    SegmentationTask(load_recipe("folder", folder)).check_model(other, "model")
    rows[0] = rows[0].replace("television ", "radio")
    with pytest.raises(UserError, match="model: its 6 classes"):
        SegmentationTask(load_recipe("folder", ["data.path=anywhere", *rows])).check_model(
            other, "model"
        )
    deep = [*folder, "model.num_channels=4"]
    deep += ["data.image_mean=[0.5,0.5,0.5,0.5]", "data.image_std=[0.5,0.5,0.5,0.5]"]
    with pytest.raises(UserError, match=r"model: reads images of 3 channels, but .* is 4"):
        SegmentationTask(load_recipe("folder", deep)).check_model(other, "model")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train.steps=3"], "name it with --recipe"),
        (["--int8"], "--int8: needs --recipe"),
        (["--recipe", "camvid"], "its 6 classes (background, disc, square, ...) are not the 11 of"),
        (["--calibration", "8"], "--calibration: is read by --int8 alone; add --int8"),
        (
            ["--web-runtime", "dist"],
            "--web-runtime: is copied beside a page; name the page's folder with --web",
        ),
        (["--size", "12"], "sides must be 64"),
        (["--size", "axb"], "give a number"),
    ],
)
def test_mistakes_on_the_command_line(exported, tmp_path, arguments, message):
    folder, _, _ = exported
    command = ["export", str(folder), "-o", str(tmp_path / "out"), *arguments]
    said = CliRunner().invoke(cli.app, command)
    assert isinstance(said.exception, UserError)
    assert message in str(said.exception)
    assert not (tmp_path / "out").exists()
