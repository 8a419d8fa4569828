"""Judges the facts: finds the faults of a data set and their remedies. Reads no file."""

from collections import Counter, defaultdict
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
    Split,
    ValueCount,
    class_counts,
    stored_kinds,
    value_counts,
    value_name,
)
from finetune.programs.doctor.kinds import KINDS, Severity

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
_MAX_SHOWN = 5


@dataclass(frozen=True)
class Finding:
    """A fault in one or many places."""

    kind: str
    severity: Severity
    places: tuple[Fault, ...]

    @property
    def message(self) -> str:
        """The fault and how often it occurs."""
        kind = KINDS[self.kind]
        return (kind.one if len(self.places) == 1 else kind.many).format(n=len(self.places))

    @property
    def remedy(self) -> str:
        """The advice about it."""
        return KINDS[self.kind].remedy

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
    by_kind: dict[str, dict[Fault, None]] = defaultdict(dict)  # each once, in order
    for place in places:
        by_kind[place.kind].setdefault(place)
    findings = [
        Finding(kind, _severity(kind, expected), tuple(by_kind[kind]))
        for kind in KINDS
        if kind in by_kind
    ]
    return sorted(findings, key=lambda finding: finding.severity)  # "problem" < "warning"


def _severity(kind: str, expected: Expectations) -> Severity:
    if kind == "class-only-in-val" and expected.drawn:
        return "warning"  # the split was drawn; another draw may do
    if kind == "smeared-values" and expected.labels.kind == "colors":
        return "warning"  # labels.tolerance mends JPEG's errors
    return KINDS[kind].severity


# ------------------------------------------------------------------------------------------ values


def rare_values(values: Mapping[int, ValueCount], num_masks: int, kind: str) -> list[int]:
    """Values in few masks and few pixels; they are probably slips.

    An id among frequent values without great gaps is a rare class instead. 0, 255 and 65535
    commonly mean "nothing" and are never slips.
    """
    few = few_masks(num_masks)
    if num_masks < FEW_SAMPLES:
        return []
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


