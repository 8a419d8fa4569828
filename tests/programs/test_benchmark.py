"""`finetune benchmark` at tiny sizes: its figures are consistent. None of them is judged."""

import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from benchmarks import limits, loader, metric
from benchmarks.training import StockTask
from finetune import cli
from finetune.cli import measuring
from finetune.errors import UserError
from finetune.inference import Preprocessing
from finetune.metrics import MeanIoU
from finetune.programs.benchmark import benchmark, cases, meters
from finetune.programs.benchmark import printing as tables
from finetune.recipe import load_recipe
from finetune.segformer import SegformerConfig, SegformerForSemanticSegmentation
from finetune.segformer.costs import count_flop
from finetune.trainers import Share
from finetune.trainers.segmentation import SegmentationTask

TINY = ["--size", "64", "--num-labels", "7", "--rounds", "2", "--threads", "2", "--device", "cpu"]


@pytest.fixture(autouse=True)
def small_products(monkeypatch):
    monkeypatch.setitem(limits.PRODUCT_SIDES, "cpu", (512,))


def run(*arguments: str) -> list[dict]:
    done = CliRunner().invoke(cli.app, ["benchmark", *arguments, *TINY, "--json"])
    assert done.exit_code == 0, done.output
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.fixture(autouse=True, scope="module")
def threads_come_back():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def assert_consistent(row: dict, what: str) -> None:
    assert row["what"] == what
    assert row["size"] == [64, 64]
    assert row["num_labels"] == 7
    assert row["rounds"] == 2
    assert row["dtype"] == "float32"
    assert row["device"] == "cpu"
    assert row["device_name"]
    assert row["threads"] == (1 if what == "loader" else 2)
    assert row["torch"] == torch.__version__
    seconds = row["seconds"]
    cached = {"ours_cached"} if what == "loader" else set()
    assert seconds.keys() == {"ours", "stock"} | cached
    assert all(value > 0 for value in seconds.values())
    assert row["ratio"].keys() == {"ours"} | cached
    for side, ratio in row["ratio"].items():
        assert ratio == pytest.approx(seconds["stock"] / seconds[side])
    assert all(0 <= value <= 1e-5 for value in row["difference"].values())


@pytest.mark.slow
def test_every_benchmark_of_the_table_is_consistent():
    rows = run("--variant", "b0", "--no-memory")
    assert [row["what"] for row in rows] == [*cases.BENCHMARKS, "metric", "loader"]
    for row in rows:
        assert_consistent(row, row["what"])
        assert row["peak_bytes"] == {}
        compared = {"forward": "logits", "eval-image": "classes", "metric": "mean_iou"}
        if row["what"] in compared:
            assert row["difference"].keys() == {compared[row["what"]]}
        has_model = row["what"] in ("forward", "train-step", "eval-image")
        assert row["variant"] == ("b0" if has_model else None)
        assert bool(row["limit"]) == has_model
        if has_model:
            limit = row["limit"]
            assert 0 < limit["share_of_peak"] < 4  # a busy machine misses its own peak
            assert limit["share_of_peak"] == pytest.approx(
                limit["gflop"] / row["seconds"]["ours"] / limit["peak_gflop_per_second"]
            )
    forward, step, evaluation = (row["limit"]["gflop"] for row in rows[:3])
    assert evaluation == forward
    # The backward pass is twice the forward; of two images, but the head's weights multiply once.
    assert 3 < step / forward < 6


@pytest.mark.slow
def test_memory_is_measured_in_a_process_of_its_own():
    (row,) = run("loss")
    assert_consistent(row, "loss")
    assert row["difference"].keys() == {"loss", "gradient"}
    assert all(size > 0 for size in row["peak_bytes"].values())
    assert row["peak_bytes"].keys() == {"ours", "stock"}


def test_this_package_alone():
    options = ["--vs", "none", "--no-memory", "--keep-freed-memory"]
    (row,) = run("forward", "--variant", "b0", *options)
    assert row["seconds"].keys() == {"ours"}
    assert row["ratio"] == row["difference"] == {}
    assert row["keeps_freed_memory"] is True


