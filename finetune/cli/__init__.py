"""The `finetune` command: one thin function a verb, in the order of a project."""

import sys

# What is imported registers its verbs; --help lists them in this order.
from finetune.cli import training, data, models, sharing, measuring  # noqa: F401  # isort: skip
from finetune.cli.app import app
from finetune.errors import UserError

__all__ = ["app", "main"]


def main() -> None:
    """The program: a UserError becomes one message and exit status 2."""
    try:
        app()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
