"""The fused pieces against the plain modules and functions that they stand for."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from finetune.segformer import bands, cpu, operators
from finetune.segformer.bands import LossOptions, cross_entropy_in_bands
from finetune.segformer.cpu import classify_in_bands
from finetune.segformer.functional import (
    classify,
    fold_batch_norm,
    fold_projections,
    linear,
    mix_ffn,
    project_and_add,
    reduce_sequence,
    upsampled_argmax,
    upsampled_cross_entropy,
)

IGNORE = 255
LAYOUTS = pytest.mark.parametrize("many", [1, 1000], ids=["classes last", "pixels last"])
BANDS = pytest.mark.parametrize("band", [1, 1000, 1 << 19], ids=["rows", "some rows", "one band"])
DTYPES = [torch.float32, torch.float64]


def tolerance(dtype: torch.dtype) -> float:
    return {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 2e-2}[dtype]


def assert_close(actual: torch.Tensor, expected: torch.Tensor, factor: float = 1.0) -> None:
    """Equal up to a share of the largest element, which the summation order may move."""
    assert actual.shape == expected.shape
    assert actual.dtype == expected.dtype
    limit = factor * tolerance(expected.dtype) * expected.abs().max()
    assert (actual - expected).abs().max() <= limit


def upsample(logits: torch.Tensor, size) -> torch.Tensor:
    return F.interpolate(logits, size=size, mode="bilinear", align_corners=False)


# ------------------------------------------------------------------------------------- the layers


@pytest.mark.parametrize("dtype", [*DTYPES, torch.bfloat16])
@pytest.mark.parametrize("bias", [True, False])
def test_linear(dtype, bias):
    torch.manual_seed(0)
    x = torch.randn(2, 5, 7, 24, dtype=dtype, requires_grad=True)
    layer = nn.Linear(24, 9, bias=bias, dtype=dtype)
    inputs = [x, *layer.parameters()]
    results = []
    for function in (linear, F.linear):
        y = function(x, layer.weight, layer.bias)
        assert y.shape == (2, 5, 7, 9)
        results.append([y, *torch.autograd.grad(y.square().sum(), inputs)])
    for actual, expected in zip(*results, strict=True):
        assert_close(actual, expected)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("ratio", "height", "width"), [(8, 16, 24), (8, 15, 23), (4, 9, 4), (2, 5, 3)]
)
def test_reduce_sequence(dtype, ratio, height, width):
    torch.manual_seed(0)
    conv = nn.Conv2d(6, 10, ratio, stride=ratio, dtype=dtype)
    x = torch.randn(2, height, width, 6, dtype=dtype, requires_grad=True)
    results = []
    for function in (
        lambda: reduce_sequence(x, conv.weight, conv.bias),
        lambda: conv(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1),
    ):
        y = function()
        assert y.shape == (2, height // ratio, width // ratio, 10)
        results.append([y, *torch.autograd.grad(y.square().sum(), [x, *conv.parameters()])])
    for actual, expected in zip(*results, strict=True):
        assert_close(actual, expected)


# --------------------------------------------------------------------------------------- the head


class PlainHead(nn.Module):
    """The head in the paper's order, from PyTorch's modules only. Maps are (B, C_i, H_i, W_i)."""

    def __init__(self, channels, width, num_labels):
        super().__init__()
        self.projections = nn.ModuleList(nn.Linear(c, width) for c in channels)
        self.fuse = nn.Conv2d(len(channels) * width, width, 1, bias=False)
        self.norm = nn.BatchNorm2d(width)
        self.classifier = nn.Conv2d(width, num_labels, 1)
        with torch.no_grad():
            for tensor in (self.norm.weight, self.norm.bias, self.norm.running_mean):
                tensor.uniform_(-1, 1)
            self.norm.running_var.uniform_(0.5, 2)

    def fused(self, maps):
        size = maps[0].shape[2:]
        projected = [
            upsample(projection(x.movedim(1, -1)).movedim(-1, 1), size)
            for projection, x in zip(self.projections, maps, strict=True)
        ]
        return self.fuse(torch.cat(projected[::-1], dim=1))

    def forward(self, maps):
        return self.classifier(self.norm(self.fused(maps)).relu())

    def folded(self):
        return fold_projections(
            self.fuse.weight.flatten(1),
            [projection.weight for projection in self.projections],
            [projection.bias for projection in self.projections],
        )


def head_and_maps(dtype, height=13, width=11, batch=2):
    torch.manual_seed(0)
    head = PlainHead([6, 10, 14], width=12, num_labels=7).to(dtype)
    sizes = [(height, width), ((height + 1) // 2, (width + 1) // 2), (3, 3)]
    maps = [torch.randn(batch, c, *s, dtype=dtype) for c, s in zip([6, 10, 14], sizes, strict=True)]
    return head, maps


def channels_last(maps):
    return [x.permute(0, 2, 3, 1).contiguous() for x in maps]


@pytest.mark.parametrize("dtype", DTYPES)
def test_folded_projections_equal_project_upsample_concatenate_fuse(dtype):
    head, maps = head_and_maps(dtype)
    parameters = [head.fuse.weight, *head.projections.parameters()]
    results = []
    for fold in (True, False):
        if fold:
            matrices, bias = head.folded()
            y = project_and_add(channels_last(maps), matrices, bias)
        else:
            y = head.fused(maps)
        results.append([y, *torch.autograd.grad(y.square().sum(), parameters)])
    for actual, expected in zip(*results, strict=True):
        assert_close(actual, expected)


def test_folded_projections_are_formed_in_float32():
    head, _ = head_and_maps(torch.float32)
    expected, expected_bias = head.bfloat16().float().folded()
    matrices, bias = head.bfloat16().folded()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        under_autocast, _ = head.folded()
    for product in (matrices, under_autocast):
        assert all(m.dtype == torch.float32 for m in product)
        assert all(torch.equal(m, e) for m, e in zip(product, expected, strict=True))
    assert torch.equal(bias, expected_bias)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("affine", [True, False])
def test_folded_batch_norm(dtype, affine):
    head, maps = head_and_maps(dtype)
    if not affine:
        statistics = head.norm.state_dict()
        head.norm = nn.BatchNorm2d(12, affine=False, dtype=dtype)
        head.norm.load_state_dict(statistics, strict=False)
    head.eval()
    with torch.no_grad():
        matrices, bias = fold_batch_norm(head.norm, *head.folded())
        y = F.linear(channels_last(maps)[0], matrices[0], bias).permute(0, 3, 1, 2)
        others = [torch.zeros_like(x) for x in maps[1:]]
        expected = head.norm(head.fused([maps[0], *others]))
    assert_close(y, expected)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("band", [1, 1000, 1 << 19], ids=["single rows", "some rows", "one band"])
@pytest.mark.parametrize("size", [(16, 8), (13, 11), (1, 5), (3, 3)], ids=str)
def test_classify_in_bands(size, band, dtype, monkeypatch):
    monkeypatch.setattr(cpu, "BAND_ELEMENTS", band)
    head, maps = head_and_maps(dtype, *size)
    head.eval()
    with torch.no_grad():
        matrices, bias = fold_batch_norm(head.norm, *head.folded())
        logits = classify_in_bands(
            channels_last(maps),
            matrices,
            bias,
            head.classifier.weight.flatten(1),
            head.classifier.bias,
        )
        assert_close(logits, head(maps))


@pytest.mark.parametrize("dtype", DTYPES)
def test_mix_ffn(dtype):
    torch.manual_seed(0)
    x = torch.randn(2, 5, 7, 6, dtype=dtype, requires_grad=True)
    dense1, dense2 = nn.Linear(6, 24).to(dtype), nn.Linear(24, 9).to(dtype)
    conv = nn.Conv2d(24, 24, 3, padding=1, groups=24).to(dtype)
    modules = (dense1, conv, dense2)
    inputs = [x, *(p for module in modules for p in module.parameters())]

    plain = conv(dense1(x).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
    plain = dense2(F.gelu(plain))
    fused = mix_ffn(x, *((module.weight, module.bias) for module in modules))
    for actual, expected in zip(
        [fused, *torch.autograd.grad(fused.square().sum(), inputs)],
        [plain, *torch.autograd.grad(plain.square().sum(), inputs)],
        strict=True,
    ):
        assert_close(actual, expected)


@pytest.mark.parametrize("dtype", DTYPES)
def test_classify_without_dropout(dtype):
    torch.manual_seed(0)
    x = torch.randn(2, 6, 5, 7, dtype=dtype).to(memory_format=torch.channels_last).requires_grad_()
    layer = nn.Conv2d(6, 9, 1).to(dtype)
    inputs = [x, layer.weight, layer.bias]
    plain = layer(x.relu())
    fused = classify(x.clone(), 0.0, layer.weight.flatten(1), layer.bias)
    for actual, expected in zip(
        [fused, *torch.autograd.grad(fused.square().sum(), inputs)],
        [plain, *torch.autograd.grad(plain.square().sum(), inputs)],
        strict=True,
    ):
        assert_close(actual, expected)


@pytest.mark.parametrize("probability", [0.1, 0.5])
def test_dropout_of_the_classifier(probability):
    """An identity as classifier shows which elements were dropped, and the scale of the rest."""
    torch.manual_seed(0)
    x = torch.rand(2, 64, 50, 50).add(0.5).to(memory_format=torch.channels_last).requires_grad_()
    identity = torch.eye(64)

    def dropped(x):
        return classify(x.clone(), probability, identity, torch.zeros(64))

    y = dropped(x)
    kept = y != 0
    share = kept.double().mean().item()
    deviation = (probability * (1 - probability) / x.numel()) ** 0.5
    assert abs(share - (1 - probability)) < 5 * deviation
    torch.testing.assert_close(y[kept], x[kept] / (1 - probability), rtol=1e-4, atol=0)
    (gradient,) = torch.autograd.grad(y.sum(), x)
    assert torch.equal(gradient != 0, kept)
    # Neighbours share a draw of the generator: their fates must not hang together.
    flat = kept.permute(0, 2, 3, 1).flatten().double()
    for lag in (1, 2, 3, 4, 64):
        correlation = torch.corrcoef(torch.stack([flat[:-lag], flat[lag:]]))[0, 1]
        assert correlation.abs() < 5 / x.numel() ** 0.5

    state = torch.get_rng_state()
    y = dropped(x)
    assert not torch.equal(dropped(x), y)
    torch.set_rng_state(state)
    assert torch.equal(dropped(x), y)


# --------------------------------------------------------------------------------------- the loss


def naive_loss(logits, labels, weight=None, label_smoothing=0.0, focal_gamma=0.0):
    """Pixel by pixel, from the formulas: the sum of the losses and the sum of the weights."""
    num_labels = logits.shape[1]
    log_p = upsample(logits, labels.shape[1:]).log_softmax(1)
    weight = torch.ones(num_labels, dtype=logits.dtype) if weight is None else weight
    total, normaliser = logits.sum() * 0, torch.zeros((), dtype=logits.dtype)
    for b, y, x in torch.cartesian_prod(*(torch.arange(n) for n in labels.shape)).tolist():
        label = int(labels[b, y, x])
        if label == IGNORE:
            continue
        pixel = log_p[b, :, y, x]
        loss = -(1 - label_smoothing) * weight[label] * pixel[label]
        loss = loss - label_smoothing / num_labels * (weight * pixel).sum()
        total = total + loss * (1 - pixel[label].exp()) ** focal_gamma
        normaliser = normaliser + weight[label]
    return total, normaliser


def logits_and_labels(dtype, small=(5, 4), full=(17, 13), num_labels=6, batch=2):
    torch.manual_seed(0)
    logits = (3 * torch.randn(batch, num_labels, *small)).to(dtype).requires_grad_()
    labels = torch.randint(0, num_labels, (batch, *full))
    labels[:, :2] = IGNORE
    labels[0, -1, -1] = IGNORE
    return logits, labels


def with_gradient(loss, logits):
    return loss, *torch.autograd.grad(loss, logits)


@LAYOUTS
@BANDS
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
@pytest.mark.parametrize(
    ("small", "full"),
    [((5, 4), (20, 16)), ((5, 4), (17, 13)), ((9, 7), (4, 5)), ((3, 3), (3, 3)), ((1, 1), (6, 5))],
)
def test_cross_entropy_equals_interpolate_and_cross_entropy(
    small, full, label_smoothing, weighted, dtype, band, many, monkeypatch
):
    monkeypatch.setattr(bands, "BAND_ELEMENTS", band)
    monkeypatch.setattr(bands, "_MANY_CLASSES", many)
    logits, labels = logits_and_labels(dtype, small, full)
    weight = torch.rand(6, dtype=dtype) if weighted else None
    kwargs = {"weight": weight, "label_smoothing": label_smoothing}
    expected = F.cross_entropy(upsample(logits, full), labels, ignore_index=IGNORE, **kwargs)
    loss = upsampled_cross_entropy(logits, labels, **kwargs)
    for a, b in zip(with_gradient(loss, logits), with_gradient(expected, logits), strict=True):
        assert_close(a, b)

    total, normaliser = upsampled_cross_entropy(logits, labels, reduction="sum", **kwargs)
    expected = F.cross_entropy(
        upsample(logits, full), labels, ignore_index=IGNORE, reduction="sum", **kwargs
    )
    for a, b in zip(with_gradient(total, logits), with_gradient(expected, logits), strict=True):
        assert_close(a, b)
    valid = labels[labels != IGNORE]
    assert_close(
        normaliser, weight[valid].sum() if weighted else valid.new_tensor(len(valid)).to(dtype)
    )
    assert not normaliser.requires_grad


@LAYOUTS
@pytest.mark.parametrize("focal_gamma", [0.0, 1.0, 2.5])
@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
def test_focal_loss_equals_the_formula(label_smoothing, focal_gamma, many, monkeypatch):
    monkeypatch.setattr(bands, "_MANY_CLASSES", many)
    logits, labels = logits_and_labels(torch.float64, full=(7, 9))
    kwargs = {
        "weight": torch.rand(6, dtype=torch.float64),
        "label_smoothing": label_smoothing,
        "focal_gamma": focal_gamma,
    }
    total, normaliser = naive_loss(logits, labels, **kwargs)
    actual = upsampled_cross_entropy(logits, labels, reduction="sum", **kwargs)
    assert_close(actual[0], total)
    assert_close(actual[1], normaliser)
    mean = upsampled_cross_entropy(logits, labels, **kwargs)
    for a, b in zip(
        with_gradient(mean, logits), with_gradient(total / normaliser, logits), strict=True
    ):
        assert_close(a, b)


def test_focal_loss_of_certain_pixels_has_finite_gradients():
    logits = torch.tensor([[[[100.0]], [[-100.0]]]], requires_grad=True)
    for gamma in (0.5, 2.0):
        loss = upsampled_cross_entropy(logits, torch.zeros(1, 2, 2).long(), focal_gamma=gamma)
        loss, gradient = with_gradient(loss, logits)
        assert loss == 0
        assert gradient.isfinite().all()


@LAYOUTS
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_gradcheck(reduction, many, monkeypatch):
    monkeypatch.setattr(bands, "_MANY_CLASSES", many)
    logits, labels = logits_and_labels(torch.float64, (3, 2), (7, 5), num_labels=4)
    weight = torch.rand(4, dtype=torch.float64)

    def loss(x):
        result = upsampled_cross_entropy(
            x, labels, weight=weight, label_smoothing=0.1, focal_gamma=2.0, reduction=reduction
        )
        return result if reduction == "mean" else result[0]

    assert torch.autograd.gradcheck(loss, logits)


@pytest.mark.parametrize("focal_gamma", [0.0, 2.0])
@pytest.mark.parametrize("weighted", [False, True])
def test_nothing_to_learn_from_gives_zero(weighted, focal_gamma):
    logits, labels = logits_and_labels(torch.float32)
    weight = torch.rand(6) if weighted else None
    labels = torch.full_like(labels, IGNORE)
    kwargs = {"weight": weight, "focal_gamma": focal_gamma}
    loss, gradient = with_gradient(upsampled_cross_entropy(logits, labels, **kwargs), logits)
    assert loss == 0
    assert torch.equal(gradient, torch.zeros_like(logits))
    total, normaliser = upsampled_cross_entropy(logits, labels, reduction="sum", **kwargs)
    assert (total, normaliser) == (0, 0)


def test_label_types_and_ignore_indices():
    logits, labels = logits_and_labels(torch.float32)
    expected = upsampled_cross_entropy(logits, labels)
    for dtype in (torch.uint8, torch.int16, torch.int32):
        assert torch.equal(upsampled_cross_entropy(logits, labels.to(dtype)), expected)
    for ignore_index in (-100, -1, 6, 65535):
        moved = labels.where(labels != IGNORE, ignore_index)
        assert torch.equal(
            upsampled_cross_entropy(logits, moved, ignore_index=ignore_index), expected
        )
    # A class can be the ignored one.
    moved = labels.where(labels != IGNORE, 2)
    assert_close(
        upsampled_cross_entropy(logits, moved, ignore_index=2),
        F.cross_entropy(upsample(logits, moved.shape[1:]), moved, ignore_index=2),
    )


@pytest.mark.parametrize(("num_labels", "ignore_index"), [(171, -100), (256, 255), (300, 65535)])
def test_bytes_are_compared_with_numbers_beyond_a_byte(num_labels, ignore_index):
    """In uint8 156 equals -100, and everything is at least 256."""
    torch.manual_seed(0)
    logits = torch.randn(1, num_labels, 4, 4)
    labels = (torch.arange(256) % num_labels).to(torch.uint8).view(1, 16, 16)
    loss = upsampled_cross_entropy(logits, labels, ignore_index=ignore_index)
    full = upsample(logits, (16, 16))
    assert_close(loss, F.cross_entropy(full, labels.long(), ignore_index=ignore_index))


@pytest.mark.parametrize(
    ("labels_shape", "weight_shape"), [((4, 8, 8), 6), ((1, 8, 8), 6), ((8, 8), 6), ((2, 8, 8), 5)]
)
def test_what_does_not_fit_the_logits_is_refused(labels_shape, weight_shape):
    logits = torch.randn(2, 6, 4, 4)
    labels = torch.zeros(labels_shape, dtype=torch.int64)
    with pytest.raises(ValueError, match="must be"):
        upsampled_cross_entropy(logits, labels, weight=torch.ones(weight_shape))


def test_a_second_derivative_is_refused():
    logits, labels = logits_and_labels(torch.float32)
    with pytest.raises(RuntimeError, match="differentiated only once"):
        torch.autograd.grad(upsampled_cross_entropy(logits, labels), logits, create_graph=True)


def test_half_precision_is_computed_in_float32():
    logits, labels = logits_and_labels(torch.bfloat16)
    expected = upsampled_cross_entropy(logits.float(), labels)
    assert expected.dtype == torch.float32
    assert torch.equal(upsampled_cross_entropy(logits, labels), expected)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(upsampled_cross_entropy(logits, labels), expected)
    (gradient,) = torch.autograd.grad(upsampled_cross_entropy(logits, labels), logits)
    assert gradient.dtype == torch.bfloat16


@pytest.mark.parametrize("stray", [6, 254, -1])
def test_stray_labels_are_named(stray):
    logits, labels = logits_and_labels(torch.float32)
    labels[1, 5, 5:8] = stray
    with pytest.raises(ValueError, match=rf"hold {stray} \(3 such pixels\).*0 to 5.*=255"):
        upsampled_cross_entropy(logits, labels)


@pytest.mark.parametrize("gap", [50.0, 95.0, 200.0, 5000.0])
def test_targets_beyond_the_range_of_probabilities(gap):
    """exp(-95) has few digits in float32, exp(-200) none: the loss has all of them."""
    logits, labels = logits_and_labels(torch.float32)
    with torch.no_grad():
        logits[:, 0] += gap
    expected = F.cross_entropy(upsample(logits, labels.shape[1:]), labels, ignore_index=IGNORE)
    loss = upsampled_cross_entropy(logits, labels)
    for a, b in zip(with_gradient(loss, logits), with_gradient(expected, logits), strict=True):
        assert_close(a, b)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("with_grad", [True, False])
def test_the_operator_keeps_the_promises_of_an_operator(with_grad, memory_format):
    """Schema, fake implementation (shapes, strides, types) and autograd, as PyTorch checks them."""
    logits, labels = logits_and_labels(torch.float32)
    logits = logits.detach().contiguous(memory_format=memory_format).requires_grad_(with_grad)
    arguments = (logits, labels, torch.rand(6), IGNORE, 0.1, 2.0, with_grad)
    torch.library.opcheck(operators.cross_entropy_op, arguments)
    torch.library.opcheck(operators.argmax_op, (logits.detach(), 7, 9))


def test_no_gradient_is_made_that_nobody_wants():
    logits, labels = logits_and_labels(torch.float32)
    with torch.no_grad():
        assert not upsampled_cross_entropy(logits, labels).requires_grad
    assert not upsampled_cross_entropy(logits.detach(), labels).requires_grad
    outputs = cross_entropy_in_bands(
        logits.detach(), labels, None, LossOptions(IGNORE, 0.0, 0.0, False)
    )
    assert outputs[3].numel() == 0


def test_stray_labels_are_counted():
    """Where looking would cost a wait, they are left out, and the number is there."""
    logits, labels = logits_and_labels(torch.float32)
    expected = cross_entropy_in_bands(
        logits.detach(), labels, None, LossOptions(IGNORE, 0.0, 0.0, True)
    )
    moved = labels.clone()
    moved[1, 0], moved[1, 1] = 6, 254  # ignored before
    outputs = cross_entropy_in_bands(
        logits.detach(), moved, None, LossOptions(IGNORE, 0.0, 0.0, True)
    )
    assert (expected[2], outputs[2]) == (0, 2 * labels.shape[2])
    for actual, wanted in zip(outputs[:2] + outputs[3:], expected[:2] + expected[3:], strict=True):
        assert torch.equal(actual, wanted)


# ------------------------------------------------------------------------------------- the argmax


@BANDS
@pytest.mark.parametrize("agreement", [0.0, 4.0], ids=["noise", "regions"])
@pytest.mark.parametrize(
    ("small", "full"), [((8, 6), (32, 24)), ((7, 5), (29, 18)), ((9, 7), (4, 5)), ((1, 1), (3, 2))]
)
def test_argmax_equals_interpolate_and_argmax(small, full, agreement, band, monkeypatch):
    monkeypatch.setattr(bands, "BAND_ELEMENTS", band)
    torch.manual_seed(0)
    logits = torch.randn(2, 9, *small)
    logits[:, 3, : small[0] // 2] += agreement
    upsampled = upsample(logits, full)
    labels = upsampled_argmax(logits, full)
    assert labels.shape == (2, *full)
    assert labels.dtype == torch.int64
    first, second = upsampled.topk(2, dim=1).values.unbind(1)
    decided = first - second >= 1e-5  # closer than this, rounding may choose
    assert decided.float().mean() > 0.99
    assert torch.equal(labels[decided], upsampled.argmax(1)[decided])


def test_argmax_of_one_logit_is_its_sign():
    torch.manual_seed(0)
    logits = torch.randn(2, 1, 7, 5)
    upsampled = upsample(logits, (29, 18))[:, 0]
    labels = upsampled_argmax(logits, (29, 18))
    decided = upsampled.abs() >= 1e-5
    assert decided.float().mean() > 0.99
    assert torch.equal(labels[decided], (upsampled > 0).long()[decided])
    assert upsampled_argmax(torch.zeros(1, 1, 2, 2), (4, 4)).sum() == 0  # above 0, not at it
