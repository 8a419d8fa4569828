"""The loop as people start it: every way to launch, kill, resume, and get it wrong."""

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import transformers
from PIL import Image
from safetensors.torch import load_file

from finetune.errors import UserError
from finetune.programs import evaluate as evaluation
from finetune.recipe import load_recipe
from finetune.run import checkpoint
from finetune.segformer import SegformerForSemanticSegmentation
from finetune.train import fit, folder_of, run
from finetune.trainers import Share
from finetune.trainers.segmentation import SegmentationTask

ROOT = Path(__file__).resolve().parents[1]
CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()

TINY_MODEL = [
    "model.depths=[1,1,1,1]",
    "model.hidden_sizes=[8,16,40,64]",
    "model.decoder_hidden_size=32",
]
TINY = [
    *TINY_MODEL,
    "data.train_samples=24",
    "data.val_samples=6",
    "data.size=[64,80]",
    "data.workers=0",
    "augment.crop=[64,64]",
    "train.global_batch=4",
    "train.steps=6",
    "train.eval_every=3",
    "train.log_every=1",
    "train.warmup_steps=1",
]


NO_DROPOUT = ["model.drop_path_rate=0", "model.classifier_dropout_prob=0"]
PADDED = ["augment.scale=[0.4,1.0]"]  # crops with unequal numbers of labelled pixels


def tiny(output: Path, *more: str) -> list[str]:
    return [*TINY, f"output={output}", *more]


def launch(command: list[str], cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    variables = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    return subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env=variables,
        capture_output=True,
        text=True,
        check=False,
    )


def rows(output: Path, kind: str) -> list[dict]:
    lines = (output / "metrics.jsonl").read_text().splitlines()
    return [row for row in map(json.loads, lines) if any(key.startswith(kind) for key in row)]


def without_times(output: Path) -> list[dict]:
    timed = {"seconds", "train/images_per_second"}
    lines = (output / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k not in timed} for line in lines]


def weights(output: Path) -> dict[str, torch.Tensor]:
    return checkpoint.load(checkpoint.latest(output / "checkpoints"))[1]["model"]


def assert_same_bits(one: Path, other: Path) -> None:
    mine, theirs = weights(one), weights(other)
    assert mine.keys() == theirs.keys()
    for name, tensor in mine.items():
        assert torch.equal(tensor, theirs[name]), name


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """A run of six steps, in this process."""
    output = tmp_path_factory.mktemp("finished") / "run"
    fit(load_recipe("shapes", tiny(output)))
    return output


# ------------------------------------------------------------------------------ what a run leaves


def test_the_run_folder(finished):
    assert sorted(path.name for path in finished.iterdir()) == [
        "best",
        "checkpoints",
        "environment.json",
        "last",
        "metrics.jsonl",
        "panel.png",
        "recipe.yaml",
        "report.html",
    ]
    for folder in ("best", "last"):
        assert sorted(path.name for path in (finished / folder).iterdir()) == [
            "README.md",
            "config.json",
            "model.safetensors",
            "preprocessor_config.json",
            "recipe.yaml",
        ]
    names = [path.name for path in sorted((finished / "checkpoints").iterdir())]
    assert names == ["step-00000003", "step-00000006"]
    steps = [row["step"] for row in rows(finished, "train/")]
    assert steps == [1, 2, 3, 4, 5, 6]
    assert [row["step"] for row in rows(finished, "eval/")] == [3, 6]
    first = rows(finished, "train/")[0]
    assert first.keys() == {
        "step",
        "epoch",
        "seconds",
        "train/loss",
        "train/lr",
        "train/images_per_second",
    }
    assert rows(finished, "train/")[2]["epoch"] == pytest.approx(12 / 24)
    environment = json.loads((finished / "environment.json").read_text())
    assert environment["world_size"] == 1
    assert environment["threads"] == CORES


