"""Translation of foreign names of SegFormer's tensors to ours."""

import functools
import re
from collections.abc import Mapping

from torch import Tensor

from finetune.errors import UserError

# Names of modules, theirs -> ours; {s} is a stage, {b} a block. If there are several of ours, their
# tensor packs them along the first axis.
_BLOCK = "block.{s}.{b}."
ENCODERS: dict[str, dict[str, tuple[str, ...]]] = {
    "NVlabs": {
        "patch_embed{s}.proj": ("patch_embeddings.{s}.proj",),
        "patch_embed{s}.norm": ("patch_embeddings.{s}.layer_norm",),
        "block{s}.{b}.norm1": (_BLOCK + "layer_norm_1",),
        "block{s}.{b}.attn.q": (_BLOCK + "attention.self.query",),
        "block{s}.{b}.attn.kv": (_BLOCK + "attention.self.key", _BLOCK + "attention.self.value"),
        "block{s}.{b}.attn.sr": (_BLOCK + "attention.self.sr",),
        "block{s}.{b}.attn.norm": (_BLOCK + "attention.self.layer_norm",),
        "block{s}.{b}.attn.proj": (_BLOCK + "attention.output.dense",),
        "block{s}.{b}.norm2": (_BLOCK + "layer_norm_2",),
        "block{s}.{b}.mlp.fc1": (_BLOCK + "mlp.dense1",),
        "block{s}.{b}.mlp.dwconv.dwconv": (_BLOCK + "mlp.dwconv.dwconv",),
        "block{s}.{b}.mlp.fc2": (_BLOCK + "mlp.dense2",),
        "norm{s}": ("layer_norm.{s}",),
    },
    "mmsegmentation": {
        "layers.{s}.0.projection": ("patch_embeddings.{s}.proj",),
        "layers.{s}.0.norm": ("patch_embeddings.{s}.layer_norm",),
        "layers.{s}.1.{b}.norm1": (_BLOCK + "layer_norm_1",),
        "layers.{s}.1.{b}.attn.attn.in_proj": (
            _BLOCK + "attention.self.query",
            _BLOCK + "attention.self.key",
            _BLOCK + "attention.self.value",
        ),
        "layers.{s}.1.{b}.attn.sr": (_BLOCK + "attention.self.sr",),
        "layers.{s}.1.{b}.attn.norm": (_BLOCK + "attention.self.layer_norm",),
        "layers.{s}.1.{b}.attn.attn.out_proj": (_BLOCK + "attention.output.dense",),
        "layers.{s}.1.{b}.norm2": (_BLOCK + "layer_norm_2",),
        "layers.{s}.1.{b}.ffn.layers.0": (_BLOCK + "mlp.dense1",),
        "layers.{s}.1.{b}.ffn.layers.1": (_BLOCK + "mlp.dwconv.dwconv",),
        "layers.{s}.1.{b}.ffn.layers.4": (_BLOCK + "mlp.dense2",),
        "layers.{s}.2": ("layer_norm.{s}",),
    },
}
ENCODERS["transformers"] = {
    f"encoder.{name}": (name,) for names in ENCODERS["NVlabs"].values() for name in names
}
# Names of transformers 5 in memory, which a plain torch.save keeps.
_OF_STAGE = {
    "patch_embeddings.proj": "patch_embeddings.{s}.proj",
    "patch_embeddings.layer_norm": "patch_embeddings.{s}.layer_norm",
    "blocks.{b}.layernorm_before": _BLOCK + "layer_norm_1",
    "blocks.{b}.attention.q_proj": _BLOCK + "attention.self.query",
    "blocks.{b}.attention.k_proj": _BLOCK + "attention.self.key",
    "blocks.{b}.attention.v_proj": _BLOCK + "attention.self.value",
    "blocks.{b}.attention.sequence_reduction.sequence_reduction": _BLOCK + "attention.self.sr",
    "blocks.{b}.attention.sequence_reduction.layer_norm": _BLOCK + "attention.self.layer_norm",
    "blocks.{b}.attention.o_proj": _BLOCK + "attention.output.dense",
    "blocks.{b}.layernorm_after": _BLOCK + "layer_norm_2",
    "blocks.{b}.mlp.fc1": _BLOCK + "mlp.dense1",
    "blocks.{b}.mlp.dwconv.dwconv": _BLOCK + "mlp.dwconv.dwconv",
    "blocks.{b}.mlp.fc2": _BLOCK + "mlp.dense2",
    "layer_norm": "layer_norm.{s}",
}
ENCODERS["transformers"] |= {f"stages.{{s}}.{name}": (ours,) for name, ours in _OF_STAGE.items()}
HEADS: dict[str, dict[str, tuple[str, ...]]] = {
    "NVlabs": {
        "linear_c{s}.proj": ("linear_c.{s}.proj",),
        "linear_fuse.conv": ("linear_fuse",),
        "linear_fuse.bn": ("batch_norm",),
        "linear_pred": ("classifier",),
    },
    "mmsegmentation": {  # _without_relu converts these further
        "convs.{s}.conv": ("convs.{s}.conv",),
        "convs.{s}.bn": ("convs.{s}.bn",),
        "fusion_conv.conv": ("linear_fuse",),
        "fusion_conv.bn": ("batch_norm",),
        "conv_seg": ("classifier",),
    },
    "transformers": {
        name: (name,) for name in ("linear_c.{s}.proj", "linear_fuse", "batch_norm", "classifier")
    },
}
HEADS["transformers"]["linear_projections.{s}.proj"] = ("linear_c.{s}.proj",)
_FIRST_STAGE = {"NVlabs": 1}  # the others count from 0
_LEAVES = "weight|bias|running_mean|running_var|num_batches_tracked"
HEAD, ENCODER = "decode_head.", "segformer.encoder."


