"""`finetune show --keys`: every key, once, and somebody reads it."""

from pathlib import Path

import finetune
from finetune.recipe import describe_keys
from finetune.recipe.data import READ_BY, SOURCES


def test_every_key_is_described_and_read():
    rows = describe_keys()
    assert len(rows) > 50
    source = "\n".join(path.read_text() for path in Path(finetune.__file__).parent.rglob("*.py"))
    for key, kind, _, description in rows:
        assert description, key
        assert kind, key
        name = key.rpartition(".")[2]
        # The declaration is one mention; somebody must read it too (labels are passed on whole).
        assert source.count(name) > 1 or key.startswith("labels."), key


def test_keys_of_data_stand_once_and_say_who_reads_them():
    rows = {key: description for key, _, _, description in describe_keys()}
    assert len(rows) == len(describe_keys())
    assert {key for key in rows if key.startswith("data.")} == {f"data.{key}" for key in READ_BY}
    assert rows["data.masks"].startswith("folder, coco-panoptic, labelme: ")
    assert rows["data.overlap"].startswith(
        "coco, kaggle-rle, labelme, label-studio, supervisely, ultralytics, via: "
    )
    assert rows["data.split_list"].startswith("every source but shapes, hub: ")
    assert rows["data.train_split"] == "what to train on"
    types = {key: kind for key, kind, _, _ in describe_keys()}
    assert types["data.source"].split(" | ") == [*SOURCES]