@pytest.mark.slow
def test_compiled_sides_are_added():
    (row,) = run("loss", "--compile", "--no-memory")
    assert row["seconds"].keys() == {"ours", "ours_compiled", "stock_compiled"}
    assert row["ratio"].keys() == {"ours", "ours_compiled"}
    for side, ratio in row["ratio"].items():
        assert ratio == pytest.approx(row["seconds"]["stock_compiled"] / row["seconds"][side])
    assert row["difference"].keys() == {"loss", "gradient"}
    assert all(0 <= value <= 1e-5 for value in row["difference"].values())


def test_a_wheel_measures_time_alone_and_says_where_the_rest_is(monkeypatch):
    monkeypatch.setattr(measuring, "ROOT", Path("/nowhere"))
    (row,) = run("forward", "--variant", "b0")
    assert row["ratio"]["ours"] > 0
    assert row["limit"] == row["peak_bytes"] == {}
    for arguments in (["metric"], ["loader"], ["predict"], ["training", "--recipe", "shapes"]):
        done = CliRunner().invoke(cli.app, ["benchmark", *arguments])
        assert isinstance(done.exception, UserError)
        assert f"benchmark {arguments[0]}: needs a checkout" in str(done.exception)


PAGE = (Path(__file__).resolve().parents[2] / "docs" / "speed.md").read_text(encoding="utf-8")


def test_the_page_on_speed_says_what_needs_a_checkout():
    beside = {"metric", "loader", "predict", "training"}
    assert all(measuring.beside(name) for name in beside)
    (wheel,) = re.findall(r"A wheel has (.*?), and measures", PAGE, re.DOTALL)
    (checkout,) = re.findall(r"has more: the benchmarks (.*?), peak memory", PAGE, re.DOTALL)
    assert set(re.findall(r"`([\w-]+)`", wheel)) == cases.BENCHMARKS.keys()
    assert set(re.findall(r"`([\w-]+)`", checkout)) == beside


def test_the_page_on_speed_has_a_command_for_each_figure():
    table = PAGE.partition("| | images |")[2].partition("\n\n")[0]
    rows = table.splitlines()[2:]
    commands = [re.findall(r"`finetune benchmark ([\w-]+)([^`]*)`", row) for row in rows]
    assert all(len(found) == 1 for found in commands), "a row without its command"
    assert {what for ((what, _),) in commands} == {*cases.BENCHMARKS, "metric", "loader", "predict"}
    for row, ((_, options),) in zip(rows, commands, strict=True):
        for variant in re.findall(r", (B\d) ", row):
            assert options == f" --variant {variant.lower()}"


def test_half_precision_runs_on_both_sides():
    (row,) = run("forward", "--variant", "b0", "--no-memory", "--dtype", "bfloat16")
    assert row["dtype"] == "bfloat16"
    assert 0 < row["difference"]["logits"] < 0.1


