"""The programs behind the verbs of `finetune`: one folder or file for each verb."""
