"""The card: its header read by the Hub's classes, its text by a Markdown parser."""

import json
import platform
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from markdown_it import MarkdownIt
from PIL import Image
from tiny import save_tiny

from finetune.errors import UserError
from finetune.inference import InferenceProtocol, Preprocessing
from finetune.pictures.drawing import panel
from finetune.programs.push import push as program
from finetune.programs.push.card import metadata
from finetune.programs.push.evidence import best_and_worst, gather, look, public, shown_path
from finetune.publish import hub_id
from finetune.publish.facts import data_set_of
from finetune.recipe import read_data
from finetune.weights.cards import NVIDIA

from .conftest import COLORS, NAMES


def best_row(run):
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return max((r for r in rows if "eval/mean_iou" in r), key=lambda r: r["eval/mean_iou"])


def parsed(text):
    return MarkdownIt("commonmark").enable("table").parse(text)


def cells(text):
    """Tables of a card as a reader sees them: rows of plain text."""
    found, previous = [], None
    for token in parsed(text):
        if token.type == "tr_open":
            found.append([])
        elif previous in ("td_open", "th_open"):
            found[-1].append("".join(child.content for child in token.children))
        previous = token.type
    return found


@pytest.mark.slow
def test_the_header_is_the_hubs_and_holds_the_best_evaluation(run, pushed):
    folder, _ = pushed
    card = ModelCard.load(folder / "README.md")
    assert str(card) == (folder / "README.md").read_text()
    row = best_row(run)
    found = {result.metric_type: result for result in card.data.eval_results}
    assert {key: found[key].metric_value for key in found} == {
        key: row[f"eval/{key}"] for key in ("mean_iou", "mean_accuracy", "overall_accuracy")
    }
    result = found["mean_iou"]
    assert (result.task_type, result.dataset_name, result.dataset_split) == (
        *("image-segmentation", "patches", "val"),
    )
    assert card.data.pipeline_tag == "image-segmentation"
    assert card.data.library_name == "transformers"
    assert "segformer" in card.data.tags
    # A folder is no data set of the Hub, and random weights are no model of it.
    assert card.data.datasets is None
    assert card.data.base_model is None
    # The card that the training wrote says the same of these weights.
    own = ModelCard.load(run / "best" / "README.md")
    assert own.data.eval_results == card.data.eval_results


def test_text_of_others_is_shown_as_it_is(run, pushed):
    folder, _ = pushed
    text = ModelCard.load(folder / "README.md").text
    row = best_row(run)
    for name, color in zip(NAMES, COLORS, strict=True):
        score = f"{row['eval/per_class_iou'][name]:.2%}"
        assert [name, "#{:02X}{:02X}{:02X}".format(*color), score] in cells(text)
    tokens = parsed(text)
    html = {t.content.strip() for t in tokens if t.type == "html_block"}
    assert html == {
        "<details>\n<summary>Everything else: <code>recipe.yaml</code></summary>",
        "</details>",
    }
    inline = [child for t in tokens for child in t.children or []]
    assert not [child for child in inline if child.type in ("html_inline", "em_open")]
    links = {child.attrs["href"] for child in inline if child.type == "link_open"}
    assert all(link.startswith("https://") for link in links)
    heading = next(t for n, t in enumerate(tokens) if tokens[n - 1].type == "heading_open")
    assert "".join(child.content for child in heading.children) == "nasty | <b>run</b>"
    recipe = next(t.content for t in tokens if t.type == "fence" and t.info == "yaml")
    assert recipe == (folder / "recipe.yaml").read_text()
    pictures = {child.attrs["src"] for child in inline if child.type == "image"}
    assert pictures == {"card/classes.png", "card/examples.png"}
    assert all((folder / name).is_file() for name in pictures)


