"""The section `loss`: named terms, and the short form of cross entropy alone."""

import pytest
import yaml

from finetune.errors import UserError
from finetune.recipe import PLAIN_LOSS, load_recipe, recipe_from_yaml

FORM = r"write keys of .*focal_gamma: 2}, or .*loss=\[{cross_.*; the losses are cross_entropy"


def loaded(folder, text, *overrides):
    path = folder / "mine.yaml"
    path.write_text(f"base: shapes\nloss: {text}\n", encoding="utf-8")
    return load_recipe(path, overrides)


def test_cross_entropy_alone_is_the_default(tmp_path):
    assert load_recipe("shapes").loss == PLAIN_LOSS
    assert loaded(tmp_path, "[{cross_entropy: {}}]").loss == PLAIN_LOSS
    assert loaded(tmp_path, "\n  - cross_entropy:").loss == PLAIN_LOSS
    (term,) = PLAIN_LOSS
    assert (term.name, term.options.weight, term.options.class_weights) == ("cross_entropy", 1, {})


def test_both_forms_mean_the_same(tmp_path):
    short = loaded(tmp_path, "{class_weights: {disc: 2}, focal_gamma: 1}")
    long = loaded(tmp_path, "[{cross_entropy: {class_weights: {disc: 2}, focal_gamma: 1}}]")
    assert short.loss == long.loss
    assert short.hash() == long.hash()
    assert short.loss[0].options.class_weights == {"disc": 2}
    saved = tmp_path / "recipe.yaml"
    saved.write_text(long.to_yaml(), encoding="utf-8")
    assert recipe_from_yaml(saved) == long
    assert yaml.safe_load(long.to_yaml())["loss"]["focal_gamma"] == 1


def test_overrides(tmp_path):
    recipe = load_recipe("shapes", ["loss.focal_gamma=2", "loss.class_weights.disc=3"])
    assert recipe.loss[0].options.focal_gamma == 2
    assert recipe.loss[0].options.class_weights == {"disc": 3}
    assert load_recipe("shapes").differences(recipe) == [
        "loss.class_weights: {} -> {disc: 3.0}",
        "loss.focal_gamma: 0.0 -> 2.0",
    ]
    whole = loaded(tmp_path, "{focal_gamma: 1}", "loss=[{cross_entropy: {weight: 2}}]")
    assert (whole.loss[0].options.weight, whole.loss[0].options.focal_gamma) == (2, 0)
    with pytest.raises(UserError, match=r"loss.weight: loss is a list .*whole, loss=\["):
        loaded(tmp_path, "[{cross_entropy: {}}]", "loss.weight=2")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[{cross_entropi: {}}]", "loss.0: cross_entropi is no loss; did you mean cross_entropy?"),
        (
            "[{cross_entropy: {focal_gama: 1}}]",
            "focal_gama: .*mean loss.0.cross_entropy.focal_gamma",
        ),
        ("[{cross_entropy: {weight: 0}}]", "loss.0.cross_entropy.weight: .*greater than 0"),
        ("{weight: -1}", "loss.weight: .*greater than 0"),
        ("[{cross_entropy: {}}, {cross_entropy: {}}]", "loss: the term cross_entropy occurs twice"),
        ("[{}]", f"loss.0: is not one name with its keys; {FORM}"),
        ("[cross_entropy]", f"loss.0: is not one name with its keys; {FORM}"),
        ("[{dice: {}}]", f"loss.0: dice is no loss; {FORM}"),
        ("[{cross_entropy: 5}]", f"loss.0.cross_entropy: must hold keys; {FORM}"),
        ("[]", f"loss: {FORM}"),
        ("foo", f"loss: {FORM}"),
        ("{dice: {}}", f"loss.dice: unknown key; {FORM}"),
        ("{cross_entropy: {focal_gamma: 2}}", f"loss.cross_entropy: unknown key; {FORM}"),
        ("{focal_gamma: -1}", "loss.focal_gamma: .*greater than or equal to 0"),
        (
            "{class_weights: {disk: 1}}",
            "loss.class_weights: 'disk' is no class .*; did you mean disc",
        ),
        ("[{cross_entropy: {class_weights: {disk: 1}}}]", "loss.class_weights: 'disk' is no class"),
        (
            "{class_weights: {background: 0, disc: 0, square: 0, triangle: 0, star: 0, ring: 0}}",
            "loss.class_weights: all weights are 0",
        ),
    ],
)
def test_mistakes(tmp_path, text, expected):
    with pytest.raises(UserError, match=expected) as caught:
        loaded(tmp_path, text)
    assert "\n" not in str(caught.value), "one message"