def test_tables_fit_into_80_columns(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    from finetune.programs.benchmark.benchmark import Result

    case = cases.Case("eval-image", "b5", (1024, 2048), 16, 150, "bfloat16", "cuda:0")
    sides = {"ours": 12.5, "ours_compiled": 10.5, "stock_compiled": 123.4}
    result = Result(
        case,
        rounds=3,
        machine=meters.machine("cpu", keeps_memory=True),
        seconds=sides,
        ratio={"ours": 10.0, "ours_compiled": 11.75},
        difference={"classes": 1e-6},
        peak_bytes={"ours": 10**9, "ours_compiled": 10**9, "stock_compiled": None},
        limit={"share_of_peak": 0.5},
    )
    tables.print_tables([result])
    said = capsys.readouterr().out
    assert max(map(len, said.splitlines())) <= 80
    for text in ("eval-image b5 compiled", "12.5 s", "11.75", "1e-06", "50%", "too much"):
        assert text in said
    json.dumps(result.to_dict())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["forwards"], r"WHAT 'forwards': choose from forward, train-step"),
        (["forward", "--variant", "b9"], r"--variant 'b9': choose from b0, b1"),
        (["--size", "28"], "--size '28': sides must be 29 to 16384"),
        (["--size", "64x"], "--size '64x'"),
        (["--size", "1x2x3"], "--size '1x2x3'"),
        (["--dtype", "int8"], "--dtype 'int8': choose from float32"),
        (["--device", "tpu"], "--device 'tpu'"),
        (["--device", "meta"], "--device 'meta'"),
        (["--vs", "timm"], "--vs 'timm': choose from stock, none"),
        (["--num-labels", "1"], "--num-labels 1"),
        (["--rounds", "0"], "'--rounds'"),
        (["loader", "--data", "/nowhere"], "--data /nowhere: no such folder"),
        (["loader", "--data", "tests/segformer"], "--data tests/segformer: holds no images"),
        (["training"], "benchmark training: the recipe is missing; name it with --recipe"),
        (["foo"], "WHAT 'foo': choose from forward, .*, training"),
        (
            ["forward", "train.steps=1"],
            "--recipe and key=value go with `benchmark training`",
        ),
        (["training", "--recipe", "shapes", "train.steps=1"], "train.steps=1: .*leave it out"),
        (["training", "--recipe", "shapes", "--output", "tests"], "--output tests: not an empty"),
        (["training", "--recipe", "shapes", "train.stepz=1"], "train.stepz: unknown key"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_options_exit_2_and_are_named(arguments, message, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["finetune", "benchmark", *arguments])
    monkeypatch.chdir(Path(__file__).resolve().parents[2])
    with pytest.raises(SystemExit) as left:
        cli.main()
    assert left.value.code == 2
    said = capsys.readouterr().err
    assert "Traceback" not in said
    with pytest.raises(ValueError, match=message):
        raise ValueError(said)


def test_peak_bytes_sees_what_is_freed_again():
    """In a process of its own: a training before it, in this one, may have kept freed memory."""
    script = (
        "import torch; from benchmarks import memory; "
        "print(memory.peak_bytes(lambda: torch.ones(10_000_000).sum(), 'cpu'))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=Path(__file__).resolve().parents[2],
        capture_output=True,
        text=True,
        check=True,
    )
    assert 39.5e6 <= int(done.stdout) < 60e6  # the kernel counts resident pages in batches


def test_bytes_and_arithmetic_are_counted():
    x, weight = torch.randn(3, 4), torch.randn(5, 4)
    assert count_flop(lambda: x @ weight.T) == 2 * 3 * 4 * 5
    assert limits.count_bytes(lambda: x @ weight.T) == 4 * (3 * 4 + 4 * 5 + 3 * 5)
    q = torch.randn(1, 2, 16, 8)
    attention = count_flop(lambda: torch.nn.functional.scaled_dot_product_attention(q, q, q))
    assert attention == 2 * 2 * 2 * 16 * 16 * 8


def test_stock_mean_iou_is_the_published_one():
    generator = np.random.default_rng(0)
    truth, predicted = (torch.from_numpy(generator.integers(0, 9, (2, 20, 30))) for _ in range(2))
    truth[:, :3] = cases.IGNORE
    truth[truth == 4] = 3
    predicted[predicted == 4] = 3  # an absent class
    ours = MeanIoU(9)
    ours.add_batch(predictions=predicted, references=truth)
    expected = ours.compute()["mean_iou"]
    assert metric._stock_mean_iou(predicted, truth, 9) == pytest.approx(expected, abs=1e-12)


def test_loader_takes_a_folder_of_images(tmp_path):
    for index in range(2):
        pixels = np.full((40, 70, 3), 100 * index, np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{index}.png")
    (row,) = run("loader", "--data", str(tmp_path))
    assert_consistent(row, "loader")
    assert row["images_per_second"]["ours"] == pytest.approx(1 / row["seconds"]["ours"])
    assert "FINETUNE_CACHE" not in os.environ


def test_loader_reads_pictures_as_a_training_does(tmp_path):
    """Turned by EXIF data; and one that is cut off is named."""
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.new("RGB", (70, 40)).save(tmp_path / "0.jpg", exif=turned)
    (row,) = run("loader", "--data", str(tmp_path))
    assert_consistent(row, "loader")
    noise = np.random.default_rng(0).integers(0, 256, (40, 70, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "1.png")
    whole = (tmp_path / "1.png").read_bytes()
    (tmp_path / "1.png").write_bytes(whole[: len(whole) // 2])
    done = CliRunner().invoke(cli.app, ["benchmark", "loader", "--data", str(tmp_path), *TINY])
    assert isinstance(done.exception, UserError)
    assert "1.png: cannot be read" in str(done.exception)


def test_what_has_been_measured_is_shown_whatever_comes_after(monkeypatch):
    measure = benchmark.measure

    def measured(case, options, checkout):
        if case.what == "metric":
            raise UserError("does not fit")
        return measure(case, options, checkout)

    monkeypatch.setattr(benchmark, "measure", measured)
    done = CliRunner().invoke(cli.app, ["benchmark", "loss", "metric", *TINY, "--no-memory"])
    assert str(done.exception) == "does not fit"
    assert "loss" in done.stdout


def test_drawn_pictures_are_as_heavy_as_photographs(tmp_path):
    image = Image.fromarray(loader.draw_picture(0))
    image.save(tmp_path / "0.jpg", quality=90)
    bits = 8 * (tmp_path / "0.jpg").stat().st_size / math.prod(loader.SIZE)
    assert 1.5 < bits < 2.5
    mask = loader.draw_mask(0, (50, 60), 7)
    assert mask.shape == (50, 60)
    assert mask.max() < 7


TINY_MODEL = [
    *["model.depths=[1,1,1,1]", "model.hidden_sizes=[8,16,40,64]", "model.decoder_hidden_size=32"],
    *["model.drop_path_rate=0", "model.classifier_dropout_prob=0", "augment.crop=[32,32]"],
    *["data.val_samples=2", "data.workers=0", "train.global_batch=2", "train.threads=2"],
]


def test_the_stock_task_starts_from_the_same_weights_and_has_the_same_loss():
    recipe = load_recipe("shapes", TINY_MODEL)
    results = []
    for task in (SegmentationTask(recipe), StockTask(recipe)):
        torch.manual_seed(0)
        model = task.build().train()
        batches = task.batches(Share(), 0)
        batch = next(batches)
        batches.close()
        (weight,) = task.weights(batch).values()
        (total,) = task.losses(model, batch).values()
        total.backward()
        norm = sum(p.grad.double().square().sum() for p in model.parameters()).sqrt()
        results.append((total.item(), weight.item(), norm.item()))
    assert results[0][:2] == pytest.approx(results[1][:2], rel=1e-5)
    assert results[0][2] == pytest.approx(results[1][2], rel=1e-3)
    assert isinstance(task, StockTask)
    assert not isinstance(model, type(SegmentationTask(recipe).build()))


@pytest.mark.slow
def test_training_for_equal_minutes(tmp_path):
    output = tmp_path / "both"
    arguments = ["training", "--recipe", "shapes", *TINY_MODEL, "--minutes", "0.02", "--json"]
    done = CliRunner().invoke(cli.app, ["benchmark", *arguments, "--output", str(output)])
    assert done.exit_code == 0, done.output
    (row,) = [json.loads(line) for line in done.stdout.splitlines()]
    for side in ("ours", "stock"):
        assert row[side]["images"] >= 2
        assert row[side]["seconds"] > 0
        assert 0 <= row[side]["mean_iou"] <= 1
        assert (output / side / "last" / "model.safetensors").is_file()
    mine, theirs = (load_recipe(output / side / "recipe.yaml") for side in ("ours", "stock"))
    differing = {line.split(":")[0] for line in mine.differences(theirs)}
    assert differing <= {"output", "train.steps", "train.warmup_steps"}, differing


@pytest.mark.slow
def test_predict_compares_masks_and_counts_pictures(tmp_path):
    (tmp_path / "photos").mkdir()
    rng = np.random.default_rng(0)
    for index in range(3):
        coarse = Image.fromarray(rng.integers(0, 256, (5, 6, 3), np.uint8))
        coarse.resize((72, 64)).save(tmp_path / f"photos/{index}.png")
    torch.manual_seed(0)
    config = SegformerConfig(
        depths=[1, 1, 1, 1], hidden_sizes=[8, 16, 40, 64], decoder_hidden_size=32, num_labels=5
    )
    model = SegformerForSemanticSegmentation(config)
    model.save_pretrained(tmp_path / "model")
    values = Preprocessing().to_stock()
    (tmp_path / "model/preprocessor_config.json").write_text(json.dumps(values))
    arguments = ["predict", "--model", str(tmp_path / "model"), "--data", str(tmp_path / "photos")]
    (row,) = run(*arguments, "--rounds", "1")
    assert row["what"] == "predict"
    assert row["size"] == [64, 72]
    assert row["difference"]["classes"] <= 0.001
    assert row["ratio"]["ours"] == pytest.approx(row["seconds"]["stock"] / row["seconds"]["ours"])
    assert row["images_per_second"]["ours"] == pytest.approx(1 / row["seconds"]["ours"])
    done = CliRunner().invoke(cli.app, ["benchmark", "predict", "--data", str(tmp_path)])
    assert "needs --model" in str(done.exception)
