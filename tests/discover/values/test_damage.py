"""Masks that tools smoothed or compressed: never a class that nobody painted.

Storage form x damage x painted values x list of classes, from `init` to the class of each pixel.
"""

import io
import itertools
import shutil

import cv2
import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from finetune import cli
from finetune.data.sources.opening import open_split
from finetune.discover.labels.layout_labels import guess
from finetune.discover.recognise import recognise
from finetune.discover.values.damage import REACH, find_damage, look_at, painted_colors
from finetune.errors import UserError
from finetune.labels.mending import mended_levels
from finetune.recipe import recipe_from_values

BILINEAR, NEAREST, BOX = Image.Resampling.BILINEAR, Image.Resampling.NEAREST, Image.Resampling.BOX


def painted(seed: int, values, size=(160, 200)) -> np.ndarray:
    """A background and two ellipses or rectangles of each other value, some of them overlapping."""
    rng = np.random.default_rng(seed)
    mask = np.full(size, values[0], np.uint8)
    for turn, value in itertools.product(range(2), values[1:]):
        y, x = (int(rng.integers(0, side)) for side in size)
        height, width = (int(side) for side in rng.integers(14, 45, 2))
        if turn:
            cv2.rectangle(mask, (x, y), (x + width, y + height), int(value), -1)
        else:
            cv2.ellipse(mask, (x, y), (width, height), 0, 0, 360, int(value), -1)
    return mask


def resized(share: float, down, up):
    def damage(mask):
        image = Image.fromarray(mask)
        small = image.resize([round(side * share) for side in image.size], down)
        return np.array(small.resize(image.size, up))

    return damage


def compressed(quality: int):
    def damage(mask):
        file = io.BytesIO()
        Image.fromarray(mask).save(file, "JPEG", quality=quality)
        return np.array(Image.open(file))

    return damage


DAMAGES = {
    "smoothed by a resize": resized(0.6, BILINEAR, BILINEAR),
    "smoothed, then enlarged": resized(0.78, BILINEAR, NEAREST),
    "few levels": resized(0.5, BOX, NEAREST),
    "blurred": lambda mask: cv2.GaussianBlur(mask, (0, 0), 1.5),
    "sharpened edges": resized(0.6, Image.Resampling.LANCZOS, Image.Resampling.LANCZOS),
    "once a JPEG of quality 97": compressed(97),
    "once a JPEG of quality 75": compressed(75),
    "once a JPEG of quality 40": compressed(40),
}


def as_palette(mask):
    """Pillow's own palette of greys, whose order is not the levels'."""
    image = Image.fromarray(mask).convert("RGB").convert("P", palette=Image.Palette.ADAPTIVE)
    return image


STORES = {
    "grey png": lambda mask, path: Image.fromarray(mask).save(path.with_suffix(".png")),
    "rgb png": lambda mask, path: (
        Image.fromarray(mask).convert("RGB").save(path.with_suffix(".png"))
    ),
    "rgba png": lambda mask, path: (
        Image.fromarray(mask).convert("RGBA").save(path.with_suffix(".png"))
    ),
    "palette png": lambda mask, path: as_palette(mask).save(path.with_suffix(".png")),
    "tiff": lambda mask, path: Image.fromarray(mask).save(path.with_suffix(".tif")),
    "grey jpeg": lambda mask, path: Image.fromarray(mask).save(
        path.with_suffix(".jpg"), quality=95
    ),
    "rgb jpeg": lambda mask, path: (
        Image.fromarray(mask).convert("RGB").save(path.with_suffix(".jpg"), quality=95)
    ),
}


def data_set(root, values, damage, store, names=None, count=8) -> list[np.ndarray]:
    """Images and damaged masks; returns the place of each pixel's value."""
    for folder in ("images", "masks"):
        (root / folder).mkdir(parents=True)
    truths = []
    for i in range(count):
        mask = painted(i, values)
        photo = np.random.default_rng(i).integers(0, 256, (*mask.shape, 3), np.uint8)
        Image.fromarray(photo).save(root / f"images/{i:02}.png")
        store(damage(mask), root / f"masks/{i:02}")
        truths.append(np.searchsorted(values, mask))
    if names:
        (root / "classes.txt").write_text("\n".join(names))
    return truths