def test_the_saved_model_is_stock(finished):
    for folder in ("best", "last"):
        stock = transformers.SegformerForSemanticSegmentation.from_pretrained(finished / folder)
        ours = SegformerForSemanticSegmentation.from_pretrained(finished / folder)
        image = torch.randn(1, 3, 64, 80)
        with torch.no_grad():
            expected = stock.eval()(image).logits
            assert (ours.eval()(image).logits - expected).abs().max() <= 1e-5 * expected.abs().max()
        assert stock.dtype == torch.float32
        assert stock.config.id2label[4] == "star"
        assert stock.config.finetune_eval["shortest_edge"] is None
    processor = transformers.AutoImageProcessor.from_pretrained(finished / "best")
    assert not processor.do_reduce_labels
    assert not processor.do_resize


def test_eval_of_the_last_folder_equals_the_last_evaluation(finished):
    recipe = load_recipe(finished / "recipe.yaml")
    again = evaluation.evaluate(str(finished / "last"), recipe).metrics
    last = {key: value for key, value in rows(finished, "eval/")[-1].items() if key != "step"}
    # The loss is a sum of floats: kernels differ with where weights happen to lie in memory.
    assert again.pop("eval/loss") == pytest.approx(last.pop("eval/loss"), rel=1e-6)
    assert last == again


def test_a_finished_run_is_left_as_it_is(finished, capsys):
    before = (finished / "metrics.jsonl").read_text()
    result = fit(load_recipe("shapes", tiny(finished)))
    assert result.step == 6
    assert (finished / "metrics.jsonl").read_text() == before
    assert "Next:" in capsys.readouterr().out


def test_an_output_of_another_recipe_is_refused(finished, tmp_path):
    with pytest.raises(UserError, match=r"(?s)output=.*another recipe.*train.lr: 0.002 -> 0.1"):
        fit(load_recipe("shapes", tiny(finished, "train.lr=0.1")))
    with pytest.raises(UserError, match="resume=never"):
        fit(load_recipe("shapes", tiny(finished, "resume=never")))
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(UserError, match="holds other files"):
        fit(load_recipe("shapes", tiny(tmp_path)))
    assert os.listdir(tmp_path) == ["thesis.tex"]


# ------------------------------------------------------------------------------------- launching


@pytest.mark.slow
@pytest.mark.parametrize(
    "command",
    [
        [
            sys.executable,
            "-m",
            "accelerate.commands.launch",
            ROOT / "finetune/train.py",
            "--recipe",
        ],
        [sys.executable, "-m", "finetune.train", "--recipe"],
        [sys.executable, ROOT / "finetune/train.py", "--recipe"],
        [sys.executable, "-m", "finetune.cli", "train"],
    ],
    ids=["accelerate launch", "python -m", "python train.py", "finetune train"],
)
def test_every_way_to_start(command, tmp_path):
    done = launch([*command, "shapes", *tiny(tmp_path / "run")], tmp_path)
    assert done.returncode == 0, done.stderr
    assert rows(tmp_path / "run", "eval/")[-1]["step"] == 6
    environment = json.loads((tmp_path / "run" / "environment.json").read_text())
    assert environment["threads"] == CORES, "all cores, whatever the launcher exports"
    assert environment["world_size"] == 1
    assert "Traceback" not in done.stderr


SCRIPT = [ROOT / "finetune/train.py", "--recipe"]
TWO = {
    "torchrun": ["-m", "torch.distributed.run", "--nproc_per_node", "2", *SCRIPT],
    "accelerate launch": [
        *["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"],
        *["--num_machines", "1", "--mixed_precision", "no", *SCRIPT],
    ],
    "finetune train": ["-m", "finetune.cli", "train", "--processes", "2"],
}


@pytest.mark.slow
@pytest.mark.parametrize("command", TWO.values(), ids=TWO)
def test_two_processes_train_as_one(command, tmp_path):
    """Twenty steps: the same losses and the same scores, batch norm synchronised."""
    same = [
        "train.steps=20",
        "train.eval_every=20",
        *NO_DROPOUT,
        *PADDED,
        "train.threads=1",
        "train.lr=1e-4",
    ]
    one, two = tmp_path / "one", tmp_path / "two"
    threads = torch.get_num_threads()
    fit(load_recipe("shapes", tiny(one, *same)))
    torch.set_num_threads(threads)
    done = launch(
        [sys.executable, *command, "shapes", *tiny(two, *same)], tmp_path, ACCELERATE_USE_CPU="true"
    )
    assert done.returncode == 0, done.stderr
    assert json.loads((two / "environment.json").read_text())["world_size"] == 2
    mine, theirs = rows(one, "train/loss"), rows(two, "train/loss")
    assert len(mine) == len(theirs) == 20
    for a, b in zip(mine, theirs, strict=True):
        assert a["train/loss"] == pytest.approx(b["train/loss"], rel=1e-5), a["step"]
    score = rows(one, "eval/")[-1]["eval/mean_iou"]
    assert rows(two, "eval/")[-1]["eval/mean_iou"] == pytest.approx(score, abs=1e-3)


