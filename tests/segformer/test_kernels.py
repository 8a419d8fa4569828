"""The Triton kernels against autograd in float64: interpreted, and on a GPU where there is one."""

import importlib.util
import multiprocessing
import sys
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, nullcontext

import pytest
import torch
import torch.nn.functional as F

from finetune.segformer import kernels
from finetune.segformer.bands import LossOptions

IGNORE = 255
needs_triton = pytest.mark.skipif(
    not importlib.util.find_spec("triton"),
    reason="Triton is not installed (there is none but for Linux)",
)
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")


@contextmanager
def interpreter():
    """`kernels.cross_entropy` in a process of its own, whose kernels Triton interprets on the CPU.

    Triton looks at its environment where a kernel is defined, its own kernels included: a process
    does the one or the other.
    """
    setting = "import os; os.environ['TRITON_INTERPRET'] = '1'"
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, context, initializer=exec, initargs=(setting,)) as process:
        yield lambda *args: process.submit(kernels.cross_entropy, *args).result()


@pytest.fixture(
    scope="module",
    params=[
        pytest.param("cpu", marks=needs_triton, id="interpreter"),
        pytest.param("cuda", marks=[needs_triton, needs_gpu]),
    ],
)
def device(request):
    return request.param


@pytest.fixture(scope="module")
def cross_entropy(device):
    run = nullcontext(kernels.cross_entropy) if device == "cuda" else interpreter()
    with run as run:

        def function(logits, labels, weight=None, smoothing=0.0, gamma=0.0, **kwargs):
            weight = None if weight is None else weight.to(device)
            with_grad = kwargs.get("with_grad", True)
            options = LossOptions(kwargs.get("ignore_index", IGNORE), smoothing, gamma, with_grad)
            results = run(logits.to(device), labels.to(device), weight, options)
            assert all(result.device.type == device for result in results)
            return [result.cpu() for result in results]

        yield function


def inputs(small, full, num_labels, *, channels_last=False, dtype=torch.float32):
    torch.manual_seed(0)
    logits = (3 * torch.randn(2, num_labels, *small)).to(dtype)
    if channels_last:
        logits = logits.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
    labels = torch.randint(0, num_labels, (2, *full))
    labels[torch.rand(labels.shape) < 0.2] = IGNORE
    return logits, labels


def reference(logits, labels, weight=None, smoothing=0.0, gamma=0.0, ignore_index=IGNORE):
    """The sums and the gradient in float64. Labels hold no strays."""
    logits = logits.double().requires_grad_()
    upsampled = F.interpolate(logits, labels.shape[1:], mode="bilinear", align_corners=False)
    labels = labels.long()
    weight = None if weight is None else weight.double()
    losses = F.cross_entropy(
        upsampled,
        labels,
        weight,
        ignore_index=ignore_index,
        label_smoothing=smoothing,
        reduction="none",
    )
    counted = labels != ignore_index
    classes = labels.where(counted, 0)
    if gamma:
        p = upsampled.softmax(1).gather(1, classes[:, None])[:, 0]
        losses = losses * (1 - p).clamp(min=torch.finfo(torch.float32).eps) ** gamma
    total = losses.sum()
    weights = counted if weight is None else weight[classes] * counted
    return total.detach(), weights.sum().double(), torch.autograd.grad(total, logits)[0]


def assert_close(actual, expected):
    assert actual.dtype == torch.float32
    assert actual.shape == expected.shape
    limit = 1e-5 * expected.abs().max().clamp(min=0.1)
    assert (actual - expected).abs().max() <= limit


def check(cross_entropy, logits, labels, **kwargs):
    total, weights, stray, gradient = cross_entropy(logits, labels, **kwargs)
    expected = reference(logits, labels, **kwargs)
    for a, b in zip((total, weights, gradient), expected, strict=True):
        assert_close(a, b)
    assert stray.dtype == torch.int64
    assert stray == 0
    assert gradient.stride() == logits.stride()


SIZES = [
    ((5, 4), (20, 16)),
    ((4, 6), (10, 15)),
    ((10, 15), (6, 9)),
    ((9, 3), (4, 13)),
    ((5, 5), (5, 5)),
    ((1, 1), (5, 7)),
    ((1, 7), (6, 1)),
]


