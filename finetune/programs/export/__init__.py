"""`finetune export`: a model as files that run without PyTorch."""
