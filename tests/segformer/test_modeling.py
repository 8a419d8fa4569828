"""Our SegFormer against stock transformers' on the same weights."""

import json
import logging
import subprocess
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import transformers
from accelerate import cpu_offload, disk_offload
from PIL import Image
from torch import nn

import finetune  # registers the Auto classes
from finetune.segformer import (
    VARIANTS,
    SegformerConfig,
    SegformerForSemanticSegmentation,
    SegformerModel,
)
from finetune.segformer.configuration import smallest_side

SIZES = [(512, 512), (500, 333), (65, 97)]
SMALL = {"depths": [1, 1, 1, 1], "hidden_sizes": [8, 16, 40, 64], "decoder_hidden_size": 32}


def shallow(variant: str) -> dict:
    """B3 to B5 differ from B2 in depth alone: two blocks a stage are enough to compare."""
    config = VARIANTS[variant]
    if max(config["depths"]) <= 6:
        return config
    return {**config, "depths": [min(2, depth) for depth in config["depths"]]}


def perturb(model: nn.Module) -> None:
    """Random norms, biases and statistics: at their initial values, errors in them do not show."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for tensor in [*model.parameters(), *model.buffers()]:
            if tensor.is_floating_point() and tensor.ndim == 1:
                tensor += 0.2 * torch.rand(tensor.shape, generator=generator)


def ours_and_stock(folder, task="SemanticSegmentation", **config):
    """Our model with random weights, and stock's loaded from what ours saved."""
    torch.manual_seed(0)
    ours = getattr(finetune.segformer, f"SegformerFor{task}")(
        SegformerConfig(**{"num_labels": 150, **config})
    )
    perturb(ours)
    ours.save_pretrained(folder)
    stock = getattr(transformers, f"SegformerFor{task}").from_pretrained(folder)
    assert type(stock) is not type(ours)
    return ours, stock


def without_dropout(*models: nn.Module) -> None:
    """Train mode (batch statistics) with every random drop at zero, alike on both sides."""
    for model in models:
        model.train()
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
            if hasattr(module, "drop_prob"):
                module.drop_prob = 0.0


def assert_close(ours: torch.Tensor, stock: torch.Tensor, tolerance: float = 1e-5) -> None:
    assert ours.shape == stock.shape
    assert (ours - stock).abs().max() <= tolerance * stock.abs().max()


@pytest.mark.slow
@pytest.mark.parametrize("variant", VARIANTS)
def test_logits_equal_stock(variant, tmp_path):
    assert list(VARIANTS) == ["b0", "b1", "b2", "b3", "b4", "b5"]
    ours, stock = ours_and_stock(tmp_path, **shallow(variant))
    for size in SIZES:
        image = torch.randn(2 if size[0] < 100 else 1, 3, *size)
        ours.eval(), stock.eval()
        with torch.no_grad():
            assert_close(ours(image).logits, stock(image).logits)
        with torch.enable_grad():  # the path without bands
            assert_close(ours(image).logits, stock(image).logits)
        without_dropout(ours, stock)
        with torch.no_grad():
            assert_close(ours(image).logits, stock(image).logits)


@pytest.mark.slow
def test_full_b5_equals_stock(tmp_path):
    ours, stock = ours_and_stock(tmp_path, **VARIANTS["b5"])
    with torch.no_grad():
        ours.eval(), stock.eval()
        image = torch.randn(1, 3, 512, 512)
        assert_close(ours(image).logits, stock(image).logits)
        without_dropout(ours, stock)
        image = torch.randn(2, 3, 65, 97)
        assert_close(ours(image).logits, stock(image).logits)


