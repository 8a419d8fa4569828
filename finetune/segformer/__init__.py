"""SegFormer as a transformers model. Imports torch, transformers and its siblings, nothing else."""

from .configuration import VARIANTS, SegformerConfig
from .modeling import (
    SegformerForImageClassification,
    SegformerForSemanticSegmentation,
    SegformerModel,
)

__all__ = [
    "VARIANTS",
    "SegformerConfig",
    "SegformerForImageClassification",
    "SegformerForSemanticSegmentation",
    "SegformerModel",
]
