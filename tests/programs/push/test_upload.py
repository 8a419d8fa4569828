"""The real huggingface_hub client against a Hub on the loopback, with faults planted in its way."""

import hashlib
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import transformers
from hub import READ_TOKEN, TOKEN, Fault, Hub
from huggingface_hub import constants, get_session, set_client_factory, snapshot_download
from huggingface_hub.utils import _http as client

from finetune.errors import UserError
from finetune.programs.push import link
from finetune.programs.push.upload import Uploaded, upload_folder

REPO = "user/parrots"
CARD = "---\nlicense: mit\npipeline_tag: image-segmentation\n---\n\n# Parrots\n"
PART = 100_000


@pytest.fixture
def waits(monkeypatch) -> list[float]:
    """Nobody waits between two tries; how long they would have is noted."""
    waits: list[float] = []
    monkeypatch.setattr(link, "sleep", waits.append)
    monkeypatch.setattr(client, "time", SimpleNamespace(sleep=waits.append))
    return waits


@pytest.fixture
def folder(tmp_path) -> Path:
    """As large as the faults need it: a file in three parts, one in one part, two in the commit."""
    folder = tmp_path / "model"
    (folder / "images").mkdir(parents=True)
    (folder / "config.json").write_text('{"model_type": "segformer"}')
    (folder / "README.md").write_text(CARD)
    (folder / "model.safetensors").write_bytes(os.urandom(2 * PART + 1234))
    (folder / "images" / "good.png").write_bytes(b"\x89PNG\0" + os.urandom(5000))
    return folder


