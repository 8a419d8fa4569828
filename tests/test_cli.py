"""The `finetune` command as a person types it."""

import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import typer
import yaml
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AutoConfig
from typer.testing import CliRunner

import finetune
from finetune import cli
from finetune.cli.app import complete_recipe
from finetune.data.sources.shapes import draw
from finetune.errors import UserError
from finetune.labels import presets
from finetune.recipe import load_recipe
from finetune.train import fit

ROOT = Path(__file__).resolve().parents[1]


def invoke(*arguments: str):
    return CliRunner().invoke(cli.app, [str(argument) for argument in arguments])


def test_help_is_complete():
    said = invoke("--help").output
    verbs = [command.name or command.callback.__name__ for command in cli.app.registered_commands]
    assert verbs == [
        *["train", "recipes", "show", "report", "init", "doctor", "review", "pack"],
        *["eval", "predict", "convert", "export", "push", "demo", "benchmark"],
    ]
    for verb in verbs:
        assert verb in said
        help_text = invoke(verb, "--help").output
        assert len(help_text.splitlines()) > 5
        assert "Example:" in help_text


@pytest.mark.parametrize("columns", [80, 40])
def test_help_fits_narrow_terminals(columns):
    """Names of options are whole; in 80 columns, all lines fit, in 40 all but the longest names."""
    code = (
        "from typer.testing import CliRunner; from finetune import cli; import typer\n"
        "for name, verb in typer.main.get_command(cli.app).commands.items():\n"
        "    said = CliRunner().invoke(cli.app, [name, '--help'])\n"
        "    names = [n for p in verb.params for n in (*p.opts, *p.secondary_opts)]\n"
        "    options = {n for n in names if n.startswith('-')}\n"
        "    assert options <= set(said.output.replace(',', ' ').split()), (name, said.output)\n"
        "    print(said.output)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": str(columns)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    lines = done.stdout.splitlines()
    assert len(lines) > 300
    assert "--keep-freed-memory / --no-keep-freed-memory" in done.stdout
    long = [line for line in lines if len(line) > columns]
    assert all(columns == 40 and line.startswith("  -") for line in long)


def test_version():
    assert invoke("--version").output.strip() == f"finetune {finetune.__version__}"


@pytest.mark.slow
def test_a_shell_completes_recipes(tmp_path, monkeypatch):
    (tmp_path / "carts").mkdir()
    for name in ("carts.yaml", "carts.txt", "carts/mine.yaml"):
        (tmp_path / name).touch()
    variables = {"_FINETUNE_COMPLETE": "complete_bash", "_TYPER_COMPLETE_ARGS": "finetune train ca"}
    variables |= {"COMP_WORDS": "finetune train ca", "COMP_CWORD": "2"}
    code = "from finetune.cli import app; app(prog_name='finetune')"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), **variables},
        capture_output=True,
        text=True,
    )
    assert set(done.stdout.split()) == {"camvid", "carts.yaml", "carts/"}, done.stderr
    monkeypatch.chdir(tmp_path)
    assert list(complete_recipe("carts/")) == ["carts/mine.yaml"]
    assert list(complete_recipe("nothing")) == []


def test_a_report_is_written_anew(tmp_path):
    row = {"step": 1, "epoch": 1, "seconds": 1, "train/loss": 0.5, "train/lr": 0.1}
    (tmp_path / "metrics.jsonl").write_text(json.dumps(row) + "\n")
    done = invoke("report", tmp_path)
    assert done.output.strip() == str(tmp_path / "report.html")
    assert "0.5" in (tmp_path / "report.html").read_text()
    assert isinstance(invoke("report", tmp_path / "none").exception, UserError)


def test_recipes_lists_what_ships():
    said = invoke("recipes").output
    for name in ("ade20k", "camvid", "cityscapes", "folder", "shapes"):
        assert name in said


def test_show_prints_a_recipe_that_loads(tmp_path):
    done = invoke("show", "ade20k", "model.variant=b2")
    assert done.exit_code == 0
    assert yaml.safe_load(done.output)["model"]["variant"] == "b2"
    path = tmp_path / "mine.yaml"
    path.write_text(done.output)
    assert load_recipe(path) == load_recipe("ade20k", ["model.variant=b2"])


