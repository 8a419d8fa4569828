"""`finetune doctor`: finds the faults of a data set."""
