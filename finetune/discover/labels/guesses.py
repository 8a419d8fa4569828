"""What a `labels:` block is guessed to be, and what its guessers share."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from finetune.discover.values.class_lists import ClassList, is_background
from finetune.discover.values.mask_values import MaskValues
from finetune.errors import UserError
from finetune.labels.rules import NO_LABEL
from finetune.labels.translation import Labels

FEW, ALL = 1e-3, 0.999
"""Shares of pixels at which a class is doubtful: below the first, and above the second."""
MOSTLY = 0.75
"""From this share of pixels on, 0 is probably the background, and not a list's first class."""


@dataclass(frozen=True)
class LabelGuess:
    """A `labels:` block, with lines about what was seen and what was assumed."""

    labels: dict[str, Any]
    found: tuple[str, ...]
    assumed: tuple[str, ...]
    known: bool = True
    """Whether a file beside the masks says what their values mean."""
    listed: ClassList | None = None
    """The list of classes beside the masks, used or not."""
    doubts: tuple[str, ...] = ()
    """Reasons to look at the masks before a training."""


def doubts(values: MaskValues, labels: Labels) -> Iterator[str]:
    """What is implausible in the shares of classes, if each value means what the labels say."""
    raw = np.array([*values.counts], np.int32)
    ids = labels.encode(raw[None], "masks")[0]
    counts = np.bincount(ids, [*values.counts.values()], labels.ignore_index + 1)
    shares = counts / max(1, values.total)
    own, ignored = shares[: labels.num_labels], float(shares[labels.ignore_index])
    few = int((own < FEW).sum())
    if labels.num_labels > 4 and 2 * few > labels.num_labels:
        yield f"{few} of {labels.num_labels} classes have less than {FEW:.1%} of the pixels each"
    if ignored > 0.5:
        yield f"{ignored:.0%} of the pixels are ignored"
    if own.max() > ALL:
        name = labels.names[int(own.argmax())]
        yield f"{own.max():.2%} of the pixels are {name}"


def check_background(
    values: MaskValues, listed: ClassList, names: Sequence[str], raw: Sequence[int]
) -> None:
    """Refuses a list if its first class is a thing, but would have nearly all pixels."""
    if len(names) > 2 and set(raw) == set(values.counts) - set(NO_LABEL):
        return  # with a background before them, the last class would never occur
    share = values.counts[0] / max(1, sum(values.counts.values()))
    if share >= MOSTLY and 0 in raw and not is_background(names[0]):
        raise UserError(
            f"{listed.file}: its first class is {names[0]}, but {share:.0%} of the pixels are 0, "
            f"as for a background. Write the value of each class before its name, one per line: "
            f"`0: {names[0]}` if this is right, or `0: background`, `1: {names[0]}`."
        )


def unused(values: MaskValues, listed: ClassList | None) -> list[str]:
    """Why a list cannot be used."""
    if listed is None:
        return []
    if listed.colors is not None and values.kind == "ids":
        return [f"{listed.file.name} lists colours, but masks hold ids"]
    held = listing(sorted(values.counts))
    return [f"{listed.file.name} lists {len(listed.names)} names, but masks hold {held}"]


def listing(values: Sequence[object]) -> str:
    """Values in a sentence; of many, the first ones and the last."""
    texts = [*map(str, values)]
    return ", ".join(texts) if len(texts) <= 12 else f"{', '.join(texts[:8])}, ... {texts[-1]}"
