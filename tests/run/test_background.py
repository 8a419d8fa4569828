"""Trainings that push while they go on, to a Hub on the loopback that is slow, broken or gone."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hub import TOKEN, Fault, Hub

from finetune import train
from finetune.errors import UserError
from finetune.recipe import load_recipe, recipe_from_yaml
from finetune.run.background import BackgroundPush

ROOT = Path(__file__).resolve().parents[2]
REPO = "user/shapes"
TINY = [
    "model.depths=[1,1,1,1]",
    "model.hidden_sizes=[8,16,40,64]",
    "model.decoder_hidden_size=32",
    "data.train_samples=24",
    "data.val_samples=4",
    "data.size=[64,64]",
    "data.workers=0",
    "train.global_batch=4",
    "train.steps=4",
    "train.eval_every=2",
    "train.log_every=1",
    "train.warmup_steps=1",
    "train.threads=1",
]


@pytest.fixture
def hub(tmp_path, monkeypatch) -> Iterator[Hub]:
    """A Hub for the processes that push."""
    with Hub(tmp_path / "hub") as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        monkeypatch.setenv("HF_HUB_OFFLINE", "0")
        yield hub


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> Path:
    """The same training without `hub:`."""
    output = tmp_path_factory.mktemp("alone") / "run"
    train.fit(load_recipe("shapes", [*TINY, f"output={output}"]))
    return output


def pushing(output: Path) -> list[str]:
    return [*TINY, f"output={output}", f"hub.repo={REPO}"]


def wait_after_a_push_begins(monkeypatch, until: Callable[[BackgroundPush], bool]) -> None:
    """The four steps of a training would be over before a process has even started."""

    class Waiting(BackgroundPush):
        def newest(self, best: Path, step: int) -> None:
            super().newest(best, step)
            while not until(self):
                time.sleep(0.02)

    monkeypatch.setattr(train, "BackgroundPush", Waiting)


def is_idle(push: BackgroundPush) -> bool:
    push.poll()
    return push._process is None


def result(output: Path) -> dict[str, object]:
    """What a training leaves, less its times and where it was."""
    timed = {"seconds", "train/images_per_second"}
    rows = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    found: dict[str, object] = {
        "metrics": [{k: v for k, v in row.items() if k not in timed} for row in rows]
    }
    for folder in ("best", "last", "checkpoints"):
        for path in sorted((output / folder).rglob("*.safetensors")):
            found[str(path.relative_to(output))] = path.read_bytes()
    found["files"] = sorted(p.name for p in output.iterdir() if p.name != "hub.log")
    return found


def processes_of(output: Path) -> list[int]:
    """Those that push this folder."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().decode().split("\0")
        except OSError:  # it has just ended
            continue
        if "finetune.programs.push" in words and any(str(output) in word for word in words):
            found.append(int(path.parent.name))
    return found


@pytest.mark.slow
def test_better_models_are_pushed_while_training_goes_on(hub, alone, tmp_path, monkeypatch, capfd):
    wait_after_a_push_begins(monkeypatch, is_idle)
    output = tmp_path / "run"

    train.fit(load_recipe("shapes", pushing(output)))

    titles = [commit["title"] for commit in hub.commits(REPO)]
    assert titles[0] == "initial commit"
    assert titles[1].startswith("shapes: step 2")
    assert len(titles) == 3  # and the end, with the whole card
    first, last = (set(commit["files"]) for commit in hub.commits(REPO)[1:])
    assert last - first == {"card/examples.png"}
    assert hub.is_private(REPO)
    files = hub.files(REPO)
    assert files["model.safetensors"] == (output / "best" / "model.safetensors").read_bytes()
    (tmp_path / "recipe.yaml").write_bytes(files["recipe.yaml"])
    assert recipe_from_yaml(tmp_path / "recipe.yaml").hub.repo is None
    assert result(output) == result(alone)
    assert f"pushed to {REPO}" in capfd.readouterr().err
    assert processes_of(output) == []
    assert TOKEN.encode() not in b"".join(p.read_bytes() for p in output.rglob("*") if p.is_file())


@pytest.mark.slow
def test_a_training_does_not_care_about_the_hub(hub, alone, tmp_path, monkeypatch, capfd):
    """It fails, then it is silent, and at the end of the training it is gone."""
    failure = Fault("POST", "/validate-yaml", 500)
    silence = Fault("POST", "/validate-yaml", "stall", nth=2)
    hub.faults = [failure, silence]

    def is_silent(push: BackgroundPush) -> bool:
        assert push._process is not None
        assert push._process.poll() is None
        if silence.met.is_set():
            monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
        return silence.met.is_set()

    wait_after_a_push_begins(monkeypatch, is_silent)
    output = tmp_path / "run"

    train.fit(load_recipe("shapes", pushing(output)))

    assert failure.met.is_set()
    assert result(output) == result(alone)
    said = [line for line in capfd.readouterr().err.splitlines() if line.startswith("warning: ")]
    assert len(said) == 1
    assert "127.0.0.1:9 cannot be reached" in said[0]
    assert f"push later with `finetune push {output} {REPO}`" in said[0]
    assert processes_of(output) == []