@pytest.mark.slow
@pytest.mark.parametrize("variant", VARIANTS)
def test_gradients_equal_stock_in_float64(variant, tmp_path):
    ours, stock = ours_and_stock(tmp_path, **shallow(variant))
    ours.double(), stock.double()
    without_dropout(ours, stock)
    image = torch.randn(2, 3, 65, 97, dtype=torch.float64)
    labels = torch.randint(0, 150, (2, 65, 97))
    labels[:, :9] = 255
    gradients = []
    for model in (ours, stock):
        loss = model(image, labels=labels).loss
        loss.backward()
        grads = {name: p.grad for name, p in model.named_parameters()}
        assert all(g is not None for g in grads.values())
        gradients.append((loss.item(), grads))
    (our_loss, our_grads), (stock_loss, _) = gradients
    assert our_loss == pytest.approx(stock_loss, rel=1e-12)
    # Stock renames in memory: what it saves carries the names that both share.
    with torch.no_grad():
        for parameter in stock.parameters():
            parameter.copy_(parameter.grad)
    stock.save_pretrained(tmp_path / "gradients")
    saved = SegformerForSemanticSegmentation.from_pretrained(
        tmp_path / "gradients", dtype=torch.float64
    )
    stock_grads = {name: p.detach() for name, p in saved.named_parameters()}
    assert stock_grads.keys() == our_grads.keys()
    largest = max(g.abs().max() for g in stock_grads.values())
    for name, grad in our_grads.items():
        assert (grad - stock_grads[name]).abs().max() <= 1e-9 * largest, name


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_hidden_states_and_attentions_equal_stock(attention, tmp_path):
    ours, stock = ours_and_stock(tmp_path, **SMALL)
    for model in (ours, stock):
        model.set_attn_implementation(attention)
        model.eval()
    image = torch.randn(2, 3, 65, 97)
    with torch.no_grad():
        mine = ours(image, output_hidden_states=True, output_attentions=True)
        theirs = stock(image, output_hidden_states=True, output_attentions=True)
    assert len(mine.hidden_states) == len(theirs.hidden_states) == 4
    for a, b in zip(mine.hidden_states, theirs.hidden_states, strict=True):
        assert_close(a, b)
    assert_close(mine.logits, theirs.logits)
    assert len(mine.attentions) == len(theirs.attentions) == (4 if attention == "eager" else 0)
    for a, b in zip(mine.attentions, theirs.attentions, strict=True):
        assert_close(a, b)
    plain = ours(image)
    assert plain.hidden_states is None
    assert plain.attentions is None
    assert isinstance(ours(image, return_dict=False), tuple)


def test_classification_equals_stock(tmp_path):
    ours, stock = ours_and_stock(tmp_path, "ImageClassification", **{**SMALL, "num_labels": 7})
    ours.eval(), stock.eval()
    image, labels = torch.randn(3, 3, 64, 96), torch.tensor([0, 6, 2])
    mine, theirs = ours(image, labels=labels), stock(image, labels=labels)
    assert_close(mine.logits, theirs.logits)
    assert mine.loss.item() == pytest.approx(theirs.loss.item(), rel=1e-5)


@pytest.mark.parametrize(
    "config",
    [
        {"hidden_act": "relu"},
        {"num_channels": 4},
        {"num_labels": 1},
        {"sr_ratios": [4, 2, 1, 1]},
        {"mlp_ratios": [2, 2, 3, 2]},
    ],
    ids=lambda config: next(iter(config)),
)
def test_other_configurations_equal_stock(config, tmp_path):
    ours, stock = ours_and_stock(tmp_path, **{**SMALL, **config})
    ours.eval(), stock.eval()
    image = torch.randn(2, config.get("num_channels", 3), 71, 64)
    labels = torch.randint(0, 2, (2, 71, 64))
    labels[:, 0] = 255
    with torch.no_grad():
        mine, theirs = ours(image, labels=labels), stock(image, labels=labels)
    assert_close(mine.logits, theirs.logits)
    assert mine.loss.item() == pytest.approx(theirs.loss.item(), rel=1e-5)


