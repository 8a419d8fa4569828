import errno
import inspect
import io
import json
import os
import pickle
import random
import resource
import signal
import subprocess
import sys
import threading
import warnings
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from finetune.disk import measure, recover, swap_folder
from finetune.errors import UserError
from finetune.run import checkpoint
from finetune.run.checkpoint import DamagedError, latest, load, prune, save

DTYPES = [
    *[torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn],
    *[torch.int64, torch.int32, torch.int16, torch.int8],
    *[torch.uint64, torch.uint32, torch.uint16, torch.uint8],
]
META = {"samples_seen": 48, "world_size": 1, "threads": 2, "recipe_hash": "abc"}


def write(root, step, states=None, **options):
    return save(
        root, step, states or {"model": {"w": torch.full((64,), step)}}, meta=META, **options
    )


def round_trip(tmp_path, state):
    return load(save(tmp_path, 1, {"state": state}, meta=META))[1]["state"]


def assert_equal(actual, expected):
    assert type(actual) is type(expected)
    if isinstance(expected, torch.Tensor):
        assert (actual.dtype, actual.shape) == (expected.dtype, expected.shape)
        assert actual.numpy(force=True).tobytes() == expected.numpy(force=True).tobytes()
    elif isinstance(expected, dict):
        assert list(actual) == list(expected)
        for key, item in expected.items():
            assert_equal(actual[key], item)
    elif isinstance(expected, list | tuple):
        assert len(actual) == len(expected)
        for a, b in zip(actual, expected, strict=True):
            assert_equal(a, b)
    else:
        assert repr(actual) == repr(expected)  # NaN equals itself, -0.0 does not equal 0.0


# --- What goes in comes out -------------------------------------------------------------------


def test_trees_round_trip(tmp_path):
    tree = {
        "nothing": None,
        "numbers": [True, False, 0, -(2**80), 1.5, -0.0, 0.1, float("nan"), float("-inf")],
        "text": 'ümlaut "quoted" \n',
        "empty": [{}, [], (), ""],
        "tuple": (1, (2, [3.0])),
        "keys": {0: "int", "0": "str", 1.5: "float", None: "none", ("a", 1): "tuple"},
        "$tensor": "a key that looks like ours",
        "nested": {"$tuple": {"$dict": [1]}},
        "state": {0: {"step": torch.tensor(3.0)}, 1: {"step": torch.tensor(4.0)}},
    }
    assert_equal(round_trip(tmp_path, tree), tree)


def test_tensors_round_trip(tmp_path):
    base = torch.arange(24, dtype=torch.float32).reshape(4, 6)
    generator = torch.Generator().manual_seed(0)
    bits = torch.randint(0, 256, (64,), dtype=torch.uint8, generator=generator)
    tree = {
        "bare": [bits.clone().view(dtype) for dtype in DTYPES],
        "bool": torch.tensor([True, False]),
        "odd bytes": torch.arange(5, dtype=torch.uint8),
        "scalar": torch.tensor(2.5, dtype=torch.float64),
        "empty": torch.empty(0, 3, dtype=torch.int64),
        "transposed": base.T,
        "strided": base[::2, 1::2],
        "expanded": torch.tensor([1.0]).expand(3),
        "shares memory": [base, base[1:], base.reshape(-1)],
        "a.b": torch.tensor(1),
        "a": {"b": torch.tensor(2)},
    }
    loaded = round_trip(tmp_path, tree)
    assert [t.dtype for t in loaded["bare"]] == [t.dtype for t in tree["bare"]]
    for kept in (tree, loaded):  # numpy cannot compare bfloat16, so its bits are compared
        kept["bare"] = [t.view(torch.uint8) for t in kept["bare"]]
    assert_equal(loaded, tree)
    file = tmp_path / "step-00000001" / "state.pt"
    assert torch.load(file, weights_only=True).keys() == tree.keys()  # with torch alone


