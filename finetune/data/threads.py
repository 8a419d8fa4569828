"""Work on many samples at once, in order and without holding more than a few of them.

In threads: nearly all of the time goes into decoders, encoders and sums that hold no lock of
Python's, and one process is one copy of torch in memory, starts at once and ends at once on Ctrl-C.
"""

import contextlib
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import cv2
from PIL import Image

T = TypeVar("T")
S = TypeVar("S")


def in_order(work: Callable[[T], S], items: Iterable[T], workers: int) -> Iterator[S]:
    """`map(work, items)` in threads; about two items a thread are taken ahead.

    What `work` raises is raised in its turn; then, as when the caller stops, no new item is begun.
    """
    waiting: deque[Future[S]] = deque()
    with one_thread_each(), ThreadPoolExecutor(workers) as pool:
        try:
            for item in items:
                if len(waiting) > 2 * workers:
                    yield waiting.popleft().result()
                waiting.append(pool.submit(work, item))
            while waiting:
                yield waiting.popleft().result()
        finally:  # Ctrl-C, an error, or enough: what has begun ends
            pool.shutdown(wait=True, cancel_futures=True)


@contextlib.contextmanager
def one_thread_each() -> Iterator[None]:
    """Libraries do not start threads within threads, nor warn of large pictures."""
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            yield
    finally:
        cv2.setNumThreads(threads)