def read_back(root, **options):
    """The recipe's labels, and the class ids of every pixel, as a training reads them."""
    (layout,) = recognise(root)
    found = guess(root, layout, **options)
    recipe = recipe_from_values({"data": layout.data, "labels": found.labels}, root / "r.yaml")
    splits = [
        open_split(recipe.data, recipe.labels.build(), name)
        for name in (recipe.data.train_split, recipe.data.val_split)
    ]
    masks = {sample["id"]: sample["mask"] for split in splits for sample in split}
    return found, [masks[name] for name in sorted(masks)]


def check(root, values, damage, store, names=None, errors=0.015):
    truths = data_set(root, values, damage, store, names)
    found, masks = read_back(root)
    assert len(found.labels["names"]) == len(values), "a class that nobody painted, or one lost"
    assert names is None or list(found.labels["names"]) == names
    wrong = sum((mask != truth).mean() for mask, truth in zip(masks, truths, strict=True))
    assert wrong / len(truths) <= errors
    assert not any((mask == 255).any() for mask in masks), "pixels that are ignored unasked"


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("store", STORES)
def test_black_and_white(tmp_path, store, damage):
    check(tmp_path, (0, 255), DAMAGES[damage], STORES[store])


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("store", ["grey png", "rgb jpeg"])
def test_black_and_white_beside_a_list(tmp_path, store, damage):
    check(tmp_path, (0, 255), DAMAGES[damage], STORES[store], ["background", "lesion"])


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("store", ["grey png", "rgb png", "grey jpeg"])
@pytest.mark.parametrize("values", [(0, 127, 255), (0, 100, 200), (0, 60, 120, 180, 240)], ids=str)
def test_several_values(tmp_path, values, store, damage):
    # Thin rims between five values cost more than the edges of two.
    check(tmp_path, values, DAMAGES[damage], STORES[store], errors=0.015 * (len(values) - 1))


def lines_of(seed: int, width: int, size) -> np.ndarray:
    """Lines of 255 on 0."""
    rng = np.random.default_rng(seed)
    mask = np.zeros(size, np.uint8)
    for ends in rng.integers(0, min(size), (8, 2, 2)):
        cv2.line(mask, *ends, 255, width)
    return mask


@pytest.mark.parametrize(
    ("width", "size", "damage"),
    [
        (2, (160, 200), resized(0.6, BILINEAR, BILINEAR)),
        (5, (320, 400), resized(0.5, BOX, NEAREST)),
        (7, (160, 200), lambda mask: cv2.GaussianBlur(mask, (0, 0), 2.5)),
        (9, (160, 200), lambda mask: cv2.GaussianBlur(mask, (0, 0), 2.5)),
    ],
    ids=["smoothed by a resize", "few levels", "blurred", "blurred, but clear"],
)
def test_thin_things_are_one_class(width, size, damage):
    """Their middles are narrow, and reach several levels near 255."""
    levels = [look_at(damage(lines_of(i, width, size))) for i in range(4)]
    found = find_damage(sum(levels[1:], levels[0]))
    assert found is not None
    assert (len(found.values), found.values[0]) == (2, 0)
    assert found.values[1] > 255 - REACH


def test_damage_may_be_rare(tmp_path):
    """One level beside thousands of whole pixels, in one mask of many."""

    def once(mask, calls=itertools.count()):  # noqa: B008 - counts over calls
        mask = mask.copy()
        if next(calls) == 3:
            mask[40, 50] = 131
        return mask

    check(tmp_path, (0, 255), once, STORES["grey png"])


SETS = {
    "200 classes, the last ones rare": [
        *(painted(i, range(0, 180, 9)) + np.uint8(i % 9) for i in range(9)),
        np.where(painted(3, (0, 1)), np.uint8(199), np.uint8(5)),
    ],
    "ids far apart": [painted(i, (0, 7, 38, 75, 113, 160)) for i in range(6)],
    "thin lines": [cv2.line(painted(i, (0, 50)), (5, 5 + i), (150, 90), 100, 2) for i in range(6)],
    "a void border": [
        cv2.rectangle(painted(i, (0, 1, 2)), (30, 30), (90, 90), 255, 1) for i in range(4)
    ],
    "thin classes and a void border": [
        cv2.rectangle(
            cv2.line(painted(i, range(12)), (5, 5 + i), (150, 90), 15, 1), (9, 9), (90, 90), 255, 1
        )
        for i in range(4)
    ],
    "stripes of a pixel on void": [
        np.where(np.arange(40)[:, None] < 9, np.arange(60) % 3, 255) for _ in range(4)
    ],
    "black and white": [painted(i, (0, 255)) for i in range(4)],
    "dots of another class": [
        np.where(np.random.default_rng(i).random((160, 200)) < 0.002, 100, painted(i, (0, 255)))
        for i in range(4)
    ],
    "trimaps": [painted(i, (0, 128, 255)) for i in range(4)],
    "patches": [
        np.kron(np.random.default_rng(i).integers(0, 9, (10, 12)), np.ones((16, 16)))
        for i in range(4)
    ],
}


