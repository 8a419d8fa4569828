"""What a push sends: a folder that opens everywhere, the same each time, and nothing else."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers
from hub import Fault
from huggingface_hub import SpaceCard, constants, snapshot_download
from safetensors.torch import load_file
from tiny import save_tiny
from typer.testing import CliRunner

from finetune.cli import app
from finetune.disk import swap_folder
from finetune.errors import UserError
from finetune.programs.export import export
from finetune.programs.push import push as program
from finetune.programs.push.evidence import gather
from finetune.programs.push.staging import stage
from finetune.recipe import recipe_from_yaml

ROOT = Path(program.__file__).parents[3]
CODE = {
    *("autograd.py", "bands.py", "configuration.py", "cpu.py", "functional.py"),
    *("kernels.py", "layers.py", "modeling.py", "operators.py"),
}


def contents(folder):
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_the_folder_is_stock(run, pushed):
    folder, done = pushed
    assert done.files == {
        path.relative_to(folder).as_posix(): path.stat().st_size
        for path in folder.rglob("*")
        if path.is_file()
    }
    assert set(os.listdir(folder)) == CODE | {
        *("README.md", "card", "config.json", "model.safetensors", "preprocessor_config.json"),
        "recipe.yaml",
    }
    image = torch.randn(1, 3, 61, 90)
    logits = []
    for path in (run / "best", folder):
        model = transformers.SegformerForSemanticSegmentation.from_pretrained(path).eval()
        with torch.no_grad():
            logits.append(model(image).logits)
    assert torch.equal(*logits)
    assert recipe_from_yaml(folder / "recipe.yaml").hash() == gather(run).recipe.hash()
    assert json.loads((run / "best/config.json").read_text()).items() <= (
        json.loads((folder / "config.json").read_text()).items()
    )


@pytest.mark.slow
def test_twice_is_the_same_and_the_model_stays_as_it_was(own_run, tmp_path):
    before = contents(own_run)
    out = tmp_path / "out"
    program.push(own_run, "me/x", dry_run=out)
    first = contents(out)
    (out / "card" / "left.txt").write_text("of another time")
    (tmp_path / ".out.push/model").mkdir(parents=True)
    (tmp_path / ".out.push/model/left.txt").write_text("of a push that was killed")
    program.push(own_run, "me/x", dry_run=out)
    assert contents(out) == first
    assert contents(own_run) == before
    assert sorted(os.listdir(tmp_path)) == ["out", "private-place"]
    assert os.listdir(own_run.parent) == ["run"]
    assert "auto_map" not in json.loads((out / "config.json").read_text())
    assert not CODE & set(os.listdir(out))
    # The model's folder in its run has the run's evidence.
    program.push(own_run / "best", "me/x", dry_run=tmp_path / "best")
    assert contents(tmp_path / "best") == first


# The package itself is hidden, and Triton, which builds for CPUs do not bring.
SCRIPT = """
import os, sys
sys.modules["finetune"] = sys.modules["triton"] = None
import torch
from transformers import AutoModelForSemanticSegmentation as Auto, pipeline

folder = sys.argv[1]
torch.manual_seed(0)
image = torch.randn(2, 3, 61, 90)
labels = torch.randint(0, 5, (2, 61, 90))

def results(model):
    with torch.no_grad():
        found = model.eval()(image, labels=labels)
    return found.logits, found.loss

def same(mine, theirs):
    for one, other in zip(mine, theirs):
        assert (one - other).abs().max() <= 1e-5 * other.abs().max(), (one, other)

stock = Auto.from_pretrained(folder)  # nothing is asked: standard input is closed
assert type(stock).__module__ == "transformers.models.segformer.modeling_segformer"
assert not [name for name in sys.modules if name.startswith("transformers_modules")]
expected = results(stock)
local = Auto.from_pretrained(folder, trust_remote_code=True)
hub = Auto.from_pretrained("me/shapes", trust_remote_code=True)
modules = {type(model).__module__ for model in (local, hub)}
assert len(modules) == 2 and all(m.startswith("transformers_modules") for m in modules), modules
doubled = (expected[0], 2 * expected[1])  # by another version of the code
same(results(hub), doubled)
same(results(local), expected)
shown = pipeline("image-segmentation", model=folder, trust_remote_code=True)
assert type(shown.model).__module__ == type(local).__module__

del sys.modules["finetune"]
import finetune
ours = Auto.from_pretrained(folder, trust_remote_code=True)
assert type(ours).__module__ == "finetune.segformer.modeling"
for model, wanted in ((ours, expected), (local, expected), (hub, doubled)):
    same(results(model), wanted)