def test_dtypes_and_tied_weights_survive(tmp_path):
    weight = torch.randn(3, 2).bfloat16()
    loaded = round_trip(
        tmp_path, {"a": weight, "b": weight, "half": weight[:1], "c": weight.clone()}
    )
    assert loaded["a"] is loaded["b"]
    assert loaded["a"] is not loaded["c"]
    assert type(loaded["a"]) is torch.Tensor
    for name in "abc":
        assert loaded[name].dtype == torch.bfloat16
        assert torch.equal(loaded[name], weight)
    assert torch.equal(loaded["half"], weight[:1])
    loaded["a"].add_(1)  # writable, and its own memory
    assert torch.equal(loaded["c"], weight)


def test_numpy_round_trips(tmp_path):
    state = ("MT19937", np.arange(6, dtype=np.uint32)[::-1], np.array(1.5), np.float64(0.25))
    loaded = round_trip(tmp_path, state)
    for a, b in zip(loaded[1:3], state[1:3], strict=True):
        assert (a.dtype, a.shape) == (b.dtype, b.shape)
        np.testing.assert_array_equal(a, b)
    assert loaded[3] == 0.25


def test_what_cannot_be_held_is_named(tmp_path):
    write(tmp_path, 1)
    for value, name in (
        (object(), "object"),
        (np.array([object()]), "object"),
        (random.Random(0), "Random"),
    ):
        with pytest.raises(TypeError, match=rf"task\.a\.0: .* {name}"):
            save(tmp_path, 2, {"task": {"a": [value]}}, meta=META)
    assert [p.name for p in tmp_path.iterdir()] == ["step-00000001"]


def test_an_optimizer_and_random_states_go_on_as_if_never_stopped(tmp_path):
    def build():
        torch.manual_seed(7)
        model = torch.nn.Sequential(
            torch.nn.Linear(4, 8), torch.nn.Dropout(), torch.nn.Linear(8, 1)
        )
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        return model, optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, lambda s: 1 / (s + 1))

    def train(model, optimizer, schedule, steps):
        for _ in range(steps):
            optimizer.zero_grad()
            model(torch.randn(16, 4)).square().mean().backward()
            optimizer.step()
            schedule.step()

    parts = build()
    train(*parts, 3)
    states = dict(
        zip(["model", "optimizer", "schedule"], [p.state_dict() for p in parts], strict=True)
    )
    states["schedule"].pop("lr_lambdas", None)
    states["rng"] = {"torch": torch.get_rng_state(), "python": random.getstate()}
    save(tmp_path, 3, states, meta=META)
    train(*parts, 3)
    expected = parts[0].state_dict()

    manifest, loaded = load(latest(tmp_path))
    assert {key: manifest[key] for key in ["format", "step", *META]} == {
        "format": checkpoint.FORMAT,
        "step": 3,
        **META,
    }
    assert list(loaded) == ["model", "optimizer", "schedule", "rng"]
    assert loaded["optimizer"]["state"].keys() == {0, 1, 2, 3}  # int keys stay int
    parts = build()
    for part, name in zip(parts, ["model", "optimizer", "schedule"], strict=True):
        part.load_state_dict(
            {"lr_lambdas": [None], **loaded[name]} if name == "schedule" else loaded[name]
        )
    torch.set_rng_state(loaded["rng"]["torch"])
    random.setstate(loaded["rng"]["python"])
    train(*parts, 3)
    for name, tensor in parts[0].state_dict().items():
        assert torch.equal(tensor, expected[name])


# --- Ranks ------------------------------------------------------------------------------------


def save_on_two_ranks(root, step, states_of):
    """Two threads stand in for two processes; returns what each raised."""
    gate = threading.Barrier(2, timeout=30)
    raised, problems = [None, None], ["", ""]

    def agree(rank, problem):
        problems[rank] = problem
        gate.wait()
        found = "".join(problems)
        gate.wait()
        if found:
            raise UserError(found)

    def run(rank):
        try:
            meta = {**META, "world_size": 2}
            save(
                root,
                step,
                states_of(rank),
                meta=meta,
                rank=rank,
                agree=lambda problem: agree(rank, problem),
            )
        except Exception as error:
            raised[rank] = error

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return raised


