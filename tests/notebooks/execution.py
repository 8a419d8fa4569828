"""Runs a notebook from top to bottom as a reader would, in an empty folder, on this Python.

    python tests/notebooks/execution.py notebooks/01_quickstart.ipynb [name=value ...]

keeps the outputs in the file: it runs with the parameters that stand there, or with others, which
the stored cell does not show and the text must then say. `--hub` is for `04_colab_to_hub.ipynb`.
"""

import argparse
import ast
import base64
import io
import os
import sys
import tempfile
import time
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import nbformat
from jupyter_client import AsyncKernelManager
from jupyter_client.kernelspec import KernelSpecManager
from nbclient import NotebookClient
from nbformat import NotebookNode
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = ROOT / "notebooks"
TAG = "parameters"
MOST_PNG, WIDTH = 50_000, 800  # bytes from which on a kept picture is made this wide, in pixels


def execute(
    path: Path,
    parameters: Mapping[str, Any],
    cwd: Path,
    *,
    environment: Mapping[str, str | None] | None = None,
    timeout: int = 600,
) -> NotebookNode:
    """Runs every cell, without a network, and returns the notebook with its outputs.

    Args:
        path: The notebook, which is not changed.
        parameters: Values by name that replace those of the parameter cell.
        cwd: Where it runs; an empty folder. Caches go into `.cache` below it.
        environment: Variables beside or instead of those of `isolated`; None takes one away.
        timeout: Seconds that a cell may take.

    Raises:
        nbclient.exceptions.CellExecutionError: A cell failed.
        AssertionError: A cell showed an error without failing.
        ValueError: There is no such parameter.
    """
    notebook = nbformat.read(path, as_version=4)
    cell = parameter_cell(notebook)
    cell.source = with_values(cell.source, parameters)
    variables: dict[str, str | None] = {**isolated(cwd), **(environment or {})}
    with tempfile.TemporaryDirectory() as sockets:  # names of sockets have to be short
        client = NotebookClient(
            notebook,
            # Without folders of kernels the one that is left is this Python's own.
            km=AsyncKernelManager(
                kernel_spec_manager=KernelSpecManager(kernel_dirs=[]),
                transport="ipc",
                connection_file=str(Path(sockets, "kernel.json")),
            ),
            kernel_name="python3",
            timeout=timeout,
            record_timing=False,
            resources={"metadata": {"path": str(cwd)}},
        )
        client.execute(
            cleanup_kc=True,
            env={key: value for key, value in variables.items() if value is not None},
        )
    errors = [output for output in outputs(notebook) if output.output_type == "error"]
    assert not errors, f"{path.name}: {errors}"
    return notebook


def isolated(cwd: Path) -> dict[str, str]:
    """The environment: an activated environment's commands, caches of its own and no network."""
    cache = cwd / ".cache"
    cache.mkdir(parents=True, exist_ok=True)
    nowhere = "http://127.0.0.1:9"  # nobody listens there: what asks for a network fails at once
    before = {key: os.environ[key] for key in ("PATH", "PYTHONPATH") if os.environ.get(key)}
    return {
        **os.environ,
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), *_some(before, "PATH")]),
        "PYTHONPATH": os.pathsep.join([str(ROOT), *_some(before, "PYTHONPATH")]),
        "FINETUNE_CACHE": str(cache / "decoded"),
        "HF_HOME": str(cache / "huggingface"),
        "IPYTHONDIR": str(cache / "ipython"),
        "HF_HUB_OFFLINE": "1",
        "PIP_NO_INDEX": "1",
        **dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"), nowhere),
        **dict.fromkeys(("NO_PROXY", "no_proxy"), "127.0.0.1,localhost"),
        # Where there are no widgets, bars are lines of text, and tqdm warns of it.
        "PYTHONWARNINGS": "ignore:IProgress not found",
    }


def _some(values: Mapping[str, str], key: str) -> list[str]:
    return [values[key]] if key in values else []


def parameter_cell(notebook: NotebookNode) -> NotebookNode:
    """The one cell that is tagged `parameters`."""
    found = [cell for cell in notebook.cells if TAG in cell.metadata.get("tags", [])]
    if len(found) != 1:
        raise ValueError(f"{len(found)} cells are tagged {TAG!r}, not one")
    return found[0]


def with_values(source: str, values: Mapping[str, Any]) -> str:
    """The parameter cell with other values; names, order and comments stay.

    Args:
        source: Lines `name = value`.
        values: Plain values by name, written as their `repr`.

    Raises:
        ValueError: The cell does something else, or has no such name.
    """
    places = {}
    for node in ast.parse(source).body:
        if not (isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)):
            raise ValueError(f"line {node.lineno} of the parameter cell is not `name = value`")
        places[node.targets[0].id] = node.value
    if unknown := values.keys() - places.keys():
        raise ValueError(f"no parameter {', '.join(sorted(unknown))}; there are {list(places)}")
    lines = source.encode().split(b"\n")  # ast counts bytes
    for name in sorted(values, key=lambda name: -places[name].lineno):
        place = places[name]
        if place.lineno != place.end_lineno:
            raise ValueError(f"the parameter {name} takes more than one line")
        line = lines[place.lineno - 1]
        written = repr(values[name]).encode()
        lines[place.lineno - 1] = line[: place.col_offset] + written + line[place.end_col_offset :]
    return b"\n".join(lines).decode()


