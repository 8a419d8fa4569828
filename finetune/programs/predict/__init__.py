"""`finetune predict`: masks for any number of pictures."""
