"""What stands behind the verbs of `finetune`, one room or file a verb."""