def test_what_init_says_to_type_next_can_be_typed(tmp_path, monkeypatch):
    for name in ("images", "masks"):
        (tmp_path / "my data" / name).mkdir(parents=True)
    for i in range(4):
        image, mask = draw(seed=0, index=i, size=(64, 64))
        Image.fromarray(image).save(tmp_path / "my data" / "images" / f"{i}.png")
        Image.fromarray(mask).save(tmp_path / "my data" / "masks" / f"{i}.png")
    recipe = tmp_path / "who's recipe.yaml"
    said = invoke("init", tmp_path / "my data", "-o", recipe).output
    assert shlex.split(said.rpartition("Next: ")[2]) == ["finetune", "train", str(recipe)]
    load_recipe(recipe)
    monkeypatch.chdir(tmp_path)  # "-d.yaml" would be an option
    assert "Next: finetune train ./-d.yaml" in invoke("init", "my data", "-o", "./-d.yaml").output


def test_show_keys_names_every_key():
    said = invoke("show", "--keys").output
    for key in ("train.steps", "labels.names", "evaluation.window", "data.workers"):
        assert key in said


@pytest.mark.parametrize(
    "arguments",
    [
        *(["show"], ["show", "--keys", "--schema"], ["show", "folder", "--keys"]),
        *(["train", "shapes", "train.stepz=1"], ["eval", "x", "--recipe=y"]),
    ],
    ids=" ".join,
)
def test_mistakes_exit_2_with_one_message(arguments, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["finetune", *arguments])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 2
    said = capsys.readouterr()
    assert said.err.startswith("error: ")
    assert said.err.count("\n") == 1
    assert not said.out


def test_a_warning_is_one_line(monkeypatch, capsys):
    arguments = ["finetune", "show", "shapes", "train.steps=50", "train.warmup_steps=60"]
    monkeypatch.setattr(sys, "argv", arguments)
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert not ended.value.code
    said = capsys.readouterr().err
    assert said.startswith("warning: train.warmup_steps=60 does not fit")
    assert said.count("\n") == 1


@pytest.mark.slow
def test_a_mistake_in_a_process_of_its_own(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "finetune.cli", "show", "camvd"],
        cwd=tmp_path,
        env={"PATH": "", "PYTHONPATH": str(ROOT), "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert "Traceback" not in done.stderr


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("run") / "run"
    overrides = ["model.depths=[1,1,1,1]", "model.hidden_sizes=[8,16,40,64]"]
    overrides += ["model.decoder_hidden_size=32", "data.val_samples=4", "data.workers=0"]
    overrides += ["train.steps=1", "train.global_batch=2", f"output={output}"]
    fit(load_recipe("shapes", overrides))
    return output


def test_eval_prints_the_table_and_json(model):
    arguments = ["eval", model / "last", "--recipe", model / "recipe.yaml"]
    said = invoke(*arguments).stdout
    assert "triangle" in said
    assert "mean" in said
    row = json.loads((model / "metrics.jsonl").read_text().splitlines()[-1])
    values = json.loads(invoke(*arguments, "--json").stdout)
    assert values["eval/mean_iou"] == row["eval/mean_iou"]
    assert values["eval/per_class_iou"] == row["eval/per_class_iou"]


def test_eval_shows_images_as_the_folder_says_unless_told_otherwise(model, tmp_path):
    arguments = ["eval", model / "last", "--recipe", model / "recipe.yaml", "--json"]
    values = json.loads(invoke(*arguments).stdout)
    again = json.loads(invoke(*arguments, "evaluation.flip=true").stdout)
    assert again["eval/loss"] != values["eval/loss"]
    folder = shutil.copytree(model / "last", tmp_path / "other")
    config = json.loads((folder / "config.json").read_text())
    config["finetune_eval"]["flip"] = True
    (folder / "config.json").write_text(json.dumps(config))
    arguments[1] = folder
    assert json.loads(invoke(*arguments).stdout)["eval/loss"] == again["eval/loss"]
    plain = json.loads(invoke(*arguments, "evaluation.flip=false").stdout)
    assert plain["eval/loss"] == values["eval/loss"]


def test_eval_knows_classes_by_their_published_names(model, tmp_path, monkeypatch):
    folder = shutil.copytree(model / "last", tmp_path / "renamed")
    text = (folder / "config.json").read_text().replace('"triangle"', '"three corners"')
    (folder / "config.json").write_text(text)
    arguments = ("eval", folder, "--recipe", model / "recipe.yaml")
    with pytest.raises(UserError, match="are not the"):
        raise invoke(*arguments).exception
    monkeypatch.setitem(presets.SYNONYMS, "three corners", "triangle")
    assert "triangle" in invoke(*arguments).stdout


def test_eval_refuses_what_is_not_a_whole_segmentation_model(model, tmp_path):
    """A head drawn at random would be scored without a word."""
    folder = tmp_path / "cut"
    shutil.copytree(model / "last", folder)
    arguments = ("eval", folder, "--recipe", model / "recipe.yaml")
    weights = load_file(folder / "model.safetensors")
    weights.pop("decode_head.classifier.bias")
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=r"1 weights are missing, .* decode_head\.classifier\.bias"):
        raise invoke(*arguments).exception
    (folder / "model.safetensors").write_bytes(b"cut off")
    with pytest.raises(UserError, match="its weights cannot be read"):
        raise invoke(*arguments).exception
    (folder / "config.json").write_text('{"model_type": "vit"}')
    with pytest.raises(UserError, match="a model of type vit; only segformer"):
        raise invoke(*arguments).exception


