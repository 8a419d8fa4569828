"""Label Studio's exports: every kind of region against masks painted by hand."""

import copy
import json
from urllib.parse import quote

import numpy as np
import pytest
from PIL import Image

from finetune.data.annotations.label_studio import brush_pngs, read_export
from finetune.data.samples import preflight, upright_sizes
from finetune.data.sources.label_studio import label_studio
from finetune.data.sources.opening import open_split
from finetune.discover.forms.label_studio import label_studio_files
from finetune.discover.labels.layout_labels import guess
from finetune.discover.layouts.layout import walk
from finetune.discover.recognise import recognise
from finetune.errors import UserError
from finetune.labels.translation import Labels
from finetune.recipe import recipe_from_values

SIZE = (40, 60)
LABELS = Labels.build(["background", "Cat", "Hündin"], background="background", ignore=[])
JSON = {"images": "images", "annotations": "p.json", "overlap": "order"}


def stream(mask):
    """A brush's bytes with runs of 16 bits only, four values to a pixel."""
    flat = np.repeat(255 * (np.asarray(mask).ravel() != 0), 4).tolist()
    text, at = f"{len(flat):032b}{7:05b}" + f"{15:04b}" * 4, 0
    while at < len(flat):
        count = next((i for i, v in enumerate(flat[at:]) if v != flat[at]), len(flat) - at)
        text += f"100{count - 1:016b}{flat[at]:08b}"
        at += count
    text += "0" * (-len(text) % 8)
    return [int(text[i : i + 8], 2) for i in range(0, len(text), 8)]


def box(left, top, right, bottom):
    mask = np.zeros(SIZE, np.uint8)
    mask[top:bottom, left:right] = 1
    return mask


def region(kind, label, value, **more):
    labels = {f"{kind}labels": [label] if isinstance(label, str) else label} if label else {}
    return {
        "id": "r1",
        "type": f"{kind}labels" if label else kind,
        "from_name": "tag",
        "to_name": "image",
        "original_width": SIZE[1],
        "original_height": SIZE[0],
        "image_rotation": 0,
        "value": {**value, **labels},
        **more,
    }


def brush(label, mask, **more):
    return region("brush", label, {"format": "rle", "rle": stream(mask)}, **more)


def polygon(label, left, top, right, bottom, **more):
    points = [[left, top], [right, top], [right, bottom], [left, bottom]]
    points = [[100 * x / SIZE[1], 100 * y / SIZE[0]] for x, y in points]
    return region("polygon", label, {"points": points, "closed": True}, **more)


def task(number, result, image=None, **more):
    return {
        "id": number,
        "data": {"image": image or f"/data/upload/1/{number:08x}-p{number}.png"},
        "annotations": [{"id": 10 * number, "result": result, "was_cancelled": False}],
        **more,
    }


def as_min(tasks):
    """JSON-MIN of the same tasks."""
    return [
        {
            **own["data"],
            "id": own["id"],
            "tag": [
                {**r["value"], **{k: r[k] for k in ("original_width", "original_height") if k in r}}
                for r in annotation["result"]
            ],
            "annotator": 1,
            "annotation_id": annotation["id"],
            "updated_at": annotation.get("updated_at"),
        }
        for own in tasks
        for annotation in own["annotations"]
    ]


def picture(file, size=SIZE):
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((*size, 3), 90, np.uint8)).save(file)


def put(root, tasks, names=None, file="p.json"):
    (root / file).parent.mkdir(parents=True, exist_ok=True)
    (root / file).write_text(json.dumps(tasks, ensure_ascii=False), encoding="utf-8")
    for own in tasks if names is None else ():
        picture(root / "images" / f"p{own['id']}.png")
    for name in names or ():
        picture(root / name)


def read(root, **options):
    return label_studio(root, "", LABELS, **{**JSON, **options})


def ellipse():
    """Pixels whose middle is in the ellipse about (30, 20), 12 by 6, turned clockwise by 30."""
    mask = np.zeros(SIZE, np.uint8)
    for y in range(SIZE[0]):
        for x in range(SIZE[1]):
            point = (x + 0.5 - 30 + 1j * (y + 0.5 - 20)) * np.exp(-1j * np.pi / 6)
            mask[y, x] = (point.real / 12) ** 2 + (point.imag / 6) ** 2 <= 1
    return mask


