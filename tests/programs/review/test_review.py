"""`finetune review` on drawn squares with planted errors, from the command line to its files."""

import csv
import json
import re
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from typer.testing import CliRunner

from finetune.cli import app
from finetune.errors import UserError
from finetune.inference import Segmenter
from finetune.programs.review.export import FORMS, check_form, export
from finetune.programs.review.listing import COLUMNS, Part
from finetune.programs.review.page import around
from finetune.programs.review.review import review, show
from finetune.programs.review.review import write as write_review
from finetune.recipe import load_recipe
from finetune.train import fit

NAMES = ("ground", "green", "white")
RECIPE = """
data: {{path: {path}, workers: 0, cache: none}}
labels: {{names: [ground, green, white]}}
model: {{drop_path_rate: 0, classifier_dropout_prob: 0, depths: [1, 1, 1, 1],
  hidden_sizes: [16, 32, 40, 64], decoder_hidden_size: 32}}
augment: {{crop: [64, 64], scale: [1, 1], cat_max_ratio: 1, photometric: false}}
train: {{steps: 60, global_batch: 8, lr: 3.0e-3, head_lr_multiplier: 1, warmup_steps: 5,
  eval_every: 60, threads: 1}}
"""
NUM_TRAIN, NUM_VAL = 24, 12


def square(number):
    """A square whose colour tells its class, on dark ground; and its corner."""
    rng = np.random.default_rng(number)
    image = rng.integers(0, 60, (64, 64, 3), dtype=np.uint8)
    mask = np.zeros((64, 64), np.uint8)
    top, left = (int(x) for x in rng.integers(4, 36, 2))
    place, label = np.s_[top : top + 24, left : left + 24], 1 + number % 2
    mask[place] = label
    image[place] += np.array([0, 180, 0] if label == 1 else [180, 180, 180], np.uint8)
    return image, mask, (top, left)


def write(root, planted):
    """Both splits; `planted` has the wrong label of a square by split and number."""
    for split, count, first in (("train", NUM_TRAIN, 0), ("val", NUM_VAL, 100)):
        for kind in ("images", "masks"):
            (root / kind / split).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            image, mask, _ = square(first + number)
            if (split, number) in planted:
                mask[mask > 0] = planted[split, number]
            cv2.imwrite(str(root / f"images/{split}/{number:02}.png"), image[..., ::-1])
            cv2.imwrite(str(root / f"masks/{split}/{number:02}.png"), mask)
    (root / "squares.yaml").write_text(RECIPE.format(path=root))
    return str(root / "squares.yaml")


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    """A swapped class and a missing object in the validation split, a swap in the other."""
    planted = {("val", 3): 1, ("val", 6): 0, ("train", 8): 2}
    return write(tmp_path_factory.mktemp("squares"), planted)


@pytest.fixture(scope="module")
def model(recipe, tmp_path_factory):
    run = tmp_path_factory.mktemp("run") / "model"
    fit(load_recipe(recipe, {"output": str(run)}))
    return str(run / "last")


def run(*arguments):
    return CliRunner().invoke(app, ["review", *map(str, arguments)])


def facts_of(folder):
    return json.loads((folder / "review.json").read_text())


def test_planted_errors_are_first_on_the_list(recipe, model, tmp_path):
    done = run(model, "--recipe", recipe, "-o", tmp_path / "out", "--device", "cpu")
    assert done.exit_code == 0, done.output
    facts = facts_of(tmp_path / "out")
    assert (facts["split"], facts["images"], facts["held_out"]) == ("val", NUM_VAL, True)
    first, second = sorted(facts["regions"][:2], key=lambda row: row["id"])
    assert (first["id"], first["labelled"], first["predicted"]) == ("03", "green", "white")
    assert (second["id"], second["labelled"], second["predicted"]) == ("06", "ground", "green")
    for row in (first, second):
        top, left = square(100 + int(row["id"]))[2]
        drawn, right = np.zeros((2, 64, 64), np.uint8)
        cv2.fillPoly(drawn, [np.array(line) for line in row["outlines"]], 1)
        right[top : top + 24, left : left + 24] = 1
        assert (drawn & right).sum() > 0.6 * (drawn | right).sum()
        assert drawn.sum() == pytest.approx(row["pixels"], rel=0.05)
        assert row["mask"].endswith(f"masks/val/{row['id']}.png")
        assert row["doubt"] > 0
    scores = [row["score"] for row in facts["regions"]]
    assert scores == sorted(scores, reverse=True)
    assert [row["rank"] for row in facts["regions"]] == list(range(1, len(scores) + 1))


