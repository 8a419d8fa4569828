"""COCO's panoptic PNGs: `init`, then every pixel has the class of its segment."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from finetune.data.sources.opening import open_split
from finetune.discover.labels.layout_labels import guess
from finetune.discover.recognise import recognise
from finetune.errors import UserError
from finetune.recipe import recipe_from_values

SIZE = (48, 64)
CATEGORIES = {1: "person", 18: "dog", 92: "banner", 200: "wall"}
"""Things and stuff, with gaps between their ids."""
THINGS = (1, 18)
VOID = 255
COUNT = {"train2017": 4, "val2017": 2}


def scene(split: str, number: int) -> tuple[np.ndarray, np.ndarray]:
    """Classes (255 is no label), and segments that count over all images."""
    rng = np.random.default_rng([number, len(split)])
    classes = np.full(SIZE, 3, np.uint8)
    parts = np.ones(SIZE, np.int64)
    for part, class_id in enumerate((0, 0, 1, 2, VOID, 0), 2):
        y, x = (int(rng.integers(0, side - 10)) for side in SIZE)
        classes[y : y + 14, x : x + 18] = class_id
        parts[y : y + 14, x : x + 18] = part
    segments = parts * 700_003 + 257 * number + 5
    return classes, np.where(classes == VOID, 0, segments)


def in_colors(segments: np.ndarray) -> np.ndarray:
    channels = [segments % 256, segments // 256 % 256, segments // 65536]
    return np.stack(channels, -1).astype(np.uint8)


def put(path: Path, array: np.ndarray, **options) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path, **options)


def write(
    root: Path,
    images="{split}",
    masks="annotations/panoptic_{split}",
    image="{number:04d}.jpg",
    change=lambda data: None,
) -> None:
    keys = list(CATEGORIES)
    for split, count in COUNT.items():
        rows, annotations = [], []
        for number in range(count):
            classes, segments = scene(split, number)
            name, png = image.format(number=number), f"{number:04d}.png"
            photo = np.repeat(classes[..., None] * 40, 3, -1).astype(np.uint8)
            put(root / images.format(split=split) / name, photo)
            put(root / masks.format(split=split) / png, in_colors(segments))
            infos = [
                {
                    "id": int(one),
                    "category_id": keys[classes[segments == one][0]],
                    "iscrowd": int(one % 2 and keys[classes[segments == one][0]] == 1),
                }
                for one in np.unique(segments)
                if one
            ]
            rows.append({"id": number, "file_name": name, "height": SIZE[0], "width": SIZE[1]})
            annotations.append({"image_id": number, "file_name": png, "segments_info": infos})
        categories = [
            {"id": key, "name": name, "isthing": int(key in THINGS)}
            for key, name in CATEGORIES.items()
        ]
        data = {"images": rows, "annotations": annotations, "categories": categories}
        change(data)
        path = root / f"annotations/panoptic_{split}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(data))


def read(root: Path) -> dict[str, dict[str, np.ndarray]]:
    (layout,) = recognise(root)
    assert layout.data["source"] == "coco-panoptic"
    found = guess(root, layout)
    assert found.labels["names"] == list(CATEGORIES.values())
    recipe = recipe_from_values({"data": layout.data, "labels": found.labels}, "mine.yaml")
    splits = {}
    for split in COUNT:
        samples = open_split(recipe.data, recipe.labels.build(), split)
        splits[split] = {Path(row["id"]).name: row["mask"] for row in samples}
    return splits


def assert_as_painted(root: Path) -> None:
    found = read(root)
    for split, count in COUNT.items():
        assert sorted(found[split]) == [f"{number:04d}" for number in range(count)]
        for number in range(count):
            classes, _ = scene(split, number)
            assert np.array_equal(found[split][f"{number:04d}"], classes)


def test_every_pixel_has_the_class_of_its_segment(tmp_path):
    write(tmp_path)
    classes = np.concatenate([scene(s, i)[0] for s, n in COUNT.items() for i in range(n)])
    assert set(np.unique(classes)) == {0, 1, 2, 3, VOID}
    assert_as_painted(tmp_path)


@pytest.mark.parametrize(
    ("images", "masks"),
    [
        ("pictures/{split}", "annotations/panoptic_{split}"),
        ("{split}/z_images", "{split}/a_panoptic"),
        ("images/{split}", "panoptic/{split}"),
        ("images/{split}", "annotations/{split}"),  # as COCO-Stuff's
    ],
)
def test_images_may_be_pngs_of_the_same_names(tmp_path, images, masks):
    write(tmp_path, images, masks, image="{number:04d}.png")
    assert_as_painted(tmp_path)


def change_of(rows: str, change):
    def apply(data: dict) -> None:
        for row in data[rows]:
            change(row)

    return apply


def as_text(row: dict) -> None:
    row["image_id"] = str(row["image_id"])
    for segment in row["segments_info"]:
        segment["category_id"], segment["id"] = str(segment["category_id"]), float(segment["id"])


FORMS = {
    "ids as text": change_of("annotations", as_text),
    "no sizes": change_of("images", lambda row: [row.pop("height"), row.pop("width")]),
    "backslashes": change_of(
        "annotations", lambda row: row.update(file_name=f"panoptic\\{row['file_name']}")
    ),
}


@pytest.mark.parametrize("form", FORMS)
def test_values_as_tools_write_them(tmp_path, form):
    write(tmp_path, change=FORMS[form])
    assert_as_painted(tmp_path)


def test_pngs_with_a_palette_of_the_same_colours(tmp_path):
    write(tmp_path)
    for path in (tmp_path / "annotations").rglob("*.png"):
        colors = np.array(Image.open(path))
        palette, places = np.unique(colors.reshape(-1, 3), axis=0, return_inverse=True)
        picture = Image.fromarray(places.reshape(SIZE).astype(np.uint8))
        picture.putpalette(palette.ravel().tolist())
        picture.save(path)
    assert_as_painted(tmp_path)


def test_a_segment_that_the_file_lacks_names_file_and_id(tmp_path):
    write(tmp_path)
    path = tmp_path / "annotations/panoptic_val2017/0001.png"
    colors = np.array(Image.open(path))
    colors[:2, :3] = (7, 1, 2)  # 7 + 256 + 2 * 65536
    put(path, colors)
    with pytest.raises(UserError, match=r"val2017/0001\.png: has segment 131335 .*; 6 pixels"):
        read(tmp_path)


def test_lossy_segments_are_refused(tmp_path):
    def in_jpeg(row):
        row["file_name"] = row["file_name"].replace("png", "jpg")

    write(tmp_path, change=change_of("annotations", in_jpeg))
    for path in (tmp_path / "annotations").rglob("*.png"):
        Image.open(path).save(path.with_suffix(".jpg"), quality=90)
        path.unlink()
    with pytest.raises(UserError, match=r"0000\.jpg: has segment \d+ .* does not list"):
        recognise(tmp_path)


def test_folders_that_fit_alike_are_a_mistake(tmp_path):
    write(tmp_path, masks="panoptic/{split}")
    write(tmp_path, masks="copy/{split}")
    with pytest.raises(UserError, match=r"PNGs may be those of 2 folders: copy/train2017, panop"):
        recognise(tmp_path)


def drop(rows: str):
    return lambda data: data[rows].pop(0)


MISTAKES = {
    "no annotation": (drop("annotations"), r"1 of 4 images have no annotation: .*0000\.jpg"),
    "no image": (drop("images"), r"the PNG 0000\.png belongs to image '0', which is not among"),
    "no category": (
        drop("categories"),
        r"segments have category 1, which is not among `categories`",
    ),
    "no categories": (lambda data: data.pop("categories"), "`categories` must be a list"),
    "a segment of no label": (
        lambda data: data["annotations"][0]["segments_info"][0].update(id=0),
        r"segment 0 of 0000\.png has a category, but 0 marks pixels without a label",
    ),
    "a segment twice": (
        lambda data: data["annotations"][0]["segments_info"].append(
            data["annotations"][0]["segments_info"][0]
        ),
        r"segment \d+ of 0000\.png stands twice",
    ),
    "a segment without a category": (
        lambda data: data["annotations"][0]["segments_info"][0].pop("category_id"),
        "segments_info is missing or wrong in a row of `annotations`",
    ),
    "an image without segments": (
        lambda data: data["annotations"][0].pop("segments_info"),
        "segments_info is missing or wrong in a row of `annotations`",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_in_the_file(tmp_path, mistake):
    change, message = MISTAKES[mistake]
    write(tmp_path, change=change)
    with pytest.raises(UserError, match=rf"panoptic_\w+\.json: .*{message}"):
        read(tmp_path)


def test_a_damaged_file_is_not_passed_over_for_colours(tmp_path):
    write(tmp_path)
    path = tmp_path / "annotations/panoptic_train2017.json"
    path.write_text(path.read_text()[:-20])
    with pytest.raises(UserError, match=r"panoptic_train2017\.json: cannot be read as JSON"):
        recognise(tmp_path)


def test_missing_pngs_are_named(tmp_path):
    write(tmp_path)
    (tmp_path / "annotations/panoptic_train2017/0002.png").unlink()
    with pytest.raises(UserError, match=r"1 of 4 PNGs of segments are missing: .*0002\.png"):
        read(tmp_path)
    faults = []
    (layout,) = recognise(tmp_path)
    found = guess(tmp_path, layout, faults=[])
    recipe = recipe_from_values({"data": layout.data, "labels": found.labels}, "mine.yaml")
    samples = open_split(recipe.data, recipe.labels.build(), "train2017", faults=faults)
    assert len(samples) == 3
    assert [fault.kind for fault in faults] == ["image-without-mask"]
