"""SIGINT and SIGTERM as a flag that the loop looks at between two steps."""

import signal
import threading
import time
from types import FrameType
from typing import Any


class StopSignals:
    """Turns SIGINT and SIGTERM into a flag that the loop looks at between two steps.

    A context manager. The first signal asks for a stop, with the state saved; one more SIGINT,
    three seconds later or more, gives up at once (launchers and terminals deliver the first one
    twice). Outside the main thread, where Python allows no handlers, it does nothing.
    """

    PATIENCE = 3.0  # seconds

    def __init__(self) -> None:
        self.received: int | None = None
        self._at = 0.0
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> "StopSignals":
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self.received is None:
            self.received, self._at = number, now
        elif number == signal.SIGINT and now - self._at > self.PATIENCE:
            raise KeyboardInterrupt
