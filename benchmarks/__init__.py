"""Measuring that is not shipped: the verb `finetune benchmark` finds it in a checkout."""