EVALUATE = """
import json, sys, torch
from accelerate import PartialState
from finetune.recipe import load_recipe
from finetune.segformer import SegformerForSemanticSegmentation
from finetune.trainers import Share
from finetune.trainers.segmentation import SegmentationTask
torch.set_num_threads(1)
state = PartialState(cpu=True)
recipe = load_recipe(sys.argv[1], ["data.val_samples=7"])
model = SegformerForSemanticSegmentation.from_pretrained(sys.argv[2])
result = SegmentationTask(recipe).evaluate(
    model, Share(state.process_index, state.num_processes), stop=lambda: False
)
if state.process_index == 0:
    with open(sys.argv[3], "w") as file:
        json.dump({"world_size": state.num_processes, **result.metrics}, file)
state.destroy_process_group()
"""


@pytest.mark.slow
def test_two_processes_evaluate_as_one(finished, tmp_path):
    """Seven images over two processes: the uneven one is neither lost nor counted twice."""
    script = tmp_path / "script.py"
    script.write_text(EVALUATE)
    results = []
    for processes in (1, 2):
        out = tmp_path / f"{processes}.json"
        command = [sys.executable, "-m", "torch.distributed.run"]
        command += ["--nproc_per_node", processes, script]
        done = launch([*command, finished / "recipe.yaml", finished / "last", out], tmp_path)
        assert done.returncode == 0, done.stderr
        results.append(json.loads(out.read_text()))
    assert [result.pop("world_size") for result in results] == [1, 2]
    losses = [result.pop("eval/loss") for result in results]
    assert losses[0] == pytest.approx(losses[1], rel=1e-12)
    assert results[0] == results[1]


@pytest.mark.parametrize(
    ("changed", "smoothing", "gamma"),
    [
        ([], 0.0, 0.0),
        (["loss.class_weights={disc: 5.0, ring: 0.25}", "loss.label_smoothing=0.1"], 0.1, 0.0),
        (["loss.class_weights={disc: 5.0, ring: 0.25}", "loss.focal_gamma=2"], 0.0, 2.0),
    ],
    ids=["plain", "weights and smoothing", "weights and focal"],
)
def test_the_loss_is_the_mean_over_the_pixels_of_the_global_batch(
    changed, smoothing, gamma, tmp_path
):
    """Micro-batches with unequal numbers of labelled pixels, added up by hand."""
    output = tmp_path / "run"
    more = ["train.steps=1", "train.global_batch=6", "train.micro_batch=2", *PADDED, *NO_DROPOUT]
    more += changed
    weights = torch.tensor([1.0, 5.0, 1.0, 1.0, 1.0, 0.25] if changed else [1.0] * 6)
    recipe = load_recipe("shapes", tiny(output, *more))
    fit(recipe)
    torch.manual_seed(recipe.seed)
    task = SegmentationTask(recipe)
    model = task.build().train()
    batches = task.batches(Share(), 0)
    total, pixels, means = 0.0, 0.0, []
    for batch in batches:
        labels = batch["labels"].long()
        logits = model(task.preprocessing.normalise(batch["pixel_values"])).logits
        upsampled = F.interpolate(logits, labels.shape[1:], mode="bilinear", align_corners=False)
        options = {"weight": weights, "label_smoothing": smoothing, "reduction": "none"}
        losses = F.cross_entropy(upsampled, labels, ignore_index=255, **options)
        counted = labels != 255
        ids = labels.where(counted, 0)
        correct = upsampled.softmax(1).gather(1, ids[:, None])[:, 0]
        loss = (losses * (1 - correct) ** gamma)[counted].sum().item()
        weight = weights[ids[counted]].sum().item()
        total, pixels = total + loss, pixels + weight
        means.append(loss / weight)
    logged = rows(output, "train/loss")[0]["train/loss"]
    assert logged == pytest.approx(total / pixels, rel=1e-6)
    assert abs(logged - np.mean(means)) > 1e-4 * logged, "a mean of means must not pass"


