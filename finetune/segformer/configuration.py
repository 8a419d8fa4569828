"""The configuration of SegFormer: transformers' own, and the six published sizes.

Source: Xie et al., "SegFormer: Simple and Efficient Design for Semantic Segmentation with
Transformers" (2021), table 6. The values that all sizes share (patch sizes 7 3 3 3, strides
4 2 2 2, heads 1 2 5 8, sequence reduction 8 4 2 1, MLP ratio 4) are defaults of `SegformerConfig`.
"""

from typing import Any

from transformers import SegformerConfig

__all__ = ["VARIANTS", "SegformerConfig", "smallest_side"]

_WIDE = [64, 128, 320, 512]

# Keyword arguments of SegformerConfig: `SegformerConfig(**VARIANTS["b2"], num_labels=19)`.
VARIANTS: dict[str, dict[str, Any]] = {
    "b0": {
        "depths": [2, 2, 2, 2],
        "hidden_sizes": [32, 64, 160, 256],
        "decoder_hidden_size": 256,
    },
    "b1": {"depths": [2, 2, 2, 2], "hidden_sizes": _WIDE, "decoder_hidden_size": 256},
    "b2": {"depths": [3, 4, 6, 3], "hidden_sizes": _WIDE, "decoder_hidden_size": 768},
    "b3": {"depths": [3, 4, 18, 3], "hidden_sizes": _WIDE, "decoder_hidden_size": 768},
    "b4": {"depths": [3, 8, 27, 3], "hidden_sizes": _WIDE, "decoder_hidden_size": 768},
    "b5": {"depths": [3, 6, 40, 3], "hidden_sizes": _WIDE, "decoder_hidden_size": 768},
}


def smallest_side(config: SegformerConfig) -> int:
    """The smallest height or width, in pixels, that the model takes.

    A stage with sequence reduction r needs a feature map of at least r x r, because the
    reducing convolution (kernel = stride = r) is not padded. 29 pixels for B0 to B5.
    """
    needed = [1] * config.num_encoder_blocks
    for stage in reversed(range(config.num_encoder_blocks)):
        side = max(needed[stage], config.sr_ratios[stage])
        kernel, stride = config.patch_sizes[stage], config.strides[stage]
        # The convolution gives (n + 2 (kernel // 2) - kernel) // stride + 1 for a side of n.
        pixels = (side - 1) * stride + kernel - 2 * (kernel // 2)
        if stage == 0:
            return max(pixels, 1)
        needed[stage - 1] = max(needed[stage - 1], pixels)
    raise AssertionError("a model has at least one stage")