def test_the_table_and_the_page_say_the_same(recipe, model, tmp_path):
    done = run(model, "--recipe", recipe, "-o", tmp_path / "out", "--show", "2", "--json")
    assert json.loads(done.stdout) == facts_of(tmp_path / "out")
    regions = facts_of(tmp_path / "out")["regions"]
    with open(tmp_path / "out/review.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert rows[0].keys() == set(COLUMNS)
    assert [row["id"] for row in rows] == [row["id"] for row in regions]
    assert [int(row["left"]) for row in rows] == [row["box"][0] for row in regions]
    page = (tmp_path / "out/review.html").read_text()
    assert page.count('<section class="card">') == min(2, len(regions))
    assert page.count("data:image/jpeg;base64,") == 3 * min(2, len(regions))
    assert "masks/val/03.png" in page
    assert not re.search(r'(src|href)="(?!data:)', page)
    assert "<script" not in page


@pytest.mark.parametrize("form", ["coco", "coco-polygons", "labelme"])
def test_regions_go_to_annotation_tools(form, recipe, model, tmp_path):
    done = run(model, "--recipe", recipe, "-o", tmp_path / "o", "--show", "2", "--export", form)
    assert done.exit_code == 0, done.output
    first = facts_of(tmp_path / "o")["regions"][0]
    if form == "labelme":
        file = json.loads((tmp_path / f"o/labelme/{first['id']}.json").read_text())
        led_to = tmp_path / "o/labelme" / file["imagePath"]
        assert str(led_to.resolve()) == str(Path(first["image"]).resolve())
        found = [(shape["label"], shape["points"]) for shape in file["shapes"]]
    else:
        file = json.loads((tmp_path / f"o/{form}.json").read_text())
        assert sorted(image["file_name"] for image in file["images"]) == ["03.png", "06.png"]
        place = {image["file_name"]: image["id"] for image in file["images"]}[f"{first['id']}.png"]
        names = {category["id"]: category["name"] for category in file["categories"]}
        objects = [one for one in file["annotations"] if one["image_id"] == place]
        found = [(names[one["category_id"]], _corners(one)) for one in objects]
    ((label, points),) = found
    left, top, width, height = first["box"]
    assert label == first["predicted"]
    corners = np.array(points).reshape(-1, 2)
    assert corners.min(0).tolist() == pytest.approx([left, top], abs=1)
    assert corners.max(0).tolist() == pytest.approx([left + width, top + height], abs=1)


def _corners(annotation):
    """The corners of COCO's box, which are as far out as those of the object."""
    left, top, width, height = annotation["bbox"]
    return [left, top, left + width, top + height]


@pytest.mark.parametrize("name", ["../../taken", "/ROOT/taken"])
def test_names_that_lead_out_of_the_folder(name, recipe, model, tmp_path):
    """Annotation files name images as they like; a foreign one must not choose what is written."""
    name = name.replace("/ROOT", str(tmp_path))
    found = review([Part(model, load_recipe(recipe))], tmp_path / "out")
    found = replace(found, found=tuple(replace(one, id=name) for one in found.found))
    (tmp_path / "taken.json").write_text("mine")
    with pytest.raises(UserError, match="leads out of"):
        export(found, tmp_path / "out", "labelme", 1)
    assert (tmp_path / "taken.json").read_text() == "mine"
    assert export(found, tmp_path / "out", "coco-polygons", 1)[0].is_file()


def test_names_cannot_steer_the_terminal(capsys):
    row = {"score": 1.0, "labelled": "a", "predicted": "b", "id": "x\x1b[31m\ny"}
    show({"images": 1, "split": "val", "images_with_doubts": 1, "regions": [row]}, [])
    assert r"x\x1b[31m\ny" in capsys.readouterr().out


def test_the_review_of_another_split_is_not_overwritten(recipe, model, tmp_path):
    assert run(model, "--recipe", recipe, "-o", tmp_path).exit_code == 0
    other = run(model, "--recipe", recipe, "-o", tmp_path, "data.val_split=train")
    assert "review of another model or data set" in str(other.exception)


def test_the_help_names_the_forms_that_there_are():
    said = " ".join(run("--help").output.split())
    assert f"tools: {', '.join(list(FORMS)[:-1])} or {list(FORMS)[-1]}." in said
    for form in FORMS:
        check_form(form)


def test_folds_review_the_training_split_by_models_that_have_not_seen_it(recipe, tmp_path):
    out = tmp_path / "out"
    command = (
        "--recipe",
        recipe,
        "--folds",
        "2",
        "-o",
        out,
        "train.steps=40",
        "train.eval_every=40",
    )
    done = run(*command)
    assert done.exit_code == 0, done.output
    facts = facts_of(out)
    assert (facts["split"], facts["images"], facts["held_out"]) == ("train", NUM_TRAIN, True)
    first = facts["regions"][0]
    assert (first["id"], first["labelled"], first["predicted"]) == ("08", "white", "green")
    held_out = load_recipe(out / f"fold-{first['fold']}/recipe.yaml").data
    assert (held_out.folds, held_out.fold) == (2, first["fold"])
    runs = {path: path.stat().st_mtime_ns for path in out.glob("fold-*/last/model.safetensors")}
    assert len(runs) == 2
    again = run(*command, "--json")  # the runs are finished and are not repeated
    assert json.loads(again.stdout) == facts
    assert runs == {path: path.stat().st_mtime_ns for path in runs}
    assert facts_of(out) == facts


def test_the_training_split_with_a_warning(recipe, model, tmp_path):
    with pytest.warns(UserWarning, match="has learnt the labels"):
        found = review([Part(model, load_recipe(recipe), on_train=True)], tmp_path / "out")
    assert sum(map(len, found.samples)) == NUM_TRAIN
    write_review(found, tmp_path / "out")
    assert "was trained on these labels" in (tmp_path / "out/review.html").read_text()


def test_a_stopped_call_resumes_and_mended_masks_are_reviewed_again(tmp_path, model, monkeypatch):
    recipe = write(tmp_path / "set", {("val", 3): 1})
    part, out, seen = Part(model, load_recipe(recipe)), tmp_path / "out", []
    doubts = Segmenter.doubts

    def watched(self, views, truths):
        seen.append(1)
        if len(seen) == 5:
            raise KeyboardInterrupt
        return doubts(self, views, truths)

    monkeypatch.setattr(Segmenter, "doubts", watched)
    with pytest.raises(KeyboardInterrupt):
        review([part], out)
    with open(out / ".review/regions.jsonl", "ab") as file:
        file.write(b'\xff\0\n5\n{"key": "cut off"}\n{"key": "cut o')
    before = review([part], out)
    assert len(seen) == 5 + NUM_VAL - 4
    assert (before.found[0].id, before.found[0].region.given) == ("03", 1)
    write(tmp_path / "set", {})
    after = review([part], out)
    assert len(seen) == 5 + NUM_VAL - 4 + 1
    assert len(after.found) < len(before.found)
    assert after.found == review([part], tmp_path / "fresh").found


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["MODEL"], "--recipe is missing"),
        (["--recipe", "RECIPE"], "either MODEL, or --folds"),
        (["MODEL", "--recipe", "RECIPE", "--folds", "2"], "either MODEL, or --folds"),
        (["--recipe", "RECIPE", "--folds", "2", "--train"], "take --train out"),
        (["MODEL", "--recipe", "shapes"], "draws its labels"),
        (["MODEL", "--recipe", "RECIPE", "-o", "TAKEN"], "holds other files"),
        (["--recipe", "RECIPE", "--folds", "2", "-o", "TAKEN"], "holds other files"),
        (["--recipe", "shapes", "--folds", "2"], "draws its labels"),
        (["MODEL", "--recipe", "RECIPE", "--export", "xyz"], "--export xyz: choose from coco"),
        (["MODEL", "--recipe", "RECIPE", "labels.names=[a, b, c]"], "are not the 3 of"),
        (["MODEL", "--recipe", "RECIPE", "data.val_split=test"], "test"),
    ],
)
def test_mistakes(arguments, message, recipe, model, tmp_path):
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken/photo.jpg").touch()
    words = {"MODEL": model, "RECIPE": recipe, "TAKEN": str(tmp_path / "taken")}
    out = [] if "-o" in arguments else ["-o", str(tmp_path / "out")]
    done = run(*(words.get(word, word) for word in arguments), *out)
    assert isinstance(done.exception, UserError)
    assert re.search(message, str(done.exception))
    assert {path.name for path in tmp_path.rglob("*")} <= {"taken", "photo.jpg"}


def test_the_review_of_another_model_is_not_overwritten(recipe, model, tmp_path):
    assert run(model, "--recipe", recipe, "-o", tmp_path).exit_code == 0
    other = Path(model).with_name("best")
    assert isinstance(run(other, "--recipe", recipe, "-o", tmp_path).exception, UserError)
    assert run(model, "--recipe", recipe, "-o", tmp_path).exit_code == 0


@pytest.mark.parametrize(
    ("box", "expected"),
    [
        ((40, 50, 10, 10), (32, 42, 57, 67)),  # a quarter of the image at least
        ((0, 0, 100, 100), (0, 0, 100, 100)),
        ((0, 90, 4, 10), (0, 75, 25, 100)),  # moved into the image
        ((20, 20, 40, 20), (4, 12, 76, 48)),
    ],
)
def test_pictures_show_the_region_with_its_surroundings(box, expected):
    assert around(box, (100, 100)) == expected
