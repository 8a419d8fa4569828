"""A whole recipe: what a run folder keeps, and what makes two runs the same."""

import pytest
import yaml

from finetune.errors import UserError
from finetune.recipe import describe_keys, load_recipe, recipe_from_yaml
from finetune.recipe import recipe as recipe_module
from finetune.recipe.data import READ_BY


def test_the_resolved_recipe_is_whole_and_reads_back(tmp_path):
    recipe = load_recipe("ade20k", ["train.steps=100", "model.variant=b2"])
    saved = tmp_path / "recipe.yaml"
    saved.write_text(recipe.to_yaml(), encoding="utf-8")
    assert recipe_from_yaml(saved) == recipe
    values = yaml.safe_load(saved.read_text())
    keys = {key for key, *_ in describe_keys()}
    written = {
        f"{section}.{key}" if isinstance(value, dict) else section
        for section, value in values.items()
        for key in (value if isinstance(value, dict) else [section])
    }
    foreign = {f"data.{key}" for key, readers in READ_BY.items() if "ade20k" not in readers}
    assert len(foreign) > 10
    assert written == keys - foreign - {"loss"}
    assert len(values["labels"]["names"]) == 150, "nothing left to look up"


def test_what_a_resume_may_change():
    one = load_recipe("shapes")
    moved = load_recipe(
        "shapes", ["output=elsewhere", "data.workers=0", "data.cache=none", "train.log_every=5"]
    )
    assert one.hash() == moved.hash()
    assert one.differences(moved) == []
    other = load_recipe("shapes", ["train.lr=1e-4", "seed=1"])
    assert one.hash() != other.hash()
    assert one.differences(other) == ["seed: 0 -> 1", "train.lr: 0.002 -> 0.0001"]


def test_processes_must_share_the_batch():
    recipe = load_recipe("shapes", ["train.global_batch=12"])
    assert recipe.batch_split(1) == (12, 1)
    assert recipe.batch_split(3) == (4, 1)
    small = load_recipe("shapes", ["train.global_batch=12", "train.micro_batch=2"])
    assert small.batch_split(2) == (2, 3)
    with pytest.raises(UserError, match=r"global_batch=12 cannot be shared by 5 process"):
        recipe.batch_split(5)


def test_sections_that_a_task_does_not_use_are_refused(monkeypatch):
    used = recipe_module.USED_BY["segmentation"]
    assert load_recipe("shapes", ["augment.flip=0"]).augment.flip == 0
    monkeypatch.setitem(recipe_module.USED_BY, "segmentation", used - {"augment", "loss"})
    with pytest.raises(UserError) as caught:
        load_recipe("shapes", ["augment.flip=0"])
    assert "augment: the task segmentation does not use this section" in str(caught.value)
    assert "loss:" not in str(caught.value)  # at its default, as a resolved recipe has it
    assert used == set(recipe_module.SECTIONS)