@pytest.mark.slow
def test_a_stopped_training_leaves_no_process(hub, tmp_path, monkeypatch, capfd):
    """A real signal, in the middle of an upload to which nobody answers."""
    silence = Fault("PUT", "/storage/", "stall", times=99)
    hub.faults = [silence]
    output = tmp_path / "run"

    def stopped(push: BackgroundPush) -> bool:
        if silence.met.is_set():
            assert len(processes_of(output)) == 1
            os.kill(os.getpid(), signal.SIGTERM)
        return silence.met.is_set()

    wait_after_a_push_begins(monkeypatch, stopped)
    with pytest.raises(SystemExit) as left:
        train.fit(load_recipe("shapes", pushing(output)))
    assert left.value.code == 143
    assert processes_of(output) == []
    assert "the state is saved" in capfd.readouterr().err
    assert not list(output.glob(".*push*"))
    assert hub.objects() == set()


@pytest.mark.slow
def test_a_push_ends_with_the_training_that_started_it(hub, alone):
    """However that ended: the system closes what the push reads from."""
    hub.faults = [Fault("GET", "/api/", "stall", times=99)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [*train.PUSH, str(alone / "best"), REPO, "--quick"]
    child = subprocess.Popen(command, env=environment, stdin=subprocess.PIPE)
    child.communicate(timeout=200)
    assert child.returncode == 1
    assert hub.calls("POST", "") == []


# ------------------------------------------------------------------- which is pushed, and when


@pytest.fixture
def best(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    folder = tmp_path / "run" / "best"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    return folder


def pushed_by(best: Path, *command: str, say: list[str], private: bool = True) -> BackgroundPush:
    """Pushes by a command of the test's own."""
    return BackgroundPush(best.parent, REPO, command=command, private=private, say=say.append)


def script(text: str) -> list[str]:
    return [sys.executable, "-c", text]


def test_one_at_a_time_and_of_those_that_wait_the_newest(best, tmp_path):
    gate, said = tmp_path / "gate", []
    command = script(
        "import os, sys, time\n"
        "print('begins', os.path.basename(sys.argv[1]), flush=True)\n"
        f"while not os.path.exists(r'{gate}'): time.sleep(0.01)\n"
        "print('saw', open(sys.argv[1] + '/config.json').read(), flush=True)\n",
    )
    push = pushed_by(best, *command, say=said)
    for step in (1, 2, 3):
        (best / "new").write_text(f"step {step}")
        (best / "new").replace(best / "config.json")  # as a training does: never into the file
        push.newest(best, step)
    gate.touch()
    while not is_idle(push):
        time.sleep(0.01)
    push.close()
    assert (best.parent / "hub.log").read_text().splitlines() == [
        "begins .pushing-00000001",
        "saw step 1",
        "begins .pushing-00000003",
        "saw step 3",
    ]
    assert said == []
    assert {path.name for path in best.parent.iterdir()} == {"best", "hub.log"}


def test_a_failure_is_one_line_with_its_reason(best):
    said: list[str] = []
    failing = script("import sys; print('much talk'); sys.exit('error: the Hub is full')")
    push = pushed_by(best, *failing, say=said)
    push.newest(best, 1)
    while not is_idle(push):
        time.sleep(0.01)
    log = best.parent / "hub.log"
    assert said == [f"warning: the push failed (the Hub is full); training goes on. See {log}"]


def test_what_cannot_be_started_or_copied_is_one_line(best):
    said: list[str] = []
    push = pushed_by(best, "/nowhere/python", say=said)
    push.newest(best, 1)
    push.newest(best.parent / "gone", 2)
    push.finish(stop=lambda: False)
    push.close()
    assert [line.split(":")[0] for line in said] == ["warning"] * len(said)
    assert len(said) == 3


def test_a_signal_ends_the_wait_for_the_last_push(best):
    said: list[str] = []
    endless = script("import time; time.sleep(1000)")
    for private, flag in ((True, ""), (False, " --public")):
        said.clear()
        push = pushed_by(best, *endless, say=said, private=private)
        push.finish(stop=lambda: True)
        assert "15 minutes at most" in said[0]
        assert "was given up" in said[1]
        assert f"push later with `finetune push {best.parent} {REPO}{flag}`" in said[1]
        assert push._process is None


def test_a_missing_token_is_said_at_once(best, monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "none"))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    said: list[str] = []
    pushed_by(best, say=said)
    assert "there is no token" in said[0]


@pytest.mark.parametrize(
    "override",
    [
        *("hub.repo=parrots", "hub.repo=me/a--b", "hub.repo=-me/x", "hub.repo=mé/x"),
        *("hub.private=false", "hub.token=x"),
    ],
)
def test_mistakes_in_the_block_are_named(override):
    with pytest.raises(UserError, match=override.partition("=")[0]):
        load_recipe("shapes", [override])


def test_the_block_changes_nothing_of_a_run():
    plain, pushed = load_recipe("shapes", []), load_recipe("shapes", [f"hub.repo={REPO}"])
    assert plain.hash() == pushed.hash()
    assert plain.differences(pushed) == []
