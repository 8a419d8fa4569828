"""`finetune doctor`: what is wrong with a data set."""