TURNED = {"x": 50, "y": 50, "radiusX": 20, "radiusY": 15, "rotation": 30}
SPECKLE = np.random.default_rng(3).random(SIZE) < 0.4
NOTES = [
    {"type": "choices", "from_name": "c", "to_name": "image", "value": {"choices": ["good"]}},
    {"type": "relation", "from_id": "a", "to_id": "b", "direction": "right"},
    region("keypoint", "Cat", {"x": 5, "y": 5, "width": 1}),
]
REGIONS = {
    "brush": ([brush("Cat", SPECKLE)], np.where(SPECKLE, 1, 0)),
    "polygon": ([polygon("Hündin", 5, 6, 25, 30)], 2 * box(5, 6, 25, 30)),
    "ellipse": ([region("ellipse", "Hündin", TURNED)], 2 * ellipse()),
    "the later one wins": (
        [polygon("Cat", 5, 6, 25, 30), brush("Hündin", box(0, 0, 60, 20))],
        np.where(box(0, 0, 60, 20), 2, box(5, 6, 25, 30)),
    ),
    "a Brush with Labels, drawn and labelled": (
        [
            brush(None, box(5, 6, 25, 30)),
            region("", "Cat", {"format": "rle", "rle": stream(box(5, 6, 25, 30))}),
        ],
        box(5, 6, 25, 30),
    ),
    "texts, relations and points": ([*NOTES, polygon("Cat", 0, 0, 9, 9)], box(0, 0, 9, 9)),
    "nothing": ([], box(0, 0, 0, 0)),
}


@pytest.mark.parametrize("form", [lambda tasks: tasks, as_min], ids=["JSON", "JSON-MIN"])
@pytest.mark.parametrize("name", REGIONS)
def test_every_region(tmp_path, name, form):
    regions, expected = REGIONS[name]
    if form is as_min:
        regions = [r for r in regions if not _KEYS.isdisjoint(r.get("value", ()))]
    put(tmp_path, form([task(1, regions)]))
    data = read(tmp_path)
    preflight(data)
    (sample,) = data
    np.testing.assert_array_equal(sample["mask"], expected)
    assert sample["id"] == "p1"


_KEYS = {"rle", "points", "radiusX", "x"}


def test_the_smallest_wins_by_area(tmp_path):
    put(tmp_path, [task(1, [polygon("Cat", 5, 6, 25, 30), brush("Hündin", box(0, 0, 60, 20))])])
    (sample,) = read(tmp_path, overlap="area")
    np.testing.assert_array_equal(
        sample["mask"], np.where(box(5, 6, 25, 30), 1, 2 * box(0, 0, 60, 20))
    )


def read_back(root):
    (layout,) = recognise(root)
    labels = guess(root, layout).labels
    recipe = recipe_from_values({"data": layout.data, "labels": labels}, root / "r.yaml")
    found = {}
    for name in (recipe.data.train_split, recipe.data.val_split):
        data = open_split(recipe.data, recipe.labels.build(), name)
        preflight(data)
        found |= {sample["id"]: sample["mask"] for sample in data}
    return layout, labels, found


PLACES = {
    "of an upload": "/data/upload/1/0a1b2c3d-p{}.png",
    "of an upload, kept": "/data/upload/7/p{}.png",
    "of local files": "/data/local-files/?d=a%20b/p{}.png",
    "with a key": "https://bucket.s3.amazonaws.com/a/p{}.png?X-Amz-Signature=00ff&d=1",
    "of a bucket": "s3://bucket/a/p{}.png",
    "of Windows": "C:\\work\\images\\p{}.png",
    "below the export": "images/p{}.png",
}


@pytest.mark.parametrize("form", [lambda tasks: tasks, as_min], ids=["JSON", "JSON-MIN"])
@pytest.mark.parametrize("place", PLACES)
def test_a_project_with_its_images(tmp_path, place, form):
    tasks = [
        task(i, [brush("Cat", box(i, 2, 30, 20))], PLACES[place].format(i)) for i in range(1, 7)
    ]
    put(tmp_path, form(tasks))
    layout, labels, masks = read_back(tmp_path)
    assert layout.data["source"] == "label-studio"
    assert labels["names"] == ["Cat", "background"]
    assert len(masks) == 6
    for name, mask in masks.items():
        expected = 1 - box(int(name.removeprefix("images/")[1:]), 2, 30, 20)
        np.testing.assert_array_equal(mask, expected)