@pytest.mark.parametrize("channels_last", [False, True], ids=["nchw", "channels last"])
@pytest.mark.parametrize(("small", "full"), SIZES, ids=str)
def test_any_ratio_of_sizes(small, full, channels_last, cross_entropy):
    logits, labels = inputs(small, full, 5, channels_last=channels_last)
    check(cross_entropy, logits, labels)


@pytest.mark.parametrize("channels_last", [False, True], ids=["nchw", "channels last"])
@pytest.mark.parametrize("num_labels", [1, 2, 19, 150])
def test_any_number_of_classes(num_labels, channels_last, cross_entropy):
    logits, labels = inputs((2, 3), (3, 5), num_labels, channels_last=channels_last)
    check(cross_entropy, logits, labels, weight=torch.rand(num_labels), smoothing=0.1, gamma=2.0)


@pytest.mark.parametrize("channels_last", [False, True], ids=["nchw", "channels last"])
def test_several_tiles_and_strips(channels_last, cross_entropy):
    logits, labels = inputs((10, 35), (9, 40), 3, channels_last=channels_last)
    check(cross_entropy, logits, labels)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weighted", [False, True], ids=["equal", "weighted"])
def test_weights_smoothing_and_focal_factor(weighted, smoothing, gamma, cross_entropy):
    logits, labels = inputs((2, 3), (5, 6), 6)
    weight = torch.rand(6) if weighted else None
    check(cross_entropy, logits, labels, weight=weight, smoothing=smoothing, gamma=gamma)


def test_logits_of_any_type_and_stride(cross_entropy):
    for dtype, channels_last in ((torch.float16, False), (torch.bfloat16, True)):
        logits, labels = inputs((2, 3), (5, 6), 6, channels_last=channels_last, dtype=dtype)
        check(cross_entropy, logits, labels)
    logits, labels = inputs((6, 5), (7, 10), 6)
    part = logits[:, 1:5, ::2, 1:]
    total, _, _, gradient = cross_entropy(part, labels % 4)
    expected, _, expected_gradient = reference(part, labels % 4)
    assert_close(total, expected)
    assert_close(gradient, expected_gradient)


def test_label_types_and_ignore_indices(cross_entropy):
    logits, labels = inputs((2, 3), (5, 6), 6)
    expected = cross_entropy(logits, labels)
    for dtype in (torch.uint8, torch.int32):
        for a, b in zip(cross_entropy(logits, labels.to(dtype)), expected, strict=True):
            assert torch.equal(a, b)
    for ignore_index in (-100, 1, 6, 1 << 40):  # 1 is a class too
        moved = labels.where(labels != IGNORE, ignore_index)
        check(cross_entropy, logits, moved, ignore_index=ignore_index)
    transposed = labels.mT.contiguous().mT
    assert torch.equal(cross_entropy(logits, transposed)[3], expected[3])