def test_facts_are_the_runs(run, pushed):
    text = ModelCard.load(pushed[0] / "README.md").text
    assert "With the package `segformer-finetune`" in text
    facts = {row[0]: row[1] for row in cells(text) if len(row) == 2}
    row = best_row(run)
    assert facts["steps"].startswith(f"{row['step']} of 4,")
    assert facts["images seen"] == str(row["step"] * 4)
    devices = json.loads((run / "environment.json").read_text())["devices"]
    assert all(device in facts["hardware"] for device in devices)
    assert facts["mean IoU"] == f"{row['eval/mean_iou']:.2%}"
    ious = row["eval/per_class_iou"]
    weakest = min((name for name in ious if ious[name] is not None), key=ious.get)
    limits = text.split("## Limits")[1]
    assert f"({ious[weakest]:.2%})" in limits.splitlines()[2]


def naive_mean_iou(prediction, truth):
    counts = truth != 255
    ious = []
    for label in range(len(NAMES)):
        mine, theirs = (prediction == label) & counts, (truth == label) & counts
        if (mine | theirs).any():
            ious.append((mine & theirs).sum() / (mine | theirs).sum())
    return float(np.mean(ious))


def test_the_best_and_the_worst_are_shown(run, pushed, tmp_path):
    """As stock transformers and a plain loop find them."""
    model = transformers.SegformerForSemanticSegmentation.from_pretrained(run / "best").eval()
    processor = transformers.AutoImageProcessor.from_pretrained(run / "best")
    scores = {}
    for path in sorted((run.parent / "patches/images/val").iterdir()):
        image = Image.open(path)
        with torch.no_grad():
            outputs = model(**processor(image, return_tensors="pt"))
        size = [image.size[::-1]]
        mask = processor.post_process_semantic_segmentation(outputs, size)[0].numpy()
        truth = np.array(Image.open(run.parent / "patches/masks/val" / path.name))
        scores[path.stem] = naive_mean_iou(mask, truth)
    assert len(set(scores.values())) == 9
    order = sorted(scores, key=scores.get, reverse=True)
    evidence = gather(run)
    shown = look(evidence, evidence.recipe)
    assert [row.id for row in shown.rows] == [*order[:2], *order[-2:]]
    np.testing.assert_allclose(
        [row.mean_iou for row in shown.rows], [scores[r.id] for r in shown.rows]
    )
    panel(shown.rows, NAMES, COLORS, 255, tmp_path / "panel.png")
    assert (tmp_path / "panel.png").read_bytes() == (pushed[0] / "card/examples.png").read_bytes()


def test_few_images_and_images_that_do_not_count():
    nan = float("nan")
    assert best_and_worst([0.5, nan, 0.9, 0.1]) == [2, 0, 3]
    assert best_and_worst([0.1, 0.9, nan, 0.5, 0.7, 0.3]) == [1, 4, 5, 0]
    assert best_and_worst([0.5, 0.5, 0.5, 0.5, 0.5]) == [0, 1, 3, 4]  # ties by place
    assert best_and_worst([nan]) == []


def test_no_path_of_this_machine_goes_out(run, pushed):
    private = [str(run.parent), run.parent.name, str(Path.home())]
    files = [path for path in pushed[0].rglob("*") if path.is_file()]
    assert len(files) > 5
    for path in files:
        content = path.read_bytes()
        assert not [text for text in private if text.encode() in content], path
        if path.suffix in (".md", ".yaml", ".json"):
            assert not re.search(rf"\b{re.escape(platform.node())}\b", content.decode())
    recipe = gather(run).recipe
    assert run.parent.name in recipe.output  # there was something to leave out
    assert run.parent.name in recipe.data.path


@pytest.mark.parametrize(
    ("path", "shown"),
    [
        ("/home/me/CamVid", "CamVid"),
        ("~/sets/CamVid/", "CamVid"),
        ("../../me/CamVid", "CamVid"),
        ("s3://key:secret@bucket/set?X-Signature=abc", "s3://bucket/set"),
        (None, None),
    ],
)
def test_what_stays_of_a_path(path, shown):
    assert shown_path(path) == shown


def changed(evidence, **sections):
    """Evidence with another recipe: section=keys."""
    recipe = evidence.recipe
    for section, keys in sections.items():
        if "source" in keys:
            new = read_data(keys)
        else:
            new = getattr(recipe, section).model_copy(update=keys)
        recipe = recipe.model_copy(update={section: new})
    return replace(evidence, recipe=recipe, data_set=data_set_of(recipe.data))