def test_saving_a_one_logit_head_warns(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    monkeypatch.setattr(logging.getLogger("finetune"), "propagate", True)
    for num_labels in (2, 1):
        caplog.clear()
        config = SegformerConfig(**SMALL, num_labels=num_labels)
        SegformerForSemanticSegmentation(config).save_pretrained(tmp_path)
        assert ("num_labels=1" in caplog.text) == (num_labels == 1)


def test_reshape_last_stage_false(tmp_path):
    # Stock takes the side of the last map for the root of its channels: 64 channels, 8 x 8.
    ours, stock = ours_and_stock(tmp_path, **SMALL, reshape_last_stage=False)
    ours.eval(), stock.eval()
    image = torch.randn(1, 3, 256, 256)
    with torch.no_grad():
        mine = ours(image, output_hidden_states=True)
        theirs = stock(image, output_hidden_states=True)
    assert mine.hidden_states[-1].shape == theirs.hidden_states[-1].shape == (1, 64, 64)
    assert_close(mine.logits, theirs.logits)
    assert ours(torch.randn(1, 3, 65, 97)).logits.shape == (1, 150, 17, 25)


def test_stock_folder_opens_as_ours_and_back(tmp_path):
    torch.manual_seed(0)
    stock = transformers.SegformerForSemanticSegmentation(SegformerConfig(**SMALL, num_labels=5))
    perturb(stock)
    stock.eval().save_pretrained(tmp_path / "stock")
    ours, info = transformers.AutoModelForSemanticSegmentation.from_pretrained(
        tmp_path / "stock", output_loading_info=True
    )
    assert type(ours) is SegformerForSemanticSegmentation
    assert not any(info.values())
    image = torch.randn(1, 3, 65, 97)
    with torch.no_grad():
        assert_close(ours.eval()(image).logits, stock(image).logits)
    ours.save_pretrained(tmp_path / "ours")
    stock_config = json.loads((tmp_path / "stock" / "config.json").read_text())
    assert json.loads((tmp_path / "ours" / "config.json").read_text()) == stock_config
    encoder = transformers.AutoModel.from_pretrained(tmp_path / "ours")
    assert type(encoder) is SegformerModel


def test_new_head_through_ignore_mismatched_sizes(tmp_path):
    ours, _ = ours_and_stock(tmp_path, **SMALL)
    other = SegformerForSemanticSegmentation.from_pretrained(
        tmp_path, num_labels=3, ignore_mismatched_sizes=True
    )
    assert other.decode_head.classifier.weight.shape[0] == 3
    torch.testing.assert_close(
        other.segformer.encoder.layer_norm[0].bias, ours.segformer.encoder.layer_norm[0].bias
    )


PIPELINE = """
import sys, numpy as np
if sys.argv[3] == "ours":
    import finetune
from transformers import pipeline
pipe = pipeline("image-segmentation", model=sys.argv[1], device="cpu")
assert type(pipe.model).__module__.startswith("finetune") == (sys.argv[3] == "ours")
out = pipe(sys.argv[2])
mask = sum((i + 1) * (np.array(o["mask"]) > 0) for i, o in enumerate(out))
np.save(sys.argv[4], mask)
print([o["label"] for o in out])
"""


@pytest.mark.slow
def test_pipeline_with_and_without_us(tmp_path):
    ours_and_stock(tmp_path / "model", **{**SMALL, "num_labels": 6})
    transformers.SegformerImageProcessorPil(do_reduce_labels=False).save_pretrained(
        tmp_path / "model"
    )
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 255, (90, 121, 3), dtype=np.uint8)).save(tmp_path / "in.png")
    masks, labels = [], []
    for side in ("ours", "stock"):
        run = subprocess.run(
            [
                *[sys.executable, "-c", PIPELINE],
                *[tmp_path / "model", tmp_path / "in.png", side, tmp_path / f"{side}.npy"],
            ],
            capture_output=True,
            text=True,
            cwd=finetune.__path__[0] + "/..",
            check=False,
        )
        assert run.returncode == 0, run.stderr
        masks.append(np.load(tmp_path / f"{side}.npy"))
        labels.append(run.stdout)
    assert labels[0] == labels[1]
    assert masks[0].shape == (90, 121)
    assert np.array_equal(*masks)