class Executed:
    """Leaves a file behind if it is ever unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


def test_eval_opens_no_pickle_and_no_code_and_no_nan(model, tmp_path):
    folder, trace = tmp_path / "model", tmp_path / "trace"
    shutil.copytree(model / "last", folder)
    arguments = ("eval", folder, "--recipe", model / "recipe.yaml")
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save({**weights, "extra": Executed(trace)}, folder / "pytorch_model.bin")
    with pytest.raises(UserError, match="could run code"):
        raise invoke(*arguments).exception
    assert not trace.exists()
    (folder / "pytorch_model.bin").unlink()
    weights["decode_head.classifier.bias"].fill_(float("nan"))
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match="NaN or infinity"):
        raise invoke(*arguments).exception
    config = {"model_type": "mine", "auto_map": {"AutoConfig": "mine.Config"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "mine.py").write_text(f"open({str(trace)!r}, 'w')")
    assert isinstance(invoke(*arguments).exception, UserError)
    assert not trace.exists()


def test_a_missing_folder_below_a_folder_is_no_hub_id(tmp_path, monkeypatch):
    """A typing mistake is told at once, where a Hub without a network takes half a minute."""
    (tmp_path / "runs").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(AutoConfig, "from_pretrained", lambda *_, **__: pytest.fail("asked"))
    for name in ("runs/typo", "./typo", "runs/typo/best"):
        done = invoke("predict", name, "picture.jpg", "-o", "out")
        assert isinstance(done.exception, UserError)
        assert "no such folder" in str(done.exception)
    assert not Path("out").exists()


def test_eval_says_what_is_wrong_with_a_model(model, tmp_path):
    for arguments, expected in [
        ((tmp_path / "nowhere", "--recipe", "shapes"), "no such folder"),
        (("nowhere", "--recipe", "shapes"), "no such folder, and a Hub id is OWNER/NAME"),
        ((tmp_path, "--recipe", "shapes"), "not a model folder"),
        ((model, "--recipe", "shapes"), f"{model}: is a run folder; name its model, {model}/best"),
        ((model / "last", "--recipe", "camvid", "data.path=x"), "6 classes .* not the 11"),
    ]:
        done = invoke("eval", *arguments)
        assert isinstance(done.exception, UserError)
        with pytest.raises(UserError, match=expected):
            raise done.exception


def test_help_wraps_as_paragraphs():
    """A line break inside a paragraph of help would stand in the middle of an 80 column line."""
    verbs = typer.main.get_command(cli.app).commands
    assert len(verbs) > 12
    for name, verb in verbs.items():
        assert verb.help, name
        assert all("\n" not in paragraph for paragraph in verb.help.split("\n\n")), name
