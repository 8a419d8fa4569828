"""Fine-tune SegFormer from a recipe; what is saved is a stock Hugging Face model.

Importing this package registers its SegFormer with transformers' Auto classes:
`AutoModelForSemanticSegmentation.from_pretrained` of any stock SegFormer folder then returns it.
"""

try:  # first: of two mixed packages anything below may fail
    from segformer_finetune import warn_of_namesake
except ModuleNotFoundError:
    pass  # this folder by itself, as in a Space: nothing was installed that could be mixed with it
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
