"""What the masks of a set hold, seen from some of them: the start of a `labels:` block."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from finetune.data.classes import ClassList
from finetune.data.files import read_colors, read_mask
from finetune.errors import UserError

RGB = tuple[int, int, int]

NUM_MASKS = 200
"""Masks that are looked at."""
MAX_COLORS = 256
"""More colours than classes can have; JPEG makes thousands."""
RARE = 1e-4
"""Share of pixels below which a colour that is near to another one is damage."""
TOLERANCE = 24


@dataclass(frozen=True)
class MaskValues:
    """Values of masks: ids, or colours as 0xRRGGBB."""

    kind: str
    counts: Counter[int]
    palette: tuple[RGB, ...] | None
    """Of the first mask that has one."""
    num_masks: int


@dataclass(frozen=True)
class LabelGuess:
    """A `labels:` block, what it was made from, and what was decided without having been seen."""

    labels: dict[str, Any]
    found: tuple[str, ...]
    assumed: tuple[str, ...]
    known: bool = True
    """Whether something beside the masks says what their values mean."""


def inspect(files: Sequence[Path], *, lenient: bool = False) -> MaskValues:
    """Counts the values of some masks, spread over all.

    Args:
        files: The masks.
        lenient: Pass over those that cannot be read, and those of the rarer kind.

    Raises:
        UserError: One cannot be read, or some hold ids and others colours.
    """
    chosen = files[:: max(1, len(files) // NUM_MASKS)][:NUM_MASKS]
    kinds: dict[str, list[Path]] = {}
    counts: dict[str, Counter[int]] = {"ids": Counter(), "colors": Counter()}
    palette = None
    for file in chosen:
        try:
            kind, own = _kind(file)
            values = read_mask(file) if kind == "ids" else read_colors(file)
        except UserError:
            if lenient:
                continue
            raise
        palette = palette or own
        found, number = np.unique(values, return_counts=True)
        counts[kind].update(dict(zip(found.tolist(), number.tolist(), strict=True)))
        kinds.setdefault(kind, []).append(file)
    if not kinds:
        raise UserError(f"{chosen[0]} and {len(chosen) - 1} more: not one mask can be read.")
    if len(kinds) > 1 and not lenient:
        raise UserError(
            f"{kinds['ids'][0]} holds ids, but {kinds['colors'][0]} holds colours. Masks of "
            "one set must be of one kind."
        )
    kind = max(kinds, key=lambda kind: len(kinds[kind]))
    return MaskValues(kind, counts[kind], palette, len(chosen))


def _kind(file: Path) -> tuple[str, tuple[RGB, ...] | None]:
    """Whether a mask holds "ids" or "colors", and its palette if there is one that is not grey."""
    try:
        with Image.open(file) as image:
            if image.mode in ("RGB", "RGBA", "LA", "PA"):
                return "colors", None
            flat = image.getpalette() if image.mode == "P" else None
    except (OSError, ValueError, SyntaxError) as error:
        raise UserError(f"{file}: cannot be read ({error}). Replace or remove it.") from error
    if flat is None:
        return "ids", None
    colors = [(flat[i], flat[i + 1], flat[i + 2]) for i in range(0, len(flat) - 2, 3)]
    return "ids", tuple(colors) if any(len(set(color)) > 1 for color in colors) else None


def guess_labels(values: MaskValues, listed: ClassList | None) -> LabelGuess:
    """A `labels:` block that covers every value that was seen.

    Args:
        values: What was seen.
        listed: The classes as a file beside the data lists them, if one does.

    Raises:
        UserError: There are fewer than two classes, or more colours than classes can be.
    """
    if values.kind == "colors":
        return _of_colors(values, listed)
    return _of_ids(values, listed)


def _of_ids(values: MaskValues, listed: ClassList | None) -> LabelGuess:
    seen = sorted(values.counts)
    found = [f"masks hold ids: {_shown([str(v) for v in seen])} ({values.num_masks} looked at)"]
    assumed = []
    if (
        listed is not None
        and listed.colors is None
        and set(seen) - {255, 65535} <= set(_raw(listed))
    ):
        raw = _raw(listed)
        labels: dict[str, Any] = {"names": list(listed.names)}
        found.append(f"names of classes in {listed.file.name}")
        if raw != tuple(range(len(raw))):
            labels["map"] = {value: i for i, value in enumerate(raw)}
        if set(seen) & {255, 65535} - set(raw):
            labels["ignore"] = sorted(set(seen) & {255, 65535} - set(raw))
            assumed.append(f"{labels['ignore'][0]} is no class and does not count")
        return LabelGuess(labels, tuple(found), tuple(assumed))
    if seen == [0, 255] or seen == [0, 1]:
        labels = {"names": ["background", "thing"], "ignore": [255]}
        if seen == [0, 255]:
            labels |= {"map": {0: 0, 255: 1}, "ignore": []}
        assumed.append(f"0 is the background, {seen[1]} the thing (rename them in labels.names)")
        return LabelGuess(labels, tuple(found), tuple(assumed), known=False)
    ignored = [value for value in seen if value in (255, 65535)]
    classes = [value for value in seen if value not in ignored]
    if len(classes) < 2:
        raise UserError(f"the masks hold {_shown([str(v) for v in seen])}: fewer than two classes.")
    if ignored:
        assumed.append(f"{ignored[0]} is no class and does not count")
    labels = {"ignore": ignored or [255]}
    highest = classes[-1]
    if highest < 2 * len(classes) + 8:
        classes = list(range(highest + 1))
    else:
        labels["map"] = {value: i for i, value in enumerate(classes)}
    labels["names"] = [f"class_{value}" for value in classes]
    assumed.append("names of classes are made up: no list of them was found (labels.names)")
    if classes[0] == 0 and not ignored:
        assumed.append("0 is a class (if it means 'no label', put it into labels.ignore)")
    if values.palette and highest < len(values.palette):
        labels["colors"] = [list(values.palette[value]) for value in classes]
        found.append("colours of classes in the masks' palette")
    return LabelGuess(labels, tuple(found), tuple(assumed), known=False)


def _raw(listed: ClassList) -> tuple[int, ...]:
    return listed.values or tuple(range(len(listed.names)))


def _of_colors(values: MaskValues, listed: ClassList | None) -> LabelGuess:
    total = sum(values.counts.values())
    found = [f"masks hold {len(values.counts)} colours ({values.num_masks} looked at)"]
    assumed: list[str] = []
    labels: dict[str, Any] = {"kind": "colors"}
    if listed is not None and listed.colors is not None:
        table = [_packed(color) for color in listed.colors]
        names, found = list(listed.names), [*found, f"classes and colours in {listed.file.name}"]
    else:
        frequent = [v for v, count in values.counts.most_common() if count >= RARE * total]
        table = _apart(frequent)
        if len(table) > MAX_COLORS or len(table) < 2:
            raise UserError(
                f"the masks hold {len(values.counts)} colours, {len(table)} of them frequent and "
                f"apart from each other: no classes can be made out. Are these masks?"
            )
        table = sorted(table)
        names = [f"color_{value:06X}" for value in table]
        assumed.append("each frequent colour is a class; names are made up (labels.names)")
    strangers = {v: count for v, count in values.counts.items() if v not in set(table)}
    if strangers:
        far = {v: count for v, count in strangers.items() if _distance(v, table) > TOLERANCE}
        labels["tolerance"] = max(
            (_distance(v, table) for v in strangers if v not in far), default=0
        )
        share = sum(strangers.values()) / total
        found.append(f"{len(strangers)} colours beside those of the classes, {share:.2%} of pixels")
        if labels["tolerance"]:
            assumed.append(
                f"colours up to {labels['tolerance']} a channel off are those of their neighbours"
            )
        if far:
            assumed.append(f"{len(far)} colours that are none of the classes' do not count")
            labels["unknown"] = "ignore"
    labels["names"] = names
    labels["colors"] = [[value >> 16, value >> 8 & 255, value & 255] for value in table]
    known = listed is not None and listed.colors is not None
    return LabelGuess(labels, tuple(found), tuple(assumed), known)


def _packed(color: RGB) -> int:
    return color[0] << 16 | color[1] << 8 | color[2]


def _distance(value: int, table: Sequence[int]) -> int:
    """To the nearest colour of the table, in the channel that differs most."""

    def apart(a: int, b: int) -> int:
        return max(abs((a >> shift & 255) - (b >> shift & 255)) for shift in (16, 8, 0))

    return min((apart(value, other) for other in table), default=255)


def _apart(frequent: Sequence[int]) -> list[int]:
    """Of colours, the most frequent first, those that are not within reach of one before."""
    table: list[int] = []
    for value in frequent:
        if _distance(value, table) > TOLERANCE or len(frequent) <= 64:
            table.append(value)
        if len(table) > MAX_COLORS:
            break
    return table


def _shown(values: Sequence[str]) -> str:
    return ", ".join(values) if len(values) <= 12 else f"{', '.join(values[:8])}, ... {values[-1]}"
