"""What runs the notebooks: it must see every way in which a cell may fail."""

import sys
from pathlib import Path

import nbformat
import pytest
from nbclient.exceptions import CellExecutionError
from nbformat.v4 import new_code_cell, new_notebook

from .execution import execute, text, with_values

PARAMETERS = 'steps = 2000  # of "training"\nfolder = "/kaggle/input/é"  # yours\nscales = [1, 2]'


def notebook(folder: Path, *cells: str) -> Path:
    first = new_code_cell(PARAMETERS, metadata={"tags": ["parameters"]})
    path = folder / "notebook.ipynb"
    nbformat.write(new_notebook(cells=[first, *map(new_code_cell, cells)]), path)
    return path


def test_values_are_replaced_where_they_stand():
    changed = with_values(PARAMETERS, {"folder": "b c", "steps": 3})
    assert changed == "steps = 3  # of \"training\"\nfolder = 'b c'  # yours\nscales = [1, 2]"
    assert with_values(PARAMETERS, {}) == PARAMETERS


@pytest.mark.parametrize(
    ("source", "values", "message"),
    [
        (PARAMETERS, {"stepz": 1}, "no parameter stepz"),
        ("import os", {}, "line 1 .* not `name = value`"),
        ("a = [\n1]", {"a": 1}, "more than one line"),
    ],
)
def test_what_is_no_parameter_is_refused(source, values, message):
    with pytest.raises(ValueError, match=message):
        with_values(source, values)


def test_it_runs_on_this_python_in_its_folder_without_a_network(tmp_path):
    path = notebook(
        tmp_path,
        "import os, sys, urllib.request, finetune\n"
        "print(steps, sys.executable, os.getcwd(), os.environ['HF_HUB_OFFLINE'])\n"
        "print(finetune.__file__)",
        "try:\n    urllib.request.urlopen('http://example.com', timeout=5)\n"
        "except OSError as error:\n    print('refused:', error.reason.strerror)",
        "!command -v finetune",
    )
    (tmp_path / "here").mkdir()
    seen = text(execute(path, {"steps": 7}, tmp_path / "here"))
    assert f"7 {sys.executable} {tmp_path / 'here'} 1\n" in seen
    assert str(Path(__file__).parents[2] / "finetune") in seen
    assert "refused: Connection refused" in seen
    assert str(Path(sys.executable).parent) in seen
    assert "steps = 2000" in path.read_text()


@pytest.mark.parametrize(
    ("cell", "error"),
    [
        ("1 / 0", CellExecutionError),
        ("%%bash\nexit 2", CellExecutionError),
        # Shown, but the cell goes on: IPython's %run of a program that exits with a status does so.
        ("get_ipython().showtraceback((ValueError, ValueError('x'), None))", AssertionError),
    ],
)
def test_errors_are_not_passed_over(cell, error, tmp_path):
    with pytest.raises(error):
        execute(notebook(tmp_path, cell), {}, tmp_path)
