"""SegFormer as a transformers model. This folder imports only torch and transformers."""

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
