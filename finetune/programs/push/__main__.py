"""`python -m finetune.programs.push RUN REPO --quick`: a push beside a training.

It ends with its standard input, which the training holds open; so it never outlives it. People
type `finetune push`.
"""

import argparse
import os
import sys
import threading
from pathlib import Path


def main() -> int:
    """The program; returns the exit status."""
    parser = argparse.ArgumentParser(prog="finetune.programs.push")
    parser.add_argument("run", type=Path)
    parser.add_argument("repo")
    parser.add_argument("--public", dest="private", action="store_false")
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    threading.Thread(target=_end_with_input, daemon=True).start()
    if options.quick and hasattr(os, "nice"):
        os.nice(10)

    from finetune.errors import UserError
    from finetune.programs.push.push import push, show
    from finetune.run.screen import quiet_libraries

    quiet_libraries(main_process=True)
    try:
        show(push(options.run, options.repo, private=options.private, pictures=not options.quick))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _end_with_input() -> None:
    while os.read(0, 1024):  # not sys.stdin, whose lock would be held at the end of the program
        pass
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main())
