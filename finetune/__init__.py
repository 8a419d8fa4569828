"""Fine-tune SegFormer from a recipe and save it as a stock Hugging Face model.

Importing this package registers its SegFormer with transformers' Auto classes:
`AutoModelForSemanticSegmentation.from_pretrained` then returns it for any stock SegFormer folder.
"""

try:  # first: the imports below may fail if two packages named finetune are mixed
    from segformer_finetune import warn_of_namesake
except ModuleNotFoundError:
    pass  # this folder by itself, as in a Space: no installed package is mixed with it
else:
    warn_of_namesake()

from transformers import (
    AutoModel,
    AutoModelForImageClassification,
    AutoModelForSemanticSegmentation,
)

from .segformer import (
    SegformerConfig,
    SegformerForImageClassification,
    SegformerForSemanticSegmentation,
    SegformerModel,
)

__version__ = "0.1.0"

AutoModel.register(SegformerConfig, SegformerModel, exist_ok=True)
AutoModelForImageClassification.register(
    SegformerConfig, SegformerForImageClassification, exist_ok=True
)
AutoModelForSemanticSegmentation.register(
    SegformerConfig, SegformerForSemanticSegmentation, exist_ok=True
)
