"""Reasons to stop between two steps: SIGINT, SIGTERM and a time limit."""

import math
import signal
import threading
import time
from types import FrameType
from typing import Any, NoReturn


class StopSignals:
    """A context manager that turns SIGINT and SIGTERM into a flag for the loop.

    After the first signal the loop saves the state and stops. A second SIGINT, three seconds later
    or more, stops at once (launchers and terminals deliver the first one twice). Outside the main
    thread, where Python allows no handlers, it does nothing.

    The time limit is `max_minutes`, or none. The loop sets `may_time_out` after its first step, so
    that a run with many restarts reaches its end.
    """

    PATIENCE = 3.0  # seconds

    def __init__(self, max_minutes: float | None = None) -> None:
        self.received: int | None = None  # the first signal's number
        self.may_time_out = False
        self._deadline = time.monotonic() + 60 * (max_minutes or math.inf)
        self._at = 0.0
        self._previous: dict[int, Any] = {}

    def told(self) -> bool:
        """Whether this process was told to stop."""
        timed_out = self.may_time_out and time.monotonic() > self._deadline
        return self.received is not None or timed_out

    def leave(self) -> NoReturn:
        """Raises KeyboardInterrupt after SIGINT, else SystemExit with 143."""
        if self.received == signal.SIGINT:
            raise KeyboardInterrupt
        raise SystemExit(128 + signal.SIGTERM)

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