def test_names_beyond_ascii_and_another_key(tmp_path):
    label = {1: "Hündin", 2: "Hu\u0308ndin", 3: "Hündin "}  # one label, in two forms of Unicode
    tasks = [task(i, [brush(label[i], box(i, 2, 30, 20))]) for i in range(1, 4)]
    for own in tasks:
        own["data"] = {"text": "x", "photo": f"/data/upload/1/{quote('größe ')}{own['id']}.png"}
    put(tmp_path, tasks, [f"pictures/größe {i}.png" for i in range(1, 4)])
    layout, labels, masks = read_back(tmp_path)
    assert layout.data["images"] == "pictures"
    assert labels["names"] == ["Hündin", "background"]
    np.testing.assert_array_equal(masks["größe 2"], 1 - box(2, 2, 30, 20))


def test_files_of_splits(tmp_path):
    for split, first in (("train", 1), ("val", 5)):
        tasks = [task(i, [brush("Cat", box(i, 2, 30, 20))]) for i in range(first, first + 3)]
        put(tmp_path, tasks, [], f"{split}.json")
        for i in range(first, first + 3):
            picture(tmp_path / split / f"p{i}.png")
    layout, _, masks = read_back(tmp_path)
    assert (layout.data["annotations"], layout.data["images"]) == ("{split}.json", "{split}")
    assert (layout.data["train_split"], layout.data["val_split"]) == ("train", "val")
    assert len(masks) == 6
    np.testing.assert_array_equal(masks["p6"], 1 - box(6, 2, 30, 20))


def annotation(number, mask, **more):
    return {"id": number, "result": [brush("Cat", mask)], **more}


def test_which_annotation_counts(tmp_path):
    first, second, third = box(0, 0, 9, 9), box(9, 9, 20, 20), box(20, 20, 40, 40)
    early, late = ({"updated_at": f"2024-01-01T10:00:00{end}Z"} for end in ("", ".5"))
    own = {
        1: [annotation(1, first, **late), annotation(2, second, **early)],
        2: [annotation(3, first, **early, ground_truth=True), annotation(4, second, **late)],
        3: [annotation(5, first, **early), annotation(6, second, **late, was_cancelled=True)],
        4: [annotation(7, third, was_cancelled=True)],
        5: [],
    }
    tasks = [task(i, [], annotations=annotations) for i, annotations in own.items()]
    for one in tasks:
        one["predictions"] = [{"result": [brush("Cat", third)]}]
    put(tmp_path, tasks)
    masks = {sample["id"]: sample["mask"] for sample in read(tmp_path)}
    assert sorted(masks) == ["p1", "p2", "p3"]
    for mask in masks.values():
        np.testing.assert_array_equal(mask, first)
    notes = " / ".join(read_export(tmp_path / "p.json").lines)
    assert "2 tasks have no annotation yet" in notes
    assert "2 tasks have cancelled annotations" in notes
    assert "2 tasks have several annotations; the ground truth of each" in notes
    assert "task 1, 2" in notes
    (layout,) = recognise(tmp_path)
    assert any("2 tasks have no annotation yet" in line for line in layout.assumed)


def test_one_row_of_json_min_for_each_annotation(tmp_path):
    first, second = box(0, 0, 9, 9), box(9, 9, 20, 20)
    rows = as_min(
        [
            task(1, [], annotations=[annotation(1, second, updated_at="2024-01-01")]),
            task(1, [], annotations=[annotation(2, first, updated_at="2024-02-01")]),
            task(2, [], annotations=[annotation(3, first)]),
        ]
    )
    untouched = {"id": 3, "image": "p3.png", "annotator": None, "annotation_id": None}
    put(tmp_path, [*rows, untouched])
    masks = {sample["id"]: sample["mask"] for sample in read(tmp_path)}
    assert sorted(masks) == ["p1", "p2"]
    for mask in masks.values():
        np.testing.assert_array_equal(mask, first)


