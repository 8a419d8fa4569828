"""SegFormer, written from the paper, in the paper's order, as a transformers model.

Xie et al., "SegFormer: Simple and Efficient Design for Semantic Segmentation with Transformers",
NeurIPS 2021, arXiv:2105.15203. Parameters have the names of the published checkpoints, so that
this package and stock transformers load and save the same files. The whole model is in one file,
as in transformers: it is read beside the paper, and every module builds on those above it.

Three things make it fast without a change of the result. Feature maps are channels last from the
first patch to the logits: Linear and LayerNorm act on the last axis, and a convolution takes a
permuted view that is already channels-last memory, so that no map is transposed or copied. Keys
and values come out of one product. The head multiplies its weights with each other first
(`functional.fold_projections`).

Shapes at the ends of lines:
    B  batch            H, W  height and width of the map at hand
    C  its channels     N, M  number of queries (H W) and of reduced keys (about H W / sr_ratio^2)
    h  attention heads  d     channels of one head (C / h)
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import (
    BaseModelOutput,
    ImageClassifierOutput,
    SemanticSegmenterOutput,
)
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.utils import logging
from transformers.utils.generic import can_return_tuple

from .configuration import SegformerConfig, side_after, smallest_side
from .cpu import bands_pay, classify_in_bands
from .functional import (
    classify,
    fold_batch_norm,
    fold_projections,
    linear,
    mix_ffn,
    project_and_add,
    upsample,
    upsampled_cross_entropy,
)
from .layers import Linear, SequenceReduction, are_plain

logger = logging.get_logger(__name__)

LAYER_NORM_EPS = 1e-5  # as in stock transformers, which ignores config.layer_norm_eps


# --------------------------------------------------------------------------- encoder, section 3.1


class SegformerOverlapPatchEmbeddings(nn.Module):
    """Overlapped patch merging: a strided convolution whose kernel exceeds its stride.

    Neighbouring patches share pixels, which keeps the local continuity that ViT's separate
    patches lose (paper, section 3.1, "Overlapped Patch Merging").
    """

    def __init__(self, config: SegformerConfig, stage: int):
        super().__init__()
        channels = config.num_channels if stage == 0 else config.hidden_sizes[stage - 1]
        kernel = config.patch_sizes[stage]
        self.proj = nn.Conv2d(
            channels, config.hidden_sizes[stage], kernel, config.strides[stage], kernel // 2
        )
        self.layer_norm = nn.LayerNorm(config.hidden_sizes[stage], eps=LAYER_NORM_EPS)

    def forward(self, x: Tensor) -> Tensor:  # (B, H, W, C) -> (B, H / stride, W / stride, C')
        x = self.proj(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return self.layer_norm(x)


def eager_attention_forward(
    module: nn.Module,
    query: Tensor,  # (B, h, N, d)
    key: Tensor,  # (B, h, M, d)
    value: Tensor,  # (B, h, M, d)
    attention_mask: Tensor | None,  # added to the scores; SegFormer has none
    scaling: float,  # 1 / sqrt(d)
    dropout: float = 0.0,
) -> tuple[Tensor, Tensor]:  # the context (B, N, h, d) and the weights (B, h, N, M)
    """softmax(Q K^T / sqrt(d)) V, written out, in the form of transformers' attention functions."""
    scores = query @ key.transpose(2, 3) * scaling
    if attention_mask is not None:
        scores = scores + attention_mask
    weights = F.softmax(scores, dim=-1, dtype=torch.float32).to(query.dtype)
    weights = F.dropout(weights, dropout, training=module.training)
    return (weights @ value).transpose(1, 2), weights