def test_every_rank_gets_its_own_random_state(tmp_path):
    def states_of(rank):
        return {"model": {"w": torch.tensor([7 - rank])}, "rng": torch.tensor([rank])}

    assert save_on_two_ranks(tmp_path, 5, states_of) == [None, None]
    folder = latest(tmp_path)
    for rank in range(2):
        _, states = load(folder, rank)
        assert states["rng"].item() == rank
        assert states["model"]["w"].item() == 7  # rank 0's
    assert "rng" not in load(folder, 2)[1]


def test_one_rank_that_cannot_write_fails_the_whole(tmp_path, monkeypatch):
    write(tmp_path, 1)
    real = checkpoint._write_file

    def full_disk(path, write):
        if path.name == "rng-00001.pt":
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        return real(path, write)

    monkeypatch.setattr(checkpoint, "_write_file", full_disk)
    raised = save_on_two_ranks(tmp_path, 2, lambda rank: {"rng": torch.tensor([rank])})
    assert all(isinstance(error, UserError) for error in raised)
    assert [p.name for p in tmp_path.iterdir()] == ["step-00000001"]


# --- Damage -----------------------------------------------------------------------------------


def flip_a_bit(file):
    data = bytearray(file.read_bytes())
    data[-3] ^= 1
    file.write_bytes(data)


def cut(file):
    file.write_bytes(file.read_bytes()[:-5])


@pytest.mark.parametrize("damage", [flip_a_bit, cut, Path.unlink])
@pytest.mark.parametrize("name", ["model.pt", "manifest.json"])
def test_a_damaged_checkpoint_is_reported_and_the_older_one_taken(tmp_path, damage, name):
    write(tmp_path, 1)
    newest = write(tmp_path, 2)
    assert latest(tmp_path) == newest
    damage(newest / name)
    with pytest.warns(UserWarning, match=f"step-00000002.*{name}") as caught:
        folder = latest(tmp_path)
    assert len(caught) == 1
    assert folder.name == "step-00000001"
    assert load(folder)[1]["model"]["w"][0] == 1
    with pytest.raises(DamagedError, match=name):
        load(newest)
    damage(folder / name)
    with pytest.warns(UserWarning, match="step-"):
        assert latest(tmp_path) is None


def test_an_edited_manifest_is_damage(tmp_path):
    folder = write(tmp_path, 1)
    file = folder / "manifest.json"
    file.write_text(file.read_text().replace('"samples_seen": 48', '"samples_seen": 49'))
    with pytest.raises(DamagedError, match=r"manifest\.json"):
        load(folder)


@pytest.mark.parametrize(
    ("version", "remedy"), [(3, "upgrade finetune"), (1, "with the version that wrote it")]
)
def test_another_format_says_what_to_do(tmp_path, version, remedy):
    write(tmp_path, 1)
    folder = write(tmp_path, 2)
    file = folder / "manifest.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "format": version}))
    for read in (lambda: load(folder), lambda: latest(tmp_path)):
        with pytest.raises(UserError, match=f"format {version}.*{remedy}"):
            read()


def test_nothing_is_there(tmp_path):
    assert latest(tmp_path) is None
    assert latest(tmp_path / "missing") is None


class Bomb:
    def __reduce__(self):
        return (os.abort, ())


def planted(file, data):
    """Puts bytes in the place of a file, and makes the manifest's checksums those of them."""
    file.write_bytes(data)
    path = file.parent / "manifest.json"
    manifest = json.loads(path.read_text())
    del manifest["sha256"]
    size, checksum = measure(file)
    manifest["files"][file.name] = {"size": size, "sha256": checksum}
    manifest["sha256"] = checkpoint._checksum(manifest)
    path.write_text(json.dumps(manifest))


