import json
import subprocess

import numpy as np
import pytest
import torch

from finetune.disk import write_whole
from finetune.errors import UserError
from finetune.run import environment as environment_module
from finetune.run.environment import environment, masked
from finetune.run.log import MetricsLog, read
from finetune.run.screen import progress_bar


def test_rows_come_back_and_what_is_not_finite_is_null(tmp_path):
    path = tmp_path / "run" / "metrics.jsonl"
    log = MetricsLog(path)
    log.write({"step": 1, "train/loss": np.float32(0.5), "train/lr": float("inf")})
    assert len(read(path)) == 1  # on disk at once
    log.write(
        {
            "step": np.int64(2),
            "eval/mean_iou": np.float64("nan"),
            "eval/loss": torch.tensor(0.25),
            "eval/per_class_iou": {"wall": np.float64(0.75), "sea": float("nan")},
            "list": (np.array([1.0, np.nan]), True, None, "ß"),
        }
    )
    first, second = read(path)
    assert first == {"step": 1, "train/loss": 0.5, "train/lr": None}
    assert second == {
        "step": 2,
        "eval/mean_iou": None,
        "eval/loss": 0.25,
        "eval/per_class_iou": {"wall": 0.75, "sea": None},
        "list": [[1.0, None], True, None, "ß"],
    }
    assert "NaN" not in path.read_text()


def test_cut_keeps_the_checkpoints_past_and_drops_a_half_line(tmp_path):
    path = tmp_path / "metrics.jsonl"
    log = MetricsLog(path)
    log.cut(3)  # nothing there yet
    for step in (1, 2, 3, 3, 4, 5):
        log.write({"step": step})
    with open(path, "a") as file:
        file.write('{"step": 6, "train/lo')
    assert [row["step"] for row in read(path)] == [1, 2, 3, 3, 4, 5]
    log.cut(3)
    log.write({"step": 4})
    assert path.read_text() == "".join(f'{{"step": {step}}}\n' for step in (1, 2, 3, 3, 4))
    assert [p.name for p in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_a_line_that_is_no_row_is_named(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\nnonsense\n{"step": 3}\n')
    with pytest.warns(UserWarning, match=r"metrics\.jsonl, line 2"):
        assert [row["step"] for row in read(path)] == [1, 3]


def test_what_cannot_be_written_is_the_users_to_mend(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"metrics\.jsonl"):
        MetricsLog(tmp_path / "file" / "metrics.jsonl").write({"step": 1})
    with pytest.raises(UserError, match=r"report\.html"):
        write_whole(tmp_path / "missing" / "report.html", "text")


def test_write_whole_replaces(tmp_path):
    for content in ("one", b"two"):
        write_whole(tmp_path / "file", content)
    assert (tmp_path / "file").read_text() == "two"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_environment_can_be_written_as_json(monkeypatch):
    monkeypatch.setattr("sys.argv", ["train.py", "--token", "hf_abcdefghijkl"])
    found = json.loads(json.dumps(environment(world_size=3)))
    assert found["world_size"] == 3
    assert found["threads"] == torch.get_num_threads()
    assert found["packages"]["torch"] == torch.__version__
    assert set(found["packages"]) == set(environment_module.PACKAGES)
    assert found["cpus"] >= 1
    assert found["devices"]
    assert found["command"] == ["train.py", "--token", "***"]


def test_secrets_are_masked():
    line = ["train.py", "--token", "s3cret", "--hub-token=s3cret", "hub.token=s3cret", "--lr", "1"]
    line += ["repo=https://user:hf_AbCdEfGhIjKl@hf.co", "tokens.csv", "--api_key", "s3cret"]
    text = " ".join(masked(line))
    assert "s3cret" not in text
    assert "AbCd" not in text
    assert "--lr 1" in text
    assert "tokens.csv" in text


def test_the_commit_is_only_given_for_a_checkout_of_this_package(tmp_path, monkeypatch):
    def git(*arguments):
        identity = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
        command = ["git", "-C", str(tmp_path), *identity, *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    package = tmp_path / "finetune"
    package.mkdir()
    (package / "environment.py").write_text("1\n")
    unknown = {"git_commit": None, "git_modified": None}
    assert environment_module._git(package) == unknown  # no checkout
    git("init")
    git("commit", "--allow-empty", "-m", "somebody else's")
    assert environment_module._git(package) == unknown  # somebody else's checkout
    git("add", ".")
    git("commit", "-m", "ours")
    assert environment_module._git(package) == {
        "git_commit": git("rev-parse", "HEAD"),
        "git_modified": False,
    }
    (package / "environment.py").write_text("2\n")
    assert environment_module._git(package)["git_modified"] is True


def test_in_a_log_a_bar_below_another_takes_its_line(capsys):
    outer = progress_bar(total=2, desc="outer", unit="step", show=True)
    inner = progress_bar(total=2, desc="inner", unit="image", show=True, leave=False)
    inner.update(2)
    inner.close()
    outer.update(2)
    outer.close()
    shown = capsys.readouterr().err
    assert "inner" in shown
    assert "\x1b" not in shown  # no cursor is moved up: logs and notebooks have none
    assert shown.count("\n") == 1
    assert "outer: 100%" in shown.split("\r")[-1]
