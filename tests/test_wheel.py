"""The wheel alone, away from the checkout: recipes, page and pixels' scripts travel inside it."""

import json
import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-index"]
    subprocess.run([*command, "--no-build-isolation", "-w", folder, ROOT], check=True)
    (path,) = folder.glob("finetune-*.whl")
    return path


@pytest.fixture(scope="module")
def environment(wheel, tmp_path_factory):
    """The wheel in an environment of its own, which borrows what it depends on from this one."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=False)
    python = folder / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--quiet", "--python", python]
    subprocess.run([*pip, "install", "--no-deps", "--no-index", wheel], check=True)
    (packages,) = folder.glob("lib/python3*/site-packages")
    # The path alone: a checkout that is installed there, by a .pth of its own, does not come along.
    (packages / "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return folder / "bin"


def run(environment, cwd, *command):
    variables = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    command = [environment / command[0], *command[1:]]
    return subprocess.run(command, cwd=cwd, env=variables, capture_output=True, text=True)


def test_everything_that_is_read_travels_and_nothing_else(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    files = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True).stdout
    if files:  # a source archive has no git
        ours = [name for name in files.splitlines() if name.startswith("finetune/")]
        recipes = [f"finetune/{name}" for name in files.splitlines() if name.startswith("recipes/")]
        assert len(ours) > 100
        assert len(recipes) > 6
        assert {name for name in names if ".dist-info/" not in name} == {*ours, *recipes}
    assert any(name.endswith("licenses/LICENSE") for name in names)


@pytest.mark.slow
def test_it_trains_without_the_checkout(environment, tmp_path):
    where = run(environment, tmp_path, "python", "-c", "import finetune; print(finetune.__file__)")
    assert Path(where.stdout.strip()).is_relative_to(environment.parent), where.stderr
    settings = ["train.steps=4", "data.train_samples=16", "data.val_samples=8", "train.threads=1"]
    done = run(environment, tmp_path, "finetune", "train", "shapes", *settings)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "runs" / "shapes" / "best" / "model.safetensors").is_file()
    listed = run(environment, tmp_path, "finetune", "recipes").stdout
    for recipe in (ROOT / "recipes").glob("*.yaml"):
        assert recipe.stem in listed


@pytest.mark.slow
def test_it_measures_time_without_the_checkout(environment, tmp_path):
    options = ["--size", "64", "--num-labels", "7", "--rounds", "1", "--threads", "1", "--json"]
    done = run(environment, tmp_path, "finetune", "benchmark", "loss", "loader", *options)
    assert done.returncode == 0, done.stderr
    loss, loader = (json.loads(line) for line in done.stdout.splitlines())
    assert loss["ratio"]["ours"] > 0
    assert loader["ratio"].keys() == {"ours", "ours_cached"}
    assert loss["peak_bytes"] == {}
    refused = run(environment, tmp_path, "finetune", "benchmark", "predict")
    assert refused.returncode == 2
    assert "only in a checkout" in refused.stderr