class LoRA(nn.Module):
    """The shape of an adapter: the frozen layer is called, a low-rank path is added."""

    def __init__(self, layer: nn.Module):
        super().__init__()
        self.layer = layer.requires_grad_(False)
        weight = layer.weight.flatten(1)
        self.down = nn.Parameter(torch.randn(2, weight.shape[1]) * 0.1)
        self.up = nn.Parameter(torch.randn(weight.shape[0], 2) * 0.1)

    def forward(self, x):
        delta = self.up @ self.down
        if isinstance(self.layer, nn.Conv2d):
            return self.layer(x) + F.conv2d(x, delta[:, :, None, None])
        return self.layer(x) + F.linear(x, delta)


def test_adapters_get_gradients_everywhere(tmp_path):
    ours, stock = ours_and_stock(tmp_path, **SMALL)
    wrapped = []
    for model in (ours, stock):
        torch.manual_seed(3)
        names = [
            name
            for name, m in model.named_modules()
            if isinstance(m, nn.Linear) or (isinstance(m, nn.Conv2d) and m.kernel_size == (1, 1))
        ]
        wrapped.append(len(names))
        for name in names:
            parent, _, child = name.rpartition(".")
            parent = model.get_submodule(parent)
            setattr(parent, child, LoRA(getattr(parent, child)))
        without_dropout(model)
    assert wrapped[0] == wrapped[1] == 4 * 6 + 4 + 2
    image = torch.randn(2, 3, 65, 97)
    logits = ours(image).logits
    logits.square().mean().backward()
    adapters = [p for p in ours.parameters() if p.requires_grad and p.ndim == 2]
    assert len(adapters) == 2 * wrapped[0]
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in adapters)


def test_merged_adapters_give_the_same_logits(tmp_path):
    """The path module by module and the fused one agree."""
    ours, _ = ours_and_stock(tmp_path, **SMALL)
    ours.eval()
    image = torch.randn(2, 3, 65, 97)
    with torch.no_grad():
        fused = ours(image).logits
        called = []
        hooks = [
            m.register_forward_pre_hook(lambda m, _: called.append(m))
            for m in ours.modules()
            if isinstance(m, nn.Linear | nn.Conv2d)
        ]
        assert_close(ours(image).logits, fused)
    assert len(called) == len(hooks)  # with a hook on it, every layer is called


@pytest.mark.parametrize("offload", ["cpu", "disk"])
def test_offload_gives_stock_logits(offload, tmp_path):
    ours, stock = ours_and_stock(tmp_path / "model", **SMALL)
    ours.eval(), stock.eval()
    image = torch.randn(1, 3, 65, 97)
    if offload == "cpu":
        cpu_offload(ours, execution_device=torch.device("cpu"))
    else:
        disk_offload(ours, tmp_path / "offload", execution_device=torch.device("cpu"))
    assert any(p.device.type == "meta" for p in ours.parameters())
    with torch.no_grad():
        assert_close(ours(image).logits, stock(image).logits)


def test_device_map_with_offloaded_blocks(tmp_path):
    _, stock = ours_and_stock(tmp_path / "model", **SMALL)
    device_map = {
        "segformer.encoder.patch_embeddings": "cpu",
        "segformer.encoder.layer_norm": "cpu",
        "segformer.encoder.block.0": "cpu",
        "segformer.encoder.block.1": "disk",
        "segformer.encoder.block.2": "disk",
        "segformer.encoder.block.3": "cpu",
        "decode_head": "disk",
    }
    mapped = SegformerForSemanticSegmentation.from_pretrained(
        tmp_path / "model", device_map=device_map, offload_folder=tmp_path / "offload"
    )
    assert any(p.device.type == "meta" for p in mapped.parameters())
    image = torch.randn(1, 3, 65, 97)
    with torch.no_grad():
        assert_close(mapped.eval()(image).logits, stock.eval()(image).logits)


def test_gradient_checkpointing_changes_nothing(tmp_path):
    ours, _ = ours_and_stock(tmp_path, **SMALL)
    without_dropout(ours)
    image, labels = torch.randn(2, 3, 65, 97), torch.randint(0, 150, (2, 65, 97))
    grads = []
    for checkpointing in (False, True):
        if checkpointing:
            ours.gradient_checkpointing_enable()
        ours.zero_grad()
        ours(image, labels=labels).loss.backward()
        grads.append({name: p.grad.clone() for name, p in ours.named_parameters()})
    for name, grad in grads[0].items():
        torch.testing.assert_close(grads[1][name], grad, msg=name)