@pytest.mark.parametrize("name", SETS)
def test_what_people_painted_is_no_damage(name):
    levels = [look_at(mask.astype(np.uint8)) for mask in SETS[name]]
    assert find_damage(sum(levels[1:], levels[0])) is None


@pytest.mark.parametrize("step", [1, 2])
def test_ids_next_to_each_other_are_refused_after_jpeg(tmp_path, step):
    data_set(tmp_path, tuple(range(0, 8 * step, step)), lambda mask: mask, STORES["grey jpeg"])
    (layout,) = recognise(tmp_path)
    with pytest.raises(UserError, match=r"JPEG|greys? level"):
        guess(tmp_path, layout)


def test_values_that_cannot_be_told_are_a_message(tmp_path):
    """Lines so thin that a blur leaves nothing of their value."""

    def blurred_lines(mask):
        lines = np.zeros_like(mask)
        for i in range(6):
            cv2.line(lines, (0, 20 * i), (199, 31 * i), (127, 255)[i % 2], 1)
        return cv2.GaussianBlur(lines, (0, 0), 1.2)

    data_set(tmp_path, (0, 255), blurred_lines, STORES["grey png"])
    (layout,) = recognise(tmp_path)
    with pytest.raises(UserError, match=r"nobody painted.*labels\.tolerance"):
        guess(tmp_path, layout)


@pytest.mark.parametrize("as_palette", [False, True])
@pytest.mark.parametrize(
    "colors", [[(0, 0, 0), (255, 0, 0)], [(68, 1, 84), (253, 231, 36)], [(0, 0, 0), (0, 90, 200)]]
)
def test_two_colours_smoothed_stay_two_classes(tmp_path, colors, as_palette):
    one, other = np.array(colors, float)
    ramp = (one + np.arange(256)[:, None] / 255 * (other - one)).round().astype(np.uint8)

    def store(mask, file):
        picture = Image.fromarray(mask)
        picture.putpalette(ramp.ravel().tolist())
        (picture if as_palette else picture.convert("RGB")).save(file.with_suffix(".png"))

    check(tmp_path, (0, 255), DAMAGES["smoothed by a resize"], store)


def test_thin_classes_between_the_colours_of_others_are_no_damage():
    """VOC's palette has 64 and 192 of red between black and 128 of red, and so on."""
    counts = {0: 9000, 0x800000: 900, 0x008000: 900, 0x400000: 40, 0x004000: 30}
    assert painted_colors(counts, {0: 8000, 0x800000: 700, 0x008000: 700}) is None


@pytest.mark.parametrize("store", ["grey png", "rgb png", "palette png"])
def test_two_values_that_cannot_be_told_are_a_question(tmp_path, monkeypatch, store):
    """Lines of 255 that a blur made dark; scripts answer by --choice 1, never without a warning."""
    drawn = [lines_of(i, 2, (160, 200)) for i in range(8)]
    levels = [cv2.GaussianBlur(mask, (0, 0), 1.5) for mask in drawn]
    left = iter(levels)
    data_set(tmp_path / "data", (0, 255), lambda _: next(left), STORES[store])
    recipe = tmp_path / "recipe.yaml"
    command = ["init", str(tmp_path / "data"), "-o", str(recipe)]
    refused = CliRunner().invoke(cli.app, command)
    assert isinstance(refused.exception, UserError)
    assert not recipe.exists()
    high = int(np.max(levels))
    middle = high // 2
    share = np.mean(np.array(levels) > middle)
    reading = f"0 to {middle} as one class, {middle + 1} to {high}, {share:.2%} of the pixels"
    assert f"init --choice 1` to read {reading}" in str(refused.exception)

    done = CliRunner().invoke(cli.app, [*command, "--choice", "1"])
    assert done.exit_code == 0, done.output
    lines = recipe.read_text().splitlines()
    assert lines[2].startswith("# Doubtful")
    assert reading in lines[3]
    found, masks = read_back(tmp_path / "data", two_values=True)
    assert found.labels["names"] == ["background", "thing"]
    np.testing.assert_array_equal(masks, np.array(levels) > middle)
    caught = np.array(masks)[np.array(drawn) == 255].mean()
    assert caught > 0.9

    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr("typer.confirm", lambda *_, **__: False)
    with pytest.raises(UserError, match="the recipe is not written"):
        cli.data.init(tmp_path / "data", output=tmp_path / "no.yaml")
    assert not (tmp_path / "no.yaml").exists()