class SegformerEfficientSelfAttention(nn.Module):
    """Self-attention whose keys and values are shortened by R = sr_ratio^2.

    The cost is O(N^2 / R) instead of O(N^2): a convolution with kernel = stride = sr_ratio reduces
    the map of keys and values (paper, section 3.1, "Efficient Self-Attention").
    """

    def __init__(self, config: SegformerConfig, stage: int):
        super().__init__()
        hidden_size, self.num_heads = config.hidden_sizes[stage], config.num_attention_heads[stage]
        if hidden_size % self.num_heads:
            raise ValueError(
                f"hidden_sizes[{stage}] = {hidden_size} is not a multiple of "
                f"num_attention_heads[{stage}] = {self.num_heads}"
            )
        self.config = config
        self.sr_ratio = config.sr_ratios[stage]
        self.scaling = (hidden_size // self.num_heads) ** -0.5
        self.dropout = config.attention_probs_dropout_prob
        self.is_causal = False  # read by transformers' attention functions
        self.query = Linear(hidden_size, hidden_size)
        self.key = Linear(hidden_size, hidden_size)
        self.value = Linear(hidden_size, hidden_size)
        if self.sr_ratio > 1:
            self.sr = SequenceReduction(hidden_size, self.sr_ratio)
            self.layer_norm = nn.LayerNorm(hidden_size, eps=LAYER_NORM_EPS)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor | None]:  # (B, H, W, C) -> the same
        batch, height, width, channels = x.shape
        query = self._heads(self.query(x).flatten(1, 2))  # (B, h, N, d)
        key, value = self._keys_and_values(self._reduce(x))  # 2 x (B, h, M, d)

        attend = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention_forward
        )
        dropout = self.dropout if self.training else 0.0
        context, weights = attend(
            self, query, key, value, None, dropout=dropout, scaling=self.scaling
        )  # (B, N, h, d)
        return context.reshape(batch, height, width, channels), weights

    def _reduce(self, x: Tensor) -> Tensor:  # (B, H, W, C) -> (B, H / sr, W / sr, C)
        if self.sr_ratio == 1:
            return x
        x = self.sr(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return self.layer_norm(x)

    def _keys_and_values(self, x: Tensor) -> tuple[Tensor, Tensor]:
        if not are_plain((Linear,), self.key, self.value):
            return self._heads(self.key(x).flatten(1, 2)), self._heads(self.value(x).flatten(1, 2))
        weight = torch.cat([self.key.weight, self.value.weight])
        bias = torch.cat([self.key.bias, self.value.bias])
        key, value = linear(x, weight, bias).flatten(1, 2).chunk(2, dim=-1)  # 2 x (B, M, C)
        return self._heads(key), self._heads(value)

    def _heads(self, x: Tensor) -> Tensor:  # (B, N, C) -> (B, h, N, d), a view
        return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)


class SegformerSelfOutput(nn.Module):
    """The projection after attention."""

    def __init__(self, config: SegformerConfig, stage: int):
        super().__init__()
        self.dense = Linear(config.hidden_sizes[stage], config.hidden_sizes[stage])
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, x: Tensor) -> Tensor:  # (B, H, W, C)
        return self.dropout(self.dense(x))


class SegformerAttention(nn.Module):
    """Efficient self-attention and its output projection."""

    def __init__(self, config: SegformerConfig, stage: int):
        super().__init__()
        self.self = SegformerEfficientSelfAttention(config, stage)
        self.output = SegformerSelfOutput(config, stage)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor | None]:  # (B, H, W, C)
        context, weights = self.self(x)
        return self.output(context), weights


