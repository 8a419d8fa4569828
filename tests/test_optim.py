import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR, PolynomialLR

from finetune.errors import UserError
from finetune.optim import build_optimizer, build_scheduler, lr_factor, parameter_groups

# The Hub's names of one block of one stage and of the head (REFERENCE.md, section 4), sorted by
# hand into the groups that NVlabs' paramwise_cfg gives their counterparts.
ENCODER = "segformer.encoder"
BLOCK = f"{ENCODER}.block.0.0"
BODY = {
    f"{ENCODER}.patch_embeddings.0.proj.weight",
    f"{ENCODER}.patch_embeddings.0.proj.bias",
    f"{BLOCK}.attention.self.query.weight",
    f"{BLOCK}.attention.self.query.bias",
    f"{BLOCK}.attention.self.sr.weight",
    f"{BLOCK}.attention.self.sr.bias",
    f"{BLOCK}.attention.output.dense.weight",
    f"{BLOCK}.attention.output.dense.bias",
    f"{BLOCK}.mlp.dense1.weight",
    f"{BLOCK}.mlp.dense1.bias",
    f"{BLOCK}.mlp.dwconv.dwconv.weight",
    f"{BLOCK}.mlp.dwconv.dwconv.bias",
}
NORMS = {
    f"{ENCODER}.patch_embeddings.0.layer_norm.weight",
    f"{ENCODER}.patch_embeddings.0.layer_norm.bias",
    f"{BLOCK}.layer_norm_1.weight",
    f"{BLOCK}.layer_norm_1.bias",
    f"{BLOCK}.attention.self.layer_norm.weight",
    f"{BLOCK}.attention.self.layer_norm.bias",
    f"{BLOCK}.layer_norm_2.weight",
    f"{BLOCK}.layer_norm_2.bias",
    f"{ENCODER}.layer_norm.0.weight",
    f"{ENCODER}.layer_norm.0.bias",
}
HEAD = {
    "decode_head.linear_c.0.proj.weight",
    "decode_head.linear_c.0.proj.bias",
    "decode_head.linear_fuse.weight",
    "decode_head.batch_norm.weight",
    "decode_head.batch_norm.bias",
    "decode_head.classifier.weight",
    "decode_head.classifier.bias",
}
OPTIONS = {"lr": 1e-3, "weight_decay": 0.01, "head_lr_multiplier": 10.0}


def tiny_model(names):
    """A tree of empty modules whose parameters carry exactly the given names."""
    root = nn.Module()
    for name in names:
        *path, leaf = name.split(".")
        module = root
        for part in path:
            if part not in module._modules:
                module.add_module(part, nn.Module())
            module = module._modules[part]
        module.register_parameter(leaf, nn.Parameter(torch.ones(2)))
    return root


def named_groups(model, **options):
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = parameter_groups(model, **{**OPTIONS, **options})
    return {group["name"]: [names[id(p)] for p in group["params"]] for group in groups}, groups


def test_groups_of_the_hubs_parameter_names():
    model = tiny_model(sorted(BODY | NORMS | HEAD))
    names, groups = named_groups(model)
    assert list(names) == ["body", "norms", "head"]
    assert {name: set(members) for name, members in names.items()} == {
        "body": BODY,
        "norms": NORMS,
        "head": HEAD,
    }
    members = [name for group in names.values() for name in group]
    assert sorted(members) == sorted(dict(model.named_parameters()))  # each once
    assert [group["weight_decay"] for group in groups] == [0.01, 0.0, 0.01]
    assert [group["lr"] for group in groups] == pytest.approx([1e-3, 1e-3, 1e-2])


def test_the_classification_head_is_a_head():
    names, _ = named_groups(
        tiny_model(["segformer.encoder.layer_norm.3.bias", "classifier.weight"])
    )
    assert names == {
        "norms": ["segformer.encoder.layer_norm.3.bias"],
        "head": ["classifier.weight"],
    }


def test_frozen_parameters_are_left_out_and_tied_ones_come_once():
    model = tiny_model(sorted(BODY | NORMS | HEAD))
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in HEAD)
    model.decode_head.tied = model.decode_head.classifier.weight
    names, _ = named_groups(model)
    assert list(names) == ["head"]
    assert len(names["head"]) == len(HEAD)
    model.requires_grad_(False)
    with pytest.raises(UserError, match="frozen"):
        parameter_groups(model, **OPTIONS)


