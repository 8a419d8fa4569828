"""Statistics of a data set: classes, values, sizes, colours."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from finetune.data.faults import Fault
from finetune.labels.rules import NO_OBJECT, UNCOUNTED
from finetune.labels.translation import Labels
from finetune.programs.doctor.scan import Facts

MAX_PLACES = 256
"""Masks of a value that are remembered by name; a value in more of them is not rare."""
MAX_VALUES = 65536
"""Values that are counted one by one; JPEG can make millions of colours."""
MAX_SHOWN = 5
"""Masks of a class, and values of a mask, that a finding names."""


@dataclass(frozen=True)
class Split:
    """The samples of a split, the facts about each, and the files that make no sample."""

    name: str
    ids: Sequence[str]
    images: Sequence[str]
    masks: Sequence[str]
    """Names for messages; a mask without a name of its own has the image's."""
    facts: Sequence[Facts]
    faults: Sequence[Fault] = ()
    """Faults of files, such as a missing partner."""

    def __len__(self) -> int:
        return len(self.facts)


@dataclass
class ValueCount:
    """The occurrences of a raw value in masks."""

    pixels: int = 0
    images: int = 0
    of_images: int = 0
    """All pixels of the masks that hold the value."""
    places: list[tuple[int, int, int]] = field(default_factory=list)
    """Split, sample and pixels, for the first masks."""


@dataclass(frozen=True)
class ClassCounts:
    """The pixels of one split."""

    pixels: np.ndarray
    """(K,) int64."""
    images: np.ndarray
    """(K,) int64, images that show the class."""
    ignored: int
    """Pixels that a rule ignores."""
    uncovered: int
    """Pixels whose value has no rule."""
    places: list[list[int]]
    """The first `MAX_SHOWN` masks of each class."""

    @property
    def total(self) -> int:
        """All pixels."""
        return int(self.pixels.sum()) + self.ignored + self.uncovered


def value_counts(splits: Sequence[Split]) -> dict[int, ValueCount]:
    """Raw values of all masks, ascending; at most `MAX_VALUES`, the first ones that occur."""
    found: dict[int, ValueCount] = {}
    for s, split in enumerate(splits):
        for i, facts in enumerate(split.facts):
            total = int(facts.counts.sum())
            for value, count in zip(facts.values.tolist(), facts.counts.tolist(), strict=True):
                if value not in found and len(found) >= MAX_VALUES:
                    continue
                entry = found.setdefault(value, ValueCount())
                entry.pixels += count
                entry.images += 1
                entry.of_images += total
                if len(entry.places) < MAX_PLACES:
                    entry.places.append((s, i, count))
    return dict(sorted(found.items()))


def class_counts(split: Split, labels: Labels) -> ClassCounts:
    """Pixels and images of every class in a split."""
    rules = dict(labels.rules)
    pixels = np.zeros(labels.num_labels, np.int64)
    images = np.zeros(labels.num_labels, np.int64)
    places: list[list[int]] = [[] for _ in labels.names]
    ignored = uncovered = 0
    for i, facts in enumerate(split.facts):
        seen = set()
        uncovered += facts.other_pixels
        for value, count in zip(facts.values.tolist(), facts.counts.tolist(), strict=True):
            class_id = rules.get(value)
            if class_id is None:
                uncovered += count
            elif class_id == labels.ignore_index:
                ignored += count
            else:
                pixels[class_id] += count
                seen.add(class_id)
        images[list(seen)] += 1
        for class_id in seen:
            if len(places[class_id]) < MAX_SHOWN:
                places[class_id].append(i)
    return ClassCounts(pixels, images, ignored, uncovered, places)


def num_masks(splits: Sequence[Split]) -> int:
    """The number of masks that can be read."""
    return sum(bool(len(facts.values)) for split in splits for facts in split.facts)


def class_weights(pixels: np.ndarray) -> list[float | None]:
    """Weights of classes for the loss, 1 / ln(1.02 + share of the labelled pixels).

    The rule is ENet's (Paszke et al. 2016, https://arxiv.org/abs/1606.02147, section 5.2): 1.4 for
    a class that covers everything, at most 50 for a rare one, so that no rare class takes over. A
    class without pixels has no weight.
    """
    share = pixels / max(1, pixels.sum())
    weights = 1 / np.log(1.02 + share)
    return [round(float(w), 4) if count else None for w, count in zip(weights, pixels, strict=True)]


def mean_and_std(split: Split) -> tuple[list[float], list[float]] | None:
    """Mean and standard deviation per channel over all pixels, of values in 0..1.

    They follow from the figures of each image: a mean of squares is variance plus squared mean.
    """
    seen = [facts for facts in split.facts if facts.size is not None]
    if not seen:
        return None
    pixels = sizes([split]).prod(axis=1)
    means = np.array([facts.mean for facts in seen])  # (N, C)
    deviations = np.array([facts.deviation for facts in seen])
    mean = np.average(means, axis=0, weights=pixels)
    squares = np.average(deviations**2 + means**2, axis=0, weights=pixels)
    return mean.tolist(), np.sqrt(np.maximum(squares - mean**2, 0)).tolist()


def sizes(splits: Sequence[Split]) -> np.ndarray:
    """(N, 2) heights and widths of all images that can be read."""
    found = [facts.size for split in splits for facts in split.facts if facts.size is not None]
    return np.array(found, int).reshape(-1, 2)


def stored_kinds(splits: Sequence[Split]) -> Counter[str]:
    """The number of masks for each way of storing pixels."""
    kinds = Counter(facts.stored for split in splits for facts in split.facts if facts.stored)
    return Counter(dict(sorted(kinds.items())))


def value_name(value: int, kind: str) -> str:
    """The text for a raw value."""
    if value == NO_OBJECT:
        return "no object (-1)"
    if value == UNCOUNTED:
        return "left out by the annotation (-2)"
    return f"#{value:06X}" if kind == "colors" else str(value)
