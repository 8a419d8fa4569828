"""Damaged and nonsensical data sets: one message that names a file, or the right labels."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from finetune.data.samples import preflight
from finetune.data.sources.archives import voc
from finetune.data.sources.coco import coco
from finetune.data.sources.folders import image_folder
from finetune.data.sources.ultralytics import ultralytics
from finetune.errors import UserError
from finetune.labels.translation import Labels

NAMES = ["a", "b", "c"]
SIZE = (24, 32)
RNG = np.random.default_rng(0)
MASK = np.kron(RNG.choice([0, 1, 2], (6, 8)), np.ones((4, 4), int)).astype(np.uint8)
IMAGE = RNG.integers(0, 256, (*SIZE, 3), np.uint8)
COLORS = [(255, 0, 0), (0, 255, 0), (0, 0, 255)]


def pair(root: Path, image: str, mask: str, array=MASK, palette=None) -> None:
    for path, content in ((root / image, IMAGE), (root / mask, array)):
        path.parent.mkdir(parents=True, exist_ok=True)
        picture = Image.fromarray(content)
        if palette and path == root / mask:
            picture.putpalette([c for color in palette for c in color] + [0] * 759)
        picture.save(path)


def plain(root):
    for name in "xy":
        pair(root, f"images/val/{name}.png", f"masks/val/{name}.png")
    return lambda: image_folder(root, "val", Labels.build(NAMES))


def sixteen_bit(root):
    pair(root, "images/val/x.jpg", "masks/val/x.png", MASK.astype(np.uint16))
    return lambda: image_folder(root, "val", Labels.build(NAMES))


def in_colors(root):
    pair(root, "images/val/x.jpg", "masks/val/x.png", np.array(COLORS, np.uint8)[MASK])
    labels = Labels.build(NAMES, colors=COLORS, kind="colors", tolerance=20)
    return lambda: image_folder(root, "val", labels)


def class_files(root):
    for value, name in enumerate(NAMES):
        file = f"masks/val/{name}/x.png"
        pair(root, "images/val/x.png", file, (value == MASK).astype(np.uint8) * 255)
    return lambda: image_folder(root, "val", Labels.build(NAMES), masks="masks/val/{class}")


def lists(root):
    pair(root, "JPEGImages/x.jpg", "SegmentationClass/x.png", MASK, COLORS)
    (root / "ImageSets/Segmentation").mkdir(parents=True)
    (root / "ImageSets/Segmentation/val.txt").write_text("x\n")
    return lambda: voc(root, "val", Labels.build(NAMES))


def objects(root):
    runs = []
    for value in range(3):
        flat = (value == MASK).T.ravel()
        edges = np.flatnonzero(np.diff(np.r_[0, flat, 0]))
        bounds = np.r_[0, edges, flat.size].astype(int)
        runs.append({"size": list(SIZE), "counts": np.diff(bounds).tolist()})
    pair(root, "val/x.png", "unused/x.png")
    shutil.rmtree(root / "unused")
    content = {
        "images": [{"id": 1, "file_name": "x.png", "height": SIZE[0], "width": SIZE[1]}],
        "annotations": [
            {"id": i, "image_id": 1, "category_id": i, "iscrowd": 0, "segmentation": run}
            for i, run in enumerate(runs)
        ],
        "categories": [{"id": i, "name": name} for i, name in enumerate(NAMES)],
    }
    (root / "annotations").mkdir()
    (root / "annotations/val.json").write_text(json.dumps(content))
    return lambda: coco(root, "val", Labels.build(NAMES))


def yaml_masks(root):
    pair(root, "images/val/x.png", "masks/val/x.png")
    content = {"val": "images/val", "names": NAMES, "masks_dir": "masks"}
    (root / "data.yaml").write_text(yaml.safe_dump(content))
    return lambda: ultralytics(root, "val", Labels.build(NAMES))


FORMS = [plain, sixteen_bit, in_colors, class_files, lists, objects, yaml_masks]


def damage(path: Path, data: st.DataObject) -> None:
    """What disks, networks and people do to files."""
    content = path.read_bytes()
    ways = ["cut", "flip", "empty", "gone", "zeros", "folder", "text", "twice"]
    way = data.draw(st.sampled_from(ways), label="way")
    place = data.draw(st.integers(0, max(0, len(content) - 1)), label="place")
    if way in ("gone", "folder"):
        path.unlink()
        if way == "folder":
            path.mkdir()
        return
    bit = 1 << data.draw(st.integers(0, 7), label="bit")
    changed = {
        "cut": content[:place],
        "flip": content[:place] + bytes([content[place] ^ bit]) + content[place + 1 :],
        "empty": b"",
        "zeros": content[:place] + bytes(len(content) - place),
        "text": b"<html>404 not found</html>",
        "twice": content + content[place:],
    }
    path.write_bytes(changed[way])


def read(open_it) -> tuple[list, str]:
    """Its samples, or the message."""
    try:
        samples = open_it()
        preflight(samples)
        return [samples[i] for i in range(len(samples))], ""
    except UserError as error:
        return [], str(error)


ANY = settings(
    max_examples=120,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)


@pytest.mark.slow
@ANY
@given(data=st.data())
def test_damaged_files(tmp_path_factory, data):
    root = tmp_path_factory.mktemp("set")
    open_it = data.draw(st.sampled_from(FORMS), label="form")(root)
    files = [path for path in sorted(root.rglob("*")) if path.is_file()]
    # A text that says something else is no damage that could be seen: those have their own test.
    files = [path for path in files if path.suffix not in (".txt", ".json", ".yaml")]
    path = data.draw(st.sampled_from(files), label="file")
    damage(path, data)
    samples, message = read(open_it)
    assert bool(samples) != bool(message)
    assert len(message) < 1500
    for sample in samples:
        assert np.array_equal(sample["mask"], MASK)
        assert sample["image"].shape == (*SIZE, 3)
        assert sample["image"].dtype == np.uint8


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 10**9) | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=6,
)


def places(content, path=()):
    """The keys that lead to every value of a JSON document."""
    yield path
    if isinstance(content, dict | list):
        for key, value in content.items() if isinstance(content, dict) else enumerate(content):
            yield from places(value, (*path, key))


@pytest.mark.slow
@ANY
@given(data=st.data())
def test_nonsense_in_annotations(tmp_path_factory, data):
    """Any value of a COCO file replaced by any other: no traceback, whatever comes out."""
    root = tmp_path_factory.mktemp("set")
    open_it = objects(root)
    file = root / "annotations/val.json"
    content = json.loads(file.read_text())
    path = data.draw(st.sampled_from(sorted(places(content), key=str)), label="place")
    value = data.draw(JSON, label="value")
    if not path:
        content = value
    else:
        inner = content
        for key in path[:-1]:
            inner = inner[key]
        inner[path[-1]] = value
    file.write_text(json.dumps(content))
    samples, message = read(open_it)
    assert bool(samples) != bool(message)
    assert samples or "val.json" in message or "x.png" in message, message
    assert all(sample["mask"].shape == SIZE for sample in samples)


@pytest.mark.slow
@ANY
@given(data=st.data())
def test_ids_and_names_in_any_order(tmp_path_factory, data):
    """Whatever ids the categories have and whatever the map says: a name stays what it is."""
    root = tmp_path_factory.mktemp("set")
    objects(root)
    file = root / "annotations/val.json"
    content = json.loads(file.read_text())
    names = data.draw(st.permutations([*NAMES, "d"]), label="names")[:3]
    content["categories"] = [{"id": i, "name": name} for i, name in enumerate(names)]
    file.write_text(json.dumps(content))
    classes = st.none() | st.sampled_from(NAMES)
    rules = st.none() | st.fixed_dictionaries({}, optional=dict.fromkeys(range(3), classes))
    unknown = data.draw(st.sampled_from(["error", "ignore"]), label="unknown")
    labels = Labels.build(NAMES, map=data.draw(rules, label="map"), unknown=unknown)
    samples, message = read(lambda: coco(root, "val", labels))
    assert bool(samples) != bool(message)
    assert samples or "val.json: category" in message, message
    for sample in samples:
        for raw, name in enumerate(names):
            found = set(sample["mask"][raw == MASK].tolist())
            assert name == "d" or found == {NAMES.index(name)}


KINDS = st.sampled_from(["polygons", "list", "yaml"])
LINES = st.text("0123456789.- \nabn\x00é", max_size=60)


@pytest.mark.slow
@ANY
@given(text=LINES | st.text("{}[],:'01ab \n", max_size=20).map("names: {}".format), kind=KINDS)
def test_nonsense_in_texts(tmp_path_factory, text, kind):
    root = tmp_path_factory.mktemp("set")
    if kind == "list":
        open_it, file = lists(root), root / "ImageSets/Segmentation/val.txt"
    else:
        open_it, file = yaml_masks(root), root / "data.yaml"
        if kind == "polygons":
            labels = Labels.build(NAMES, ignore=[-1])
            content = {"val": "images/val", "names": NAMES}
            file.write_text(yaml.safe_dump(content))
            file = root / "labels/val/x.txt"
            file.parent.mkdir(parents=True)
            open_it = lambda: ultralytics(root, "val", labels)  # noqa: E731
    file.write_text(text, encoding="utf-8")
    samples, message = read(open_it)
    assert bool(samples) != bool(message)
    assert all(sample["mask"].shape == SIZE for sample in samples)