def test_bf16(tmp_path):
    output = tmp_path / "run"
    fit(load_recipe("shapes", tiny(output, "train.precision=bf16", "train.micro_batch=2")))
    losses = [row["train/loss"] for row in rows(output, "train/")]
    assert len(losses) == 6
    assert all(np.isfinite(losses))
    again = evaluation.evaluate(str(output / "last"), load_recipe("shapes", tiny(output)))
    assert again.metrics["eval/mean_iou"] == rows(output, "eval/")[-1]["eval/mean_iou"]


@pytest.mark.slow
def test_compiled_training_equals_eager(tmp_path):
    """One whole graph, the loss included: nothing breaks it, and the numbers are the same."""
    losses = []
    for compiled in ("false", "true"):
        output = tmp_path / compiled
        torch._dynamo.reset()
        torch._dynamo.utils.counters.clear()
        more = [*NO_DROPOUT, "train.steps=3", f"train.compile={compiled}"]
        fit(load_recipe("shapes", tiny(output, *more)))
        losses.append([row["train/loss"] for row in rows(output, "train/")])
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0
    assert not torch._dynamo.utils.counters["graph_break"]


def test_stray_labels_that_a_gpu_counted_stop_the_run_and_lose_nothing(tmp_path, monkeypatch):
    """On a CPU they raise before; here the count is put in by hand, after the second step."""
    losses = SegmentationTask.losses

    def with_strays(task, model, batch):
        result = losses(task, model, batch)
        task._stray = task._stray + torch.tensor(7)
        return result

    output = tmp_path / "run"
    monkeypatch.setattr(SegmentationTask, "losses", with_strays)
    with pytest.raises(UserError, match=r"labels: 14 pixels .*\(0 to 5\) nor 255"):
        fit(load_recipe("shapes", tiny(output, "train.log_every=2")))
    assert checkpoint.latest(output / "checkpoints").name == "step-00000002"


@pytest.mark.skipif(torch.accelerator.is_available(), reason="the message is for CPUs")
def test_fp16_needs_a_gpu(tmp_path):
    with pytest.raises(UserError, match=r"train\.precision=fp16 needs a GPU"):
        fit(load_recipe("shapes", tiny(tmp_path / "run", "train.precision=fp16")))


# ---------------------------------------------------------------------------- killed and resumed


def start(output: Path, *more: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "finetune.cli", "train", "shapes", *tiny(output, *more)]
    return subprocess.Popen(
        command,
        cwd=output.parent,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def wait_for_step(output: Path, step: int, process: subprocess.Popen[str]) -> None:
    path = output / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        if path.exists() and f'"step": {step},' in path.read_text():
            return
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.01)
    raise AssertionError("it never got there")


LONG = ["train.steps=120", "train.eval_every=60", "train.checkpoint_every=8"]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("uninterrupted") / "run"
    process = start(output, *LONG)
    assert process.wait() == 0, process.communicate()[0]
    return output


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -9)]
)
def test_killed_and_resumed_gives_the_same_bits(number, status, uninterrupted, tmp_path):
    output = tmp_path / "run"
    process = start(output, *LONG)
    wait_for_step(output, 11, process)
    # The whole group, as a terminal does it; a kill of the process alone is in the other tests.
    os.killpg(process.pid, number)
    said = process.communicate()[0]
    assert process.returncode == status, said
    stopped = checkpoint.latest(output / "checkpoints")
    assert "step-00000008" <= stopped.name < "step-00000120"
    if number != signal.SIGKILL:
        assert stopped.name >= "step-00000011"
        assert "the state is saved" in said
        assert "Traceback" not in said
    process = start(output, *LONG, "data.workers=1")
    said = process.communicate()[0]
    assert process.returncode == 0, said
    assert f"resumed {stopped}" in said
    assert_same_bits(output, uninterrupted)
    assert without_times(output) == without_times(uninterrupted)


