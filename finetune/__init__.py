"""Fine-tune SegFormer from a recipe; what is saved is a stock Hugging Face model.

Importing this package registers its SegFormer with transformers' Auto classes:
`AutoModelForSemanticSegmentation.from_pretrained` of any stock SegFormer folder then returns it.
"""

from .namesake import warn_of_namesake

warn_of_namesake()  # before an import that may fail because of it

from transformers import (  # noqa: E402
    AutoModel,
    AutoModelForImageClassification,
    AutoModelForSemanticSegmentation,
)

from .segformer import (  # noqa: E402
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
