"""Reads every image and mask of a split and keeps a few numbers of each.

In threads: nearly all of the time goes into decoders, hashes and sums that hold no lock of
Python's, and one process is one copy of torch in memory, starts at once and ends at once on Ctrl-C.
What comes out is in the order of the samples and does not depend on the number of threads.
"""

import contextlib
import threading
import warnings
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace

import cv2
import datasets
import numpy as np
from PIL import Image

from finetune.data.duplicates import digest, perceptual_hash
from finetune.data.faults import Fault
from finetune.data.files import image_size, read_image, stored_as
from finetune.data.inspection import count_values
from finetune.data.labels import Labels
from finetune.data.masks import CocoObjects, ColorMasks, IdMasks, Size
from finetune.data.samples import ReadSamples, reader_of
from finetune.errors import UserError

MAX_VALUES = 256
"""Of a mask with more values, those without a rule beyond the most frequent are only counted."""
LARGE = 2**25
"""Pixels of an image from which on only one is decoded at a time, for the memory's sake."""
_CHUNK = 16  # samples of a task


def _no_values() -> np.ndarray:
    return np.zeros(0, np.int64)


@dataclass(frozen=True)
class Facts:
    """What is kept of one sample: about a kilobyte, whatever its size."""

    faults: tuple[Fault, ...] = ()
    size: Size | None = None
    """Of the image; None if it cannot be read, as with all that follows."""
    mean: tuple[float, ...] = ()
    """Per channel, of 0..255."""
    deviation: tuple[float, ...] = ()
    """Standard deviation per channel, of 0..255."""
    digest: bytes | None = None
    """Of the decoded pixels."""
    look: bytes | None = None
    """Perceptual hash."""
    stored: str = ""
    """How the mask stores its pixels; "" if it is no picture."""
    mask_digest: bytes | None = None
    values: np.ndarray = field(default_factory=_no_values, repr=False)
    """Raw values of the mask, ascending; empty if it cannot be read."""
    counts: np.ndarray = field(default_factory=_no_values, repr=False)
    """Pixels of each value."""
    other_values: int = 0
    other_pixels: int = 0
    """Of values without a rule beyond `MAX_VALUES`."""
    mended: int = 0
    """Pixels whose colour was taken for its neighbour's, within the tolerance."""

    @property
    def blank(self) -> bool:
        """Whether all pixels of the image have one colour."""
        return bool(self.deviation) and max(self.deviation) < 1e-6


def scan(
    dataset: datasets.Dataset,
    *,
    workers: int,
    advance: Callable[[int], object] = lambda count: None,
) -> list[Facts]:
    """The facts of every sample, in order.

    Args:
        dataset: From `finetune.data.samples.as_samples`.
        workers: Threads.
        advance: Called with the number of samples done since the last call.
    """
    reader, rows = reader_of(dataset), dataset.with_format(None)
    stop, one_large = threading.Event(), threading.Lock()

    def work(part: dict[str, list[str]]) -> list[Facts]:
        pairs = zip(part["image"], part["mask"], strict=True)
        return [examine(reader, *pair, one_large) for pair in pairs if not stop.is_set()]

    facts: list[Facts] = []
    waiting: deque[Future[list[Facts]]] = deque()

    def take() -> None:
        done = waiting.popleft().result()
        facts.extend(done)
        advance(len(done))

    with _one_thread_each(), ThreadPoolExecutor(workers) as pool:
        try:
            for start in range(0, len(rows), _CHUNK):
                if len(waiting) > 2 * workers:  # rows of COCO's are long: not all at once
                    take()
                waiting.append(pool.submit(work, rows[start : start + _CHUNK]))
            while waiting:
                take()
        except BaseException:  # Ctrl-C: what has begun ends after its sample
            stop.set()
            pool.shutdown(wait=True, cancel_futures=True)
            raise
    return facts


@contextlib.contextmanager
def _one_thread_each() -> Iterator[None]:
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # sizes are reported
            yield
    finally:
        cv2.setNumThreads(threads)