def test_predictions_alone_are_read(tmp_path):
    tasks = []
    for i in range(1, 5):
        value = {"format": "rle", "rle": stream(box(i, 2, 30, 20)), "brushlabels": ["Cat"]}
        result = [{"type": "brushlabels", "from_name": "tag", "to_name": "image", "value": value}]
        own = {"data": {"image": f"p{i}.png"}, "predictions": [{"score": 0.5, "result": result}]}
        tasks.append(own)
        picture(tmp_path / "images" / f"p{i}.png")
    put(tmp_path, tasks, [])
    layout, _, masks = read_back(tmp_path)
    assert any("predictions (pre-annotations) are read" in line for line in layout.assumed)
    np.testing.assert_array_equal(masks["p3"], 1 - box(3, 2, 30, 20))
    assert len(masks) == 4


BOX = {"x": 1, "y": 1, "width": 9, "height": 9, "rotation": 0}
BAD = brush("Cat", SPECKLE)
MISTAKES = [
    (region("rectangle", "Cat", BOX), "is of the kind rectangle .Cat., a box, which says nothing"),
    (
        region("bitmask", "Cat", {"imageDataURL": "data:"}),
        "is of the kind bitmasklabels .Cat., not",
    ),
    (region("brush", ["Cat", "Hündin"], BAD["value"]), "has 2 labels .Cat, Hündin."),
    (brush(None, SPECKLE), "has no label"),
    (brush([], SPECKLE), "has no label"),
    (region("polygon", "Cat", {"points": [[1, 1], [2, 2]]}), "the polygon needs 3 or more points"),
    (region("polygon", "Cat", {"points": [[1, 1], [2, 2], [3, None]]}), "the polygon needs 3"),
    (region("ellipse", "Cat", {"x": 1, "radiusX": 3}), "the ellipse needs x, y, radiusX"),
    (brush("Cat", SPECKLE, image_rotation=90), "has image_rotation 90"),
    (region("brush", "Cat", {"rle": [1, 300]}), "its rle is not a list of bytes"),
    (region("brush", "Cat", {"rle": stream(SPECKLE)[:90]}), "its RLE ends in the middle"),
    (brush("Cat", np.ones((3, 3))), "its RLE does not hold four values for each of 60 x 40"),
    (brush("Dog", SPECKLE), "the label 'Dog' is none of labels.names"),
    (polygon("Cat", 0, 0, 9, 9, original_width=61), "states an image of 61 x 40 .* has 60 x 40"),
]


IN_MIN = [own for own in MISTAKES if "image_rotation" not in own[1]]  # JSON-MIN lacks it


@pytest.mark.parametrize(
    ("wrong", "message", "form"),
    [*((*own, lambda tasks: tasks) for own in MISTAKES), *((*own, as_min) for own in IN_MIN)],
)
def test_mistakes_name_the_task(tmp_path, wrong, message, form):
    put(tmp_path, form([task(12, [wrong])]))
    with pytest.raises(UserError, match=rf"p\.json, task 12(, region ('r1'|1))?: {message}"):
        read(tmp_path)[0]


def test_boxes_alone_do_not_hide_masks_of_another_form(tmp_path):
    put(tmp_path, [task(i, [region("rectangle", "Cat", BOX)]) for i in range(1, 4)])
    with pytest.raises(UserError, match=r"no pairs.*p\.json, task 1, region 'r1': .*a box"):
        recognise(tmp_path)
    for i in range(1, 4):
        png(tmp_path / f"masks/p{i}.png", SPECKLE)
        noise = np.random.default_rng(i).integers(0, 256, (*SIZE, 3), np.uint8)
        Image.fromarray(noise).save(tmp_path / f"images/p{i}.png")
    (layout,) = recognise(tmp_path)
    assert layout.data["masks"] == "masks"
    put(tmp_path, [task(1, [region("rectangle", "Cat", BOX), polygon("Cat", 0, 0, 9, 9)])])
    with pytest.raises(UserError, match="a box"):
        recognise(tmp_path)


def test_sizes_that_contradict(tmp_path):
    put(tmp_path, [task(1, [polygon("Cat", 0, 0, 9, 9, original_height=50)])])
    with pytest.raises(UserError, match=r"60 x 50 pixels .* 60 x 40"):
        upright_sizes(read(tmp_path))
    two = [polygon("Cat", 0, 0, 9, 9, original_height=50), polygon("Cat", 0, 0, 9, 9)]
    put(tmp_path, [task(1, two)])
    with pytest.raises(UserError, match="several sizes of the image, 60 x 40 and 60 x 50"):
        read(tmp_path)