def test_a_planted_pickle_is_never_run(tmp_path):
    folder = write(tmp_path, 1)
    for name in ("model.bin", "optimizer.pkl", "rng.pth"):
        (folder / name).write_bytes(pickle.dumps(Bomb()))
    assert load(latest(tmp_path))[1].keys() == {"model"}
    # In the place of a file that is read, it is only damage.
    (folder / "model.pt").write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(DamagedError, match=r"checksum|bytes"):
        load(folder)
    # And if its checksum is right, it is refused all the same.
    stored = io.BytesIO()
    torch.save({"w": Bomb()}, stored)
    whole = stored.getvalue()
    for data in (whole, pickle.dumps(Bomb()), whole[:-60], b"rubbish", b""):
        planted(folder / "model.pt", data)
        with (
            warnings.catch_warnings(action="ignore"),
            pytest.raises(DamagedError, match=r"model\.pt holds no state"),
        ):
            load(folder)
    source = inspect.getsource(checkpoint)
    assert source.count("torch.load(") == source.count("weights_only=True)") == 2  # one is prose
    assert "import pickle" not in source


# --- Disks and kills --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "remedy"),
    [(errno.ENOSPC, "free some space"), (errno.EACCES, "writable"), (errno.EROFS, "read-only")],
)
def test_a_disk_that_refuses(tmp_path, monkeypatch, code, remedy):
    write(tmp_path, 1)
    calls = []

    def fsync(descriptor):
        calls.append(descriptor)
        if len(calls) == 2:
            raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", fsync)
    states = {"model": {"w": torch.ones(2)}, "optimizer": {"w": torch.ones(2)}}
    with pytest.raises(UserError, match=remedy) as caught:
        write(tmp_path, 2, states)
    assert str(tmp_path / "step-00000002") in str(caught.value)
    assert "optimizer.pt" in str(caught.value)
    monkeypatch.undo()
    assert [p.name for p in tmp_path.iterdir()] == ["step-00000001"]
    assert latest(tmp_path).name == "step-00000001"


def test_a_really_full_disk(tmp_path):
    """/dev/full refuses every write, as a full disk does."""
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")
    for size in (1, 2**20):  # a small state is flushed at the end, a large one on the way
        (tmp_path / "file").symlink_to("/dev/full")
        with pytest.raises(OSError, match="No space left") as caught:
            checkpoint._write_file(tmp_path / "file", partial(torch.save, torch.ones(size)))
        assert caught.value.errno == errno.ENOSPC
        assert caught.value.filename == str(tmp_path / "file")
        assert not os.path.lexists(tmp_path / "file")


@pytest.mark.parametrize("room", [100, 70_000, 4_190_000])
def test_a_disk_that_fills_up_while_a_state_is_written(tmp_path, room):
    """torch's writer answers with a RuntimeError of its own, wherever the disk ends."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, before[1]))
    try:
        with pytest.raises(OSError, match="File too large") as caught:
            checkpoint._write_file(tmp_path / "file", partial(torch.save, torch.ones(2**20)))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert caught.value.filename == str(tmp_path / "file")
    assert not (tmp_path / "file").exists()


def test_a_root_that_is_a_file(tmp_path):
    (tmp_path / "checkpoints").write_text("")
    with pytest.raises(UserError, match="checkpoints"):
        write(tmp_path / "checkpoints", 1)


# Forks the writers from one process that has imported torch, which takes seconds, only once.
KILLER = """
import os, random, signal, sys, time, warnings
from pathlib import Path
import torch
from finetune.run.checkpoint import latest, load, prune, save

def write_for_ever(root, step):
    meta = {"samples_seen": 0, "world_size": 1, "threads": 1, "recipe_hash": ""}
    while True:
        step += 1
        state = {"model": {str(i): torch.full((2**18,), float(step)) for i in range(4)}}
        for _ in range(2):  # the second replaces the first
            save(root, step, state, meta=meta)
        prune(root, keep=2)

torch.set_num_threads(1)
warnings.simplefilter("error")
root, generator, step = Path(sys.argv[1]), random.Random(0), 0
for _ in range(int(sys.argv[2])):
    writer = os.fork()
    if writer == 0:
        write_for_ever(root, step)
    time.sleep(generator.uniform(0.05, 0.4))
    os.kill(writer, signal.SIGKILL)
    os.waitpid(writer, 0)
    if latest(root) is None:
        assert step == 0  # killed before the first one was whole
        continue
    manifest, states = load(latest(root))
    assert manifest["step"] >= step
    step = manifest["step"]
    assert {t.unique().item() for t in states["model"].values()} == {step}
