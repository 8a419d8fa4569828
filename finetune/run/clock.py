"""A clock for training steps, over all parts of a run."""

import time
from collections.abc import Iterator
from contextlib import contextmanager


class Clock:
    """Adds the seconds since its creation, without pauses, to those of earlier parts of the run.

    Pauses are evaluations and saves.
    """

    def __init__(self, seconds: float = 0.0):
        self._before = seconds
        self._since: float | None = time.monotonic()

    @property
    def seconds(self) -> float:
        """Seconds so far."""
        running = 0.0 if self._since is None else time.monotonic() - self._since
        return self._before + running

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Stops the clock until the end of the block."""
        self._before, self._since = self.seconds, None
        try:
            yield
        finally:
            self._since = time.monotonic()
