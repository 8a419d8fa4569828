"""Work on many samples at once, in order, with only a few of them in memory.

Threads suffice: decoders, encoders and sums take nearly all of the time and release Python's lock.
One process needs one copy of torch, starts at once and ends at once on Ctrl-C.
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
    """`map(work, items)` in threads, about two items per thread ahead.

    An exception of `work` is raised in its turn. After it, or when the caller stops, no new item
    is begun.
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
        finally:  # Ctrl-C, an error or a caller that stops: finish what has begun
            pool.shutdown(wait=True, cancel_futures=True)


@contextlib.contextmanager
def one_thread_each() -> Iterator[None]:
    """Keeps libraries from starting threads within threads, and from warning of large pictures."""
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            yield
    finally:
        cv2.setNumThreads(threads)