print("done")
"""


@pytest.mark.slow
def test_the_code_runs_without_the_package_and_beside_it(pushed, tmp_path):
    folder, _ = pushed
    # As the Hub's client keeps what it has downloaded.
    cached = tmp_path / "hub/models--me--shapes"
    commit = "0123456789012345678901234567890123456789"
    shutil.copytree(folder, cached / "snapshots" / commit)
    (cached / "refs").mkdir()
    (cached / "refs/main").write_text(commit)
    # PyTorch knows operators by name: those of two versions must not be taken for each other.
    code = cached / "snapshots" / commit / "operators.py"
    bands = "return cross_entropy_in_bands(logits, labels, weight, options)"
    call = bands.removeprefix("return ")
    other = f"loss, *rest = {call}; return (2 * loss, *rest)"
    assert code.read_text().count(bands) == 1
    code.write_text(code.read_text().replace(bands, other))
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(folder)],
        env={
            **os.environ,
            "HF_HUB_CACHE": str(tmp_path / "hub"),
            "HF_MODULES_CACHE": str(tmp_path / "modules"),
            "PYTHONPATH": str(ROOT),
        },
        cwd=tmp_path,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.splitlines()[-1:] == ["done"], done.stderr


@pytest.mark.parametrize(
    ("repo", "said"),
    [
        ("shapes", "name it OWNER/NAME"),
        ("me/a b", "not a valid name on the Hub"),
        ("me/", "not a valid name on the Hub"),
        ("a/b/c", "not a valid name"),
        ("https://x/y", "not a valid name"),
        ("me/formação", "not a valid name"),
    ],
)
def test_a_repository_must_have_a_name(repo, said, hub, run):
    with pytest.raises(UserError, match=said):
        program.push(run, repo)
    assert hub.log == []


def test_a_dry_run_replaces_nothing_of_others(run, own_run, tmp_path):
    other = save_tiny(tmp_path / "other")
    (tmp_path / "full").mkdir()
    (tmp_path / "full/thesis.tex").write_text("x")
    before = contents(tmp_path)
    for out, said in (
        (other, "which no dry run wrote"),
        (tmp_path / "full", "holds thesis.tex"),
        (own_run / "best", "holds the model itself"),
        (own_run, "holds the model itself"),
        (tmp_path / "full/thesis.tex", "not a usable folder"),
        (tmp_path / "full/thesis.tex/out", "cannot be made"),
    ):
        with pytest.raises(UserError, match=said):
            program.push(own_run, "me/x", dry_run=out)
    assert contents(tmp_path) == before


def test_a_best_model_that_comes_in_between_is_not_mixed_in(own_run, tmp_path):
    evidence = gather(own_run)
    shutil.copytree(own_run / "best", own_run / "better")
    swap_folder(own_run / "better", own_run / "best")
    (tmp_path / "staged").mkdir()
    with pytest.raises(UserError, match="was replaced by a better one"):
        stage(evidence, tmp_path / "staged", with_code=False)


def test_what_is_no_model_is_said(tmp_path):
    (tmp_path / "run").mkdir()
    with pytest.raises(UserError, match="neither a run folder"):
        program.push(tmp_path / "run", "me/x", dry_run=tmp_path / "out")
    (tmp_path / "run/metrics.jsonl").write_text('{"step": 1, "train/loss": 1.0}\n')
    with pytest.raises(UserError, match="has no best/ yet"):
        program.push(tmp_path / "run", "me/x", dry_run=tmp_path / "out")
    model = save_tiny(tmp_path / "model")
    state = load_file(model / "model.safetensors")
    (model / "model.safetensors").unlink()
    torch.save(state, model / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"has no model\.safetensors"):
        program.push(model, "me/x", dry_run=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_verb(own_run, tmp_path):
    command = ["push", str(own_run), "me/x", "--dry-run"]
    done = CliRunner().invoke(app, [*command, "--json"])
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout.splitlines()[-1])
    assert (told["repo"], told["private"], told["url"]) == ("me/x", True, None)
    assert told["folder"] == str(own_run / "push")
    assert told["files"].keys() == {str(path) for path in contents(own_run / "push")}
    shown = CliRunner().invoke(app, [*command, "--public", "-o", str(tmp_path / "out")])
    assert f"Would push {tmp_path / 'out'} to the public model me/x" in shown.stdout
    assert "README.md" in shown.stdout
    wrong = CliRunner().invoke(app, ["push", str(own_run), "me/x", "-o", str(tmp_path / "out")])
    assert isinstance(wrong.exception, UserError)
    help_text = CliRunner().invoke(app, ["push", "--help"]).stdout
    assert "Example: finetune push runs/camvid" in help_text


@pytest.mark.slow
def test_what_arrives_is_what_a_dry_run_shows(hub, run, pushed, tmp_path):
    """Through the real client and a Hub on the loopback, which checks the card as the Hub does."""
    command = ["push", str(run), "user/shapes", "--with-code", "--message", "hello"]
    done = CliRunner().invoke(app, [*command, "--json"])
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["url"] == f"{hub.endpoint}/user/shapes"
    assert told["private"]
    assert hub.is_private("user/shapes")
    assert hub.commits("user/shapes")[-1]["oid"] == told["commit"]
    fetched = Path(
        snapshot_download("user/shapes", endpoint=hub.endpoint, cache_dir=tmp_path / "cache")
    )
    (fetched / ".gitattributes").unlink()
    shown = tmp_path / "shown"
    program.push(run, "user/shapes", with_code=True, dry_run=shown)
    assert contents(fetched) == contents(shown)
    # The same again changes nothing there, and leaves nothing here.
    again = CliRunner().invoke(app, [*command, "--json"])
    assert json.loads(again.stdout.splitlines()[-1])["commit"] == told["commit"]
    assert sorted(os.listdir(run.parent)) == ["patches", "run"]
    assert not [name for name in os.listdir(run) if "push" in name]


@pytest.mark.parametrize("missing", ["token", "network"])
def test_what_cannot_be_sent_is_not_looked_at_first(missing, hub, run, monkeypatch):
    monkeypatch.setattr(program, "look", lambda *_: pytest.fail("minutes for nothing"))
    if missing == "token":
        monkeypatch.delenv("HF_TOKEN")
    else:
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    said = {"token": "there is no token", "network": "user/shapes: HF_HUB_OFFLINE is set"}
    with pytest.raises(UserError, match=said[missing]):
        program.push(run, "user/shapes")
    assert hub.log == []


@pytest.mark.slow
def test_ctrl_c_ends_it_while_the_hub_is_silent(hub, own_run):
    """The client waits for its threads, which would wait for minutes and try again."""
    hub.part_size = None  # files in threads, not parts one after the other
    silence = Fault("PUT", "/storage/", "stall", times=99)
    hub.faults = [silence]
    command = [sys.executable, "-m", "finetune.cli", "push", str(own_run), "user/shapes"]
    process = subprocess.Popen(
        command,
        env={**os.environ, "HF_HUB_OFFLINE": "0", "PYTHONPATH": str(ROOT)},
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    assert silence.met.wait(200)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=50)  # less than a connection may be silent
    assert process.returncode == 130
    assert said.endswith("stopped; the same command resumes\n")
    assert os.listdir(own_run.parent) == ["run"]
    assert not [name for name in os.listdir(own_run) if "push" in name]
    assert len(hub.commits("user/shapes")) == 1  # the one that came with the repository


def test_a_space_that_is_refused_says_that_the_model_is_pushed(hub, run):
    hub.create("space", "user/shapes-demo", private=True, sdk="gradio")
    hub.add_files("user/shapes-demo", {"app.py": b"import gradio"}, "space")
    with pytest.raises(UserError, match=rf"something else.*The model is pushed: {hub.endpoint}"):
        program.push(run, "user/shapes", space=True, pictures=False)
    assert "model.safetensors" in hub.files("user/shapes")
    assert hub.files("user/shapes-demo", "space") == {"app.py": b"import gradio"}


def test_with_onnx(run, tmp_path):
    """Where the export goes; what it writes there is looked at in tests/programs/export."""
    shown = []

    def write(model):
        shown.extend(os.listdir(model))
        (model / "onnx").mkdir()
        (model / "onnx/model.onnx").write_bytes(b"graph")

    before = contents(run)
    done = program.push(run, "me/x", onnx=write, dry_run=tmp_path / "out")
    assert {"config.json", "model.safetensors", "README.md"} <= set(shown)
    assert done.files["onnx/model.onnx"] == len(b"graph")
    assert (tmp_path / "out/onnx/model.onnx").read_bytes() == b"graph"
    assert "onnx/model.onnx" in (tmp_path / "out/README.md").read_text()
    assert contents(run) == before


@pytest.mark.slow
def test_the_verb_hands_the_exporter_over(own_run, tmp_path, monkeypatch):
    monkeypatch.setattr(export, "export", lambda model: (Path(model) / "onnx").mkdir())
    command = ["push", str(own_run), "me/x", "--dry-run", "-o", str(tmp_path / "out")]
    done = CliRunner().invoke(app, [*command, "--onnx"])
    assert done.exit_code == 0, done.output
    assert (tmp_path / "out" / "onnx").is_dir()
    monkeypatch.setattr(export, "PACKAGES", ("nowhere",))
    wrong = CliRunner().invoke(app, [*command, "--onnx"])
    assert "export needs nowhere: pip install" in str(wrong.exception)


def test_with_a_space(hub, own_run, tmp_path):
    """The demo goes where the card says, and a dry run shows both."""
    command = ["push", str(own_run), "user/shapes", "--space", "--json"]
    shown = CliRunner().invoke(app, [*command, "--dry-run", "-o", str(tmp_path / "out")])
    assert shown.exit_code == 0, shown.output
    space = json.loads(shown.stdout.splitlines()[-1])["space"]
    assert (space["repo"], space["folder"]) == ("user/shapes-demo", str(tmp_path / "out-space"))
    text = (tmp_path / "out/README.md").read_text()
    assert "https://huggingface.co/spaces/user/shapes-demo" in text
    assert SpaceCard.load(tmp_path / "out-space/README.md").data.to_dict()["models"] == [
        "user/shapes"
    ]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    sent = json.loads(done.stdout.splitlines()[-1])["space"]
    assert sent["url"] == f"{hub.endpoint}/spaces/user/shapes-demo"
    fetched = snapshot_download(
        "user/shapes-demo",
        repo_type="space",
        endpoint=hub.endpoint,
        cache_dir=tmp_path / "cache",
    )
    (Path(fetched) / ".gitattributes").unlink(missing_ok=True)
    assert contents(Path(fetched)) == contents(tmp_path / "out-space")
