"""What is wrong with a recipe is said with its key and a remedy."""

import re

import pytest

from finetune.errors import UserError
from finetune.recipe import load_recipe


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["train.stepz=3"], "train.stepz: unknown key; did you mean train.steps?"),
        (["trian.steps=3"], "trian: unknown key; did you mean train?"),
        (["steps=3"], "steps: unknown key; did you mean train.steps?"),
        (["nothing=5"], "nothing: unknown key$"),
        (["train.seed=1"], "train.seed: unknown key; did you mean seed?"),
        (["train.steps=abc"], r"train.steps: must be an integer \(got abc\)"),
        (["train.steps=yes"], "train.steps: must be a number, not true or false"),
        (["augment.scale=[true,2]"], "augment.scale: must be a number, not true or false"),
        (["labels.map={no: 1}"], "labels.map: must be a number, .* put text in quotes"),
        (
            ["train.steps=99999999999999999999999"],
            "train.steps: .*less than or equal to 1000000000",
        ),
        (["train="], r"train: must be a section of `key: value` \(got null\)"),
        (["output="], r"output: must be text \(got null\)"),
        (["augment.crop=64"], r"augment.crop: must be a list, such as \[1, 2\] \(got 64\)"),
        (["augment.crop=[64,64,64]"], "augment.crop: must have 2 values at most"),
        (["augment.photometric=[no]"], r"photometric: must be true or false \(got \[false\]\)"),
        (["train.steps=0"], "train.steps: .*greater than or equal to 1"),
        (["train.lr=.nan"], "train.lr: .*finite"),
        (["model.variant=b6"], "model.variant: .*'b5'.*got b6"),
        (["model.num_attention_heads=[1,2,3,8]"], r"num_attention_heads\[2\]: 3 heads .*160"),
        (["model.depths=[1,1]"], "model: .*4 stages"),
        (["augment.crop=[28,64]"], "augment.crop: .*28.*29 pixels"),
        (["augment.scale=[2,1]"], r"augment.scale: .*smallest, largest"),
        (["train.global_batch=6", "train.micro_batch=4"], "train.global_batch: 6 .*micro_batch=4"),
        (
            ["data.images=x"],
            "data.images: read by source coco / coco-panoptic / cvat / folder / kaggle-rle / "
            "label-studio / labelme / supervisely / via, ",
        ),
        (["data.source=folder"], "data.path: missing"),
        (["data.cache=yes"], "data.cache: .*'auto', 'disk' or 'none'"),
        (["labels.names=[a]"], "labels.names: .*background"),
        (["labels.names=[a,b]", "labels.colors=null"], "preset: shapes"),
        (["evaluation.stride=[8,8]"], "evaluation.stride: needs evaluation.window"),
        (["evaluation.size_divisor=32"], "size_divisor: needs evaluation.shortest_edge"),
        (["evaluation.window=[16,16]"], "evaluation.window: .*29 pixels"),
        (["model.num_channels=4"], "model.num_channels: 4.*RGB"),
        (["loss.class_weights={disk: 2}"], "'disk' is no class of labels.names; did you mean disc"),
        (["loss.class_weights={disc: -1}"], "loss.class_weights.disc: .*greater than or equal to"),
        (["loss.label_smoothing=1"], "loss.label_smoothing: .*less than 1"),
        (["train.steps"], "'train.steps' is not an override"),
        (["--recipe=x"], "is not an override"),
        (["train.steps=[1"], r"train.steps=\[1: not valid YAML: line 1, column 3: exp"),
        (["train=3"], "train: "),
        (["train.=3"], "'train.=3' is not an override"),
        (["base=camvid"], "base: only a recipe's file names its base"),
        (["data.workers=999"], "data.workers: .*less than or equal to 256"),
        (
            ["labels.ignore=[1.5]"],
            r"shapes\.yaml: labels\.ignore\.0: must be a whole number or text \(got 1\.5\)$",
        ),
        (["labels.map={a: [1]}"], r"shapes\.yaml: labels\.map\.a: must be .* \(got \[1\]\)$"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_mistakes_name_the_key_and_the_remedy(overrides, expected):
    with pytest.raises(UserError, match=expected):
        load_recipe("shapes", overrides)


def test_mean_and_deviation_have_one_number_a_channel(tmp_path):
    path = tmp_path / "bands.yaml"
    path.write_text("data: {path: x}\nlabels: {names: [a, b]}\n", encoding="utf-8")
    channels = "model.num_channels=2"
    with pytest.raises(UserError) as caught:
        load_recipe(path, [channels])
    for key, values in (("image_mean", "[0.5, 0.5]"), ("image_std", "[0.25, 0.25]")):
        expected = rf"data.{key}: must have one number a channel, {channels} in all, not 3. Write"
        assert re.search(expected, str(caught.value))
        assert f"data.{key}={values}" in str(caught.value)
    given = [channels, "data.image_mean=[0.1, 0]", "data.image_std=[0.2, 0.3]"]
    assert load_recipe(path, given).model.num_channels == 2
    with pytest.raises(UserError, match=r"image_mean: \[0.5, 1200.0\] are not in 0..1; divide by"):
        load_recipe(path, [*given, "data.image_mean=[0.5, 1200]"])
    with pytest.raises(UserError, match=r"model.num_channels: .*less than or equal to 128"):
        load_recipe(path, ["model.num_channels=129"])


def test_all_mistakes_at_once():
    with pytest.raises(UserError) as caught:
        load_recipe("shapes", ["augment.scale=[2,1]", "evaluation.stride=[8,8]", "seed=x"])
    lines = str(caught.value).splitlines()
    assert [line.split(":")[0].strip() for line in lines[1:]] == [
        "seed",
        "augment.scale",
        "evaluation.stride",
    ]
    with pytest.raises(UserError) as caught:  # and of those between sections
        load_recipe("shapes", ["augment.crop=[8,8]", "model.num_channels=4"])
    assert "augment.crop" in str(caught.value)
    assert "model.num_channels" in str(caught.value)