def test_stopped_by_its_time_limit_and_resumed_gives_the_same_bits(finished, tmp_path, capsys):
    output = tmp_path / "run"
    limited = tiny(output, "train.max_minutes=1.0e-9")  # over before the first step is taken
    result = fit(load_recipe("shapes", limited))
    assert (result.finished, result.step, result.metrics) == (False, 1, {})
    assert "stopped at step 1 of 6 (train.max_minutes=1e-09); the state" in capsys.readouterr().err
    assert run("shapes", limited) == 143
    assert (checkpoint.latest(output / "checkpoints")).name == "step-00000002"

    result = fit(load_recipe("shapes", tiny(output)))
    assert (result.finished, result.step) == (True, 6)
    assert result.metrics["step"] == 6
    assert_same_bits(finished, output)
    assert without_times(finished) == without_times(output)


def test_its_time_limit_stops_an_evaluation_too(finished, tmp_path, monkeypatch):
    output = tmp_path / "run"
    evaluate, now = SegmentationTask.evaluate, time.monotonic

    def late(*arguments, **more):
        monkeypatch.setattr(time, "monotonic", lambda: now() + 3600)
        return evaluate(*arguments, **more)

    with monkeypatch.context() as patch:
        patch.setattr(SegmentationTask, "evaluate", late)
        result = fit(load_recipe("shapes", tiny(output, "train.max_minutes=30")))
    assert (result.finished, result.step, result.metrics) == (False, 3, {})
    monkeypatch.setattr(time, "monotonic", now)
    assert fit(load_recipe("shapes", tiny(output))).finished
    assert_same_bits(finished, output)
    assert without_times(finished) == without_times(output)


