"""What is published: its metadata, the source archive, and the wheel away from the checkout."""

import json
import os
import subprocess
import sys
import sysconfig
import tomllib
import venv
import zipfile
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
VARIABLES = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dist")
    build = [sys.executable, "-m", "hatchling", "build", "-d", folder]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    return folder


@pytest.fixture(scope="module")
def wheel(built):
    (path,) = built.glob("segformer_finetune-*.whl")
    return path


def new_environment(folder, *wheels):
    """The wheels in an environment of their own, which borrows their dependencies from this one."""
    venv.create(folder, with_pip=False)
    for wheel in wheels:
        install(folder, wheel)
    (packages,) = folder.glob("lib/python3*/site-packages")
    # The path alone: a checkout that is installed there, by a .pth of its own, does not come along.
    (packages / "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return folder / "bin"


def install(environment, wheel):
    pip(environment, "install", "--no-deps", "--no-index", wheel)


def pip(environment, *arguments):
    command = [sys.executable, "-m", "pip", "--quiet", "--python", environment / "bin" / "python"]
    subprocess.run([*command, *arguments], env=VARIABLES, check=True, capture_output=True)


@pytest.fixture(scope="module")
def environment(wheel, tmp_path_factory):
    return new_environment(tmp_path_factory.mktemp("environment"), wheel)


def run(environment, cwd, *command):
    command = [environment / command[0], *command[1:]]
    return subprocess.run(command, cwd=cwd, env=VARIABLES, capture_output=True, text=True)


def test_an_index_takes_both(built):
    assert len(list(built.glob("segformer_finetune-*.tar.gz"))) == 1
    check = [sys.executable, "-m", "twine", "check", "--strict", *sorted(built.iterdir())]
    done = subprocess.run(check, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("PASSED") == 2


def test_addresses_are_placeholders_together_or_none_is():
    urls = PROJECT["project"]["urls"]
    assert {"Homepage", "Documentation", "Repository", "Issues", "Changelog"} == urls.keys()
    placeholders = {name for name, url in urls.items() if urlsplit(url).hostname == "example.com"}
    assert placeholders in (set(), urls.keys()), "replace the others too"
    assert all(urlsplit(url).scheme == "https" for url in urls.values())


def test_the_oldest_python_is_the_same_everywhere():
    oldest = PROJECT["project"]["requires-python"].removeprefix(">=")
    named = [text.rpartition(" :: ")[2] for text in PROJECT["project"]["classifiers"]]
    versions = [tuple(map(int, name.split("."))) for name in named if name.startswith("3.")]
    assert len(versions) > 2
    assert min(versions) == tuple(map(int, oldest.split(".")))
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "tests.yml").read_text())
    tested = workflow["jobs"]["test"]["strategy"]["matrix"]["python"]
    assert tested == [name for name in named if name.startswith("3.")]
    assert PROJECT["tool"]["ruff"]["target-version"] == "py" + oldest.replace(".", "")
    assert PROJECT["tool"]["mypy"]["python_version"] == oldest
    assert f"Python {oldest} or newer" in (ROOT / "README.md").read_text(encoding="utf-8")
    assert f"Python {oldest} or newer" in (ROOT / "constraints.txt").read_text(encoding="utf-8")


