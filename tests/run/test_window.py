from pathlib import Path

import pytest
import torch

from finetune.errors import UserError
from finetune.run.window import Window, summed

CPU = torch.device("cpu")
ASKED = (3, Path("run/checkpoints"), "fp32")


def numbers(**values: float) -> dict[str, torch.Tensor]:
    return {name: torch.tensor(value) for name, value in values.items()}


def two_steps(window: Window) -> None:
    """The first of two micro-batches, the second of one; two terms of other weights."""
    window.add(numbers(ce=6.0, dice=1.0), {})
    window.add(numbers(ce=4.0, dice=0.5), numbers(ce=5.0, dice=2.0))
    window.add(numbers(ce=2.0, dice=0.5), numbers(ce=1.0, dice=2.0))


def test_each_term_is_its_mean_over_the_window():
    window = Window()
    two_steps(window)
    assert window.steps == 2
    assert window.gather(*ASKED) == pytest.approx(12 / 6 + 2 / 4)
    window.open(9.0)
    assert (window.steps, window.since, window.gather(*ASKED)) == (0, 9.0, 0.0)


def test_terms_meet_their_weights_in_any_order():
    window = Window()
    window.add(numbers(ce=6.0, dice=1.0), {})
    window.add(numbers(dice=0.5, ce=4.0), numbers(dice=2.0, ce=5.0))
    assert window.gather(*ASKED) == pytest.approx(10 / 5 + 1.5 / 2)


def test_a_saved_window_goes_on():
    window, other = Window(), Window()
    two_steps(window)
    window.gather(*ASKED)
    other.load_state_dict(window.state_dict(), CPU)
    for one in (window, other):
        one.add(numbers(ce=1.0, dice=1.0), numbers(ce=4.0, dice=1.0))
    assert other.steps == window.steps == 3
    assert other.gather(*ASKED) == window.gather(*ASKED) == pytest.approx(13 / 10 + 3 / 5)


def test_steps_in_which_nothing_counts_are_no_nan(capsys):
    window = Window()
    window.add(numbers(ce=0.0), numbers(ce=0.0))
    assert window.gather(*ASKED) == 0.0
    assert "no pixel of the last 1 steps has a label" in capsys.readouterr().err


@pytest.mark.parametrize("loss", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_is_the_user_s_to_mend(loss, tmp_path):
    window = Window()
    window.add(numbers(ce=loss), numbers(ce=2.0))
    with pytest.raises(UserError, match=r"near step 3\. Lower train\.lr or [^,]*\.$"):
        window.gather(*ASKED)
    (tmp_path / "step-00000002").mkdir()
    with pytest.raises(UserError, match=rf"another output\. The checkpoints in {tmp_path} were"):
        window.gather(3, tmp_path, "fp32")


def test_weights_are_summed_over_micro_batches():
    found = summed([numbers(ce=1.5, dice=2.0), numbers(ce=2.0, dice=0.0)])
    assert {name: value.item() for name, value in found.items()} == {"ce": 3.5, "dice": 2.0}