def outputs(notebook: NotebookNode) -> list[NotebookNode]:
    """All outputs, in order."""
    return [output for cell in notebook.cells for output in cell.get("outputs", [])]


def text(notebook: NotebookNode) -> str:
    """What is to be read in the outputs: streams, and results as plain text."""
    parts = []
    for output in outputs(notebook):
        if output.output_type == "stream":
            parts.append(output.text)
        elif "data" in output:
            parts.append(output.data.get("text/plain", ""))
    return "\n".join(parts)


def with_hub(endpoint: str, token: str) -> dict[str, str | None]:
    """An `environment` in which a Hub of the tests' on the loopback is the one that there is."""
    return {
        "HF_ENDPOINT": endpoint,
        "HF_TOKEN": token,
        "HF_HUB_OFFLINE": None,
        "HF_HUB_DISABLE_XET": "1",  # such a Hub does not speak it
    }


def keep(
    path: Path,
    parameters: Mapping[str, Any],
    cwd: Path,
    environment: Mapping[str, str | None] | None = None,
) -> float:
    """Runs a notebook and stores its outputs in it; returns the seconds that it took.

    What they say of `cwd` reads `/content`, as in Colab.
    """
    begun = time.monotonic()
    done = execute(path, parameters, cwd, environment=environment, timeout=3600)
    seconds = time.monotonic() - begun
    parameter_cell(done).source = parameter_cell(nbformat.read(path, as_version=4)).source
    for cell in done.cells:
        if cell.cell_type == "code":
            cell.outputs = _merged(cell.outputs)
    for output in outputs(done):
        _shrink(output.get("data", {}))
        for holder, key in ((output, "text"), (output.get("data", {}), "text/plain")):
            if key in holder:
                holder[key] = holder[key].replace(str(cwd), "/content")
    # The same whichever Python ran it.
    done.metadata = nbformat.from_dict(
        {
            "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
            "language_info": {"name": "python"},
        }
    )
    nbformat.validate(done)
    nbformat.write(done, path)
    return seconds


def _merged(found: list[NotebookNode]) -> list[NotebookNode]:
    """Neighbouring pieces of a stream as one; of a line that was overwritten, its last form."""
    merged: list[NotebookNode] = []
    for output in found:
        before = merged[-1] if merged else None
        same = before and before.output_type == "stream" and before.name == output.get("name")
        if before and same:
            before.text += output.text
            continue
        merged.append(output)
    for output in merged:
        if output.output_type == "stream":
            lines = output.text.replace("\r\n", "\n").split("\n")
            shown = (line.rstrip("\r").rsplit("\r", 1)[-1].rstrip() for line in lines)
            output.text = "\n".join(shown)
    return [output for output in merged if output.get("text", "something").strip()]


def _shrink(data: NotebookNode) -> None:
    """One form of a picture, as small as it gets: Pillow offers a fast PNG, and a JPEG as well."""
    if "image/png" not in data:
        return
    picture = Image.open(io.BytesIO(base64.b64decode(data.pop("image/png"))))
    data.pop("image/jpeg", None)
    kind, small = "image/png", _encoded(picture, "PNG", optimize=True)
    if len(small) > MOST_PNG:
        picture = picture.convert("RGB")
        picture.thumbnail((WIDTH, 4 * WIDTH))
        kind, small = "image/jpeg", _encoded(picture, "JPEG", quality=85)
    data[kind] = base64.b64encode(small).decode()


def _encoded(picture: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def main() -> None:
    """Keeps the outputs of one notebook."""
    parser = argparse.ArgumentParser(description="Run a notebook and keep its outputs in it.")
    parser.add_argument("notebook", type=Path)
    parser.add_argument("parameters", nargs="*", metavar="name=value", help="values as in Python")
    parser.add_argument("--folder", type=Path, help="run there instead of in an empty folder")
    parser.add_argument(
        "--hub", action="store_true", help="with a Hub of the tests' on the loopback"
    )
    options = parser.parse_intermixed_args()
    pairs = [pair.partition("=") for pair in options.parameters]
    values = {name: ast.literal_eval(value) for name, _, value in pairs}
    with ExitStack() as stack:
        empty, store = (stack.enter_context(tempfile.TemporaryDirectory()) for _ in range(2))
        environment = None
        if options.hub:
            sys.path.append(str(ROOT / "tests"))
            from hub import TOKEN, Hub

            environment = with_hub(stack.enter_context(Hub(Path(store))).endpoint, TOKEN)
        folder = (options.folder or Path(empty)).resolve()
        seconds = keep(options.notebook, values, folder, environment)
    print(f"{options.notebook}: {seconds:.0f} s")


if __name__ == "__main__":
    main()
