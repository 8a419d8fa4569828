import numpy as np
import pytest
import torch
import torch.nn.functional as F

from finetune.losses import LOSSES

LABELS = torch.from_numpy(np.random.default_rng(0).integers(0, 6, (3, 20, 24)))
LABELS[LABELS == 5] = 255  # ignored
LABELS[0] = 255  # an image without pixels that count


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64])
@pytest.mark.parametrize("class_weights", [None, [1.0, 0.0, 2.5, 0.25, 7.0]])
def test_the_weight_is_what_torch_divides_by(class_weights, dtype):
    loss = LOSSES["cross_entropy"](5, 255, class_weights=class_weights)
    counted = LABELS[LABELS != 255].tolist()
    by_hand = sum(1.0 if class_weights is None else class_weights[label] for label in counted)
    weight = loss.weight(LABELS.to(dtype))
    assert weight.dtype == torch.float64
    assert weight.item() == pytest.approx(by_hand, rel=1e-12)
    assert loss.weight(torch.full((1, 4, 4), 255, dtype=dtype)).item() == 0


def test_labels_that_are_no_class_weigh_nothing():
    loss = LOSSES["cross_entropy"](5, 255, class_weights=[2.0] * 5)
    labels = torch.tensor([[[0, 4, 5, 17, -3, 255]]])
    assert loss.weight(labels).item() == 4


@pytest.mark.parametrize("options", [{}, {"label_smoothing": 0.2}])
@pytest.mark.parametrize("class_weights", [None, [1.0, 0.5, 2.5, 0.25, 7.0]])
def test_the_sum_over_the_weight_is_torch_s_mean(class_weights, options):
    torch.manual_seed(0)
    logits = torch.randn(3, 5, 5, 6, dtype=torch.float64, requires_grad=True)
    loss = LOSSES["cross_entropy"](5, 255, class_weights=class_weights, **options)
    mean = loss.sums(logits, LABELS).loss / loss.weight(LABELS)
    (gradient,) = torch.autograd.grad(mean, logits)
    upsampled = F.interpolate(logits, (20, 24), mode="bilinear", align_corners=False)
    weight = None if class_weights is None else torch.tensor(class_weights, dtype=torch.float64)
    expected = F.cross_entropy(upsampled, LABELS, weight, ignore_index=255, **options)
    (wanted,) = torch.autograd.grad(expected, logits)
    assert mean.item() == pytest.approx(expected.item(), rel=1e-6)
    assert torch.allclose(gradient, wanted, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize(
    ("axis", "step", "size"), [(0, 1, (5, 6)), (1, 7, (20, 24))], ids=["images", "rows"]
)
@pytest.mark.parametrize("name", LOSSES)
def test_sums_of_parts_add_up_to_that_of_the_whole(name, axis, step, size):
    """Micro-batches and processes cut between images, evaluations between rows too."""
    torch.manual_seed(0)
    logits = torch.randn(3, 5, *size, dtype=torch.float64)
    loss = LOSSES[name](5, 255)
    whole = loss.sums(logits, LABELS)
    cut = zip(logits.split(step, 2 * axis), LABELS.split(step, axis), strict=True)
    parts = [loss.sums(*part) for part in cut]
    for key in ("loss", "weight", "stray"):
        added = sum(float(getattr(part, key)) for part in parts)
        assert added == pytest.approx(float(getattr(whole, key)), rel=1e-9), key
    assert float(whole.weight) == loss.weight(LABELS).item()
