"""Translation of foreign names of SegFormer's tensors to ours."""

import functools
import re
from collections.abc import Mapping, Sequence

from torch import Tensor

from finetune.errors import UserError

Layouts = Mapping[str, Mapping[str, Sequence[str]]]
"""Layout -> name of a module there -> names of our modules, whose tensors it packs along the first
axis. {s} is a stage, {b} a block."""

# Modules of a block: ours -> NVlabs', mmsegmentation's, and those of transformers 5 in memory,
# which a plain torch.save keeps.
_PREFIXES = ("block{s}.{b}.", "layers.{s}.1.{b}.", "stages.{s}.blocks.{b}.")
_REDUCTION = "attention.sequence_reduction."
_BLOCK = {
    "layer_norm_1": ("norm1", "norm1", "layernorm_before"),
    "attention.self.query": ("attn.q", "attn.attn.in_proj", "attention.q_proj"),
    "attention.self.key": ("attn.kv", "attn.attn.in_proj", "attention.k_proj"),
    "attention.self.value": ("attn.kv", "attn.attn.in_proj", "attention.v_proj"),
    "attention.self.sr": ("attn.sr", "attn.sr", _REDUCTION + "sequence_reduction"),
    "attention.self.layer_norm": ("attn.norm", "attn.norm", _REDUCTION + "layer_norm"),
    "attention.output.dense": ("attn.proj", "attn.attn.out_proj", "attention.o_proj"),
    "layer_norm_2": ("norm2", "norm2", "layernorm_after"),
    "mlp.dense1": ("mlp.fc1", "ffn.layers.0", "mlp.fc1"),
    "mlp.dwconv.dwconv": ("mlp.dwconv.dwconv", "ffn.layers.1", "mlp.dwconv.dwconv"),
    "mlp.dense2": ("mlp.fc2", "ffn.layers.4", "mlp.fc2"),
}
ENCODERS: dict[str, dict[str, list[str]]] = {
    "NVlabs": {
        "patch_embed{s}.proj": ["patch_embeddings.{s}.proj"],
        "patch_embed{s}.norm": ["patch_embeddings.{s}.layer_norm"],
        "norm{s}": ["layer_norm.{s}"],
    },
    "mmsegmentation": {
        "layers.{s}.0.projection": ["patch_embeddings.{s}.proj"],
        "layers.{s}.0.norm": ["patch_embeddings.{s}.layer_norm"],
        "layers.{s}.2": ["layer_norm.{s}"],
    },
    "transformers": {},
}
for _name in ("patch_embeddings.{s}.proj", "patch_embeddings.{s}.layer_norm", "layer_norm.{s}"):
    ENCODERS["transformers"]["stages.{s}." + _name.replace(".{s}", "")] = [_name]
    ENCODERS["transformers"]["encoder." + _name] = [_name]  # on disk
for _name, _theirs in _BLOCK.items():
    for _layout, _prefix, _their in zip(ENCODERS, _PREFIXES, _theirs, strict=True):
        ENCODERS[_layout].setdefault(_prefix + _their, []).append("block.{s}.{b}." + _name)
    ENCODERS["transformers"]["encoder.block.{s}.{b}." + _name] = ["block.{s}.{b}." + _name]
HEADS: Layouts = {
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
        "linear_c.{s}.proj": ("linear_c.{s}.proj",),
        "linear_projections.{s}.proj": ("linear_c.{s}.proj",),  # version 5 in memory
        "linear_fuse": ("linear_fuse",),
        "batch_norm": ("batch_norm",),
        "classifier": ("classifier",),
    },
}
_FIRST_STAGE = {"NVlabs": 1}  # the others count from 0
_LEAVES = "weight|bias|running_mean|running_var|num_batches_tracked"
HEAD, ENCODER = "decode_head.", "segformer.encoder."


def layout_of(tensors: Mapping[str, Tensor], layouts: Layouts) -> str | None:
    """The layout that knows most of the names."""
    counts = {
        layout: sum(_targets(name, layout, table) is not None for name in tensors)
        for layout, table in layouts.items()
    }
    best = max(counts, key=lambda layout: counts[layout])
    return best if counts[best] else None


def _targets(
    name: str, layout: str, table: Mapping[str, Sequence[str]]
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
    return re.compile(re.sub(r"\\\{(\w)\\\}", r"(?P<\1>\\d{1,4})", re.escape(theirs)))


def renamed(
    tensors: Mapping[str, Tensor], layout: str, layouts: Layouts, what: str
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
                raise UserError(
                    f"{what}: {name} must pack {len(targets)} tensors of equal length, but its "
                    f"shape is {tuple(tensor.shape)}"
                )
            parts = tensor.chunk(len(targets))
        for target, part in zip(targets, parts, strict=True):
            if part.ndim == 4 and part.shape[2:] == (1, 1) and ".mlp.dense" in target:
                part = part.flatten(1)  # a 1x1 convolution there, a linear layer here
            if f"{target}.{leaf}" in state:
                raise UserError(
                    f"{what}: {name} and another tensor both stand for {target}.{leaf}; remove one"
                )
            state[f"{target}.{leaf}"] = part
    return state, unknown
