"""A Space's folder, and its app in a process that knows no other finetune."""

import ast
import os
import re
import socket
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
import yaml
from gradio_client import Client, handle_file
from huggingface_hub import SpaceCard, SpaceCardData
from PIL import Image
from tiny import save_tiny

from finetune.errors import UserError
from finetune.inference import segment
from finetune.programs.demo import demo as program
from finetune.programs.push.space import GRADIO, REQUIREMENTS, write_space

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def space(tmp_path_factory):
    folder = tmp_path_factory.mktemp("space") / "space"
    write_space(folder, "somebody/streets", title="Streets: what is where?")
    return folder


def test_the_header_is_a_space_s(space):
    text = (space / "README.md").read_text(encoding="utf-8")
    header = yaml.safe_load(text.split("---\n")[1])
    data = SpaceCard.load(space / "README.md").data
    assert isinstance(data, SpaceCardData)
    assert data.to_dict() == header
    assert header["title"] == "Streets: what is where?"
    assert (header["sdk"], header["app_file"]) == ("gradio", "app.py")
    assert header["models"] == ["somebody/streets"]
    assert header["license"] == "apache-2.0"
    pins = (ROOT / "constraints.txt").read_text()
    assert f"\ngradio=={header['sdk_version']}\n" in pins
    assert header["sdk_version"] == GRADIO


def test_a_title_is_no_markup(tmp_path):
    write_space(tmp_path / "space", "somebody/streets", title="<b>streets</b> [here](x)")
    _, header, text = (tmp_path / "space/README.md").read_text(encoding="utf-8").split("---\n")
    assert yaml.safe_load(header)["title"] == "<b>streets</b> [here](x)"
    assert text.splitlines()[1] == r"# &lt;b&gt;streets&lt;/b&gt; \[here\](x)"


def test_the_app_is_the_demo_and_the_package_lies_beside_it(space):
    assert (space / "app.py").read_bytes() == (ROOT / "finetune/programs/demo/demo.py").read_bytes()
    sources = {
        path.relative_to(ROOT): path.read_bytes()
        for path in (ROOT / "finetune").rglob("*")
        if path.is_file() and path.suffix in (".py", ".js", ".css", ".html", ".md")
    }
    assert len(sources) > 90
    copied = {p.relative_to(space): p.read_bytes() for p in (space / "finetune").rglob("*.*")}
    assert copied == sources
    assert {path.name for path in space.iterdir()} == {
        *("README.md", "app.py", "requirements.txt", "finetune"),
    }


def test_requirements_are_the_package_s_own(space):
    project = (ROOT / "pyproject.toml").read_text().replace("_", "-")
    lines = (space / "requirements.txt").read_text().split()
    assert len(lines) == len(REQUIREMENTS) > 5
    assert not [line for line in lines if f'"{line}"' not in project]
    assert not [line for line in lines if "torchvision" in line]
    # And all that the app imports, in whichever way it gets there.
    seen, todo, roots = set(), [space / "app.py"], set()
    while todo:
        path = todo.pop()
        seen.add(path)
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                near = path.relative_to(space).parts[: -node.level] if node.level else ()
                source = ".".join([*near, *filter(None, [node.module])])
                names = [source, *(f"{source}.{alias.name}" for alias in node.names)]
            for name in names:
                place = space / name.replace(".", "/")
                files = [
                    place.with_suffix(".py"),
                    *(p / "__init__.py" for p in (place, place.parent)),
                ]
                todo += [file for file in files if file.is_file() and file not in seen]
                roots.add(name.split(".")[0])
    assert len(seen) > 20
    own = roots - sys.stdlib_module_names - {"finetune", "gradio"}
    own -= {"segformer_finetune", "triton"}  # what a wheel of ours adds; torch's, if at all
    providers = metadata.packages_distributions()
    needed = {providers[name][0].lower() for name in own}
    assert {name.replace("_", "-") for name in needed} == set(REQUIREMENTS)


def test_a_space_that_cannot_be_written_is_a_message(tmp_path):
    with pytest.raises(UserError, match="has no title"):
        write_space(tmp_path / "new", "somebody/streets", title=" ")
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot write the Space"):
        write_space(tmp_path / "file" / "new", "somebody/streets", title="Streets")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


# As the Hub does it, but without other folders that hold a finetune.
RUN = """\
import runpy, sys
from pathlib import Path
sys.path[:] = [%r] + [p for p in sys.path if p and not Path(p, "finetune").exists()]
import finetune
print(finetune.__file__, flush=True)
runpy.run_path("app.py", run_name="__main__")
"""


def started(space, **variables):
    """The app on a free port; what it prints first, and its address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    clean = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    process = subprocess.Popen(
        [sys.executable, "-I", "-c", RUN % str(space)],
        cwd=space,
        env={**clean, "GRADIO_SERVER_PORT": str(port), **variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    said = []
    for line in process.stdout:
        said.append(line)
        if line.startswith("Open "):
            break
    return process, "".join(said), f"http://127.0.0.1:{port}"


@pytest.mark.slow
def test_the_app_runs_from_the_folder_alone(space, tmp_path):
    model = save_tiny(tmp_path / "model")
    (space / "examples").mkdir()
    noise = np.random.default_rng(0).integers(0, 256, (60, 80, 3), np.uint8)
    Image.fromarray(noise).save(space / "examples" / "street.png")
    process, said, address = started(space, FINETUNE_MODELS=f" {model}, ")
    try:
        assert said.splitlines()[0] == str(space / "finetune" / "__init__.py"), said
        client = Client(address, verbose=False, download_files=str(tmp_path))
        answer = client.predict(handle_file(space / "examples" / "street.png"), api_name="/segment")
        mask = np.asarray(Image.open(answer["results"][0]["mask"]))
        assert (mask == segment(str(model), noise).mask).all()
        titles = [part["props"].get("value") for part in client.config["components"]]
        assert any("Streets: what is where?" in str(title) for title in titles)
        assert "street.png" in str(client.config["components"])
    finally:
        process.terminate()
        assert process.wait(60) == 143
        process.stdout.close()


def test_a_model_that_cannot_be_read_is_said_on_the_page(space, monkeypatch, capsys):
    monkeypatch.delenv("FINETUNE_MODELS", raising=False)
    with program.private_cache():
        page = program.of_space(space)  # offline, and the model is nobody's
    (shown,) = (block.value for block in page.blocks.values() if hasattr(block, "value"))
    assert "# Streets: what is where?" in shown
    assert re.search(r"The model cannot be read: .*somebody/streets", shown)
    assert "HF\\_TOKEN" in shown
    said = capsys.readouterr().err
    assert "error: model somebody/streets: not a model folder or Hub id" in said