@pytest.mark.slow
def test_compiles_as_one_graph(tmp_path):
    ours, _ = ours_and_stock(tmp_path, **SMALL)
    ours.eval()
    image = torch.randn(1, 3, 65, 97)
    with torch.no_grad():
        expected = ours(image).logits
        torch._dynamo.reset()
        compiled = torch.compile(ours, fullgraph=True)
        assert_close(compiled(image).logits, expected)

    labels = torch.randint(0, ours.config.num_labels, (1, 65, 97))
    labels[:, :9] = ours.config.semantic_loss_ignore_index
    losses = []
    for model in (ours, compiled):
        ours.zero_grad()
        loss = model(image, labels=labels).loss
        loss.backward()
        losses.append([loss.detach(), *(p.grad.clone() for p in ours.parameters())])
    for actual, wanted in zip(*losses, strict=True):
        torch.testing.assert_close(actual, wanted, rtol=1e-3, atol=1e-5)


def test_traces(tmp_path):
    """With gradients enabled, as torch.jit.trace is usually called; the file must stand alone."""
    ours, _ = ours_and_stock(tmp_path, **SMALL)
    ours.eval().config.return_dict = False
    image = torch.randn(1, 3, 64, 96)
    torch.jit.trace(ours, image).save(tmp_path / "traced.pt")
    with torch.no_grad():
        assert_close(torch.jit.load(tmp_path / "traced.pt")(image)[0], ours(image)[0])


def test_functional_gradients(tmp_path):
    """torch.func takes no backwards of one's own."""
    ours, _ = ours_and_stock(tmp_path, **SMALL)
    ours.eval()
    image = torch.randn(1, 3, 64, 96)

    def loss(parameters):
        return torch.func.functional_call(ours, parameters, image).logits.square().mean()

    parameters = {name: tensor.detach() for name, tensor in ours.named_parameters()}
    gradients = torch.func.grad(loss)(parameters)
    ours(image).logits.square().mean().backward()
    for name, parameter in ours.named_parameters():
        torch.testing.assert_close(gradients[name], parameter.grad, rtol=1e-3, atol=1e-5, msg=name)


def test_dropping_everything_leaves_the_bias(tmp_path):
    ours, _ = ours_and_stock(tmp_path, **SMALL)
    ours.train()
    ours.decode_head.dropout.p = 1.0
    logits = ours(torch.randn(2, 3, 64, 96)).logits
    bias = ours.decode_head.classifier.bias
    assert torch.equal(logits, bias.view(1, -1, 1, 1).expand_as(logits))
    logits.sum().backward()
    assert not ours.decode_head.linear_fuse.weight.grad.any()


def test_frozen_parts_get_no_gradients_and_change_no_others(tmp_path):
    ours, _ = ours_and_stock(tmp_path, **SMALL)
    image = torch.randn(2, 3, 64, 96)
    labels = torch.randint(0, ours.config.num_labels, (2, 64, 96))

    def gradients():
        ours.zero_grad()
        ours.eval()(image, labels=labels).loss.backward()
        return {name: p.grad.clone() for name, p in ours.named_parameters() if p.requires_grad}

    expected = gradients()
    for frozen in ("dense1", "dwconv", "dense2", "classifier", "linear_fuse", "patch_embeddings"):
        for name, parameter in ours.named_parameters():
            parameter.requires_grad_(frozen not in name)
        actual = gradients()
        assert len(actual) < len(expected)
        for name, gradient in actual.items():
            torch.testing.assert_close(gradient, expected[name], msg=f"{frozen} frozen: {name}")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype, tmp_path):
    ours, stock = ours_and_stock(tmp_path, **SMALL)
    image = torch.randn(1, 3, 65, 97)
    with torch.no_grad():
        expected = stock.eval()(image).logits
        logits = ours.eval().to(dtype)(image.to(dtype)).logits
        assert logits.dtype == dtype
        assert_close(logits.float(), expected, 0.05)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert_close(ours.float()(image).logits.float(), expected, 0.05)


