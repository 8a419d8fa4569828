"""Reasons to stop between two steps: SIGINT, SIGTERM, and a limit of time."""

import math
import signal
import threading
import time
from types import FrameType
from typing import Any, NoReturn


class StopSignals:
    """Turns SIGINT and SIGTERM into a flag that the loop looks at between two steps.

    A context manager. The first signal asks for a stop, with the state saved; one more SIGINT,
    three seconds later or more, gives up at once (launchers and terminals deliver the first one
    twice). Outside the main thread, where Python allows no handlers, it does nothing.

    Args:
        max_minutes: also stop after so long; None: never.

    Attributes:
        received: the first signal's number, or None.
        may_time_out: the limit counts from when this is set. The loop sets it after its first
            step, so that a run that is started again and again gets to its end.
    """

    PATIENCE = 3.0  # seconds

    def __init__(self, max_minutes: float | None = None) -> None:
        self.received: int | None = None
        self.may_time_out = False
        self._deadline = time.monotonic() + 60 * (max_minutes or math.inf)
        self._at = 0.0
        self._previous: dict[int, Any] = {}

    def told(self) -> bool:
        """Whether this process was told to stop."""
        timed_out = self.may_time_out and time.monotonic() > self._deadline
        return self.received is not None or timed_out

    def leave(self) -> NoReturn:
        """Ends as the signal asks: KeyboardInterrupt after SIGINT, else SystemExit with 143."""
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
