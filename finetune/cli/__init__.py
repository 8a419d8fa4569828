"""The `finetune` command: one thin function for each verb, in the order of a project."""

import sys
import warnings

from tqdm.auto import tqdm

# Each import registers its verbs; --help lists them in this order.
from finetune.cli import training, data, models, sharing, measuring  # noqa: F401  # isort: skip
from finetune.cli.app import app
from finetune.errors import UserError

__all__ = ["app", "main"]


def main() -> None:
    """Runs the program. A UserError becomes one message and exit status 2, a warning one line."""
    warnings.showwarning = lambda message, *_, **__: tqdm.write(f"warning: {message}", sys.stderr)
    try:
        app()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
