"""One program at a time in a folder."""

import os
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from finetune.errors import UserError


@contextmanager
def alone_in(folder: Path, message: str, *, patience: int = 0) -> Iterator[None]:
    """Locks a folder until the end of the block, or of the process.

    Where there are no such locks (on Windows, on some network file systems), nothing happens.

    Args:
        folder: It exists.
        message: What to say if another process holds it.
        patience: Seconds to wait for that.

    Raises:
        UserError: Another process holds it.
    """
    if os.name != "posix":
        yield
        return
    import fcntl

    descriptor = os.open(folder, os.O_RDONLY)
    try:
        for left in reversed(range(patience + 1)):
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if not left:
                    raise UserError(message) from None
                time.sleep(1)
            except OSError:
                warnings.warn(f"{folder}: its file system has no locks", stacklevel=2)
                break
        yield
    finally:
        os.close(descriptor)  # which unlocks it
