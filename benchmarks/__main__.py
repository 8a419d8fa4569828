"""The child processes of `finetune benchmark`, see `memory.start`. Not for people."""

import json
import sys

from finetune.errors import UserError


def main() -> int:
    """Does what the one argument, JSON, says; returns the exit status."""
    task = json.loads(sys.argv[1])
    try:
        if task["do"] == "memory":
            from benchmarks.memory import measure_memory

            print(measure_memory(task))
        else:
            from benchmarks.training import train_side

            train_side(task)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
