"""Lists of classes: what is read of each form, and what is refused."""

import json

import pytest

from finetune.discover.class_lists import ClassList, find_class_list, is_background
from finetune.errors import UserError

RGB = ((0, 0, 0), (255, 0, 0))


@pytest.mark.parametrize(
    ("name", "text", "names", "values", "colors"),
    [
        ("class_dict.csv", "name,r,g,b\nbg,0,0,0\ncar,255,0,0\n", ("bg", "car"), None, RGB),
        ("_classes.csv", "Pixel Value, Class\n0, bg\n4, car\n", ("bg", "car"), (0, 4), None),
        ("labelmap.txt", "# label\nbg:0,0,0::\ncar:255,0,0::\n", ("bg", "car"), None, RGB),
        ("label_colors.txt", "0 0 0 bg\n255 0 0\tcar\n", ("bg", "car"), None, RGB),
        ("id2label.json", json.dumps({"7": "car", "0": "bg"}), ("bg", "car"), (0, 7), None),
        ("my_id2label.json", json.dumps(["bg", "car"]), ("bg", "car"), None, None),
        ("classes.txt", "bg\n\ncar\n", ("bg", "car"), None, None),
        ("classes.txt", "# the classes\nbg\ncar\n", ("bg", "car"), None, None),
        ("labels.txt", "0: bg\n3: car\n", ("bg", "car"), (0, 3), None),
        ("obj.names", "bg\ncar", ("bg", "car"), None, None),
    ],
)
def test_forms(tmp_path, name, text, names, values, colors):
    (tmp_path / name).write_text(text)
    assert find_class_list([tmp_path]) == ClassList(tmp_path / name, names, values, colors)


def test_labelme_s_first_name_is_no_class(tmp_path):
    (tmp_path / "labels.txt").write_text("__ignore__\n_background_\ncar\n")
    found = find_class_list([tmp_path])
    assert found.names == ("_background_", "car")
    assert found.dropped == ("__ignore__",)
    assert is_background("_background_")
    assert not is_background("car")


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("class_dict.csv", "name,r,g,b\nbg,0,0\ncar,1,1,1\n", "'bg,0,0' is not"),
        ("_classes.csv", "Pixel Value, Class\n0\n1, car\n", "'0' is not"),
        ("class_dict.csv", "name,r,g,b\nbg,0,0,0\ncar,256,1,1\n", "is not a colour"),
        ("class_dict.csv", "name,r,g,b\nbg,0,0,0\ncar,0,0,0\n", "'bg' and 'car' have one colour"),
        ("classes.txt", "1 car\n2 road\n2 street\n", "'road' and 'street' have one value"),
        ("id2label.json", json.dumps({"0": "bg", "1": "car", "2": "car"}), "'car' is listed twice"),
    ],
)
def test_lists_that_contradict_themselves_are_named(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=message) as caught:
        find_class_list([tmp_path])
    assert str(tmp_path / name) in str(caught.value)


@pytest.mark.parametrize("text", ["", "[" * 100_000, "\0", '{"a": {"b": 1}}', "name\n"])
def test_other_files_of_these_names_are_passed_over(tmp_path, text):
    for name in ("class_dict.csv", "labelmap.txt", "id2label.json", "label_colors.txt"):
        (tmp_path / name).write_text(text)
    (tmp_path / "classes.txt").write_text("bg\ncar\n")
    assert find_class_list([tmp_path]).file.name == "classes.txt"