def content(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def push(folder: Path, **options) -> Uploaded:
    return upload_folder(folder, REPO, message="a model", **options)


def sent(hub: Hub) -> int:
    return len(hub.calls("PUT", "/storage/"))


# ------------------------------------------------------------------------------------ all is well


@pytest.mark.slow
def test_a_fetched_model_is_the_pushed_one(hub, tmp_path):
    torch.manual_seed(0)
    config = transformers.SegformerConfig(
        num_labels=3, depths=[1] * 4, hidden_sizes=[8, 16, 24, 32], decoder_hidden_size=16
    )
    model = transformers.SegformerForSemanticSegmentation(config).eval()
    folder = tmp_path / "stock"
    model.save_pretrained(folder)
    (folder / "README.md").write_text(CARD)
    (folder / "images").mkdir()
    (folder / "images" / "good.png").write_bytes(bytes(range(256)) * 20)
    pixels = torch.randn(1, 3, 64, 96)
    np.save(tmp_path / "pixels.npy", pixels.numpy())

    uploaded = push(folder)

    assert (uploaded.url, uploaded.private) == (f"{hub.endpoint}/{REPO}", True)
    assert uploaded.commit == hub.commits(REPO)[-1]["oid"]
    assert hub.is_private(REPO)
    fetched = Path(snapshot_download(REPO, endpoint=hub.endpoint, cache_dir=tmp_path / "cache"))
    (fetched / ".gitattributes").unlink()
    assert content(fetched) == content(folder)
    # As a stranger does it, in a process where this package is not imported.
    script = (
        "import numpy, torch, transformers\n"
        "from transformers import SegformerForSemanticSegmentation as Model\n"
        f"model = Model.from_pretrained('{REPO}').eval()\n"
        f"pixels = torch.from_numpy(numpy.load(r'{tmp_path / 'pixels.npy'}'))\n"
        f"numpy.save(r'{tmp_path / 'logits.npy'}', model(pixels).logits.detach().numpy())\n"
    )
    threads = str(torch.get_num_threads())  # the same bits: sums in the same order
    environment = {**os.environ, "HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path / "home")}
    environment["OMP_NUM_THREADS"] = threads
    subprocess.run([sys.executable, "-c", script], check=True, env=environment, timeout=200)
    with torch.no_grad():
        expected = model(pixels).logits.numpy()
    assert np.array_equal(np.load(tmp_path / "logits.npy"), expected)


def test_the_same_again_is_no_commit_and_a_change_sends_what_changed(hub, folder):
    first = push(folder)
    writes = [entry for entry in hub.log if entry[0] != "GET"]
    assert push(folder) == first
    assert [entry for entry in hub.log if entry[0] != "GET"] == writes

    puts = sent(hub)
    (folder / "config.json").write_text('{"model_type": "segformer", "depths": []}')
    assert push(folder).commit != first.commit
    assert sent(hub) == puts
    assert len(hub.commits(REPO)) == 3  # with the one that came with the repository


def test_old_weights_and_code_go_and_other_files_stay(hub, folder):
    push(folder)
    ours = (
        "onnx/model.onnx",
        "modeling.py",
        "model-00001-of-00002.safetensors",
        "card/examples.png",
    )
    theirs = (
        "LICENSE",
        "notes/mine.txt",
        "handler.py",
        "lora/adapter.safetensors",
        "card/mine.txt",
    )
    hub.add_files(REPO, dict.fromkeys((*ours, *theirs), b"x"))
    push(folder)
    assert hub.files(REPO).keys() - content(folder).keys() == set(theirs)


def test_hidden_files_stay_at_home(hub, folder):
    (folder / ".env").write_text("SECRET=1")
    (folder / ".cache").mkdir()
    (folder / ".cache" / "x").write_text("x")
    push(folder)
    assert not [name for name in hub.files(REPO) if ".env" in name or "cache" in name]


def test_a_space_and_a_public_repository(hub, folder, tmp_path):
    space = tmp_path / "space"
    space.mkdir()
    (space / "README.md").write_text("---\nsdk: gradio\ncolorFrom: blue\n---\n")
    (space / "app.py").write_text("import finetune.programs.demo.demo")
    url = upload_folder(space, REPO, message="a demo", repo_type="space", private=False).url
    assert url == f"{hub.endpoint}/spaces/{REPO}"
    assert hub.files(REPO, "space") == content(space)
    assert not hub.is_private(REPO, "space")
    (space / "app.py").write_text("import finetune.programs.demo.demo as demo")
    assert upload_folder(space, REPO, message="again", repo_type="space").private is False
    assert hub.files(REPO, "space") == content(space)
    hub.add_files(REPO, {"finetune/old.py": b"ours", "helper.py": b"theirs"}, "space")
    upload_folder(space, REPO, message="once more", repo_type="space")
    assert hub.files(REPO, "space").keys() - content(space).keys() == {"helper.py"}
    # A word in a comment makes no demo of ours.
    theirs = {"app.py": b"# my finetuned model\nimport gradio\n"}
    hub.add_files(REPO, theirs, "space")
    with pytest.raises(UserError, match="something else than a demo"):
        upload_folder(space, REPO, message="over it", repo_type="space")
    assert hub.files(REPO, "space")["app.py"] == theirs["app.py"]


def test_what_the_process_had_set_is_used_and_set_again(hub, folder):
    """Another factory of connections, for a proxy or certificates; storage by Xet or not."""
    made = []

    def factory():
        made.append(client.default_client_factory())
        return made[-1]

    xet = constants.HF_HUB_DISABLE_XET
    set_client_factory(factory)
    try:
        push(folder)
        assert made
        session = get_session()
        assert session is made[-1]
        assert session.event_hooks == client.default_client_factory().event_hooks
    finally:
        set_client_factory(client.default_client_factory)
    assert xet is constants.HF_HUB_DISABLE_XET


# -------------------------------------------------------------------------------------- faults

INFO = rf"^/api/models/{REPO}$"
ONE = r"/storage/\w+\?"  # the picture, in one piece
FAULTS = {
    "looking it up: dropped": Fault("GET", INFO, "drop", nth=2),
    "create: dropped": Fault("POST", "/repos/create", "drop"),
    "create: the answer is lost": Fault("POST", "/repos/create", "drop", processed=True),
    "create: 500 after the work": Fault("POST", "/repos/create", 500, processed=True),
    "tree: 502": Fault("GET", "/tree/", 502),
    "validate: dropped": Fault("POST", "/validate-yaml", "drop"),
    "validate: 503 twice": Fault("POST", "/validate-yaml", 503, times=2),
    "validate: 429, wait": Fault("POST", "/validate-yaml", 429, headers={"Retry-After": "7"}),
    "preupload: dropped": Fault("POST", "/preupload/", "drop"),
    "preupload: 429, wait": Fault("POST", "/preupload/", 429, headers={"Retry-After": "7"}),
    "batch: 500": Fault("POST", "/objects/batch", 500),
    "batch: the answer is lost": Fault("POST", "/objects/batch", "drop", processed=True),
    "file: dropped": Fault("PUT", ONE, "drop"),
    "file: half of it, then a reset": Fault("PUT", ONE, "half"),
    "file: the answer is lost": Fault("PUT", ONE, "drop", processed=True),
    "file: 503, four times": Fault("PUT", ONE, 503, times=4),
    "file: 429": Fault("PUT", ONE, 429),
    "part 2: half of it, then a reset": Fault("PUT", r"/storage/\w+/2", "half"),
    "part 3: 500": Fault("PUT", r"/storage/\w+/3", 500),
    "part 1: silence": Fault("PUT", r"/storage/\w+/1", "stall"),
    "parts together: the answer is lost": Fault("POST", "/complete", "drop", processed=True),
    "verify: dropped": Fault("POST", "/verify", "drop"),
    "verify: silence": Fault("POST", "/verify", "stall"),
    "commit: dropped": Fault("POST", "/commit/", "drop"),
    "commit: half of it, then a reset": Fault("POST", "/commit/", "half"),
    "commit: the answer is lost": Fault("POST", "/commit/", "drop", processed=True),
    "commit: 504 after the work": Fault("POST", "/commit/", 504, processed=True),
    "commit: silence": Fault("POST", "/commit/", "stall"),
    "commit: 429, wait": Fault("POST", "/commit/", 429, headers={"Retry-After": "7"}),
    "commit: 429": Fault("POST", "/commit/", 429, times=2),
    "commit: 500": Fault("POST", "/commit/", 500),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_loses_and_doubles_nothing(name, hub, folder, waits):
    plan = FAULTS[name]
    fault = Fault(**{key: getattr(plan, key) for key in ("method", "path", "action", "nth")})
    fault.times, fault.processed, fault.headers = plan.times, plan.processed, plan.headers
    hub.faults = [fault]

    uploaded = push(folder, timeout=0.5 if "silence" in name else 30.0)

    assert fault.seen > 0
    # Where a silence is cut short, a busy machine may be found silent once more.
    assert len(waits) == fault.times or ("silence" in name and waits)
    if "wait" in name:
        assert 7 <= waits[0] <= 8  # the client's own adds a second
    _nothing_lost_nor_doubled(hub, folder, uploaded)


def _nothing_lost_nor_doubled(hub: Hub, folder: Path, uploaded: Uploaded) -> None:
    assert hub.files(REPO) == content(folder)
    assert [commit["title"] for commit in hub.commits(REPO)] == ["initial commit", "a model"]
    assert hub.commits(REPO)[-1]["oid"] == uploaded.commit
    weights = [p for p in folder.rglob("*") if p.suffix in (".safetensors", ".png")]
    assert hub.objects() == {hashlib.sha256(path.read_bytes()).hexdigest() for path in weights}
    # All is there: a further push sends nothing.
    hub.faults, writes = [], [entry for entry in hub.log if entry[0] != "GET"]
    assert push(folder) == uploaded
    assert [entry for entry in hub.log if entry[0] != "GET"] == writes


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (Fault("PUT", ONE, "damage", times=99), "the storage rejects a file .*BadDigest"),
        (Fault("PUT", ONE, 500, times=99), r"the Hub fails.*are not sent again \[500\]"),
        (Fault("POST", "/commit/", 503, times=99), r"the Hub fails.*\[503\]"),
        (Fault("POST", "/commit/", "drop", times=99), "breaks off .*push again"),
        (Fault("POST", "/commit/", "stall", times=99), "was silent .*several times"),
    ],
)
def test_a_fault_that_stays_leaves_all_as_it_was_and_the_next_push_sends_the_rest(
    fault, words, hub, folder, waits
):
    hub.faults = [fault]
    with pytest.raises(UserError, match=words):
        push(folder, timeout=0.2 if fault.action == "stall" else 30.0)
    assert [commit["title"] for commit in hub.commits(REPO)] == ["initial commit"]
    kept, hub.faults, hub.log[:] = hub.objects(), [], []
    uploaded = push(folder)
    assert not [path for _, path, _ in hub.log if "PUT" in path and kept & set(path.split("/"))]
    # The rest: the client may or may not have begun with the weights when the other file failed.
    large = [
        data for name, data in content(folder).items() if name.endswith((".safetensors", ".png"))
    ]
    rest = [data for data in large if hashlib.sha256(data).hexdigest() not in kept]
    assert bool(rest) == (fault.method == "PUT")
    assert sent(hub) == sum(-(-len(data) // PART) for data in rest)
    _nothing_lost_nor_doubled(hub, folder, uploaded)


SLOW_PUSH = """
import sys
from pathlib import Path
from finetune.programs.push.upload import upload_folder
upload_folder(Path(sys.argv[1]), sys.argv[2], message="a model")
"""


@pytest.mark.slow
def test_killed_while_it_sends_the_next_push_goes_on(hub, folder, tmp_path):
    """And what the killed one said, with all of the client's talk, does not hold the token."""
    picture = Fault("PUT", ONE, 503)
    weights = Fault("PUT", r"/storage/\w+/3", "stall")
    verify = Fault("POST", "/verify", 200, nth=99)
    hub.faults = [picture, weights, verify]
    environment = {**os.environ, "HF_HUB_OFFLINE": "0", "HF_DEBUG": "1"}
    log = tmp_path / "log"
    with log.open("w") as output:
        child = subprocess.Popen(
            [sys.executable, "-c", SLOW_PUSH, str(folder), REPO],
            env=environment,
            stdout=output,
            stderr=output,
        )
        try:
            assert weights.met.wait(100)
            while not verify.seen:  # the picture is there, two of three parts of the weights
                assert child.poll() is None
        finally:
            child.send_signal(signal.SIGKILL)
        assert child.wait() == -signal.SIGKILL
    assert "503" in log.read_text()
    assert "secret" not in log.read_text()  # signatures of the storage's addresses
    assert TOKEN not in log.read_text()

    hub.faults, hub.log[:] = [], []
    uploaded = push(folder)
    assert hub.calls("PUT", ONE) == []
    _nothing_lost_nor_doubled(hub, folder, uploaded)
    stored = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert not [path for path in stored if TOKEN.encode() in path.read_bytes()]


def test_a_time_limit_ends_it_however_long_it_is_asked_to_wait(hub, folder):
    hub.faults = [Fault("POST", "/commit/", 429, headers={"Retry-After": "100000"})]
    with pytest.raises(UserError, match="asks to wait 100000 seconds"):
        push(folder)
    hub.faults = [Fault("PUT", "/storage/", 503, headers={"ratelimit": '"api";r=0;t=99999'})]
    (folder / "model.safetensors").write_bytes(b"others")
    with pytest.raises(UserError, match="asks to wait 99999 seconds"):
        push(folder)
    hub.faults = [Fault("PUT", "/storage/", "stall", times=99)]
    with pytest.raises(UserError, match=r"did not end within 1 seconds"):
        push(folder, timeout=0.7, limit=1.0)


def test_a_storage_that_takes_nothing_or_little_is_left_in_time(hub, folder, waits):
    hub.part_size = None
    (folder / "model.safetensors").write_bytes(bytes(12_000_000))  # more than a socket takes
    hub.faults = [Fault("PUT", r"size=12000000", "stall")]
    uploaded = push(folder, timeout=0.5)
    assert waits
    _nothing_lost_nor_doubled(hub, folder, uploaded)

    (folder / "model.safetensors").write_bytes(bytes(30_000_000))
    hub.faults = [Fault("PUT", r"size=30000000", "slow")]
    waits.clear()
    with pytest.raises(UserError, match="did not end within 2 seconds"):
        push(folder, limit=2.0)
    assert hub.calls("PUT", "size=30000000") == [None]  # it was left while it was being sent,
    assert not waits  # and not because nothing went on


# -------------------------------------------------------------------------------- plain words


def other_model(hub: Hub, folder: Path) -> None:
    hub.create("model", REPO, private=True)
    hub.add_files(REPO, {"config.json": b'{"model_type": "bert"}'})


def readable_model(hub: Hub, folder: Path) -> None:
    push(folder, private=False)
    (folder / "config.json").write_text('{"model_type": "segformer", "more": 1}')
    os.environ["HF_TOKEN"] = READ_TOKEN


def fault(*arguments: object, **more: object) -> Callable[[Hub, Path], None]:
    return lambda hub, folder: hub.faults.append(Fault(*arguments, **more))


def variable(name: str, value: str) -> Callable[[Hub, Path], None]:
    return lambda hub, folder: os.environ.update({name: value})


def broken_card(hub: Hub, folder: Path) -> None:
    (folder / "README.md").write_text("---\nlicense: nobodys\n---\n")


def token_inside(hub: Hub, folder: Path) -> None:
    (folder / "environment.json").write_text(f'{{"command": "HF_TOKEN={TOKEN}"}}')


MISTAKES = {
    "no token": (variable("HF_TOKEN", ""), "no token of the Hub here; run `hf auth login`"),
    "another token": (variable("HF_TOKEN", "hf_wrongwrong"), r"does not know this token.*\[401\]"),
    "a token of two words": (variable("HF_TOKEN", "hf_wrong hf_wrong"), "characters that no"),
    "a token that reads": (readable_model, r"the token may not write there.*\[403\]"),
    "a token in a file": (token_inside, "environment.json: holds your token"),
    "403 at the commit": (fault("POST", "/commit/", 403), r"may not write there.*\[403\]"),
    "404 at the commit": (fault("POST", "/commit/", 404), r"no such repository.*\[404\]"),
    "409 at the commit": (fault("POST", "/commit/", 409), r"somebody else changed.*\[409\]"),
    "413 at the batch": (fault("POST", "/batch", 413), r"storage is full.*\[413\]"),
    "402 at the create": (fault("POST", "/create", 402), r"storage is full.*\[402\]"),
    "something else there": (other_model, r"holds something else than a SegFormer \(config.json\)"),
    "a broken card": (broken_card, "the Hub rejects the card.*license.* must be one of"),
    "no Hub": (fault("GET", "/api/", 200), "does not answer like a Hub; check HF_ENDPOINT"),
    "no network": (variable("HF_ENDPOINT", "http://127.0.0.1:9"), "cannot be reached"),
    "no such host": (variable("HF_ENDPOINT", "http://no.invalid"), "no network, or HF_ENDPOINT"),
    "no address": (variable("HF_ENDPOINT", "nowhere"), "HF_ENDPOINT=nowhere is not an address"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_are_told_in_one_message(name, hub, folder, waits, capfd, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", TOKEN)  # both are as they were afterwards
    monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
    prepare, words = MISTAKES[name]
    prepare(hub, folder)
    with pytest.raises(UserError) as caught:
        push(folder)
    message = str(caught.value)
    assert re.search(words, message)
    assert "\n" not in message
    assert name == "a token in a file" or REPO in message or "token" in message
    assert not waits  # what cannot go better is not tried again
    output = capfd.readouterr()
    for secret in (TOKEN, READ_TOKEN, "hf_wrong"):
        assert secret not in message + output.out + output.err


def test_nothing_is_sent_while_offline(hub, folder, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="HF_HUB_OFFLINE is set"):
        push(folder)
    assert hub.log == []


def test_another_commit_in_between_is_not_run_over(hub, folder, waits, monkeypatch):
    """The commit breaks off, and before it is tried again somebody else makes one."""
    push(folder)
    (folder / "config.json").write_text('{"model_type": "segformer", "mine": 1}')

    def somebody(seconds: float) -> None:
        hub.add_files(REPO, {"theirs.txt": b"x"})

    hub.faults = [Fault("POST", "/commit/", "drop")]
    monkeypatch.setattr(link, "sleep", somebody)
    with pytest.raises(UserError, match=r"somebody else changed the repository.*\[412\]"):
        push(folder)
    assert hub.files(REPO)["theirs.txt"] == b"x"
    assert b"mine" not in hub.files(REPO)["config.json"]
    assert b"mine" in (push(folder) and hub.files(REPO)["config.json"])
