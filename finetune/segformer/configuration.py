"""The configuration of SegFormer: transformers' own, and the six published sizes.

Source: Xie et al., "SegFormer: Simple and Efficient Design for Semantic Segmentation with
Transformers" (2021), table 6. The values that all sizes share (patch sizes 7 3 3 3, strides
4 2 2 2, heads 1 2 5 8, sequence reduction 8 4 2 1, MLP ratio 4) are defaults of `SegformerConfig`.
"""

from typing import Any

from transformers import SegformerConfig

__all__ = ["VARIANTS", "SegformerConfig", "side_after", "smallest_side"]

_WIDE = [64, 128, 320, 512]

# Keyword arguments of SegformerConfig: `SegformerConfig(**VARIANTS["b2"], num_labels=19)`.
VARIANTS: dict[str, dict[str, Any]] = {
    "b0": {"depths": [2, 2, 2, 2], "hidden_sizes": [32, 64, 160, 256], "decoder_hidden_size": 256},
    "b1": {"depths": [2, 2, 2, 2], "hidden_sizes": _WIDE, "decoder_hidden_size": 256},
    "b2": {"depths": [3, 4, 6, 3], "hidden_sizes": _WIDE, "decoder_hidden_size": 768},
    "b3": {"depths": [3, 4, 18, 3], "hidden_sizes": _WIDE, "decoder_hidden_size": 768},
    "b4": {"depths": [3, 8, 27, 3], "hidden_sizes": _WIDE, "decoder_hidden_size": 768},
    "b5": {"depths": [3, 6, 40, 3], "hidden_sizes": _WIDE, "decoder_hidden_size": 768},
}


def side_after(config: SegformerConfig, stage: int, side: int) -> int:
    """The height or width of a stage's map, from that of its input."""
    kernel = config.patch_sizes[stage]
    return (side + 2 * (kernel // 2) - kernel) // config.strides[stage] + 1


def smallest_side(config: SegformerConfig) -> int:
    """The smallest height or width, in pixels, that the model takes.

    A stage with sequence reduction r needs a feature map of at least r x r, because the
    reducing convolution (kernel = stride = r) is not padded. 29 pixels for B0 to B5.
    """
    side = 1
    for stage in reversed(range(config.num_encoder_blocks)):
        kernel, stride = config.patch_sizes[stage], config.strides[stage]
        needed = max(side, config.sr_ratios[stage])
        side = max((needed - 1) * stride + kernel - 2 * (kernel // 2), 1)  # by `side_after`
    return side