@pytest.mark.slow
def test_two_processes_save_before_they_stop(tmp_path):
    output = tmp_path / "run"
    command = [sys.executable, "-m", "finetune.cli", "train", "--processes", "2", "shapes"]
    process = subprocess.Popen(
        [*command, *tiny(output, *LONG, "train.steps=4000")],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    wait_for_step(output, 9, process)
    process.terminate()
    said = process.communicate()[0]
    assert process.returncode == 143, said
    manifest, _ = checkpoint.load(checkpoint.latest(output / "checkpoints"), rank=1)
    assert manifest["step"] >= 9
    assert manifest["world_size"] == 2


def test_a_damaged_checkpoint_is_passed_over(tmp_path):
    output = tmp_path / "run"
    recipe = load_recipe("shapes", tiny(output))
    fit(recipe)
    newest = checkpoint.latest(output / "checkpoints")
    (newest / "model.pt").write_bytes(b"cut off")
    with pytest.warns(UserWarning, match=r"step-00000006.*model.pt"):
        result = fit(recipe)  # from step 3 again
    assert result.step == 6
    assert [row["step"] for row in rows(output, "train/")] == [1, 2, 3, 4, 5, 6]


@pytest.mark.slow
def test_going_back_to_an_earlier_checkpoint(tmp_path):
    """In another folder: what came later in the first one stays as it is."""
    first, second = tmp_path / "first", tmp_path / "second"
    fit(load_recipe("shapes", tiny(first)))
    early = first / "checkpoints" / "step-00000003"
    with pytest.raises(UserError, match=r"later step-00000006.*resume=auto"):
        fit(load_recipe("shapes", tiny(first, f"resume={early}")))
    fit(load_recipe("shapes", tiny(second, f"resume={early}")))
    assert [row["step"] for row in rows(second, "train/")] == [4, 5, 6]
    assert [row["step"] for row in rows(second, "eval/")] == [3, 6]
    assert_same_bits(first, second)
    with pytest.raises(UserError, match="another recipe"):
        fit(load_recipe("shapes", tiny(tmp_path / "x", f"resume={early}", "train.lr=0.1")))
    with pytest.raises(UserError, match="does not exist"):
        fit(load_recipe("shapes", tiny(tmp_path / "y", f"resume={tmp_path / 'nowhere'}")))
    assert not (tmp_path / "x").exists()
    assert not (tmp_path / "y").exists()


def test_a_mistake_before_the_first_step_leaves_nothing(tmp_path):
    output = tmp_path / "run"
    with pytest.raises(UserError, match="typo"):
        fit(load_recipe("shapes", tiny(output, f"model.init={tmp_path / 'typo.pth'}")))
    assert not output.exists()


def test_a_run_that_ended_before_its_first_step_makes_room(tmp_path):
    output, files = tmp_path / "run", ["environment.json", "recipe.yaml"]
    recipe, other = (load_recipe("shapes", tiny(output, f"seed={seed}")) for seed in (1, 2))
    with ExitStack() as lock:
        folder_of(recipe).open(1, lock)
    assert sorted(path.name for path in output.iterdir()) == files
    folder_of(other).check()
    (output / "metrics.jsonl").write_text('{"step": 1}\n')
    with pytest.raises(UserError, match="another recipe"):
        folder_of(other).check()


def test_one_run_at_a_time_in_a_folder(tmp_path, monkeypatch):
    fcntl = pytest.importorskip("fcntl", reason="folders are locked on POSIX systems")
    output = tmp_path / "run"
    output.mkdir()
    monkeypatch.setattr(time, "sleep", lambda seconds: None)  # it is patient with killed runs
    folder = os.open(output, os.O_RDONLY)
    fcntl.flock(folder, fcntl.LOCK_EX)
    with pytest.raises(UserError, match="another run is writing there"):
        fit(load_recipe("shapes", tiny(output)))
    os.close(folder)
    assert fit(load_recipe("shapes", tiny(output))).step == 6


@pytest.mark.slow
def test_a_folder_taken_while_waiting_for_it(tmp_path):
    """What is true before the lock may not be after it."""
    output = tmp_path / "run"
    fit(load_recipe("shapes", tiny(output)))
    with ExitStack() as cleanup, pytest.raises(UserError, match="another recipe"):
        folder_of(load_recipe("shapes", tiny(output, "train.lr=0.5"))).open(1, cleanup)
    assert load_recipe(output / "recipe.yaml").train.lr == 2e-3


@pytest.mark.parametrize("name", ["file", "file/run", "a\0b"])
def test_an_output_that_cannot_be_a_folder(name, tmp_path):
    (tmp_path / "file").write_text("mine")
    recipe = load_recipe("shapes", {"output": str(tmp_path / name)})
    with pytest.raises(UserError, match=r"(?s)output=.*: cannot be used as a folder .*; choose"):
        folder_of(recipe).check()


@pytest.mark.slow
def test_a_defect_ends_the_process(tmp_path):
    """Its workers ignore signals: they must be told to end before Python waits for them."""
    script = """
import sys
from finetune import train
from finetune.recipe import load_recipe

def fails(*arguments):
    raise RuntimeError("a defect")

train.summed = fails
sys.exit(train.run("shapes", sys.argv[1:]))
"""
    command = [sys.executable, "-c", script, *tiny(tmp_path / "run"), "data.workers=2"]
    done = subprocess.run(
        command,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 1
    assert "RuntimeError: a defect" in done.stderr


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path):
    output = tmp_path / "run"
    more = ["train.lr=1e30", "train.schedule=constant", "train.warmup_steps=0", "train.steps=12"]
    with pytest.raises(UserError, match=r"loss is (nan|inf).*Lower train.lr"):
        fit(load_recipe("shapes", tiny(output, *more)))
    saved = checkpoint.latest(output / "checkpoints")
    assert saved is None or all(torch.isfinite(t).all() for t in weights(output).values())


# ------------------------------------------------------------------------------------- real data


@pytest.mark.slow
def test_camvid(shared_data, tmp_path):
    overrides = [*TINY_MODEL, f"data.path={shared_data / 'camvid'}", "data.workers=0"]
    overrides += ["augment.crop=[64,64]", "train.global_batch=2", "train.steps=2"]
    overrides += [f"output={tmp_path / 'run'}", "evaluation.batch_size=8"]
    result = fit(load_recipe("camvid", overrides))
    assert result.metrics["eval/per_class_iou"].keys() >= {"sky", "bicyclist"}
    assert len(result.metrics["eval/per_class_iou"]) == 11


@pytest.mark.slow
def test_ade20k_labels_and_protocol(shared_data, tmp_path):
    overrides = [*TINY_MODEL, f"data.path={shared_data / 'ade20k_sample'}", "data.workers=0"]
    overrides += ["data.train_split=val", "augment.crop=[64,64]", "augment.base_size=[256,128]"]
    overrides += ["train.global_batch=3", "train.steps=3", f"output={tmp_path / 'run'}"]
    result = fit(load_recipe("ade20k", overrides))
    scores = result.metrics["eval/per_class_iou"]
    assert len(scores) == 150
    folder = shared_data / "ade20k_sample" / "ADEChallengeData2016" / "annotations" / "validation"
    present = {int(v) for path in folder.glob("*.png") for v in np.unique(Image.open(path))} - {0}
    names = list(scores)
    by_hand = {names[value - 1] for value in present}  # 1-150 become 0-149; 0 does not count
    predicted = {name for name, score in scores.items() if score is not None}
    assert by_hand <= predicted
    config = json.loads((tmp_path / "run" / "last" / "config.json").read_text())
    assert config["id2label"]["0"] == "wall"
    assert config["semantic_loss_ignore_index"] == 255
    assert config["finetune_eval"]["size_divisor"] == 32


# -------------------------------------------------------------------------------------- mistakes


@pytest.fixture
def folder(tmp_path) -> Path:
    """A small image-and-mask folder that works."""
    rng = np.random.default_rng(0)
    data = tmp_path / "data"
    for split in ("train", "val"):
        for kind in ("images", "masks"):
            (data / kind / split).mkdir(parents=True)
        for index in range(3):
            image = rng.integers(0, 255, (64, 64, 3), dtype=np.uint8)
            mask = rng.integers(0, 2, (64, 64), dtype=np.uint8)
            Image.fromarray(image).save(data / "images" / split / f"{index}.png")
            Image.fromarray(mask).save(data / "masks" / split / f"{index}.png")
    return data


def on_folder(folder: Path, *more: str) -> list[str]:
    return [
        *TINY_MODEL,
        f"data.path={folder}",
        "data.workers=0",
        "augment.crop=[64,64]",
        "train.global_batch=2",
        "train.steps=2",
        f"output={folder.parent / 'run'}",
        *more,
    ]


def break_nothing(folder: Path) -> list[str]:
    return []


def missing_folder(folder: Path) -> list[str]:
    return [f"data.path={folder.parent / 'elsewhere'}"]


def missing_mask(folder: Path) -> list[str]:
    (folder / "masks" / "train" / "1.png").unlink()
    return []


def other_size(folder: Path) -> list[str]:
    Image.fromarray(np.zeros((32, 64), np.uint8)).save(folder / "masks" / "val" / "2.png")
    return []


def label_out_of_range(folder: Path) -> list[str]:
    Image.fromarray(np.full((64, 64), 7, np.uint8)).save(folder / "masks" / "train" / "0.png")
    return []


def unreadable_image(folder: Path) -> list[str]:
    (folder / "images" / "train" / "2.png").write_bytes(b"\x89PNG\r\n\x1a\n not really")
    return []


def wrong_key(folder: Path) -> list[str]:
    return ["train.stepz=3"]


MISTAKES = {
    wrong_key: ["train.stepz", "train.steps?"],
    missing_folder: ["data.path", "elsewhere"],
    missing_mask: ["1", "mask"],
    other_size: ["2.png", "32", "64"],
    label_out_of_range: ["0.png", "7", "labels."],
    unreadable_image: ["2.png"],
}


def test_the_folder_without_a_mistake_trains(folder):
    assert run("folder", on_folder(folder)) == 0


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: mistake.__name__)
def test_mistakes_are_one_message_and_exit_2(mistake, folder, capsys):
    assert run("folder", on_folder(folder, *mistake(folder))) == 2
    said = capsys.readouterr().err
    assert said.count("error:") == 1
    assert "Traceback" not in said
    for part in MISTAKES[mistake]:
        assert part in said
    assert not (folder.parent / "run").exists(), "nothing half-written"


