"""`finetune benchmark`: speed against stock transformers."""
