"""Measuring that is not shipped: `finetune benchmark` finds it beside the package in a checkout."""