@pytest.mark.slow
@pytest.mark.parametrize("program", ["train.py", "finetune train"])
def test_programs_exit_2(program, folder):
    command = {
        "train.py": [sys.executable, ROOT / "finetune/train.py", "--recipe"],
        "finetune train": [sys.executable, "-m", "finetune.cli", "train"],
    }[program]
    done = launch([*command, "folder", *on_folder(folder, *other_size(folder))], folder.parent)
    assert done.returncode == 2
    assert done.stderr.count("error:") == 1
    assert "2.png" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_bad_file_in_mid_training_is_named(folder, capsys):
    """Found while training, because the look before it reads headers only of most files."""
    rng = np.random.default_rng(0)
    for index in range(3, 60):
        image = Image.fromarray(rng.integers(0, 255, (64, 64, 3), dtype=np.uint8))
        image.save(folder / "images" / "train" / f"{index:02}.png")
        mask = np.full((64, 64), 9 if index == 34 else 1, np.uint8)
        Image.fromarray(mask).save(folder / "masks" / "train" / f"{index:02}.png")
    more = ["train.steps=60", "data.workers=1", "train.log_every=1"]
    status = run("folder", on_folder(folder, *more))
    assert status == 2
    trained = rows(folder.parent / "run", "train/")
    saved = checkpoint.latest(folder.parent / "run" / "checkpoints")
    assert checkpoint.verify(saved)["step"] >= trained[-1]["step"] > 0, "no step is lost"
    said = capsys.readouterr().err
    assert "34.png" in said
    assert "9" in said
    assert "Traceback" not in said