class SegformerDWConv(nn.Module):
    """The 3 x 3 depthwise convolution inside Mix-FFN."""

    def __init__(self, channels: int):
        super().__init__()
        self.dwconv = nn.Conv2d(channels, channels, 3, padding=1, groups=channels)

    def forward(self, x: Tensor) -> Tensor:  # (B, H, W, C)
        return self.dwconv(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


class SegformerMixFFN(nn.Module):
    """Mix-FFN, MLP(GELU(Conv3x3(MLP(x)))), which replaces positional encoding.

    The zero padding of the convolution tells the position of a pixel, so that no encoding has to
    be interpolated when the test size differs from the training size (paper, section 3.1, equation
    3).
    """

    read = (Linear, SegformerDWConv, nn.Conv2d, type(ACT2FN["gelu"]), nn.Dropout)  # by `mix_ffn`

    def __init__(self, config: SegformerConfig, stage: int):
        super().__init__()
        hidden_size = config.hidden_sizes[stage]
        expanded = int(hidden_size * config.mlp_ratios[stage])
        self.dense1 = Linear(hidden_size, expanded)
        self.dwconv = SegformerDWConv(expanded)
        act = config.hidden_act
        self.intermediate_act_fn = ACT2FN[act] if isinstance(act, str) else act
        self.dense2 = Linear(expanded, hidden_size)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, x: Tensor) -> Tensor:  # (B, H, W, C)
        parts = (self.dense1, self.dwconv, self.intermediate_act_fn, self.dense2, self.dropout)
        if are_plain(self.read, *parts) and not (self.dropout.training and self.dropout.p):
            layers = (self.dense1, self.dwconv.dwconv, self.dense2)
            return mix_ffn(x, *((layer.weight, layer.bias) for layer in layers))
        x = self.dwconv(self.dense1(x))  # (B, H, W, 4 C)
        x = self.dropout(self.intermediate_act_fn(x))
        return self.dropout(self.dense2(x))  # (B, H, W, C)


class SegformerDropPath(nn.Module):
    """Stochastic depth, per sample (Huang et al., arXiv:1603.09382)."""

    def __init__(self, drop_prob: float):
        super().__init__()
        self.drop_prob = drop_prob

    def forward(self, x: Tensor) -> Tensor:  # (B, H, W, C)
        if self.drop_prob == 0.0 or not self.training:
            return x
        # Dropping a (B, 1, 1, 1) tensor of ones gives 0 or 1 / keep_prob a sample.
        return x * F.dropout(x.new_ones(x.shape[0], 1, 1, 1), self.drop_prob)

    def extra_repr(self) -> str:
        return f"p={self.drop_prob}"


class SegformerLayer(GradientCheckpointingLayer):
    """One transformer block: x + attention(norm(x)), then x + Mix-FFN(norm(x))."""

    def __init__(self, config: SegformerConfig, stage: int, drop_path: float):
        super().__init__()
        hidden_size = config.hidden_sizes[stage]
        self.layer_norm_1 = nn.LayerNorm(hidden_size, eps=LAYER_NORM_EPS)
        self.attention = SegformerAttention(config, stage)
        self.drop_path = SegformerDropPath(drop_path)
        self.layer_norm_2 = nn.LayerNorm(hidden_size, eps=LAYER_NORM_EPS)
        self.mlp = SegformerMixFFN(config, stage)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor | None]:  # (B, H, W, C)
        attention, weights = self.attention(self.layer_norm_1(x))
        x = x + self.drop_path(attention)
        x = x + self.drop_path(self.mlp(self.layer_norm_2(x)))
        return x, weights


class SegformerEncoder(nn.Module):
    """The hierarchical encoder: four maps, at 1/4, 1/8, 1/16 and 1/32 of the image."""

    def __init__(self, config: SegformerConfig):
        super().__init__()
        stages = range(config.num_encoder_blocks)
        depth = sum(config.depths)
        rates = iter([config.drop_path_rate * i / max(depth - 1, 1) for i in range(depth)])
        self.patch_embeddings = nn.ModuleList(
            SegformerOverlapPatchEmbeddings(config, stage) for stage in stages
        )
        self.block = nn.ModuleList(
            nn.ModuleList(
                SegformerLayer(config, stage, next(rates)) for _ in range(config.depths[stage])
            )
            for stage in stages
        )
        self.layer_norm = nn.ModuleList(
            nn.LayerNorm(config.hidden_sizes[stage], eps=LAYER_NORM_EPS) for stage in stages
        )

    def forward(self, x: Tensor) -> tuple[list[Tensor], list[Tensor]]:  # (B, H, W, C)
        maps, attentions = [], []
        stages = zip(self.patch_embeddings, self.block, self.layer_norm, strict=True)
        for embed, blocks, norm in stages:
            x = embed(x)
            for block in blocks:
                x, weights = block(x)
                if weights is not None:  # only the eager attention has them
                    attentions.append(weights)
            x = norm(x)
            maps.append(x)
        return maps, attentions


# ------------------------------------------------------------------------------ head, section 3.2