def examine(reader: ReadSamples, image: str, mask: str, one_large: threading.Lock) -> Facts:
    """The facts of one sample; what is wrong with it is among them."""
    faults: list[Fault] = []
    facts = Facts()
    name = reader.pictures.name(image)
    try:
        picture = reader.pictures.open(image)
        height, width = image_size(picture)
        with one_large if height * width > LARGE else contextlib.nullcontext():
            facts = _of_image(read_image(picture))
    except UserError as error:
        faults.append(_fault(error, name, "unreadable-file"))
    where = reader.form.name(mask)
    try:
        raw, exact = _raw(reader, mask, facts.size)
        if raw is not None:
            facts = _with_mask(facts, raw, exact, reader.labels)
            own = reader.form.size(mask) if isinstance(reader.form, CocoObjects) else raw.shape
            if facts.size is not None and own is not None and own != facts.size:
                what = (
                    f"the mask is {own[1]} x {own[0]} pixels (width x height), the image "
                    f"{facts.size[1]} x {facts.size[0]}"
                )
                faults.append(Fault("size-mismatch", tuple(filter(None, (where, name))), what))
        if isinstance(reader.form, IdMasks | ColorMasks):
            facts = replace(facts, stored=stored_as(reader.form.pictures.open(mask)))
    except UserError as error:
        # What is no picture of its own is text that somebody's program wrote.
        pictures = isinstance(reader.form, IdMasks | ColorMasks)
        kind = "unreadable-file" if pictures else "bad-annotation"
        faults.append(_fault(error, where or name, kind))
    return replace(facts, faults=tuple(faults))


def _fault(error: UserError, name: str, kind: str) -> Fault:
    kind = error.kind or kind
    if kind in ("empty-file", "missing-file", "mask-not-ids", "mask-not-colors"):
        return Fault(kind, (name,))  # which says all
    if kind == "unreadable-file":  # what the decoder said, without our own words around it
        what = str(error.__cause__ or error)
        return Fault(kind, (name,), what.replace(f" {name!r}", "").removeprefix(f"{name}: "))
    return Fault(kind, (name,), str(error).removeprefix(f"{name}: "))


def _of_image(pixels: np.ndarray) -> Facts:
    mean, deviation = cv2.meanStdDev(pixels)
    return Facts(
        size=(pixels.shape[0], pixels.shape[1]),
        mean=tuple(mean.ravel().tolist()),
        deviation=tuple(deviation.ravel().tolist()),
        digest=digest(pixels),
        look=perceptual_hash(pixels),
    )


def _raw(
    reader: ReadSamples, mask: str, size: Size | None
) -> tuple[np.ndarray | None, np.ndarray | None]:
    """Raw values of a mask as `Labels` takes them; and as they were, if colours were mended.

    None if the mask has no size of its own and the image's is not known.
    """
    form = reader.form
    size = size or form.size(mask)
    if size is None:
        return None, None
    if not isinstance(form, ColorMasks) or not form.tolerance:
        return form.read(mask, size), None
    exact = replace(form, tolerance=0).read(mask, size)
    values, inverse = np.unique(exact, return_inverse=True)
    return form.mended(values)[inverse].reshape(exact.shape), exact


def _with_mask(facts: Facts, raw: np.ndarray, exact: np.ndarray | None, labels: Labels) -> Facts:
    values, counts = count_values(raw)
    others, other_pixels = 0, 0
    if len(values) > MAX_VALUES:
        known = np.isin(values, [value for value, _ in labels.rules])
        rank = np.argsort(np.argsort(np.where(known, 0, -counts), kind="stable"), kind="stable")
        kept = known | (rank < MAX_VALUES)
        others, other_pixels = int((~kept).sum()), int(counts[~kept].sum())
        values, counts = values[kept], counts[kept]
    return replace(
        facts,
        mask_digest=digest(raw.astype(np.int32)),
        values=values,
        counts=counts,
        other_values=others,
        other_pixels=other_pixels,
        mended=0 if exact is None else int((raw != exact).sum()),
    )