@pytest.mark.parametrize("kwargs", [{}, {"weight": torch.rand(6), "smoothing": 0.1, "gamma": 0.5}])
def test_stray_labels_are_counted_and_do_not_count(kwargs, cross_entropy):
    logits, labels = inputs((2, 3), (5, 6), 6)
    labels[0, 3, 2:5] = IGNORE
    labels[1, -1, -1] = IGNORE
    expected = cross_entropy(logits, labels, **kwargs)
    labels[0, 3, 2:5] = torch.tensor([6, -1, 1 << 33])
    labels[1, -1, -1] = 254
    total, weights, stray, gradient = cross_entropy(logits, labels, **kwargs)
    assert stray == 4
    for a, b in zip((total, weights, gradient), (*expected[:2], expected[3]), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("kwargs", [{}, {"weight": torch.rand(6), "smoothing": 0.1, "gamma": 0.5}])
def test_nothing_to_learn_from_gives_zero(kwargs, cross_entropy):
    logits, labels = inputs((2, 3), (5, 6), 6)
    total, weights, stray, gradient = cross_entropy(logits, labels.fill_(IGNORE), **kwargs)
    assert (total, weights, stray) == (0, 0, 0)
    assert torch.equal(gradient, torch.zeros_like(logits))


def test_certain_pixels_have_finite_gradients(cross_entropy):
    logits = torch.tensor([[[[100.0]], [[-100.0]]]])
    right, wrong = torch.zeros(1, 2, 2).long(), torch.ones(1, 2, 2).long()
    for gamma in (0.5, 2.0):
        total, _, _, gradient = cross_entropy(logits, right, gamma=gamma)
        assert total == 0
        assert gradient.isfinite().all()
        check(cross_entropy, logits, wrong, gamma=gamma)
    check(cross_entropy, logits * 1e3, wrong)


def test_value_alone_is_the_same_value(cross_entropy):
    logits, labels = inputs((2, 3), (5, 6), 6)
    expected = cross_entropy(logits, labels)
    *sums, gradient = cross_entropy(logits, labels, with_grad=False)
    assert gradient.numel() == 0
    for a, b in zip(sums, expected, strict=False):
        assert torch.equal(a, b)


def test_no_pixels_at_all(cross_entropy):
    logits, labels = inputs((2, 3), (5, 6), 6)
    for some, none in ((logits[:0], labels[:0]), (logits, labels[:, :0])):
        total, weights, stray, gradient = cross_entropy(some, none)
        assert (total, weights, stray) == (0, 0, 0)
        assert torch.equal(gradient, torch.zeros_like(some))


# ---------------------------------------------------------------------------------- GPUs and others


@pytest.mark.slow
@needs_triton
@pytest.mark.parametrize("capability", [75, 90])
@pytest.mark.parametrize("channels_last", [False, True], ids=["nchw", "channels last"])
def test_kernels_compile_without_a_gpu(channels_last, capability, monkeypatch, tmp_path):
    """Down to machine code: what the interpreter accepts, the compiler may not."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    target = GPUTarget("cuda", capability, 32)
    spilled = []

    class Compiled:
        """Stands for a kernel: compiles for the arguments that it is launched with."""

        def __init__(self, kernel):
            self.kernel = kernel

        def __getitem__(self, grid):
            return self.launch

        def launch(self, *args, num_warps, num_stages=3, **constants):
            signature, values, attributes = {}, {}, {}
            types = {torch.float32: "*fp32", torch.float16: "*fp16", torch.uint8: "*u8"}
            types |= {torch.int32: "*i32", torch.int64: "*i64"}
            for index, name in enumerate(self.kernel.arg_names):
                value = constants[name] if name in constants else args[index]
                if isinstance(value, torch.Tensor):
                    signature[name] = types[value.dtype]
                    attributes[(index,)] = [["tt.divisibility", 16]]
                elif name in constants or (value == 1 and isinstance(value, int)):
                    signature[name], values[(index,)] = "constexpr", value
                else:
                    wide = isinstance(value, int) and value >= 1 << 31
                    signature[name] = "i64" if wide else "fp32" if type(value) is float else "i32"
            compiled = triton.compile(
                ASTSource(self.kernel, signature, values, attributes),
                target=target,
                options={"num_warps": num_warps, "num_stages": num_stages},
            )
            spilled.append(".local" in compiled.asm["ptx"])

    for name in ("_forward", "_backward"):
        monkeypatch.setattr(kernels, name, Compiled(getattr(kernels, name)))
    # Many classes, plain, and everything at once for one pixel: a size of 1 becomes a constant.
    plain = inputs((8, 8), (16, 16), 150, channels_last=channels_last)
    single = inputs((1, 1), (1, 1), 2, channels_last=channels_last, dtype=torch.float16)
    options = LossOptions(IGNORE, 0.0, 0.0, with_grad=True)
    kernels.cross_entropy(plain[0], plain[1].to(torch.uint8), None, options)
    kernels.cross_entropy(*single, torch.rand(2), LossOptions(IGNORE, 0.1, 2.0, with_grad=True))
    assert len(spilled) == 4
    assert not any(spilled)


@needs_triton
@needs_gpu
def test_equal_inputs_give_equal_bits_also_in_a_cuda_graph():
    logits, labels = (x.cuda() for x in inputs((32, 32), (128, 128), 150, channels_last=True))
    weight = torch.rand(150, device="cuda")
    args = (logits, labels, weight, LossOptions(IGNORE, 0.1, 2.0, with_grad=True))
    expected = kernels.cross_entropy(*args)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = kernels.cross_entropy(*args)
    graph.replay()
    for results in (kernels.cross_entropy(*args), captured):
        assert all(torch.equal(a, b) for a, b in zip(results, expected, strict=True))


def test_imports_without_triton(monkeypatch):
    spec = importlib.util.spec_from_file_location("finetune.segformer.other", kernels.__file__)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "triton", None)
    spec.loader.exec_module(module)
    assert not hasattr(module, "triton")