class SegformerMLP(nn.Module):
    """One stage's linear projection to the width of the head."""

    def __init__(self, config: SegformerConfig, stage: int):
        super().__init__()
        self.proj = Linear(config.hidden_sizes[stage], config.decoder_hidden_size)
        self.proj.init_as_torch = True

    def forward(self, x: Tensor) -> Tensor:  # (B, H, W, C)
        return self.proj(x)


class SegformerDecodeHead(nn.Module):
    """The all-MLP head: project four maps, upsample them to 1/4, fuse, classify.

    Projection, upsampling and fusion are linear and act on different axes, so their order is free.
    The fusion's weight is multiplied with each projection's first, the product is applied at each
    map's own resolution, and only a sum is left at 1/4 resolution. At 512 x 512 this removes 4.3 of
    B0's 8.4 GMAC and 38 of B2's 62.
    """

    read = (SegformerMLP, Linear, nn.Conv2d, nn.ReLU, nn.Dropout)  # by the folded form

    def __init__(self, config: SegformerConfig):
        super().__init__()
        self.config = config
        width, stages = config.decoder_hidden_size, config.num_encoder_blocks
        self.linear_c = nn.ModuleList(SegformerMLP(config, stage) for stage in range(stages))
        self.linear_fuse = nn.Conv2d(width * stages, width, kernel_size=1, bias=False)
        self.batch_norm = nn.BatchNorm2d(width)
        self.activation = nn.ReLU()
        self.dropout = nn.Dropout(config.classifier_dropout_prob)
        self.classifier = nn.Conv2d(width, config.num_labels, kernel_size=1)
        self.classifier.init_as_torch = True  # linear_fuse follows the rule for convolutions

    def forward(self, hidden_states: Sequence[Tensor]) -> Tensor:
        """Four maps (B, C_i, H_i, W_i), as the encoder gives them, -> logits (B, K, H_0, W_0)."""
        maps = [x.permute(0, 2, 3, 1) for x in self._as_maps(hidden_states)]  # (B, H, W, C)
        if not are_plain(self.read, self.linear_fuse, *self.linear_c):
            return self._classify(self.batch_norm(self._fuse(maps)))

        matrices, bias = fold_projections(
            self.linear_fuse.weight.flatten(1),
            [mlp.proj.weight for mlp in self.linear_c],
            [mlp.proj.bias for mlp in self.linear_c],
        )
        norm_folds = self._norm_folds()
        if norm_folds:
            matrices, bias = fold_batch_norm(self.batch_norm, matrices, bias)
        matrices = [matrix.to(maps[0].dtype) for matrix in matrices]
        bias = bias.to(maps[0].dtype)
        in_bands = norm_folds and not self.dropout.training and bands_pay(maps[0])
        if in_bands and self._classifies_plainly():
            weight = self.classifier.weight.flatten(1)
            return classify_in_bands(maps, matrices, bias, weight, self.classifier.bias)
        x = project_and_add(maps, matrices, bias)  # (B, C, H_0, W_0)
        return self._classify(x if norm_folds else self.batch_norm(x))

    def _fuse(self, maps: list[Tensor]) -> Tensor:
        """The paper's order, layer by layer."""
        projected = [
            upsample(mlp(x).permute(0, 3, 1, 2), maps[0].shape[1:3])
            for mlp, x in zip(self.linear_c, maps, strict=True)
        ]
        return self.linear_fuse(torch.cat(projected[::-1], dim=1))  # the coarsest comes first

    def _norm_folds(self) -> bool:
        """Whether batch norm is in eval mode and of a class known to be affine there."""
        norm = self.batch_norm
        # A subclass that differs only in how it gathers statistics sets `affine_in_eval`.
        known = (type(norm),) if getattr(type(norm), "affine_in_eval", False) else ()
        return (
            not norm.training
            and norm.track_running_stats
            and are_plain((nn.BatchNorm2d, nn.SyncBatchNorm, *known), norm)
        )

    def _classify(self, x: Tensor) -> Tensor:  # (B, C, H_0, W_0) -> (B, K, H_0, W_0)
        if not self._classifies_plainly():
            return self.classifier(self.dropout(self.activation(x)))
        dropout = self.dropout.p if self.dropout.training else 0.0
        return classify(x, dropout, self.classifier.weight.flatten(1), self.classifier.bias)

    def _classifies_plainly(self) -> bool:
        return are_plain(self.read, self.activation, self.dropout, self.classifier)

    def _as_maps(self, hidden_states: Sequence[Tensor]) -> list[Tensor]:
        *maps, last = hidden_states
        if last.ndim == 3:  # (B, N, C): reshape_last_stage=False in old configurations
            size = [side_after(self.config, -1, side) for side in maps[-1].shape[2:]]
            last = last.transpose(1, 2).unflatten(-1, size)
        return [*maps, last]


