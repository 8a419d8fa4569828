"""Reads every image and mask of a split and keeps a few numbers for each.

The results are in the order of the samples and do not depend on the number of threads.
"""

import contextlib
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

import cv2
import datasets
import numpy as np

from finetune.data.duplicates import digest, perceptual_hash
from finetune.data.faults import Fault
from finetune.data.masks import PictureMasks, Size
from finetune.data.samples import ReadSamples, reader_of
from finetune.data.threads import in_order
from finetune.discover.values.mask_values import count_values
from finetune.errors import UserError
from finetune.labels.translation import Labels
from finetune.pictures.drawing import as_rgb
from finetune.pictures.reading import image_size, read_image, stored_as

MAX_VALUES = 256
"""Most frequent values that are kept of a mask; rarer ones without a rule are only counted."""
LARGE = 2**25
"""Pixels from which only one image at a time is decoded, to save memory."""
_CHUNK = 256  # rows taken from the table at once


def _no_values() -> np.ndarray:
    return np.zeros(0, np.int64)


@dataclass(frozen=True)
class Facts:
    """The facts about one sample: about a kilobyte, whatever its size."""

    faults: tuple[Fault, ...] = ()
    size: Size | None = None
    """Size of the image; None if it cannot be read. All later fields are empty then."""
    mean: tuple[float, ...] = ()
    """Per channel, of values in 0..1."""
    deviation: tuple[float, ...] = ()
    """Standard deviation per channel, of values in 0..1."""
    digest: bytes | None = None
    """Digest of the decoded pixels."""
    look: bytes | None = None
    """Perceptual hash."""
    stored: str = ""
    """How the mask stores its pixels; "" if it is not a picture."""
    mask_digest: bytes | None = None
    values: np.ndarray = field(default_factory=_no_values, repr=False)
    """Raw values of the mask, ascending; empty if it cannot be read."""
    counts: np.ndarray = field(default_factory=_no_values, repr=False)
    """Pixels of each value."""
    other_values: int = 0
    other_pixels: int = 0
    """Pixels of values without a rule beyond `MAX_VALUES`."""
    mended: int = 0
    """Pixels whose value was read as its nearest rule's, within the tolerance."""
    far: int = 0
    """Those of them that are farther from it than half the tolerance."""

    @property
    def blank(self) -> bool:
        """Whether all pixels of the image have one colour."""
        return bool(self.deviation) and max(self.deviation) < 1e-6


def read_facts(
    dataset: datasets.Dataset,
    *,
    workers: int,
    advance: Callable[[int], object] = lambda count: None,
) -> list[Facts]:
    """The facts of every sample, in order.

    Args:
        dataset: From `finetune.data.samples.as_samples`.
        workers: Threads.
        advance: Called with 1 after each sample.
    """
    reader, rows = reader_of(dataset), dataset.with_format(None)
    one_large = threading.Lock()

    def pairs() -> Iterator[tuple[str, str]]:
        for start in range(0, len(rows), _CHUNK):  # COCO's rows are long: not all at once
            part = rows[start : start + _CHUNK]
            yield from zip(part["image"], part["mask"], strict=True)

    facts: list[Facts] = []
    for found in in_order(lambda pair: examine(reader, *pair, one_large), pairs(), workers):
        facts.append(found)
        advance(1)
    return facts


def examine(reader: ReadSamples, image: str, mask: str, one_large: threading.Lock) -> Facts:
    """The facts about one sample, with its faults."""
    faults: list[Fault] = []
    facts = Facts()
    name = reader.pictures.name(image)
    try:
        picture = reader.pictures.open(image)
        height, width = image_size(picture)
        with one_large if height * width > LARGE else contextlib.nullcontext():
            facts = image_facts(read_image(picture, reader.num_channels))
    except UserError as error:
        faults.append(_fault(error, name, "unreadable-file"))
    where = reader.form.name(mask)
    try:
        size = facts.size or reader.form.size(mask)
        if size is not None:  # else the mask has none of its own, and the image's is unknown
            raw = reader.form.read(mask, size)
            facts = _with_mask(facts, raw, reader.labels)
            if facts.size not in (None, raw.shape):
                what = "the mask is {1} x {0} pixels (width x height)".format(*raw.shape)
                what += ", the image {1} x {0}".format(*size)
                faults.append(Fault("size-mismatch", tuple(filter(None, (where, name))), what))
        if isinstance(reader.form, PictureMasks):
            facts = replace(facts, stored=stored_as(reader.form.pictures.open(mask)))
    except UserError as error:
        # Other forms of masks are text that a program wrote.
        pictures = isinstance(reader.form, PictureMasks)
        kind = "unreadable-file" if pictures else "bad-annotation"
        faults.append(_fault(error, where or name, kind))
    return replace(facts, faults=tuple(faults))


def _fault(error: UserError, name: str, kind: str) -> Fault:
    kind = error.kind or kind
    if kind in ("empty-file", "missing-file", "mask-not-ids", "mask-not-colors"):
        return Fault(kind, (name,))  # the kind says all
    if kind == "unreadable-file":  # the decoder's words, without ours
        what = str(error.__cause__ or error)
        return Fault(kind, (name,), what.replace(f" {name!r}", "").removeprefix(f"{name}: "))
    return Fault(kind, (name,), str(error).removeprefix(f"{name}: "))


def image_facts(pixels: np.ndarray) -> Facts:
    """The facts about an image, uint8 or uint16 (H, W, C)."""
    full = np.iinfo(pixels.dtype).max
    mean, deviation = cv2.meanStdDev(pixels)
    return Facts(
        size=(pixels.shape[0], pixels.shape[1]),
        mean=tuple((mean.ravel() / full).tolist()),
        deviation=tuple((deviation.ravel() / full).tolist()),
        digest=digest(pixels),
        look=perceptual_hash(as_rgb(pixels)),
    )


def _with_mask(facts: Facts, exact: np.ndarray, labels: Labels) -> Facts:
    """Adds the facts about a mask's raw values, as they are after mending of colours."""
    raw = labels.mended(exact) if labels.tolerance else exact
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
        mended=int((raw != exact).sum()),
        far=_far(raw, exact, labels),
    )


def _far(raw: np.ndarray, exact: np.ndarray, labels: Labels) -> int:
    """Mended pixels that lie farther from a painted value than half of the tolerance."""
    changed = raw != exact
    if not labels.tolerance or not changed.any():
        return 0
    before, after = exact[changed].astype(np.int64), raw[changed].astype(np.int64)
    if labels.kind == "ids":
        distance = np.abs(before - after)
    else:
        channels = (16, 8, 0)
        distance = np.max([np.abs((before >> c & 255) - (after >> c & 255)) for c in channels], 0)
    return int((distance > labels.tolerance / 2).sum())
