"""The inference protocol: one class with one set of rules, in recipes and in config.json."""

import pytest
from pydantic import ValidationError

from finetune.errors import UserError
from finetune.inference import InferenceProtocol
from finetune.recipe import load_recipe

WRONG = [
    ({"fixed_size": [64, 64], "shortest_edge": 64}, "fixed_size: does not go with {}shortest_edge"),
    ({"longest_edge": 64}, "longest_edge: needs {}shortest_edge"),
    ({"size_divisor": 32}, "size_divisor: needs {}shortest_edge"),
    ({"stride": [8, 8]}, "stride: needs {}window"),
    ({"window": [64, 64], "stride": [80, 64]}, "stride: is larger than {}window"),
    ({"scales": [17]}, "scales.0: input should be less than or equal to 16"),
    ({"shortest_edge": 0}, "shortest_edge: input should be greater than or equal to 1"),
]


@pytest.mark.parametrize(("values", "message"), WRONG)
def test_recipes_and_model_folders_have_the_same_rules(values, message):
    with pytest.raises(UserError, match=f"^{message.format('')}"):
        InferenceProtocol.read(values)
    with pytest.raises(UserError, match=f"evaluation.{message.format('evaluation.')}"):
        load_recipe("shapes", {f"evaluation.{key}": value for key, value in values.items()})
    with pytest.raises(ValidationError):
        InferenceProtocol(**values)


def test_unknown_keys_are_named():
    with pytest.raises(UserError, match="zoom: unknown key; turn: unknown key"):
        InferenceProtocol.read({"zoom": 1, "turn": 2, "flip": True})
    with pytest.raises(UserError, match=r"must be a section.*\[1\]"):
        InferenceProtocol.read([1])


def test_one_message_for_one_wrong_scale():
    with pytest.raises(UserError) as caught:
        load_recipe("shapes", ["evaluation.scales=[0]"])
    assert str(caught.value).endswith("evaluation.scales.0: input should be greater than 0 (got 0)")


def test_a_window_without_a_stride_has_three_quarters():
    assert InferenceProtocol(window=(64, 41)).stride == (48, 30)
    recipe = load_recipe("shapes", ["evaluation.window=[64, 41]", "evaluation.stride=null"])
    assert recipe.evaluation.stride == (48, 30)
    assert InferenceProtocol().stride is None


def test_the_protocol_of_a_section_is_what_a_model_folder_keeps():
    recipe = load_recipe("shapes", ["evaluation.shortest_edge=64", "evaluation.batch_size=4"])
    protocol = recipe.evaluation.protocol
    assert protocol == InferenceProtocol(shortest_edge=64)
    assert InferenceProtocol.read(protocol.model_dump(mode="json")) == protocol
    assert recipe.evaluation.describe() == protocol.describe()


def test_another_protocol():
    old = InferenceProtocol(shortest_edge=64, longest_edge=80, window=(64, 64), stride=(8, 8))
    assert old.replaced(window=(32, 32)).stride == (24, 24)
    assert old.replaced(window=None).stride is None
    assert old.replaced(fixed_size=(50, 60), window=None) == InferenceProtocol(fixed_size=(50, 60))
    assert old.replaced(flip=True).longest_edge == 80
    with pytest.raises(UserError, match="zoom: unknown key"):
        old.replaced(zoom=2)