def test_a_turned_image_has_the_size_that_the_tool_showed(tmp_path):
    put(tmp_path, [task(1, [brush("Cat", SPECKLE)])], [])
    exif = Image.Exif()
    exif[0x0112] = 6
    (tmp_path / "images").mkdir()
    Image.new("RGB", SIZE).save(tmp_path / "images/p1.png", exif=exif)
    data = read(tmp_path)
    assert upright_sizes(data) == [SIZE]
    np.testing.assert_array_equal(data[0]["mask"], SPECKLE)


def test_images_that_are_missing(tmp_path):
    put(tmp_path, [task(1, [brush("Cat", SPECKLE)]), task(2, [])])
    (tmp_path / "images/p2.png").unlink()
    with pytest.raises(UserError, match="1 of 2 images are missing"):
        read(tmp_path)
    faults = []
    assert len(read(tmp_path, faults=faults)) == 1
    assert [fault.kind for fault in faults] == ["listed-but-missing"]
    put(tmp_path, [task(1, [brush("Dog", SPECKLE)]), task(2, [])])
    faults.clear()
    assert len(read(tmp_path, faults=faults)) == 1
    assert [fault.kind for fault in faults] == ["bad-annotation"]


def test_tasks_that_contradict(tmp_path):
    put(tmp_path, [task(1, []), task(2, [], "/data/upload/1/00000001-p1.png")])
    with pytest.raises(UserError, match="the tasks 1 and 2 show the same image"):
        read(tmp_path)
    two = task(1, [])
    two["data"] = {"left": "a.png", "right": "b.png"}
    put(tmp_path, [two], [])
    with pytest.raises(UserError, match=r"task 1: shows 2 images \(keys: left, right\)"):
        read(tmp_path)
    put(tmp_path, [task(1, [], annotations=[])], [])
    with pytest.raises(UserError, match="no task has an annotation"):
        read(tmp_path)


@pytest.mark.parametrize(
    "content",
    [
        [],
        {"images": []},
        [1],
        [{"id": 1, "text": "a"}],
        [{"id": 1, "data": {"text": "a"}, "annotations": []}],
        [{"id": 1, "image": "a.png", "label": "cat"}],
    ],
)
def test_other_json_is_no_export(tmp_path, content):
    put(tmp_path, copy.deepcopy(content), [])
    assert read_export(tmp_path / "p.json") is None
    assert not list(label_studio_files(walk(tmp_path)))


# --------------------------------------------------------------------------------- the brush's PNGs


def png(file, mask):
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(255 * mask.astype(np.uint8)).save(file)


NAMES = ("task-{}-annotation-{}-by-1-tag-{}-{}", "task-{}-annotation-{}-tag-{}-{}")
BESIDE = {
    "JSON without regions": lambda tasks: [
        {**own, "annotations": [{"id": own["id"] * 10, "result": []}]} for own in tasks
    ],
    "JSON of tasks alone": lambda tasks: [{"id": o["id"], "data": o["data"]} for o in tasks],
    "JSON-MIN without regions": lambda tasks: [{**row, "tag": []} for row in as_min(tasks)],
}


@pytest.mark.parametrize("beside", BESIDE)
@pytest.mark.parametrize("name", NAMES)
def test_brush_pngs_joined_by_a_json_file(tmp_path, name, beside):
    tasks = [task(i, []) for i in range(1, 5)]
    for i in range(1, 5):
        annotations = {10 * i: box(i, 2, 30, 20)}
        if i == 4:  # an earlier annotation of the same task
            annotations[9] = box(0, 0, 60, 40)
        for number, mask in annotations.items():
            png(tmp_path / "brushes" / f"{name.format(i, number, 'Hündin', 0)}.png", mask)
    png(tmp_path / "brushes" / f"{name.format(1, 10, 'Cat', 0)}.png", box(4, 3, 9, 9))
    png(tmp_path / "brushes" / f"{name.format(1, 10, 'Cat', 1)}.png", box(20, 5, 29, 9))
    put(tmp_path, BESIDE[beside](tasks))
    layout, labels, masks = read_back(tmp_path)
    assert layout.data["brushes"] == "brushes"
    assert not any("left out" in line for line in layout.assumed)
    assert labels["names"] == ["Cat", "Hündin", "background"]
    assert sorted(masks) == ["p1", "p2", "p3", "p4"]
    for i in (2, 3, 4):
        np.testing.assert_array_equal(masks[f"p{i}"], 2 - box(i, 2, 30, 20))
    expected = np.where(box(4, 3, 9, 9) | box(20, 5, 29, 9), 0, 2 - box(1, 2, 30, 20))
    np.testing.assert_array_equal(masks["p1"], expected)


