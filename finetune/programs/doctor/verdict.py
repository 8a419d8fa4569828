"""Judges the facts: finds the faults of a data set and their remedies. Reads no file."""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from finetune.data.duplicates import groups, nearest
from finetune.data.faults import Fault
from finetune.data.masks import Size
from finetune.labels.rules import NO_LABEL, NO_OBJECT, UNCOUNTED
from finetune.labels.translation import Labels
from finetune.programs.doctor.figures import (
    MAX_PLACES,
    MAX_SHOWN,
    Split,
    ValueCount,
    class_counts,
    num_masks,
    stored_kinds,
    value_counts,
    value_name,
)
from finetune.programs.doctor.kinds import KINDS, WARNINGS, Severity, message_of

FEW_SAMPLES = 10
"""A value can be called rare if there are at least so many masks."""
RARE_SHARE = 5e-3
"""A value below this share of its masks' pixels has few pixels."""
RARE_CLASS = 3
"""A named class in at most so many masks is rare."""
DENSE = 0.5
"""Share of frequent values from first to last; above it, values between them are classes."""
MOST_PIXELS = 0.97
"""Share of the pixels that a few values hold together; many values beside them are smears."""
MOSTLY = 0.5
FAR = 0.1
"""Share of a mask's pixels far from every class's value; edges that were smoothed have less."""


@dataclass(frozen=True)
class Finding:
    """A fault in one or many places."""

    kind: str
    severity: Severity
    places: tuple[Fault, ...]

    @property
    def message(self) -> str:
        """The fault and how often it occurs."""
        return message_of(self.kind, len(self.places))

    @property
    def remedy(self) -> str:
        """The advice about it."""
        return KINDS[self.kind][1]

    @property
    def files(self) -> list[str]:
        """The files of all places, each once."""
        return list(dict.fromkeys(file for place in self.places for file in place.files))


@dataclass(frozen=True)
class Expectations:
    """The facts from a recipe that findings depend on."""

    labels: Labels
    known: bool = True
    """Whether a recipe states the meaning of mask values; otherwise `labels` is a guess."""
    crop: Size | None = None
    """Height and width of training crops; None if unknown."""
    base_size: Size | None = None
    """As `augment.base_size`."""
    smallest_side: int = 1
    """The smallest side that the model takes."""
    drawn: bool = False
    """Whether the evaluation split is a share that was drawn."""
    distance: int = 8
    """Most bits in which the perceptual hashes of near duplicates differ."""


def judge(splits: Sequence[Split], expected: Expectations) -> list[Finding]:
    """All findings, problems first.

    Args:
        splits: The training split, and the evaluation split if there is one.
        expected: The facts from the recipe.
    """
    places: list[Fault] = [fault for split in splits for fault in split.faults]
    places += [fault for split in splits for facts in split.facts for fault in facts.faults]
    places += _of_values(splits, expected)
    places += _of_images(splits, expected)
    places += _of_classes(splits, expected)
    places += _twice(splits)
    if len(splits) > 1:
        places += _nearly_twice(splits, expected.distance)
    warnings = set(WARNINGS)
    if expected.drawn:
        warnings.add("class-only-in-val")  # another draw may do
    if expected.labels.kind == "colors":
        warnings.add("smeared-values")  # labels.tolerance mends JPEG's errors
    by_kind: dict[str, dict[Fault, None]] = {kind: {} for kind in KINDS}  # each once, in order
    for place in places:
        by_kind[place.kind][place] = None
    findings = [
        Finding(kind, "warning" if kind in warnings else "problem", tuple(found))
        for kind, found in by_kind.items()
        if found
    ]
    return sorted(findings, key=lambda finding: finding.severity)  # "problem" < "warning"


# ------------------------------------------------------------------------------------------ values


