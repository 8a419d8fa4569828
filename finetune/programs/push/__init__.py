"""`finetune push`: a trained model to the Hub."""