def test_every_stock_parameter_is_in_one_group():
    transformers = pytest.importorskip("transformers")
    config = transformers.SegformerConfig(
        depths=[1] * 4, hidden_sizes=[8] * 4, num_attention_heads=[1] * 4, decoder_hidden_size=8
    )
    model = transformers.SegformerForSemanticSegmentation(config)
    names, groups = named_groups(model)
    members = [name for group in names.values() for name in group]
    assert sorted(members) == sorted(dict(model.named_parameters()))
    assert {parameter.ndim for parameter in groups[1]["params"]} == {1}
    assert all(name.startswith("decode_head.") for name in names["head"])
    layer_norms = [m for m in model.modules() if isinstance(m, nn.LayerNorm)]
    assert len(names["norms"]) == 2 * len(layer_norms) > 0


def test_by_hand():
    poly = {"schedule": "poly", "steps": 100, "warmup_steps": 10}
    assert lr_factor(0, **poly) == pytest.approx(1e-6)
    assert lr_factor(5, **poly) == pytest.approx(0.95 * (1 - 0.5 * (1 - 1e-6)))
    assert lr_factor(9, **poly) == pytest.approx(0.91 * (1 - 0.1 * (1 - 1e-6)))
    assert lr_factor(10, **poly) == pytest.approx(0.9)
    assert lr_factor(99, **poly) == pytest.approx(0.01)
    assert lr_factor(100, **poly) == lr_factor(101, **poly) == 0
    assert lr_factor(50, **poly, power=2) == pytest.approx(0.25)
    cosine = {"schedule": "cosine", "steps": 100, "warmup_steps": 0}
    assert [lr_factor(step, **cosine) for step in (0, 50, 100)] == pytest.approx([1, 0.5, 0])
    constant = {"schedule": "constant", "steps": 100, "warmup_steps": 4}
    factors = [1e-6, 0.25, 0.5, 0.75, 1, 1]
    assert [lr_factor(s, **constant) for s in range(6)] == pytest.approx(factors, rel=1e-5)


@pytest.mark.parametrize(
    ("schedule", "power", "reference"),
    [
        ("poly", 1.0, lambda optimizer: PolynomialLR(optimizer, total_iters=20, power=1.0)),
        ("poly", 0.9, lambda optimizer: PolynomialLR(optimizer, total_iters=20, power=0.9)),
        ("cosine", 1.0, lambda optimizer: CosineAnnealingLR(optimizer, T_max=20)),
    ],
)
def test_without_warm_up_it_is_torchs_schedule(schedule, power, reference):
    model = tiny_model(sorted(BODY | NORMS | HEAD))
    ours, theirs = (build_optimizer(model, **OPTIONS) for _ in range(2))
    our_schedule = build_scheduler(ours, schedule=schedule, steps=20, warmup_steps=0, power=power)
    their_schedule = reference(theirs)
    for _ in range(21):
        rates = [group["lr"] for group in ours.param_groups]
        assert rates == pytest.approx([group["lr"] for group in theirs.param_groups], abs=1e-12)
        assert rates[2] == pytest.approx(10 * rates[0])
        for optimizer in (ours, theirs):
            optimizer.step()
        our_schedule.step()
        their_schedule.step()


def test_the_schedule_goes_on_where_it_stopped():
    model = tiny_model(["a.weight", "decode_head.weight"])
    options = {"schedule": "poly", "steps": 10, "warmup_steps": 3}
    whole = build_scheduler(build_optimizer(model, **OPTIONS), **options)
    rates = []
    for _ in range(6):
        whole.optimizer.step()
        whole.step()
        rates.append(whole.get_last_lr())
    optimizer = build_optimizer(model, **OPTIONS)
    resumed = build_scheduler(optimizer, **options)
    resumed.load_state_dict({**whole.state_dict(), "last_epoch": 5, "_step_count": 6})
    optimizer.step()
    resumed.step()
    assert resumed.get_last_lr() == rates[-1]
