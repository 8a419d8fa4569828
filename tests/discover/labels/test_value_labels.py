"""What masks hold, and what `labels:` block is made of it."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from finetune.discover.labels.value_labels import guess_labels
from finetune.discover.values.class_lists import ClassList
from finetune.discover.values.mask_values import (
    NUM_MASKS,
    MaskValues,
    count_values,
    inspect,
    spread,
)
from finetune.errors import UserError
from finetune.labels.translation import Labels
from finetune.pictures.reading import read_colors, read_mask


def ids(counts, **more):
    return MaskValues("ids", Counter(counts), None, 9, **more)


def colors(counts):
    return MaskValues("colors", Counter(counts), None, 9)


def listed(*names, values=None, colors=None):
    return ClassList(Path("classes.txt"), names, values, colors)


def meaning(guess):
    """Raw value -> name, None if it does not count, and what the unknown ones are."""
    built = Labels.build(**guess.labels)
    return {
        raw: None if i == built.ignore_index else built.names[i]
        for raw, i in built.rules
        if raw >= 0
    }


def saved(folder, *masks, palettes=()):
    files = []
    for number, mask in enumerate(masks):
        files.append(folder / f"{number:03}.png")
        picture = mask if isinstance(mask, Image.Image) else Image.fromarray(mask)
        if palettes and palettes[number]:
            flat = [c for color in palettes[number] for c in color]
            picture.putpalette(flat + [0] * (768 - len(flat)))
        picture.save(files[-1])
    return files


def square(*values, dtype=np.uint8):
    return np.resize(np.array(values, dtype), (8, 8))


# ----------------------------------------------------------------------------------- what they hold


@pytest.mark.parametrize("dtype", [bool, np.uint8, np.uint16, np.int32])
def test_counting(dtype):
    raw = np.random.default_rng(0).integers(0, 2 if dtype is bool else 200, (20, 30)).astype(dtype)
    values, counts = count_values(raw)
    expected = np.unique(raw, return_counts=True)
    assert np.array_equal(values, expected[0])
    assert np.array_equal(counts, expected[1])


def test_a_value_in_the_last_of_many_masks_is_seen(tmp_path):
    count = NUM_MASKS[0] + 50
    files = saved(tmp_path, *[square(0, 1)] * (count - 1), square(0, 2))
    assert set(inspect(files).counts) == {0, 1, 2}


def test_masks_are_taken_evenly_from_the_first_to_the_last():
    assert spread(range(399), 5) == [0, 100, 199, 298, 398]
    assert spread(range(3), 5) == [0, 1, 2]


def test_palettes_that_differ_make_colours_count(tmp_path):
    red, blue = (255, 0, 0), (0, 0, 255)
    files = saved(tmp_path, square(0, 1), square(0, 1, 1), palettes=[[red, blue], [blue, red]])
    values = inspect(files)
    assert values.kind == "colors"
    assert values.counts == {0xFF0000: 32 + 42, 0x0000FF: 32 + 22}
    assert "palettes differ" in guess_labels(values, None).assumed[0]


def test_palettes_that_differ_where_nothing_is_do_not_matter(tmp_path):
    one = [(1, 2, 3), (4, 5, 6), (7, 8, 9)]
    files = saved(tmp_path, square(0, 1), square(0, 1), palettes=[one, [*one[:2], (9, 9, 9)]])
    assert inspect(files).kind == "ids"


@pytest.mark.parametrize("palette", [[0, 255], [255, 0], [0, 127, 255]])
@pytest.mark.parametrize("mode", ["L", "1"])
def test_palettes_of_greys_beside_greys_mean_what_they_show(tmp_path, palette, mode):
    """Numbers 0 and 1 of one file are 0 and 255 of another, or 255 and 0."""
    if mode == "1" and len(palette) > 2:
        palette = palette[::2]
    shown = np.kron(square(*sorted(palette), 0), np.ones((9, 9), np.uint8))
    numbers = np.vectorize(palette.index)(shown).astype(np.uint8)
    stored = Image.fromarray(numbers, "L")
    files = saved(tmp_path, stored, palettes=[[(v, v, v) for v in palette]])
    files.append(tmp_path / "plain.png")
    Image.fromarray(shown).convert(mode).save(files[-1])
    guess = guess_labels(inspect(files), None)
    built = Labels.build(**guess.labels)
    read = read_colors if built.kind == "colors" else read_mask
    one, other = (built.encode(read(file), file.name) for file in files)
    assert np.array_equal(one, other)
    assert [*np.unique(one)] == [*range(len(palette))]


def test_0_1_and_0_255_have_two_readings(tmp_path):
    files = saved(tmp_path, square(0, 1), square(0, 255), square(0))
    with pytest.raises(UserError, match=r"000.png holds 0 and 1, .*001.png holds 0 and 255"):
        guess_labels(inspect(files), None)
    known = guess_labels(inspect(files), listed("sky", "cat", "dog", values=(0, 1, 255)))
    assert meaning(known) == {0: "sky", 1: "cat", 255: "dog"}
    files += saved(tmp_path, square(0, 1), square(0, 255), square(0, 1, 255))
    assert meaning(guess_labels(inspect(files), None))[255] is None


def test_palettes_and_colours_together_are_colours(tmp_path):
    palette = [(255, 0, 0), (0, 0, 255)]
    rgb = np.array(palette, np.uint8)[square(0, 1)]
    values = inspect(saved(tmp_path, square(0, 1), rgb, palettes=[palette, None]))
    assert values.kind == "colors"
    assert set(values.counts) == {0xFF0000, 0x0000FF}


def test_ids_and_colours_together_are_a_mistake(tmp_path):
    files = saved(tmp_path, square(0, 1), np.zeros((8, 8, 3), np.uint8))
    with pytest.raises(UserError, match=r"000.png holds ids, but .*001.png holds colours"):
        inspect(files)
    assert inspect(files, lenient=True).kind == "ids"


def test_a_picture_too_large_is_a_message(tmp_path, monkeypatch):
    files = saved(tmp_path, square(0, 1))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    with pytest.raises(UserError, match=r"000\.png: .*more than the 20 that are read"):
        inspect(files)


def test_one_bit_and_0_255_say_the_same(tmp_path):
    files = saved(tmp_path, square(False, True, dtype=bool), square(0, 255))
    values = inspect(files)
    assert values.counts == {0: 64, 1: 32, 255: 32}
    guess = guess_labels(values, None)
    assert meaning(guess) == {0: "background", 1: "thing", 255: "thing"}
    guess = guess_labels(values, listed("background", "car"))
    assert meaning(guess) == {0: "background", 1: "car", 255: "car"}
    assert not any("False" in line for line in guess.found)


# ------------------------------------------------------------------------------------------- of ids


@pytest.mark.parametrize("high", [1, 255, 65535])
def test_two_values(high):
    guess = guess_labels(ids({0: 90, high: 10}), None)
    assert meaning(guess).items() >= {0: "background", high: "thing"}.items()
    assert not guess.known
    guess = guess_labels(ids({0: 90, high: 10}), listed("background", "car"))
    assert meaning(guess).items() >= {0: "background", high: "car"}.items()
    assert guess.known
    assert any("0 is background" in line for line in guess.assumed)


def test_two_values_and_one_name():
    guess = guess_labels(ids({0: 90, 255: 10}), listed("car"))
    assert meaning(guess) == {0: "background", 255: "car"}


def test_a_list_of_values_says_what_0_and_255_are():
    guess = guess_labels(ids({0: 9, 255: 1}), listed("car", "sky", values=(255, 0)))
    assert meaning(guess) == {0: "sky", 255: "car"}


def test_a_list_of_many_names_does_not_fit_two_values():
    guess = guess_labels(ids({0: 90, 255: 10}), listed("background", "car", "road"))
    assert meaning(guess) == {0: "background", 255: "thing"}
    assert any("classes.txt lists 3 names, but masks hold 0, 255" in a for a in guess.assumed)


def test_a_list_in_order():
    guess = guess_labels(ids({0: 3, 1: 5, 2: 4, 255: 1}), listed("sky", "road", "car"))
    assert meaning(guess) == {0: "sky", 1: "road", 2: "car", 255: None}
    assert any("follow the order of classes.txt: 0 is sky, 1 is road" in a for a in guess.assumed)


def test_a_list_without_the_background_that_masks_hold():
    guess = guess_labels(ids({0: 90, 1: 5, 2: 5}), listed("car", "road"))
    assert meaning(guess).items() >= {0: "background", 1: "car", 2: "road"}.items()
    assert any("whose first class is 1" in line for line in guess.assumed)


def test_a_list_of_masks_that_count_from_1():
    guess = guess_labels(ids({1: 5, 2: 5}), listed("car", "road"))
    assert meaning(guess) == {1: "car", 2: "road", 255: None}


@pytest.mark.parametrize("high", [1, 255])
def test_a_list_whose_first_thing_would_be_the_background(high):
    with pytest.raises(UserError, match="its first class is car, but 95% of the pixels are 0"):
        guess_labels(ids({0: 95, high: 5}), listed("car", "road"))


def test_a_list_that_does_not_fit_is_said():
    guess = guess_labels(ids({0: 3, 1: 5, 7: 4}), listed("background", "road", "car"))
    assert any("classes.txt lists 3 names, but masks hold 0, 1, 7" in a for a in guess.assumed)
    assert not any("no list" in line for line in guess.assumed)


def test_values_far_apart_are_classes_and_255_with_them():
    guess = guess_labels(ids({0: 5, 128: 5, 255: 5}), None)
    assert meaning(guess) == {0: "class_0", 128: "class_128", 255: "class_255"}
    assert any("255 is a class" in line for line in guess.assumed)
    guess = guess_labels(ids({0: 5, 1: 5, 2: 5, 255: 5}), None)
    assert meaning(guess)[255] is None


def test_the_highest_level_of_16_bit_is_a_class_among_others():
    assert set(meaning(guess_labels(ids({0: 9, 32768: 9, 65535: 9}), None))) == {0, 32768, 65535}
    assert meaning(guess_labels(ids({0: 9, 24: 9, 65535: 9}), None))[65535] is None


def test_one_value_is_no_set_of_classes():
    with pytest.raises(UserError, match="fewer than two classes"):
        guess_labels(ids({0: 5}), None)


# --------------------------------------------------------------------------------------- of colours


def test_few_colours_are_all_classes_however_near_and_rare():
    counts = {0x000046: 50_000, 0x00005A: 1, 0x804080: 50_000}
    guess = guess_labels(colors(counts), None)
    assert meaning(guess) == {value: f"color_{value:06X}" for value in counts}
    assert not {"tolerance", "unknown"} & guess.labels.keys()


def test_a_colour_that_a_list_lacks():
    table = listed("truck", "road", colors=((0, 0, 70), (128, 64, 128)))
    with pytest.raises(UserError, match=r"no class with the colour #00005A \(0, 0, 90\).* 30\.00%"):
        guess_labels(colors({0x000046: 40, 0x804080: 30, 0x00005A: 30}), table)
    guess = guess_labels(colors({0x000046: 40, 0x804080: 30, 0x000000: 30}), table)
    assert meaning(guess) == {0x000046: "truck", 0x804080: "road", 0: None}
    assert any("black, 30.00%" in line for line in guess.assumed)


def test_few_strange_pixels_are_no_neighbour_s():
    table = listed("truck", "road", colors=((0, 0, 70), (128, 64, 128)))
    guess = guess_labels(colors({0x000046: 50_000, 0x804080: 50_000, 0x00005A: 1}), table)
    assert guess.labels["unknown"] == "ignore"
    assert "tolerance" not in guess.labels


@pytest.mark.parametrize("with_list", [False, True])
def test_damage_is_the_neighbour_s_if_it_is_near(with_list):
    counts = {0x000000: 500_000, 0xC80000: 500_000}
    near = {(200 + i) << 16 | j << 8 | k: 1 for i in range(9) for j in range(9) for k in range(9)}
    far = {0x00FF00: 2, 0x00FFFF: 1}
    table = listed("background", "car", colors=((0, 0, 0), (200, 0, 0))) if with_list else None
    guess = guess_labels(colors({**near, **far, **counts}), table)
    assert guess.labels["tolerance"] == 8
    assert guess.labels["unknown"] == "ignore"
    assert guess.labels["colors"] == [[0, 0, 0], [200, 0, 0]]
    only_far = {0x00FF00 + i: 1 for i in range(255)}
    guess = guess_labels(colors({**only_far, **counts}), table)
    assert "tolerance" not in guess.labels
    assert guess.labels["unknown"] == "ignore"


def test_grey_colours_are_ids():
    guess = guess_labels(colors({0: 50, 0x010101: 30, 0x020202: 1}), listed("a", "b", "c"))
    assert meaning(guess) == {0: "a", 0x010101: "b", 0x020202: "c"}
    guess = guess_labels(colors({0: 50, 0xFFFFFF: 30}), None)
    assert meaning(guess) == {0: "background", 0xFFFFFF: "thing"}


def test_smoothed_black_and_white_is_a_mistake():
    counts = {level * 0x010101: 1 for level in range(256)}
    with pytest.raises(UserError, match="smooth resizing"):
        guess_labels(colors({**counts, 0: 5000, 0xFFFFFF: 5000}), None)


def test_a_slip_does_not_cost_the_list_of_classes():
    values = MaskValues("ids", Counter({0: 90_000, 1: 5_000, 2: 5_000, 77: 1}), None, 12)
    guess = guess_labels(values, listed("background", "box", "disc"))
    assert guess.labels["names"] == ["background", "box", "disc"]
    ignored = {77: None, 255: None}
    assert meaning(guess) == {0: "background", 1: "box", 2: "disc", **ignored}
    assert any("77, 1 pixels in all" in line and "slip" in line for line in guess.assumed)
    many = MaskValues("ids", Counter({0: 90_000, 1: 5_000, 2: 5_000, 77: 500}), None, 12)
    assert len(guess_labels(many, listed("background", "box", "disc")).labels["names"]) == 4


@pytest.mark.parametrize(
    ("counts", "doubt"),
    [
        ({0: 999_995, 1: 5}, "100.00% of the pixels are background"),
        ({0: 100, 1: 100, 2: 100, 255: 900}, "75% of the pixels are ignored"),
        ({0: 9_000, 1: 1_000, 2: 2, 3: 2, 4: 2, 5: 2}, "4 of 6 classes have less than 0.1%"),
        ({0: 900, 255: 100}, None),
        ({0: 500, 1: 300, 2: 200}, None),
    ],
)
def test_implausible_shares_are_doubts(counts, doubt):
    guess = guess_labels(MaskValues("ids", Counter(counts), None, 9), None)
    assert [doubt in line for line in guess.doubts] == ([True] if doubt else [])


def test_no_class_below_the_lowest_value():
    values = MaskValues("ids", Counter({1: 500, 2: 300, 3: 200}), None, 9)
    guess = guess_labels(values, None)
    assert guess.labels["names"] == ["class_1", "class_2", "class_3"]
    assert meaning(guess) == {1: "class_1", 2: "class_2", 3: "class_3", 255: None}
