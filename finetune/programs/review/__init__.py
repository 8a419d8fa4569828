"""`finetune review`: the labels that a trained model doubts, as a ranked list."""