def test_a_recipe_without_paths_still_tells_splits_apart(run):
    evidence = changed(
        gather(run),
        data={"images": "/home/me/{split}/images", "masks": "masks/{split}"},
        model={"init": "/home/me/weights/mit_b0.pth"},
    )
    shown = public(evidence)
    assert (shown.data.images, shown.data.masks) == ("{split}/images", "masks/{split}")
    assert shown.model.init == "mit_b0.pth"
    assert metadata(evidence).base_model is None


def test_what_is_on_the_hub_is_linked(run):
    evidence = gather(run)
    header = {**evidence.card.header, "base_model": "owner/base"}
    evidence = changed(
        replace(evidence, card=replace(evidence.card, header=header)),
        data={"source": "hub", "path": "owner/set", "subset": "small", "revision": "abc"},
        model={"init": "owner/base"},
    )
    data = metadata(evidence)
    assert (data.base_model, data.datasets) == ("owner/base", ["owner/set"])
    result = data.eval_results[0]
    assert (result.dataset_type, result.dataset_config) == ("owner/set", "small")
    assert result.dataset_revision == "abc"
    shown = public(evidence)
    assert (shown.data.path, shown.model.init) == ("owner/set", "owner/base")


def test_a_folder_is_no_id(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert hub_id("owner/set") == "owner/set"
    (tmp_path / "owner/set").mkdir(parents=True)
    assert hub_id("owner/set") is None
    assert [hub_id(name) for name in ("/a/b", "../x", "a/b/c", "s3://a/b", "", None)] == [None] * 6


@pytest.mark.parametrize("token", ["hf_aBcdefghijklm", "hf_oauth_eyJhbGciOiJ", "hf_jwt_eyJhbGciOi"])
def test_what_looks_like_a_token_stops_it(token, own_run, tmp_path):
    for name in ("recipe.yaml", "best/recipe.yaml"):
        path = own_run / name
        path.write_text(re.sub("sn_ow_y", token, path.read_text()))
    config = own_run / "best/config.json"
    config.write_text(config.read_text().replace("sn_ow_y", token))
    with pytest.raises(UserError, match=r"README\.md seems to hold a token"):
        program.push(own_run, "me/x", dry_run=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_without_the_images_the_trainings_own_picture_is_taken(own_run, tmp_path, capsys):
    for recipe in (own_run / "recipe.yaml", own_run / "best/recipe.yaml"):
        text = recipe.read_text()
        recipe.write_text(re.sub("path: .*/patches", f"path: {tmp_path}/nowhere/patches", text))
    with pytest.warns(UserWarning, match="shows no predictions: .*nowhere"):
        done = program.push(own_run, "me/x", dry_run=tmp_path / "out")
    assert done.images == 0
    program.show(done)
    assert "shows the training's own picture" in capsys.readouterr().out
    shown = (tmp_path / "out/card/examples.png").read_bytes()
    assert shown == (own_run / "panel.png").read_bytes()
    text = (tmp_path / "out/README.md").read_text()
    assert "not chosen, as the training drew them" in text
    assert "nowhere" not in text.replace("never &amp; nowhere", "").replace("never & nowhere", "")
    (own_run / "panel.png").unlink()
    with pytest.warns(UserWarning, match="shows no predictions"):
        program.push(own_run, "me/x", dry_run=tmp_path / "out")
    assert not (tmp_path / "out/card/examples.png").exists()
    assert "None are shown" in (tmp_path / "out/README.md").read_text()


def test_images_that_the_user_named_must_be_there(own_run, tmp_path):
    with pytest.raises(UserError, match="nowhere"):
        program.push(
            own_run,
            "me/x",
            dry_run=tmp_path / "out",
            overrides=[f"data.path={tmp_path / 'nowhere'}"],
        )
    assert not (tmp_path / "out").exists()


def test_a_model_without_a_run_claims_nothing(tmp_path):
    model = save_tiny(tmp_path / "model")
    card = (
        "---\nlicense: cc0-1.0\nbase_model: some/body\ntags: [mine]\n---\n# Mine\nMy own words. "
        "Faster with hf_transfer.\n"  # no token
    )
    (model / "README.md").write_text(card)
    program.push(model, "me/x", dry_run=tmp_path / "out")
    found = ModelCard.load(tmp_path / "out/README.md")
    assert found.data.license == "cc0-1.0"
    assert found.data.base_model == "some/body"
    assert "mine" in found.data.tags
    assert found.data.eval_results is None
    assert "My own words." in found.text
    assert "The quality was not measured here." in found.text


@pytest.mark.parametrize(("names", "channels"), [(("ship",), 3), (("land", "sea"), 6)])
def test_a_pipeline_is_told_of_where_it_works_only(names, channels, tmp_path):
    """Stock's and transformers.js' know neither a single logit nor other channels than RGB."""
    numbers = (0.5,) * channels
    preprocessing = Preprocessing(InferenceProtocol(), image_mean=numbers, image_std=numbers)
    model = save_tiny(tmp_path / "model", preprocessing, names=names, num_channels=channels)
    program.push(model, "me/x", onnx=lambda folder: None, dry_run=tmp_path / "out")
    text = (tmp_path / "out/README.md").read_text()
    assert "onnx/model.onnx" in text
    assert "pipeline(" not in text
    assert ("With transformers alone" in text) == (channels == 6)
    assert "from finetune.inference import segment" in text


def test_what_its_owner_measured_stays(tmp_path):
    model = save_tiny(tmp_path / "model")
    own = EvalResult("image-segmentation", "me/ponds", "Ponds", "mean_iou", "41.2 +- 0.3")
    data = ModelCardData(model_name="ponds", eval_results=[own], datasets="me/ponds")
    (model / "README.md").write_text(f"---\n{data.to_yaml()}\n---\n# Ponds\n")
    program.push(model, "me/x", dry_run=tmp_path / "out")
    found = ModelCard.load(tmp_path / "out/README.md")
    assert found.data.eval_results == [own]
    assert found.data.model_name == "ponds"
    assert found.data.datasets == "me/ponds"
    assert "in the header" in found.text


def test_all_bases_of_a_merged_model_stay(tmp_path):
    model = save_tiny(tmp_path / "model")
    (model / "README.md").write_text("---\nbase_model: [some/body, other/one]\n---\n")
    program.push(model, "me/x", dry_run=tmp_path / "out")
    assert ModelCard.load(tmp_path / "out/README.md").data.base_model == ["some/body", "other/one"]


def test_a_model_that_has_left_its_run_keeps_its_scores(run, tmp_path):
    model = shutil.copytree(run / "best", tmp_path / "model")
    program.push(model, "me/x", dry_run=tmp_path / "out", pictures=False)
    own, found = (ModelCard.load(path / "README.md") for path in (model, tmp_path / "out"))
    assert found.data.eval_results == own.data.eval_results
    assert "the card that came with these weights states" in found.text.lower()
    assert f"mean IoU: {best_row(run)['eval/mean_iou']:.2%}" in found.text


def test_nvidias_licence_goes_along(own_run, tmp_path):
    path = own_run / "best/README.md"
    path.write_text(path.read_text() + NVIDIA)
    program.push(own_run, "me/x", dry_run=tmp_path / "out")
    card = ModelCard.load(tmp_path / "out/README.md")
    assert card.data.license == "other"
    assert "nvidia" in card.data.license_name
    assert card.data.license_link == "https://github.com/NVlabs/SegFormer/blob/master/LICENSE"
    assert "non-commercially only" in card.text


def test_nvidias_licence_stays_without_the_trainings_card(own_run, tmp_path):
    for name in ("recipe.yaml", "best/recipe.yaml"):
        path = own_run / name
        path.write_text(path.read_text().replace("init: null", "init: nvidia/mit-b0"))
    (own_run / "best/README.md").unlink()
    program.push(own_run, "me/x", dry_run=tmp_path / "out")
    card = ModelCard.load(tmp_path / "out/README.md")
    assert "nvidia" in card.data.license_name
    assert "non-commercially only" in card.text
