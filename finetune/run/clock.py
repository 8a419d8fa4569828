"""The time that training steps take, over all parts of a run."""

import time
from collections.abc import Iterator
from contextlib import contextmanager


class Clock:
    """Counts seconds from its making on, but for pauses: evaluations and saves are no training.

    Args:
        seconds: of the parts of the run before this one.
    """

    def __init__(self, seconds: float = 0.0):
        self._before = seconds
        self._since: float | None = time.monotonic()

    @property
    def seconds(self) -> float:
        """The time so far."""
        running = 0.0 if self._since is None else time.monotonic() - self._since
        return self._before + running

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Stands still until the end of the block."""
        self._before, self._since = self.seconds, None
        try:
            yield
        finally:
            self._since = time.monotonic()