# ------------------------------------------------------------------------------------- the models


class SegformerPreTrainedModel(PreTrainedModel):
    """The base of the three models: configuration and fresh weights."""

    config: SegformerConfig
    config_class = SegformerConfig
    base_model_prefix = "segformer"
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    # Parameters are read only inside the forward of one of these (for offload and FSDP).
    _no_split_modules = ("SegformerLayer", "SegformerOverlapPatchEmbeddings", "SegformerDecodeHead")

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """The original's initialisation (its `mix_transformer.py` and `segformer_head.py`).

        The functions of `transformers.initialization` keep weights that came from a checkpoint. A
        mark on the layer, not its parent, selects the head's rule or the encoder's: in classes that
        it does not ship, transformers skips modules without parameters of their own.
        """
        if getattr(module, "init_as_torch", False):
            # PyTorch's default, which the original keeps in most of its head.
            init.kaiming_uniform_(module.weight, a=math.sqrt(5))
            bound = 1 / math.sqrt(module.weight.numel() / len(module.weight))
            init.uniform_(module.bias, -bound, bound)
        elif isinstance(module, nn.Linear | nn.Conv2d):
            if isinstance(module, nn.Linear):
                init.trunc_normal_(module.weight, std=0.02, a=-2.0, b=2.0)
            else:
                fan_out = math.prod(module.kernel_size) * module.out_channels // module.groups
                init.normal_(module.weight, std=math.sqrt(2.0 / fan_out))
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, nn.LayerNorm | nn.BatchNorm2d | nn.SyncBatchNorm):
            init.ones_(module.weight)
            init.zeros_(module.bias)
            if isinstance(module, nn.BatchNorm2d | nn.SyncBatchNorm):
                init.zeros_(module.running_mean)
                init.ones_(module.running_var)
                init.zeros_(module.num_batches_tracked)


class SegformerModel(SegformerPreTrainedModel):
    """The hierarchical encoder (Mix Transformer, MiT) without a head."""

    def __init__(self, config: SegformerConfig):
        super().__init__(config)
        self.encoder = SegformerEncoder(config)
        self.smallest_side = smallest_side(config)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        pixel_values: Tensor,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
    ) -> BaseModelOutput:
        """Encodes a batch of images.

        Args:
            pixel_values: (B, num_channels, H, W), normalised; channels-last memory is fastest.
            output_attentions: whether to return each block's attention weights, (B, h, N, M);
                only `attn_implementation="eager"` gives them.
            output_hidden_states: whether to return the four maps, (B, C_i, H_i, W_i).

        Returns:
            The last map as `last_hidden_state`, (B, C, H / 32, W / 32), or (B, N, C) if
            `config.reshape_last_stage` is False.

        Raises:
            ValueError: a side is shorter than the model can take (29 pixels for B0 to B5).
        """
        if min(pixel_values.shape[-2:]) < self.smallest_side:
            raise ValueError(
                f"pixel_values of {pixel_values.shape[-2]} x {pixel_values.shape[-1]} pixels are "
                f"too small: each side must have at least {self.smallest_side}. "
                "Pad or enlarge the image."
            )
        if output_attentions is None:
            output_attentions = self.config.output_attentions
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states

        x = pixel_values.permute(0, 2, 3, 1).contiguous()  # no copy if channels last already
        maps, attentions = self.encoder(x)
        hidden_states = [x.permute(0, 3, 1, 2) for x in maps]
        if not self.config.reshape_last_stage:
            hidden_states[-1] = maps[-1].flatten(1, 2)
        return BaseModelOutput(
            last_hidden_state=hidden_states[-1],
            hidden_states=tuple(hidden_states) if output_hidden_states else None,
            attentions=tuple(attentions) if output_attentions else None,
        )


