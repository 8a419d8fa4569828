"""What every test shares: no network, few threads, and the real images if they are there."""

import os
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"  # a test that reaches for the Hub fails at once
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# Threads that wait for one another soon sleep, and leave the core to whoever works. Read by torch.
os.environ.setdefault("GOMP_SPINCOUNT", "10000")

import browser as chromium
import pytest
import torch

# Beside other processes of the tests one thread each: more would wait for one another.
torch.set_num_threads(1 if "PYTEST_XDIST_WORKER" in os.environ else 2)

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real images (CamVid, three ADE20K pictures), which is not in the project."""
    folder = Path(os.environ.get("FINETUNE_SHARED_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no real images at {folder}: set FINETUNE_SHARED_DATA")
    return folder


@pytest.fixture(scope="session")
def browser(tmp_path_factory):
    """The port of a running Chromium, and a folder."""
    profile = tmp_path_factory.mktemp("profile")
    with chromium.running(profile) as port:
        yield port, profile
