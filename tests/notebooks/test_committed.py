"""Every notebook as it lies in the repository: what a reader sees before running anything."""

import ast
import base64
import json
import re
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path
from urllib.parse import urlsplit

import nbformat
import pytest
from IPython.core.inputtransformer2 import TransformerManager
from nbformat import NotebookNode

from .execution import NOTEBOOKS, ROOT, outputs, parameter_cell

PATHS = sorted(NOTEBOOKS.glob("*.ipynb"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
ELSEWHERE = re.compile(r"/(work|tmp|root|home|opt|usr)/|site-packages|\.venv")  # of a machine
MOST_BYTES, MOST_PICTURE = 400_000, 100_000


def test_there_are_notebooks():
    names = [path.stem for path in PATHS]
    assert {"01_quickstart", "02_your_own_images", "03_kaggle", "04_colab_to_hub"} <= set(names)
    assert len({name[:2] for name in names}) == len(names), "two of one number"


@pytest.fixture(params=PATHS, ids=lambda path: path.stem)
def path(request) -> Path:
    return request.param


@pytest.fixture
def notebook(path) -> NotebookNode:
    found = nbformat.read(path, as_version=4)
    nbformat.validate(found)
    return found


def code(notebook: NotebookNode) -> list[NotebookNode]:
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert len(cells) > 3
    return cells


def trees(notebook: NotebookNode) -> list[ast.Module]:
    """Each cell's Python, and that of programs in `%%script python` cells."""
    sources = [cell.source for cell in code(notebook)]
    sources += [
        source.partition("\n")[2] for source in sources if re.match(r"%%(script )?python", source)
    ]
    return [ast.parse(TransformerManager().transform_cell(source)) for source in sources]


def test_it_begins_with_a_title_and_how_to_open_it(notebook):
    first = notebook.cells[0]
    assert first.cell_type == "markdown"
    assert first.source.startswith("# ")
    assert re.search(r"minutes?\b", first.source), "how long does it take?"
    address = PROJECT["urls"]["Repository"]
    badges = re.findall(
        r"https://(?:colab\.research\.google|(?:www\.)?kaggle)\.com\S*", first.source
    )
    if urlsplit(address).hostname == "example.com":  # a placeholder: a badge would lead nowhere
        assert not badges
        assert "Upload notebook" in first.source
    else:
        assert len(badges) >= 2
        assert all(address.removeprefix("https://github.com/") in badge for badge in badges)


def test_the_first_code_cell_holds_the_parameters(notebook):
    cell = parameter_cell(notebook)
    assert cell is code(notebook)[0]
    for node in ast.parse(cell.source).body:
        assert isinstance(node, ast.Assign)
        ast.literal_eval(node.value)  # plain values, which tests can replace


def test_it_defines_nothing_that_belongs_into_the_package(notebook):
    defined = [
        node.name
        for tree in trees(notebook)
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
    ]
    assert not defined


def test_it_imports_only_what_the_install_brings(notebook):
    names = {re.split(r"[^\w.-]", text)[0].lower() for text in PROJECT["dependencies"]}
    installed = {
        root
        for root, owners in packages_distributions().items()
        if names & {owner.lower().replace("_", "-") for owner in owners}
        or names & {owner.lower() for owner in owners}
    }
    assert {"torch", "PIL", "huggingface_hub", "transformers"} <= installed
    imported = set()
    for tree in trees(notebook):
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                imported |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                imported.add((node.module or "").split(".")[0])
    assert "finetune" in imported
    assert imported <= installed | sys.stdlib_module_names | {"finetune", "IPython"}


def test_it_was_run_from_top_to_bottom(notebook):
    cells = code(notebook)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert any(cell.outputs for cell in cells)
    assert "error" not in {output.output_type for output in outputs(notebook)}


def test_its_outputs_are_small_and_say_nothing_of_a_machine(path, notebook):
    assert path.stat().st_size < MOST_BYTES
    assert "widgets" not in notebook.metadata
    shown = 0
    for output in outputs(notebook):
        data = output.get("data", {})
        assert "application/vnd.jupyter.widget-view+json" not in data
        pictures = [value for kind, value in data.items() if kind.startswith("image/")]
        shown += len(pictures)
        assert len(pictures) <= 1
        assert all(len(base64.b64decode(picture)) < MOST_PICTURE for picture in pictures)
        words = {kind: value for kind, value in data.items() if not kind.startswith("image/")}
        said = json.dumps(words) + output.get("text", "")
        assert not ELSEWHERE.search(said), said
        assert "Warning" not in said
    assert shown, "a picture says more"
