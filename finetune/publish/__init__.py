"""Model folders as Hugging Face expects them: stock files that open without this package.

`cards` writes their README.md, `header` its metadata, `markdown` escapes foreign text.
"""

from finetune.publish.cards import model_card
from finetune.publish.folder import save_model_folder
from finetune.publish.header import DataSet, hub_id

__all__ = ["DataSet", "hub_id", "model_card", "save_model_folder"]