print(step)
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks its writers")
def test_a_killed_writer_always_leaves_a_whole_checkpoint(tmp_path):
    command = [sys.executable, "-c", KILLER, str(tmp_path), "10"]
    step = int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    assert latest(tmp_path).name == f"step-{step:08d}"
    write(tmp_path, step + 1)
    assert not [p.name for p in tmp_path.iterdir() if p.name.startswith(".")]


def test_prune_keeps_the_newest_and_one_that_verifies(tmp_path):
    for step in range(1, 6):
        write(tmp_path, step)
    prune(tmp_path, keep=3)
    assert sorted(p.name[-1] for p in tmp_path.iterdir()) == ["3", "4", "5"]
    for step in (4, 5):
        (tmp_path / f"step-0000000{step}" / "model.pt").unlink()
    prune(tmp_path, keep=1)
    assert sorted(p.name[-1] for p in tmp_path.iterdir()) == ["3", "5"]


def test_a_kill_while_deleting_leaves_nothing_that_looks_valid(tmp_path, monkeypatch):
    for step in (1, 2):
        write(tmp_path, step)
    with monkeypatch.context() as patch:
        patch.setattr("shutil.rmtree", lambda *args, **kwargs: None)
        prune(tmp_path, keep=1)
    assert sorted(p.name for p in tmp_path.iterdir()) == [".step-00000001.trash", "step-00000002"]
    assert latest(tmp_path).name == "step-00000002"
    write(tmp_path, 3)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-00000002", "step-00000003"]


def test_saving_a_step_again_replaces_it(tmp_path):
    write(tmp_path, 1)
    (tmp_path / "step-00000001" / "model.pt").unlink()
    write(tmp_path, 1, {"model": {"w": torch.tensor([9])}})
    assert load(latest(tmp_path))[1]["model"]["w"].item() == 9
    assert [p.name for p in tmp_path.iterdir()] == ["step-00000001"]


def version_folder(path, version):
    path.mkdir()
    (path / "version").write_text(version)
    return path


def test_swap_folder(tmp_path):
    best = tmp_path / "best"
    swap_folder(version_folder(tmp_path / ".new", "1"), best)
    swap_folder(version_folder(tmp_path / ".new", "2"), best)
    assert (best / "version").read_text() == "2"
    with pytest.raises(FileNotFoundError):
        swap_folder(tmp_path / ".new", best)
    assert (best / "version").read_text() == "2"
    assert [p.name for p in tmp_path.iterdir()] == ["best"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills a fork of this process")
@pytest.mark.parametrize("renames", [0, 1, 2])
def test_a_swap_killed_after_any_rename_is_recovered(tmp_path, renames):
    best, new = version_folder(tmp_path / "best", "1"), version_folder(tmp_path / ".new", "2")
    child = os.fork()
    if child == 0:
        rename, left = Path.rename, [renames]

        def die_instead(path, target):
            left[0] -= 1
            if left[0] < 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return rename(path, target)

        Path.rename = die_instead
        swap_folder(new, best)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    versions = [(p / "version").read_text() for p in (best, tmp_path / ".best.old") if p.exists()]
    assert versions  # a whole version at any time
    recover(best)
    assert (best / "version").read_text() == ("2" if renames == 2 else "1")
    assert not (tmp_path / ".best.old").exists()
    recover(best)  # nothing left to do
    swap_folder(new if new.exists() else version_folder(new, "2"), best)
    assert (best / "version").read_text() == "2"


def test_a_checkpoint_being_replaced_when_its_writer_was_killed_is_found(tmp_path):
    write(tmp_path, 1).rename(tmp_path / ".step-00000001.old")
    (tmp_path / ".step-00000001.tmp").mkdir()
    assert load(latest(tmp_path))[0]["step"] == 1
    write(tmp_path, 2)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-00000001", "step-00000002"]
