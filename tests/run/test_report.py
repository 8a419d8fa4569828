import base64
import json
import re

import numpy as np
import pytest
from PIL import Image

from finetune.errors import UserError
from finetune.run.log import MetricsLog
from finetune.run.pages import ticks
from finetune.run.report import html_report


@pytest.fixture
def run(tmp_path):
    run = tmp_path / "<b>run & co {{ 7 * 7 }}"
    log = MetricsLog(run / "metrics.jsonl")
    for step in range(1, 41):
        loss = float("nan") if step == 20 else 2 / step
        log.write({"step": step, "seconds": step * 9, "train/loss": loss, "train/lr": 1e-4 / step})
        if step % 10 == 0:
            scores = {"<script>alert(1)</script>": 0.5, "sea": float("nan")}
            log.write({"step": step, "eval/mean_iou": step / 50, "eval/per_class_iou": scores})
    (run / "recipe.yaml").write_text("name: a < b\n")
    (run / "environment.json").write_text(json.dumps({"python": "3.11"}))
    Image.new("RGB", (40, 30)).save(run / "panel.png")
    return run


def test_html_is_one_file_that_opens_offline(run):
    path = html_report(run)
    assert path == run / "report.html"
    text = path.read_text()
    assert not re.search(r"https?://|src=\"(?!data:)|href=|<link|@import|url\(|<script", text)
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in text
    assert "<b>run" not in text
    assert "{{ 7 * 7 }}" in text
    assert "name: a &lt; b" in text
    assert base64.b64encode((run / "panel.png").read_bytes()).decode() in text
    assert "last mean IoU 80.00%, best 80.00% at step 40, 0 h 06 min" in text
    assert "nan" not in re.sub(r"base64,[^\"]*", "", text).lower()
    assert sorted(p.name for p in run.iterdir() if p.name.startswith(".")) == []


def test_a_curve_is_broken_where_the_loss_was_not_finite(run):
    text = html_report(run).read_text()
    loss = re.search(r"<svg[^>]*><text[^>]*>loss</text>.*?</svg>", text, re.DOTALL)[0]
    lines = re.findall(r'<polyline class="c0" points="([^"]*)"', loss)
    assert [len(points.split()) for points in lines] == [19, 20]


def test_html_of_a_run_that_has_hardly_begun(tmp_path):
    (tmp_path / "metrics.jsonl").write_text("")
    assert "no steps yet" in html_report(tmp_path).read_text()
    (tmp_path / "metrics.jsonl").write_text(
        '{"step": 0, "eval/mean_iou": 0.0, "train/loss": null}\n'
    )
    assert "<circle" in html_report(tmp_path).read_text()
    with pytest.raises(UserError, match=r"metrics\.jsonl"):
        html_report(tmp_path / "nowhere")


def test_a_task_shows_its_own_score(tmp_path):
    log = MetricsLog(tmp_path / "metrics.jsonl")
    accuracies = {"cat": 0.25, "dog": 1.0}
    log.write({"step": 5, "eval/accuracy": 0.625, "eval/per_class_accuracy": accuracies})
    text = html_report(tmp_path).read_text()
    assert "last accuracy 62.50%" in text
    assert "accuracy per class at step 5" in text
    assert "IoU" not in text
    assert text.index("cat") < text.index("25.00") < text.index("dog")


@pytest.mark.parametrize(
    ("low", "high"), [(0, 1), (0.013, 0.87), (6e-9, 6e-5), (3, 3), (0, 0), (-2, 160000)]
)
def test_ticks_enclose_what_is_drawn(low, high):
    found = ticks(low, high)
    assert 2 <= len(found) <= 7
    assert found[0] <= low + 1e-12
    assert found[-1] >= high - 1e-12
    np.testing.assert_allclose(np.diff(found), found[1] - found[0])