def test_everything_that_is_read_travels_and_nothing_else(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    files = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True).stdout
    if files:  # a source archive has no git
        ours = [name for name in files.splitlines() if name.startswith("finetune/")]
        recipes = [f"finetune/{name}" for name in files.splitlines() if name.startswith("recipes/")]
        assert len(ours) > 100
        assert len(recipes) > 6
        carried = {name for name in names if ".dist-info/" not in name}
        assert carried == {*ours, *recipes, "segformer_finetune.py"}
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


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    """A wheel of the other project: its import fails, as without TensorFlow; it shares a file."""
    path = tmp_path_factory.mktemp("other") / "finetune-0.10.1-py3-none-any.whl"
    info = "finetune-0.10.1.dist-info"
    files = {
        "finetune/__init__.py": "raise ModuleNotFoundError('tensorflow')\n",
        "finetune/errors.py": "class FinetuneError(Exception): ...\n",
        f"{info}/METADATA": "Metadata-Version: 2.1\nName: finetune\nVersion: 0.10.1\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in files.items():
            archive.writestr(name, text)
        archive.writestr(
            f"{info}/RECORD", "".join(f"{name},,\n" for name in [*files, f"{info}/RECORD"])
        )
    return path


REMEDY = "`pip uninstall finetune segformer-finetune`, then install segformer-finetune again"


@pytest.mark.slow
def test_beside_the_other_project_the_import_says_so(wheel, other, tmp_path):
    binaries = new_environment(tmp_path / "both", other, wheel)
    done = run(binaries, tmp_path, "finetune", "recipes")
    assert done.returncode == 0, done.stderr
    assert "shapes" in done.stdout
    assert done.stderr.count("another project's package") == 1
    assert "`finetune` 0.10.1 is installed in" in done.stderr
    assert REMEDY in done.stderr
    failed = run(binaries, tmp_path, "python", "-W", "error", "-c", "import finetune")
    assert failed.stderr.splitlines()[-1].startswith("UserWarning: `finetune` 0.10.1 is installed")
    # The wrong remedy takes what both wrote.
    pip(tmp_path / "both", "uninstall", "--yes", "finetune")
    done = run(binaries, tmp_path, "finetune", "recipes")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: files of segformer-finetune are missing")
    assert REMEDY in done.stderr
    # And the right one mends it.
    pip(tmp_path / "both", "uninstall", "--yes", "segformer-finetune")
    install(tmp_path / "both", wheel)
    code = "import segformer_finetune as ours; print([ours.obstacle(), ours.namesake()])"
    assert run(binaries, tmp_path, "python", "-c", code).stdout == "['', '']\n"


def test_where_the_other_project_came_last_the_command_says_so(wheel, other, tmp_path):
    binaries = new_environment(tmp_path / "both", wheel, other)
    done = run(binaries, tmp_path, "finetune", "train", "shapes")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: `finetune` 0.10.1 is installed in")
    assert REMEDY in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_folder_that_hides_the_package_is_named(environment, tmp_path):
    (tmp_path / "finetune").mkdir()
    (tmp_path / "finetune" / "__init__.py").write_text("")
    code = "import segformer_finetune; segformer_finetune.main()"
    done = run(environment, tmp_path, "python", "-c", code)
    assert (done.returncode, done.stdout) == (2, "")
    assert f"{tmp_path}/finetune/__init__.py belongs to another package" in done.stderr


@pytest.mark.slow
def test_it_measures_time_without_the_checkout(environment, tmp_path):
    options = ["--size", "64", "--num-labels", "7", "--rounds", "1", "--threads", "1", "--json"]
    done = run(environment, tmp_path, "finetune", "benchmark", "loss", *options)
    assert done.returncode == 0, done.stderr
    (loss,) = (json.loads(line) for line in done.stdout.splitlines())
    assert loss["ratio"]["ours"] > 0
    assert loss["peak_bytes"] == {}
    refused = run(environment, tmp_path, "finetune", "benchmark", "predict")
    assert refused.returncode == 2
    assert "needs a checkout" in refused.stderr


# A package of the same name with an interrupt in one place: in a callback, which swallows
# exceptions, of an import; in a verb; at the end, when Python waits for its threads.
INTERRUPTED = {
    "import": ("class A:\n    def __del__(self): os.kill(os.getpid(), 2)\nA()", "pass"),
    "verb": ("", "os.kill(os.getpid(), 2)"),
    "end": ("", "import atexit; atexit.register(os.kill, os.getpid(), 2)"),
}


@pytest.mark.skipif(os.name != "posix", reason="signals as POSIX has them")
@pytest.mark.parametrize(
    ("place", "said"), [("import", "\nstopped\n"), ("verb", "saved\n"), ("end", "\nstopped\n")]
)
def test_ctrl_c_ends_the_command_wherever_it_is(tmp_path, place, said):
    imported, verb = INTERRUPTED[place]
    (tmp_path / "finetune").mkdir()
    (tmp_path / "finetune/__init__.py").write_text(f"# warn_of_namesake\nimport os\n{imported}\n")
    (tmp_path / "finetune/cli.py").write_text(
        "import os, sys\n"
        "def main():\n"
        f"    try: {verb}\n"
        "    except KeyboardInterrupt: print('saved', file=sys.stderr); sys.exit(130)\n"
    )
    code = "import signal, segformer_finetune as ours\n"
    code += "signal.signal(signal.SIGINT, signal.default_int_handler); ours.main()"
    environment = {**VARIABLES, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}
    command = [sys.executable, "-c", code]
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (130, said)
