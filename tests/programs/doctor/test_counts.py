"""What `labels.unknown: ignore` and `labels.tolerance` pass over is counted, whatever the form."""

import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from finetune.programs.doctor.doctor import Examination, examine

SIZE = (40, 48)
PLACE = (slice(8, 16), slice(8, 20))  # 96 pixels
CORNERS = [8, 8, 20, 8, 20, 16, 8, 16]
COLORS = [[200, 0, 0], [0, 200, 0]]


def save(array: np.ndarray, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


def ids(root: Path) -> dict:
    mask = np.zeros(SIZE, np.uint8)
    mask[20:] = 1
    mask[PLACE] = 9
    save(mask, root / "masks/train/x.png")
    return {}


def colors(root: Path) -> dict:
    mask = np.full((*SIZE, 3), COLORS[0], np.uint8)
    mask[20:] = COLORS[1]
    mask[PLACE] = (0, 0, 90)
    save(mask, root / "masks/train/x.png")
    return {"labels": {"kind": "colors", "colors": COLORS}}


def damaged_colors(root: Path) -> dict:
    values = colors(root)
    mask = np.array(Image.open(root / "masks/train/x.png"))
    mask[30:32, :10] += 3
    save(mask, root / "masks/train/x.png")
    values["labels"]["tolerance"] = 5
    return values


def class_files(root: Path) -> dict:
    covered = np.full(SIZE, 255, np.uint8)
    covered[PLACE] = 0  # belongs to no class, and there is no background
    save(covered, root / "masks/train/a/x.png")
    return {"data": {"masks": "masks/{split}/{class}"}}


def objects(root: Path) -> dict:
    height, width = SIZE
    everything = [0, 0, width, 0, width, height, 0, height]
    content = {
        "images": [{"id": 1, "file_name": "x.png", "height": height, "width": width}],
        "annotations": [
            {"id": i, "image_id": 1, "category_id": i, "segmentation": [polygon]}
            for i, polygon in ((0, everything), (7, CORNERS))
        ],
        "categories": [{"id": 0, "name": "a"}, {"id": 7, "name": "stray"}],
    }
    (root / "annotations").mkdir()
    (root / "annotations/train.json").write_text(json.dumps(content))
    return {"data": {"source": "coco", "images": "images/{split}"}}


def polygons(root: Path) -> dict:
    names = [*"ab", "stray"]
    (root / "data.yaml").write_text(yaml.safe_dump({"train": "images/train", "names": names}))
    shares = [c / SIZE[1 - i % 2] for i, c in enumerate(CORNERS)]
    lines = [[0, 0, 0, 1, 0, 1, 1, 0, 1], [2, *shares]]
    text = root / "labels/train/x.txt"
    text.parent.mkdir(parents=True)
    text.write_text("\n".join(" ".join(map(str, line)) for line in lines))
    return {"data": {"source": "ultralytics"}}


def examined(root: Path, build) -> Examination:
    rng = np.random.default_rng(0)
    save(rng.integers(0, 256, (*SIZE, 3), np.uint8), root / "images/train/x.png")
    own = build(root)
    values = {
        "data": {"path": str(root), "val_split": "train", **own.get("data", {})},
        "labels": {"names": ["a", "b"], "unknown": "ignore", **own.get("labels", {})},
    }
    recipe = root / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(values))
    return examine(str(recipe))


def places(examination: Examination, kind: str) -> list[str]:
    return [p.what for f in examination.findings if f.kind == kind for p in f.places]


@pytest.mark.parametrize(
    "build", [ids, colors, damaged_colors, class_files, objects, polygons], ids=lambda f: f.__name__
)
def test_pixels_that_are_passed_over_are_counted(tmp_path, build):
    examination = examined(tmp_path, build)
    (what,) = places(examination, "ignored-value")
    assert "(96 pixels)" in what
    mended = places(examination, "mended-values")
    assert [text.split(",")[0] for text in mended] == ["20 pixels"] * (build is damaged_colors)
    assert examination.to_json()["splits"]["train"]["uncovered_pixels"] == 96
