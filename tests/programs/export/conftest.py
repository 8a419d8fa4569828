"""A small model with everything a real one has, exported once."""

import functools
import hashlib
import http.server
import os
import shutil
import subprocess
import threading
from pathlib import Path

import pytest
from browser import skip
from tiny import save_tiny

from finetune.inference import InferenceProtocol, Preprocessing
from finetune.programs.export import export as program

NAMES = ("background", "disc", "square", "triangle", "star", "ring")  # of the recipe `shapes`
COLORS = ((70, 70, 70), (230, 85, 75), (70, 140, 230), (245, 200, 60), (95, 185, 95), (9, 5, 2))
MEAN, STD = (0.4, 0.45, 0.5), (0.2, 0.25, 0.3)


def write_model(folder: Path, protocol: InferenceProtocol | None = None) -> Path:
    preprocessing = Preprocessing(protocol or InferenceProtocol(), MEAN, STD)
    return save_tiny(folder, preprocessing, names=NAMES, colors=COLORS)


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("export") / "model")


@pytest.fixture(scope="session")
def exported(model_folder):
    """The folder with the forms that need no recipe in it, and what `export` says of them."""
    options = program.Options(labels=True, fp16=True, pt2=True)
    segmenter, files = program.export(str(model_folder), options=options)
    return model_folder, segmenter, {file.form: file for file in files}


PACKAGE = Path(__file__).with_name("package.json")


@pytest.fixture(scope="session")
def node_modules():
    """The npm packages of package.json, installed into the user's cache once."""
    if not (shutil.which("node") and shutil.which("npm")):
        skip("needs Node.js with npm, to run what it exports in JavaScript")
    version = hashlib.sha256(PACKAGE.read_bytes()).hexdigest()[:12]
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    folder = cache / "finetune" / f"node-{version}"
    done = folder / "done"
    if not done.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(PACKAGE, folder)
        # The CPU's binaries are in the package; its installer would fetch others.
        variables = {**os.environ, "ONNXRUNTIME_NODE_INSTALL": "skip"}
        command = ["npm", "install", "--no-audit", "--no-fund", "--silent"]
        made = subprocess.run(command, cwd=folder, env=variables, capture_output=True, text=True)
        if made.returncode:
            skip(f"npm cannot install the packages: {made.stderr.strip()[-300:]}")
        done.touch()
    return folder / "node_modules"


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@pytest.fixture(scope="session")
def served(tmp_path_factory):
    """A folder, and the address of a server without any code that serves it."""
    root = tmp_path_factory.mktemp("pages")
    handler = functools.partial(Quiet, directory=str(root))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield root, f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