@pytest.mark.slow
def test_a_bad_file_of_one_process_ends_both(folder):
    """One message, and no traceback from the process that waited."""
    Image.fromarray(np.zeros((64, 64, 3), np.uint8)).save(folder / "images" / "train" / "3.png")
    rng = np.random.default_rng(0)
    for index in range(4, 80):
        image = Image.fromarray(rng.integers(0, 255, (64, 64, 3), dtype=np.uint8))
        image.save(folder / "images" / "train" / f"{index}.png")
    for index in range(3, 80):
        mask = np.full((64, 64), 9 if index == 31 else 1, np.uint8)
        Image.fromarray(mask).save(folder / "masks" / "train" / f"{index}.png")
    command = [sys.executable, "-m", "finetune.cli", "train", "--processes", "2", "folder"]
    done = launch([*command, *on_folder(folder, "train.steps=90")], folder.parent)
    assert done.returncode == 2, done.stderr
    assert done.stderr.count("error:") == 1
    assert "31.png" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_a_model_that_starts_from_another(finished, tmp_path):
    """The encoder is taken over, a head for other labels is drawn anew, and it says so."""
    output = tmp_path / "run"
    overrides = [*TINY_MODEL, f"model.init={finished / 'best'}", "augment.crop=[64,64]"]
    overrides += ["data.workers=0", "train.steps=1", "train.lr=1e-12", "train.global_batch=2"]
    data = tmp_path / "data"
    for split in ("train", "val"):
        for kind in ("images", "masks"):
            (data / kind / split).mkdir(parents=True)
            shape = (64, 64, 3) if kind == "images" else (64, 64)
            Image.fromarray(np.zeros(shape, np.uint8)).save(data / kind / split / "a.png")
    new = "new are decode_head.classifier.bias, decode_head.classifier.weight"
    with pytest.warns(UserWarning, match=f"encoder is loaded, {new}"):
        fit(load_recipe("folder", [*overrides, f"data.path={data}", f"output={output}"]))
    mine, theirs = weights(output), load_file(finished / "best" / "model.safetensors")
    name = "segformer.encoder.block.2.0.attention.self.query.weight"
    torch.testing.assert_close(mine[name], theirs[name])
    assert mine["decode_head.classifier.weight"].shape[0] == 2
    with pytest.raises(UserError, match=r"depths .*Set model\.depths="):
        fit(load_recipe("shapes", [f"model.init={finished / 'best'}", f"output={tmp_path / 'x'}"]))
    with pytest.raises(UserError, match=r"model\.init=.*not a model folder"):
        fit(load_recipe("shapes", [f"model.init={tmp_path}", f"output={tmp_path / 'y'}"]))