def rare_values(values: Mapping[int, ValueCount], masks: int, kind: str) -> list[int]:
    """Values in few masks and few pixels; they are probably slips.

    An id among frequent values without great gaps is a rare class instead. 0, 255 and 65535
    commonly mean "nothing" and are never slips.
    """
    if masks < FEW_SAMPLES:
        return []
    # Five, less in small sets, a fiftieth in large ones.
    few = max(min(5, masks // 10), min(masks // 50, MAX_PLACES))
    frequent = [value for value, count in values.items() if count.images > few]
    dense = range(0)
    if frequent and kind == "ids":
        inner = [value for value in frequent if value not in NO_LABEL] or frequent
        whole = range(inner[0], inner[-1] + 1)
        dense = whole if len(inner) >= DENSE * len(whole) else dense
    return [
        value
        for value, count in values.items()
        if count.images <= few
        and count.pixels < RARE_SHARE * count.of_images
        and value not in dense
        and (kind == "colors" or value not in (0, *NO_LABEL))
        and value not in (NO_OBJECT, UNCOUNTED)
    ]


def smeared_values(values: Mapping[int, ValueCount]) -> list[int]:
    """Values beside those that hold nearly all pixels, if they are many times as many."""
    ordered = sorted(values, key=lambda value: (-values[value].pixels, value))
    counts = np.array([values[value].pixels for value in ordered])
    if not len(counts):
        return []
    most = int(np.searchsorted(np.cumsum(counts), MOST_PIXELS * counts.sum())) + 1
    return sorted(ordered[most:]) if len(ordered) >= 4 * most + 16 else []


def _of_values(splits: Sequence[Split], expected: Expectations) -> Iterator[Fault]:
    labels, values = expected.labels, value_counts(splits)
    rules = dict(labels.rules)
    set_aside: set[int] = set()

    def named(value: int, pixels: int) -> str:
        return f"{value_name(value, labels.kind)} ({_pixels(pixels)})"

    if not expected.known:
        smeared = smeared_values(values)
        if smeared:
            shown = _listed([value_name(value, labels.kind) for value in smeared])
            pixels = sum(values[value].pixels for value in smeared)
            first = [splits[s].masks[i] for v in smeared for s, i, _ in values[v].places[:1]]
            what = f"{len(smeared)} values ({shown}) in {_pixels(pixels)}"
            yield Fault("smeared-values", tuple(dict.fromkeys(first))[:MAX_SHOWN], what)
        rare = [] if smeared else rare_values(values, num_masks(splits), labels.kind)
        held: dict[tuple[int, int], list[str]] = defaultdict(list)
        for value in rare:
            for s, i, pixels in values[value].places:
                held[s, i].append(named(value, pixels))
        for (s, i), names in sorted(held.items()):
            yield Fault("rare-value", (splits[s].masks[i],), _listed(names))
        set_aside = {*smeared, *rare}
    for split in splits:
        for mask, facts in zip(split.masks, split.facts, strict=True):
            pairs = list(zip(facts.values.tolist(), facts.counts.tolist(), strict=True))
            strange = [(v, n) for v, n in pairs if v not in rules and v not in set_aside]
            if strange or facts.other_values:
                strange.sort(key=lambda pair: -pair[1])
                names = [named(value, pixels) for value, pixels in strange]
                kind = "ignored-value" if labels.ignores_unknown else "uncovered-value"
                yield Fault(kind, (mask,), _listed(names, facts.other_values))
            elif pairs and all(rules.get(v) == labels.ignore_index for v, _ in pairs):
                yield Fault("no-labelled-pixel", (mask,))
            if facts.mended:
                share = facts.mended / max(1, int(facts.counts.sum()) + facts.other_pixels)
                yield Fault("mended-values", (mask,), f"{_pixels(facts.mended)}, {share:.2%}")
            if facts.far > FAR * int(facts.counts.sum()):
                yield Fault("far-values", (mask,), _pixels(facts.far))
    kinds = stored_kinds(splits)
    if len(kinds) > 1:
        what = ", ".join(f"{count} {name}" for name, count in kinds.most_common())
        rarest = min(kinds, key=lambda name: kinds[name])
        files = [
            mask
            for split in splits
            for mask, facts in zip(split.masks, split.facts, strict=True)
            if facts.stored == rarest and not facts.faults
        ]
        if files:
            yield Fault("mixed-mask-kinds", tuple(files[:MAX_SHOWN]), what)


# ----------------------------------------------------------------------------------------- classes


def _of_classes(splits: Sequence[Split], expected: Expectations) -> Iterator[Fault]:
    labels, masks = expected.labels, num_masks(splits)
    counts = [class_counts(split, labels) for split in splits]
    for class_id, name in enumerate(labels.names):
        images = [int(count.images[class_id]) for count in counts]
        pixels = sum(int(count.pixels[class_id]) for count in counts)
        places = [
            (split, i)
            for split, count in zip(splits, counts, strict=True)
            for i in count.places[class_id]
        ][:MAX_SHOWN]
        files = tuple(split.masks[i] for split, i in places)
        if not any(images):
            yield Fault("class-never-seen", (), name)
            continue
        # An unreadable train split says nothing about its classes.
        if not images[0] and counts[0].total:
            what = f"{name}: {images[-1]} masks of {splits[-1].name}, none of {splits[0].name}"
            yield Fault("class-only-in-val", files, what)
        few = sum(images) <= RARE_CLASS and masks >= FEW_SAMPLES * RARE_CLASS
        of_images = sum(int(split.facts[i].counts.sum()) for split, i in places)
        if few and pixels < RARE_SHARE * of_images:
            what = f"{name}: {_pixels(pixels)} in {sum(images)} of {masks} masks"
            yield Fault("rare-class", files, what)
    for split, count in zip(splits, counts, strict=True):
        if count.total and count.ignored > MOSTLY * count.total:
            share = count.ignored / count.total
            yield Fault("mostly-ignored", (), f"{split.name}: {share:.1%} of its pixels")


# ------------------------------------------------------------------------------------------ images


def _of_images(splits: Sequence[Split], expected: Expectations) -> Iterator[Fault]:
    for split in splits:
        for image, facts in zip(split.images, split.facts, strict=True):
            if facts.size is None:
                continue
            height, width = facts.size
            what = f"{width} x {height} pixels (width x height)"
            if facts.blank:
                yield Fault("blank-image", (image,))
            if min(height, width) < expected.smallest_side:
                yield Fault("tiny-image", (image,), what)
            elif expected.crop and _smaller(facts.size, expected.crop, expected.base_size):
                yield Fault("smaller-than-crop", (image,), what)


def _smaller(size: Size, crop: Size, base_size: Size | None) -> bool:
    """Whether an image at scale 1 is too small to fill a crop."""
    factor = 1.0
    if base_size is not None:
        factor = min(max(base_size) / max(size), min(base_size) / min(size))
    return any(round(side * factor) < needed for side, needed in zip(size, crop, strict=True))


def _twice(splits: Sequence[Split]) -> Iterator[Fault]:
    """Images that occur more than once, pixel for pixel; blank ones are a finding of their own."""
    places = [(s, i) for s, split in enumerate(splits) for i in range(len(split))]
    digests = (None if splits[s].facts[i].blank else splits[s].facts[i].digest for s, i in places)
    for group in groups(digests):
        of_split: dict[int, list[int]] = defaultdict(list)
        for s, i in (places[place] for place in group):
            of_split[s].append(i)
        if len(of_split) > 1:
            files = dict.fromkeys(splits[s].images[i] for s, own in of_split.items() for i in own)
            names = " and ".join(splits[s].name for s in of_split)
            yield Fault("duplicate-across-splits", tuple(files), f"in {names}")
        for s, own in of_split.items():
            images = tuple(splits[s].images[i] for i in own)
            if len({splits[s].facts[i].mask_digest for i in own} - {None}) > 1:
                masks = tuple(splits[s].masks[i] for i in own)
                yield Fault("conflicting-masks", tuple(dict.fromkeys(images + masks)))
            elif len(own) > 1:
                yield Fault("duplicate-in-split", images)


def _nearly_twice(splits: Sequence[Split], distance: int) -> Iterator[Fault]:
    """Evaluation images that look like a training image."""
    train, val = splits[0], splits[-1]
    exact = {facts.digest for facts in train.facts}

    def looks(split: Split, without: set[bytes | None]) -> dict[int, bytes]:
        return {
            i: facts.look
            for i, facts in enumerate(split.facts)
            if facts.look is not None and not facts.blank and facts.digest not in without
        }

    known, asked = looks(train, set()), looks(val, exact)
    trained, held_back = list(known), list(asked)
    for v, t, bits, count in nearest(list(known.values()), list(asked.values()), distance):
        more = f"; {count - 1} more are near" if count > 1 else ""
        files = val.images[held_back[v]], train.images[trained[t]]
        yield Fault("near-duplicate", files, f"{bits} of 64 bits differ{more}")


def _pixels(number: int) -> str:
    return f"{number:,} pixel{'s' * (number != 1)}"


def _listed(names: Sequence[str], others: int = 0) -> str:
    """The first names, and the number of names and others that are left out."""
    others += max(0, len(names) - MAX_SHOWN)
    more = f"{others} more" if others else ""
    return " and ".join(filter(None, (", ".join(names[:MAX_SHOWN]), more)))