def few_masks(num_masks: int) -> int:
    """Number of masks that counts as few: five, less in small sets, a fiftieth in large ones."""
    return max(min(5, num_masks // 10), min(num_masks // 50, MAX_PLACES))


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
    num_masks = sum(bool(len(facts.values)) for split in splits for facts in split.facts)
    rules = dict(labels.rules)
    rare: list[int] = []
    if not expected.known:
        smeared = smeared_values(values)
        if smeared:
            shown = _listed([value_name(value, labels.kind) for value in smeared])
            pixels = sum(values[value].pixels for value in smeared)
            first = dict.fromkeys(
                splits[s].masks[i] for value in smeared for s, i, _ in values[value].places[:1]
            )
            what = f"{len(smeared)} values ({shown}) in {_pixels(pixels)}"
            yield Fault("smeared-values", tuple(first)[:_MAX_SHOWN], what)
        rare = [] if smeared else rare_values(values, num_masks, labels.kind)
        yield from _per_mask("rare-value", rare, values, splits, labels.kind)
        rare += smeared
    set_aside = set(rare)
    kind = "ignored-value" if labels.ignores_unknown else "uncovered-value"
    for split in splits:
        for mask, facts in zip(split.masks, split.facts, strict=True):
            pairs = zip(facts.values.tolist(), facts.counts.tolist(), strict=True)
            strange = [(v, n) for v, n in pairs if v not in rules and v not in set_aside]
            if strange or facts.other_values:
                strange.sort(key=lambda pair: -pair[1])
                named = [f"{value_name(v, labels.kind)} ({_pixels(n)})" for v, n in strange]
                more = len(named) - _MAX_SHOWN + facts.other_values
                what = ", ".join(named[:_MAX_SHOWN]) + (f" and {more} more" if more > 0 else "")
                yield Fault(kind, (mask,), what)
            elif len(facts.values) and all(
                rules.get(v) == labels.ignore_index for v in facts.values.tolist()
            ):
                yield Fault("no-labelled-pixel", (mask,))
            if facts.mended:
                share = facts.mended / max(1, int(facts.counts.sum()) + facts.other_pixels)
                yield Fault("mended-colors", (mask,), f"{_pixels(facts.mended)}, {share:.2%}")
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
            yield Fault("mixed-mask-kinds", tuple(files[:_MAX_SHOWN]), what)


def _per_mask(
    kind: str,
    values: Sequence[int],
    counts: Mapping[int, ValueCount],
    splits: Sequence[Split],
    label_kind: str,
) -> Iterator[Fault]:
    """One fault for each mask that holds some of the values."""
    held: dict[tuple[int, int], list[str]] = defaultdict(list)
    for value in values:
        for s, i, pixels in counts[value].places:
            held[s, i].append(f"{value_name(value, label_kind)} ({_pixels(pixels)})")
    for (s, i), named in sorted(held.items()):
        yield Fault(kind, (splits[s].masks[i],), _listed(named))


# ----------------------------------------------------------------------------------------- classes


def _of_classes(splits: Sequence[Split], expected: Expectations) -> Iterator[Fault]:
    labels = expected.labels
    counts = [class_counts(split, labels) for split in splits]
    holders = _holders(splits, labels)
    num_masks = sum(bool(len(facts.values)) for split in splits for facts in split.facts)
    for class_id, name in enumerate(labels.names):
        images = [int(count.images[class_id]) for count in counts]
        pixels = sum(int(count.pixels[class_id]) for count in counts)
        files = [splits[s].masks[i] for s, i in holders.get(class_id, [])]
        if not any(images):
            yield Fault("class-never-seen", (), name)
            continue
        # An unreadable train split says nothing about its classes.
        if not images[0] and counts[0].total:
            yield Fault(
                "class-only-in-val",
                tuple(files),
                f"{name}: {images[-1]} masks of {splits[-1].name}, none of {splits[0].name}",
            )
        few = sum(images) <= RARE_CLASS and num_masks >= FEW_SAMPLES * RARE_CLASS
        of_images = sum(int(splits[s].facts[i].counts.sum()) for s, i in holders.get(class_id, []))
        if few and pixels < RARE_SHARE * of_images:
            what = f"{name}: {_pixels(pixels)} in {sum(images)} of {num_masks} masks"
            yield Fault("rare-class", tuple(files), what)
    for split, count in zip(splits, counts, strict=True):
        if count.total and count.ignored > MOSTLY * count.total:
            share = count.ignored / count.total
            yield Fault("mostly-ignored", (), f"{split.name}: {share:.1%} of its pixels")


def _holders(splits: Sequence[Split], labels: Labels) -> dict[int, list[tuple[int, int]]]:
    """Split and place of the first masks that show each class."""
    rules = dict(labels.rules)
    found: dict[int, list[tuple[int, int]]] = defaultdict(list)
    for s, split in enumerate(splits):
        for i, facts in enumerate(split.facts):
            for class_id in {rules[v] for v in facts.values.tolist() if v in rules}:
                if len(found[class_id]) < _MAX_SHOWN:
                    found[class_id].append((s, i))
    return found


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
    facts = [splits[s].facts[i] for s, i in places]
    for group in groups(None if fact.blank else fact.digest for fact in facts):
        files = tuple(splits[s].images[i] for s, i in (places[place] for place in group))
        of_split: dict[int, list[int]] = defaultdict(list)
        for place in group:
            of_split[places[place][0]].append(place)
        if len(of_split) > 1:
            names = " and ".join(splits[s].name for s in of_split)
            yield Fault("duplicate-across-splits", tuple(dict.fromkeys(files)), f"in {names}")
        for s, members in of_split.items():
            masks = {facts[place].mask_digest for place in members} - {None}
            own = [places[place][1] for place in members]
            images = tuple(splits[s].images[i] for i in own)
            if len(masks) > 1:
                beside = tuple(splits[s].masks[i] for i in own)
                yield Fault("conflicting-masks", tuple(dict.fromkeys(images + beside)))
            elif len(members) > 1:
                yield Fault("duplicate-in-split", images)


def _nearly_twice(splits: Sequence[Split], distance: int) -> Iterator[Fault]:
    """Evaluation images that look like a training image."""
    train, val = splits[0], splits[-1]
    exact = {facts.digest for facts in train.facts}

    def looks(split: Split, without: set[bytes | None]) -> tuple[list[int], list[bytes]]:
        pairs = [
            (i, facts.look)
            for i, facts in enumerate(split.facts)
            if facts.look is not None and not facts.blank and facts.digest not in without
        ]
        return [i for i, _ in pairs], [look for _, look in pairs]

    known, asked = looks(train, set()), looks(val, exact)
    for v, t, bits, count in nearest(known[1], asked[1], distance):
        more = f"; {count - 1} more are near" if count > 1 else ""
        files = val.images[asked[0][v]], train.images[known[0][t]]
        yield Fault("near-duplicate", files, f"{bits} of 64 bits differ{more}")


def _pixels(number: int) -> str:
    return f"{number:,} pixel{'s' * (number != 1)}"


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _MAX_SHOWN} more" if len(names) > _MAX_SHOWN else ""
    return ", ".join(names[:_MAX_SHOWN]) + more


def count(findings: Sequence[Finding]) -> Counter[str]:
    """The numbers of places with problems and with warnings."""
    found: Counter[str] = Counter()
    for finding in findings:
        found[finding.severity] += len(finding.places)
    return found