def test_two_values_are_no_answer_where_a_third_may_be(tmp_path):
    """Regions of 127, and thin blurred lines of 255."""

    def lines_and_regions(mask, calls=itertools.count()):  # noqa: B008 - counts over calls
        mixed = np.maximum(mask, lines_of(next(calls), 2, mask.shape))
        return cv2.GaussianBlur(mixed, (0, 0), 1.5)

    data_set(tmp_path, (0, 127), lines_and_regions, STORES["grey png"])
    (layout,) = recognise(tmp_path)
    with pytest.raises(UserError, match="nobody painted") as caught:
        guess(tmp_path, layout, two_values=True)
    assert "--choice" not in str(caught.value)


def test_the_number_of_a_layout_is_no_answer_about_values(tmp_path):
    blurred = lambda mask: cv2.GaussianBlur(lines_of(1, 2, mask.shape), (0, 0), 1.5)  # noqa: E731
    data_set(tmp_path / "data", (0, 255), blurred, STORES["grey png"])
    shutil.copytree(tmp_path / "data/masks", tmp_path / "data/labels")
    assert len(recognise(tmp_path / "data")) > 1
    command = ["init", str(tmp_path / "data"), "-o", str(tmp_path / "r.yaml"), "--choice", "1"]
    done = CliRunner().invoke(cli.app, command)
    assert "nobody painted" in str(done.exception)
    assert not (tmp_path / "r.yaml").exists()


def test_one_bit_beside_damage_is_refused(tmp_path):
    truths = data_set(tmp_path, (0, 255), DAMAGES["blurred"], STORES["grey png"])
    Image.fromarray(truths[0] > 0).save(tmp_path / "masks/00.png")
    (layout,) = recognise(tmp_path)
    with pytest.raises(UserError, match="1 masks of one bit"):
        guess(tmp_path, layout)


# ------------------------------------------------------------------------------------------ mending


def test_a_level_goes_to_the_nearest_value():
    levels = np.arange(256, dtype=np.uint8).reshape(1, -1)
    for values, tolerance in [((0, 255), 127), ((10, 40), 6), ((3,), 300)]:
        distance = np.abs(levels.astype(int)[..., None] - values)
        nearest = np.array(values)[distance.argmin(-1)]
        expected = np.where(distance.min(-1) <= tolerance, nearest, levels)
        np.testing.assert_array_equal(mended_levels(levels, values, tolerance), expected)


def test_sixteen_bits():
    mask = np.array([[0, 30000, 32767, 32768, 65535]], np.uint16)
    found = mended_levels(mask, (0, 65535), 32767)
    np.testing.assert_array_equal(found, [[0, 0, 0, 65535, 65535]])


def test_a_thing_has_no_rim_of_another_class():
    """A blurred edge from 0 to 255 crosses 127, which is another class elsewhere."""
    mask = np.zeros((60, 80), np.uint8)
    mask[10:50, 10:40] = 255
    mask[20:40, 55:75] = 127
    blurred = cv2.GaussianBlur(mask, (0, 0), 2)
    found = mended_levels(blurred, (0, 127, 255), 64)
    assert (found[:, :45] != 127).all()
    assert (found[22:38, 57:73] == 127).all()
    assert (found != mask).mean() < 0.01


@pytest.mark.parametrize("values", [(0, 127, 255), (0, 50, 100, 150, 200)])
def test_undamaged_masks_stay(values):
    for seed in range(5):
        mask = painted(seed, values)
        assert (mended_levels(mask, values, 25) != mask).mean() < 1e-3