def test_the_regions_of_the_json_file_come_before_pngs(tmp_path):
    tasks = [task(i, [brush("Cat", SPECKLE), polygon("Hündin", 0, 0, 9, 9)]) for i in range(1, 4)]
    for i in range(1, 4):
        png(tmp_path / f"task-{i}-annotation-{10 * i}-by-1-tag-Cat-0.png", SPECKLE)
    put(tmp_path, tasks)
    layout, labels, masks = read_back(tmp_path)
    assert "brushes" not in layout.data
    assert labels["names"] == ["Cat", "Hündin", "background"]
    expected = np.where(box(0, 0, 9, 9), 1, np.where(SPECKLE, 0, 2))
    np.testing.assert_array_equal(masks["p3"], expected)
    assert any("3 pictures are not used" in line for line in layout.assumed)


@pytest.mark.parametrize("image", ["images/{}.png", "images/task-{}.png", "{:03}.png"])
def test_brush_pngs_whose_images_have_the_numbers_of_tasks(tmp_path, image):
    for i in (7, 8, 12):
        png(tmp_path / f"masks/task-{i}-annotation-1-by-1-tag-Cat-0.png", box(i, 2, 30, 20))
        picture(tmp_path / image.format(i))
    layout, _, masks = read_back(tmp_path)
    assert layout.data["annotations"] == ""
    assert len(masks) == 3
    key = image.format(12).removeprefix("images/").removesuffix(".png")
    np.testing.assert_array_equal(masks[key], 1 - box(12, 2, 30, 20))


def test_brush_pngs_that_nothing_joins(tmp_path):
    for i in (1, 2):
        png(tmp_path / f"masks/task-{i}-annotation-3-by-1-tag-Cat-0.png", SPECKLE)
        picture(tmp_path / f"images/street {i + 5}.png")
    with pytest.raises(
        UserError, match=r"do not say to which images.*no image for task 1, 2.*JSON"
    ):
        recognise(tmp_path)
    put(tmp_path, [task(1, [])], [f"images/p{i}.png" for i in (1, 2)])
    with pytest.raises(UserError, match=r"p\.json: names no image for task 2"):
        recognise(tmp_path)


def test_pngs_of_another_size_and_without_a_label(tmp_path):
    put(tmp_path, [task(1, [])])
    file = tmp_path / "b/task-1-annotation-10-by-1-tag-Cat-0.png"
    png(file, SPECKLE[:30])
    with pytest.raises(UserError, match=r"60 x 30 pixels .* 60 x 40"):
        read(tmp_path, brushes="b")[0]
    file.rename(file.with_name("task-1-annotation-10-by-1-tag-no_label-0.png"))
    with pytest.raises(UserError, match="its name has no label"):
        read(tmp_path, brushes="b")
    with pytest.raises(UserError, match=r"data.brushes: .* holds no files such as task-1"):
        read(tmp_path, brushes="images")
    put(tmp_path, {"images": []}, [])
    with pytest.raises(UserError, match=r"p\.json: is no export of Label Studio"):
        read(tmp_path)


@pytest.mark.parametrize(
    ("stem", "tags", "expected"),
    [
        ("task-1-annotation-3-by-1-tag-Cat-0", (), ("1", "3", "Cat")),
        ("task-1-annotation-3-tag-Cat-12", (), ("1", "3", "Cat")),
        ("task-1-annotation-3-by--tag-Cat-0", (), ("1", "3", "Cat")),
        ("task-1-annotation-3-by-a.b@c.org-tag-sea-lion-0", (), ("1", "3", "sea-lion")),
        ("task-1-annotation-3-by-1-my-tag-Cat-0", ("my", "my-tag"), ("1", "3", "Cat")),
        ("task-1-annotation-3-by-1-tag-Hu\u0308ndin-0", (), ("1", "3", "Hündin")),
    ],
)
def test_names_of_brush_pngs(tmp_path, stem, tags, expected):
    found = brush_pngs([tmp_path / f"{stem}.png", tmp_path / "other-1.png"], frozenset(tags))
    assert [(t, a, r.label) for t, own in found.items() for a, (r,) in own.items()] == [expected]