class SegformerForImageClassification(SegformerPreTrainedModel):
    """The encoder, mean pooling and a linear classifier, as in the encoder's pre-training."""

    def __init__(self, config: SegformerConfig):
        super().__init__(config)
        self.segformer = SegformerModel(config)
        self.classifier = nn.Linear(config.hidden_sizes[-1], config.num_labels)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        pixel_values: Tensor,
        labels: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
    ) -> ImageClassifierOutput:
        """Classifies a batch of images.

        Args:
            pixel_values: (B, num_channels, H, W), normalised.
            labels: (B,) int64 class ids, for the loss (regression if `num_labels` is 1).
            output_attentions: as in `SegformerModel`.
            output_hidden_states: as in `SegformerModel`.

        Returns:
            `logits`, (B, num_labels), and `loss` if there are labels.
        """
        outputs = self.segformer(
            pixel_values, output_attentions, output_hidden_states, return_dict=True
        )
        x = outputs.last_hidden_state
        pooled = x.mean(dim=(2, 3)) if x.ndim == 4 else x.mean(dim=1)  # (B, C)
        logits = self.classifier(pooled)
        return ImageClassifierOutput(
            loss=None if labels is None else self.loss_function(labels, logits, self.config),
            logits=logits,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )


class SegformerForSemanticSegmentation(SegformerPreTrainedModel):
    """SegFormer: the hierarchical encoder and the all-MLP head."""

    def __init__(self, config: SegformerConfig):
        super().__init__(config)
        self.segformer = SegformerModel(config)
        self.decode_head = SegformerDecodeHead(config)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        pixel_values: Tensor,
        labels: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
    ) -> SemanticSegmenterOutput:
        """Scores every pixel of a batch of images for every class, at 1/4 resolution.

        Args:
            pixel_values: (B, num_channels, H, W), normalised.
            labels: (B, H', W') integer class ids at any resolution, usually the image's, with
                `config.semantic_loss_ignore_index` for pixels that do not count.
            output_attentions: as in `SegformerModel`.
            output_hidden_states: as in `SegformerModel`.

        Returns:
            `logits`, (B, num_labels, H / 4, W / 4), and `loss` if there are labels: the mean
            cross entropy over the pixels that count, at the labels' resolution.
        """
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        outputs = self.segformer(
            pixel_values, output_attentions, output_hidden_states=True, return_dict=True
        )
        logits = self.decode_head(outputs.hidden_states)
        return SemanticSegmenterOutput(
            loss=None if labels is None else self._loss(logits, labels),
            logits=logits,
            hidden_states=outputs.hidden_states if output_hidden_states else None,
            attentions=outputs.attentions,
        )

    def save_pretrained(self, *args: Any, **kwargs: Any) -> None:
        """Saves as transformers does; warns of a one-logit head, which stock tools misread."""
        if self.config.num_labels == 1:
            logger.warning(
                "This model has num_labels=1. Stock's image-segmentation pipeline paints the whole "
                "picture with one label whatever the logits; two labels (background, thing) work."
            )
        super().save_pretrained(*args, **kwargs)

    def _loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        ignore_index = self.config.semantic_loss_ignore_index
        if self.config.num_labels > 1:
            return upsampled_cross_entropy(logits, labels, ignore_index=ignore_index)
        # Stock's binary loss: one logit a pixel, and a mean over all pixels, ignored ones included.
        upsampled = upsample(logits, labels.shape[-2:])
        valid = (labels >= 0) & (labels != ignore_index)
        loss = F.binary_cross_entropy_with_logits(
            upsampled.squeeze(1).float(), labels.float(), reduction="none"
        )
        return (loss * valid).mean()