def layout_of(
    tensors: Mapping[str, Tensor], layouts: Mapping[str, Mapping[str, tuple[str, ...]]]
) -> str | None:
    """The layout that knows most of the names."""
    counts = {
        layout: sum(_targets(name, layout, table) is not None for name in tensors)
        for layout, table in layouts.items()
    }
    best = max(counts, key=lambda layout: counts[layout])
    return best if counts[best] else None


def _targets(
    name: str, layout: str, table: Mapping[str, tuple[str, ...]]
) -> tuple[list[str], str] | None:
    """Our modules for a foreign tensor, and its name in each."""
    match = re.fullmatch(rf"(.+?)[._]({_LEAVES})", name)
    if match is None:
        return None
    module, leaf = match.groups()
    for theirs, ours in table.items():
        found = _pattern(theirs).fullmatch(module)
        if found is not None:
            values = {key: int(value) for key, value in found.groupdict().items()}
            if "s" in values:
                values["s"] -= _FIRST_STAGE.get(layout, 0)
            return [target.format(**values) for target in ours], leaf
    return None


@functools.cache
def _pattern(theirs: str) -> re.Pattern[str]:
    escaped = re.escape(theirs)
    return re.compile(
        escaped.replace(r"\{s\}", r"(?P<s>\d{1,4})").replace(r"\{b\}", r"(?P<b>\d{1,4})")
    )


def renamed(
    tensors: Mapping[str, Tensor],
    layout: str,
    layouts: Mapping[str, Mapping[str, tuple[str, ...]]],
    what: str,
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Tensors under our names, and the foreign names that the layout does not know."""
    state, unknown = {}, {}
    for name, tensor in tensors.items():
        found = _targets(name, layout, layouts[layout])
        if found is None:
            unknown[name] = tensor
            continue
        targets, leaf = found
        parts: tuple[Tensor, ...] = (tensor,)
        if len(targets) > 1:
            if not tensor.ndim or not len(tensor) or len(tensor) % len(targets):
                raise UserError(f"{what}: {name} does not pack {len(targets)} tensors of a length")
            parts = tensor.chunk(len(targets))
        for target, part in zip(targets, parts, strict=True):
            if part.ndim == 4 and part.shape[2:] == (1, 1) and ".mlp.dense" in target:
                part = part.flatten(1)  # a 1x1 convolution there, a linear layer here
            if f"{target}.{leaf}" in state:
                raise UserError(
                    f"{what}: {name} and another name both mean {target}.{leaf}; keep one of them"
                )
            state[f"{target}.{leaf}"] = part
    return state, unknown