def test_the_head_is_folded_anew_after_an_update(tmp_path):
    ours, stock = ours_and_stock(tmp_path, **SMALL)
    ours.eval()
    image = torch.randn(1, 3, 65, 97)
    with torch.no_grad():
        before = ours(image).logits
        for parameter in ours.decode_head.parameters():
            parameter.mul_(1.5)
        after = ours(image).logits
        ours.save_pretrained(tmp_path / "new")
        stock = transformers.SegformerForSemanticSegmentation.from_pretrained(tmp_path / "new")
        assert_close(after, stock.eval()(image).logits)
    assert (before - after).abs().max() > 0.1 * before.abs().max()


def test_smallest_side():
    config = SegformerConfig(**SMALL, num_labels=2)
    assert smallest_side(config) == 29
    model = SegformerForSemanticSegmentation(config).eval()
    assert model(torch.randn(1, 3, 29, 29)).logits.shape == (1, 2, 8, 8)
    with pytest.raises(ValueError, match=r"28 x 64 pixels.*29"):
        model(torch.randn(1, 3, 28, 64))
    assert smallest_side(SegformerConfig(sr_ratios=[1, 1, 1, 1])) == 1


@torch.no_grad()
def test_initial_weights_follow_the_original():
    torch.manual_seed(0)
    model = SegformerForSemanticSegmentation(SegformerConfig(**VARIANTS["b1"], num_labels=150))
    encoder, head = model.segformer.encoder, model.decode_head
    query = encoder.block[3][0].attention.self.query
    assert query.weight.std() == pytest.approx(0.02, rel=0.03)
    assert query.weight.abs().max() < 2.0
    assert query.bias.abs().max() == 0
    proj = encoder.patch_embeddings[2].proj  # 3 x 3, 320 channels out
    assert proj.weight.std() == pytest.approx((2 / (9 * 320)) ** 0.5, rel=0.03)
    dwconv = encoder.block[2][0].mlp.dwconv.dwconv  # one channel a group: fan-out 9
    assert dwconv.weight.std() == pytest.approx((2 / 9) ** 0.5, rel=0.05)
    fuse = head.linear_fuse  # Kaiming, fan-out 256
    assert fuse.weight.std() == pytest.approx((2 / 256) ** 0.5, rel=0.03)
    linear_c = head.linear_c[3].proj  # uniform(+-1 / sqrt(fan_in)), weight and bias
    assert linear_c.weight.abs().max() == pytest.approx(512**-0.5, rel=0.01)
    assert linear_c.weight.std() == pytest.approx((3 * 512) ** -0.5, rel=0.03)
    assert 0 < linear_c.bias.abs().max() <= 512**-0.5
    assert head.classifier.weight.abs().max() == pytest.approx(256**-0.5, rel=0.01)
    assert 0 < head.classifier.bias.abs().max() <= 256**-0.5


def test_partly_loaded_weights_are_not_drawn_again(tmp_path):
    ours, _ = ours_and_stock(tmp_path, **SMALL)
    encoder_only = SegformerModel.from_pretrained(tmp_path)
    encoder_only.save_pretrained(tmp_path / "encoder")
    model = SegformerForSemanticSegmentation.from_pretrained(tmp_path / "encoder", num_labels=4)
    for name, parameter in model.segformer.named_parameters():
        assert torch.equal(parameter, ours.segformer.get_parameter(name)), name
    assert model.decode_head.linear_fuse.weight.std() > 0


def test_drop_path_keeps_the_mean():
    from finetune.segformer.modeling import SegformerDropPath

    torch.manual_seed(0)
    dropped = SegformerDropPath(0.25).train()(torch.ones(4000, 1, 1, 2))
    values = dropped[:, 0, 0, 0].unique()
    torch.testing.assert_close(values, torch.tensor([0, 1 / 0.75]))
    assert torch.equal(dropped[..., 0], dropped[..., 1])  # a sample is dropped whole
    assert dropped.mean().item() == pytest.approx(1, abs=0.05)
