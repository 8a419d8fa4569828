"""Lists of classes: what is read of each form, and what is refused."""

import json

import pytest

from finetune.discover.values.class_lists import ClassList, find_class_list, is_background
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
        ("class_dict.csv", "name;r;g;b\nbg;0;0;0\ncar;255;0;0\n", ("bg", "car"), None, RGB),
        ("class_dict.csv", ",name,r,g,b\n0,bg,0,0,0\n1,car,255,0,0\n", ("bg", "car"), (0, 1), RGB),
        ("class_dict.csv", ",name,r,g,b\n1,bg,0,0,0\n2,car,255,0,0\n", ("bg", "car"), None, RGB),
        ("class_dict.csv", "id\tlabel\n4\tbg\n5\tcar\n", ("bg", "car"), (4, 5), None),
        ("class_dict.csv", "bg,0,0,0\ncar,255,0,0\n", ("bg", "car"), None, RGB),
        (
            *("class_mapping.csv", "class_name,class_color\nbg,0 0 0\ncar,255 0 0\n"),
            *(("bg", "car"), None, RGB),
        ),
        ("class_mapping.csv", "class_name,class_color\nbg,0\ncar,9\n", ("bg", "car"), (0, 9), None),
        ("classes.csv", "name,color\nbg,#000000\ncar,#ff0000\n", ("bg", "car"), None, RGB),
        (
            *(
                "labelmap.txt",
                "# label:color_rgb:parts:actions\nbg:0,0,0::\ncar: old:255,0,0:a:b\n",
            ),
            *(("bg", "car: old"), None, RGB),
        ),
        ("labels.txt", "0;bg\n3;car\n", ("bg", "car"), (0, 3), None),
        ("labels.txt", "id\tname\n0\tbg\n3\tcar\n", ("bg", "car"), (0, 3), None),
        ("labels.txt", "bg;\ncar;\n", ("bg", "car"), None, None),
        ("labels.txt", "bg: 0\ncar: 3\n", ("bg", "car"), (0, 3), None),
        ("labels.txt", "bg 0 0 0\ncar 255 0 0\n", ("bg", "car"), None, RGB),
        ("labels.txt", "0 bg 0 0 0\n3 car 255 0 0\n", ("bg", "car"), (0, 3), RGB),
        ("labels.txt", "0 0 0 0 bg\n3 255 0 0 car\n", ("bg", "car"), (0, 3), RGB),
        ("labels.txt", "bg\ncar: old\n", ("bg", "car: old"), None, None),
        ("labels.txt", "lane 1\nlane 2\n", ("lane 1", "lane 2"), None, None),
        ("classes.json", json.dumps({"bg": 0, "car": 3}), ("bg", "car"), (0, 3), None),
        ("classes.json", json.dumps({"classes": ["bg", "car"]}), ("bg", "car"), None, None),
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
def test_other_files_of_these_names_are_said(tmp_path, text):
    for name in ("class_dict.csv", "labelmap.txt", "id2label.json", "label_colors.txt"):
        (tmp_path / name).write_text(text)
    (tmp_path / "classes.txt").write_text("bg\ncar\n")
    found = find_class_list([tmp_path])
    assert found.file.name == "classes.txt"
    assert len(found.unread) == (4 if text else 0)


def test_colours_of_ids(tmp_path):
    (tmp_path / "class_dict.csv").write_text("name,r,g,b\nbg,0,0,0\ncar,255,255,255\n")
    found = find_class_list([tmp_path])
    assert found.of_ids({0}, None).values == (0, 255)
    assert found.of_ids({0, 1}, [(255, 255, 255), (0, 0, 0)]).values == (1, 0)
    assert found.of_ids({0, 7, 250}, None).values == (0, 255)
    (tmp_path / "class_dict.csv").write_text(",name,r,g,b\n0,bg,9,9,0\n1,car,9,0,0\n")
    found = find_class_list([tmp_path]).of_ids({0, 1}, None)
    assert (found.values, found.colors) == ((0, 1), None)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-be", "latin-1"])
def test_encodings(tmp_path, encoding):
    (tmp_path / "classes.txt").write_bytes("Stra\xdfe\r\nKiste\r\n".encode(encoding))
    assert find_class_list([tmp_path]).names == ("Stra\xdfe", "Kiste")


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("classes.txt", "for\xeat\nmer\n", "is not UTF-8"),
        ("classes.txt", "bg;car;road\n", "may hold more than a name"),
        ("classes.txt", "bg,car,road\n", "may hold more than a name"),
        ("classes.txt", "0: bg\ncar\n", "'0: bg' may hold more"),
        ("classes.txt", "bg\nhome;Haus;x\n", "'home;Haus;x' may hold more"),
        ("classes.txt", "car 9 8 7 255\nbg 1 2 3 255\n", "more numbers than a colour"),
        ("classes.txt", "car\ncar\nroad\n", "lists 'car' twice"),
        ("labelmap.txt", "bg:0,0,0::\ncar\n", "'car' is not `name:r,g,b::`"),
        (
            "class_mapping.csv",
            "class_name,class_color\nbg,0 0 0\ncar,red\n",
            "no.*known form|not a",
        ),
        ("id2label.json", "{", "not a list of classes"),
        ("id2label.json", '{"a": {"b": 1}}', "not a list of classes"),
    ],
)
def test_lists_that_cannot_be_read_are_named(tmp_path, name, text, message):
    (tmp_path / name).write_bytes(text.encode("latin-1"))
    with pytest.raises(UserError, match=message) as caught:
        find_class_list([tmp_path])
    assert str(tmp_path / name) in str(caught.value)
