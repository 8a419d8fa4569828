"""COCO's JSON as tools write it: `init`, then every pixel is the class that was painted."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_api

from finetune.data.named_files import own_names
from finetune.data.sources.opening import open_split
from finetune.discover.labels.layout_labels import guess
from finetune.discover.recognise import recognise
from finetune.errors import UserError
from finetune.recipe import recipe_from_values

SIZE = (40, 60)
CATEGORIES = {3: "box", 7: "bin"}
COUNT = 5


def scene(number: int) -> dict[int, tuple[int, int, int, int]]:
    """Category -> x0, y0, x1, y1 of its object; the objects do not touch."""
    rng = np.random.default_rng(number)
    x, y = (int(value) for value in rng.integers(0, 12, 2))
    return {3: (x, y, x + 14, y + 20), 7: (x + 30, y + 4, x + 46, y + 17)}


def truth(number: int) -> np.ndarray:
    """0 background, 1 box, 2 bin."""
    mask = np.zeros(SIZE, np.uint8)
    for class_id, (x0, y0, x1, y1) in enumerate(scene(number).values(), 1):
        mask[y0:y1, x0:x1] = class_id
    return mask


def polygon(x0, y0, x1, y1) -> list[int]:
    return [x0, y0, x1, y0, x1, y1, x0, y1]


def in_pairs(flat: list[int]) -> list[list[int]]:
    return [flat[i : i + 2] for i in range(0, len(flat), 2)]


def content(name="p{}.png") -> dict:
    images = [
        {"id": i + 1, "file_name": name.format(i), "height": SIZE[0], "width": SIZE[1]}
        for i in range(COUNT)
    ]
    annotations = [
        {
            "id": 10 * image + category,
            "image_id": image + 1,
            "category_id": category,
            "segmentation": [polygon(*box)],
            "iscrowd": 0,
        }
        for image in range(COUNT)
        for category, box in scene(image).items()
    ]
    categories = [{"id": key, "name": name} for key, name in CATEGORIES.items()]
    return {"images": images, "annotations": annotations, "categories": categories}


def write(root: Path, data: dict, folder="images", on_disk="p{}.png", encoding="utf-8") -> None:
    (root / folder).mkdir(parents=True, exist_ok=True)
    for number in range(COUNT):
        colors = np.array([(60, 60, 60), (200, 60, 50), (60, 180, 70)], np.uint8)
        Image.fromarray(colors[truth(number)]).save(root / folder / on_disk.format(number))
    (root / "result.json").write_bytes(json.dumps(data).encode(encoding))


def read(root: Path) -> dict[str, np.ndarray]:
    """The masks of both parts by the file names of their images, as `init` reads the folder."""
    (layout,) = recognise(root)
    found = guess(root, layout)
    assert found.labels["names"] == ["background", *CATEGORIES.values()]
    recipe = recipe_from_values({"data": layout.data, "labels": found.labels}, "mine.yaml")
    masks = {}
    for split in (recipe.data.train_split, recipe.data.val_split):
        samples = open_split(recipe.data, recipe.labels.build(), split)
        files = samples.with_format(None)["image"]
        masks |= {Path(f).name: samples[i]["mask"] for i, f in enumerate(files)}
    return masks


def assert_as_painted(root: Path, on_disk="p{}.png") -> None:
    masks = read(root)
    assert sorted(masks) == sorted(on_disk.format(i) for i in range(COUNT))
    for number in range(COUNT):
        assert np.array_equal(masks[on_disk.format(number)], truth(number))


def everywhere(rows: str, field: str, change):
    """A change of one field in all rows."""

    def apply(data: dict) -> None:
        for row in data[rows]:
            row[field] = change(row[field])

    return apply


def without_sizes(data: dict) -> None:
    for row in data["images"]:
        del row["height"], row["width"]


def sizes_of_unopened_images(data: dict) -> None:
    for row, size in zip(data["images"], (0, -1, None, "", 0), strict=True):
        row["height"] = row["width"] = size


def words_for_categories(data: dict) -> None:
    for row in data["categories"]:
        row["id"] = f"{row['id']}-{row['name']}"
    for row in data["annotations"]:
        row["category_id"] = f"{row['category_id']}-{CATEGORIES[row['category_id']]}"


def rle_without_sizes(data: dict) -> None:
    without_sizes(data)
    for row in data["annotations"]:
        rle = coco_api.merge(coco_api.frPyObjects(row["segmentation"], *SIZE))
        row["segmentation"] = {"size": rle["size"], "counts": rle["counts"].decode()}


FORMS = {
    "image ids as text": everywhere("annotations", "image_id", str),
    "image ids of images as text": everywhere("images", "id", str),
    "image ids as floats": everywhere("annotations", "image_id", float),
    "categories as text": everywhere("annotations", "category_id", str),
    "both categories as text": lambda data: (
        everywhere("annotations", "category_id", str)(data),
        everywhere("categories", "id", str)(data),
    ),
    "categories as floats": everywhere("annotations", "category_id", float),
    "categories as words": words_for_categories,
    "flat": everywhere("annotations", "segmentation", lambda polygons: polygons[0]),
    "pairs": everywhere("annotations", "segmentation", lambda polygons: in_pairs(polygons[0])),
    "lists of pairs": everywhere(
        "annotations", "segmentation", lambda polygons: [in_pairs(polygons[0])]
    ),
    "sizes as floats": everywhere("images", "height", float),
    "sizes as text": everywhere("images", "width", str),
    "sizes as text of floats": everywhere("images", "width", lambda width: f"{width}.0"),
    "without sizes": without_sizes,
    "sizes of unopened images": sizes_of_unopened_images,
    "RLE without sizes": rle_without_sizes,
    "crowds as text": everywhere("annotations", "iscrowd", str),
    "crowds as truth values": everywhere("annotations", "iscrowd", bool),
}


@pytest.mark.parametrize("form", FORMS)
def test_values_as_tools_write_them(tmp_path, form):
    data = content()
    FORMS[form](data)
    write(tmp_path, data)
    assert_as_painted(tmp_path)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-32"])
def test_encodings(tmp_path, encoding):
    write(tmp_path, content(), encoding=encoding)
    assert_as_painted(tmp_path)


@pytest.mark.parametrize("stray", [[], [30.0, 20.0], [30.0, 2.0, 28.0, 39.0]])
def test_points_and_lines_beside_polygons_are_left_out_and_counted(tmp_path, stray):
    data = content()
    data["annotations"][0]["segmentation"].append(stray)
    data["annotations"][3]["segmentation"].insert(0, stray)
    write(tmp_path, data)
    with pytest.warns(UserWarning, match=r"2 annotations have points or lines.*left out: 3, 17"):
        assert_as_painted(tmp_path)
    (layout,) = recognise(tmp_path)
    assert any("2 annotations have points or lines" in line for line in layout.assumed)


@pytest.mark.parametrize("points", [[[5, 5]], [[5, 5], [9, 9]], [[5, 5], [9, 5], [9, 9]]])
def test_an_object_of_points_alone_is_a_mistake(tmp_path, points):
    """Three points in lists of their own are no triangle where other polygons are flat lists."""
    data = content()
    data["annotations"][1]["segmentation"] = points
    write(tmp_path, data)
    with pytest.raises(UserError, match=r"result\.json: annotation 7 has points or lines in place"):
        read(tmp_path)


NAMES = {
    "backslashes": "images\\p{}.png",
    "other folders with backslashes": "C:\\data\\mine\\p{}.png",
    "a folder that is not here": "job_7/frames/p{}.png",
    "a server's path": "/data/upload/1/p{}.png",
    "a path upwards": "../../label-studio/data/media/upload/1/p{}.png",
    "an upload": "/data/upload/1/0a1b2c3d-p{}.png",
    "an upload in images": "images\\0a1b2c3d-p{}.png",
    "an upload alone": "0a1b2c3d-p{}.png",
    "a local file": "/data/local-files/?d=mine/p{}.png",
    "a bucket": "s3://bucket/mine/p{}.png",
    "an address": "https://example.org/mine/p{}.png?X-Token=1/2",
}


@pytest.mark.parametrize("form", NAMES)
def test_names_of_another_machine(tmp_path, form):
    write(tmp_path, content(NAMES[form]))
    assert_as_painted(tmp_path)


def test_names_with_spaces_in_addresses(tmp_path):
    write(tmp_path, content("/data/upload/1/my%20p{}.png"), on_disk="my p{}.png")
    assert_as_painted(tmp_path, "my p{}.png")


def test_a_file_with_the_prefix_comes_before_one_without():
    assert own_names("/upload/0a1b2c3d-x.png") == ["0a1b2c3d-x.png", "x.png"]
    assert own_names("deadbeef-.png") == ["deadbeef-.png", ".png"]
    assert own_names("plain-x.png") == ["plain-x.png"]


def test_own_names_in_several_folders_are_a_mistake(tmp_path):
    write(tmp_path, content("/data/upload/1/p{}.png"))
    write(tmp_path, content("/data/upload/1/p{}.png"), folder="masks")
    with pytest.raises(UserError, match=r"result\.json: .*p0\.png' may be that of 2 folders"):
        recognise(tmp_path)


def test_two_images_of_one_own_name_are_a_mistake(tmp_path):
    data = content("/data/upload/1/p{}.png")
    data["images"][1]["file_name"] = "/data/upload/2/p0.png"
    write(tmp_path, data)
    with pytest.raises(UserError, match=r"upload/1/p0\.png' and .*upload/2/p0\.png' both lead to"):
        recognise(tmp_path)


def test_own_names_do_not_lead_into_another_split(tmp_path):
    write(tmp_path, content("train/p{}.png"), folder="val")
    with pytest.raises(UserError, match="none of its first 5 images is in a folder"):
        recognise(tmp_path)


def test_own_names_are_no_stand_in_for_single_missing_images(tmp_path):
    data = content("a/p{}.png")
    write(tmp_path, data, folder="a")
    (tmp_path / "b").mkdir()
    (tmp_path / "a/p2.png").rename(tmp_path / "b/p2.png")
    with pytest.raises(UserError, match=r"1 of 5 images are missing: .*a/p2\.png"):
        read(tmp_path)


def test_own_names_spread_over_folders(tmp_path):
    write(tmp_path, content("/data/upload/1/p{}.png"), folder="pictures/a")
    (tmp_path / "pictures/b").mkdir()
    (tmp_path / "pictures/a/p2.png").rename(tmp_path / "pictures/b/p2.png")
    assert_as_painted(tmp_path)


def test_what_is_ignored_in_the_file_does_not_count(tmp_path):
    data = content()
    data["annotations"][0]["ignore"] = 1
    write(tmp_path, data)
    mask = read(tmp_path)["p0.png"]
    assert np.array_equal(mask, np.where(truth(0) == 1, 255, truth(0)))


@pytest.mark.parametrize(
    ("rows", "field", "value"),
    [
        ("images", "id", True),
        ("images", "width", 59.5),
        ("images", "height", "tall"),
        ("annotations", "image_id", None),
        ("annotations", "category_id", 3.5),
        ("annotations", "category_id", "box"),
        ("annotations", "category_id", -1),
        ("annotations", "category_id", 2**31),
        ("annotations", "category_id", "-1"),
        ("annotations", "iscrowd", 2),
        ("annotations", "iscrowd", "maybe"),
        ("categories", "id", -2),
        ("categories", "name", ""),
    ],
)
def test_values_that_mean_nothing_are_named(tmp_path, rows, field, value):
    data = content()
    data[rows][0][field] = value
    write(tmp_path, data)
    with pytest.raises(UserError, match=rf"result\.json: {field} is missing or wrong in a row of"):
        recognise(tmp_path)


def test_names_that_differ_by_spaces_are_one_class(tmp_path):
    data = content()
    data["categories"].append({"id": 9, "name": " bin "})
    data["annotations"][1]["category_id"] = 9
    write(tmp_path, data)
    assert_as_painted(tmp_path)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda text: text[:-9], r"result\.json: cannot be read as JSON"),
        (
            lambda text: text.replace("box", "b\u00f8x").encode("latin-1"),
            r"json: cannot be read .*utf-8",
        ),
        (lambda text: text.replace("segmentation", "outline"), r"json: .* no annotation has a seg"),
    ],
)
def test_a_file_that_cannot_be_used_is_named(tmp_path, damage, message):
    write(tmp_path, content())
    file = tmp_path / "result.json"
    damaged = damage(file.read_text())
    file.write_bytes(damaged if isinstance(damaged, bytes) else damaged.encode())
    with pytest.raises(UserError, match=message):
        recognise(tmp_path)


def test_ids_as_text_are_not_numbers_of_other_images(tmp_path):
    data = content()
    data["annotations"][0]["image_id"] = "01"
    write(tmp_path, data)
    with pytest.raises(UserError, match=r"annotation 3 belongs to image '01', which is not among"):
        read(tmp_path)


def test_one_id_as_number_and_as_text_is_twice_the_same(tmp_path):
    data = content()
    data["images"][1]["id"] = "1"
    write(tmp_path, data)
    with pytest.raises(UserError, match="id '1' stands twice in `images`"):
        recognise(tmp_path)
