"""Whether the masks of a folder that looks like a known data set hold that set's classes."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from finetune.discover.labels.guesses import LabelGuess
from finetune.discover.labels.value_labels import DAMAGED, TOLERANCE
from finetune.discover.layouts.layout import Layout
from finetune.discover.values.class_lists import ClassList, is_background
from finetune.discover.values.mask_values import MaskValues
from finetune.labels.colors import distances
from finetune.labels.presets import PRESETS
from finetune.labels.rules import NO_LABEL
from finetune.labels.translation import Labels

_FEWEST_VALUES = 3
_ALL_SEEN = 100
"""In so many masks, half of a preset's classes occur if the preset is right."""
_NEAR = 8
"""Levels that a colour may be off in many pixels, in the channel that differs most."""
_DAMAGED_AT_MOST = 0.1
"""Share of pixels with colours that are further off."""


def official_preset(root: Path, source: str) -> str | None:
    """The preset of an official layout, which has the same name; Cityscapes has two."""
    if source == "cityscapes" and not any((root / "gtFine").rglob("*_gtFine_labelTrainIds.png")):
        return "cityscapes-label-ids"
    return source if source in PRESETS else None


def with_preset(labels: dict[str, Any]) -> dict[str, Any]:
    """A `labels:` block, with the values of its preset filled in."""
    return {**PRESETS.get(labels.get("preset", ""), {}), **labels}


def _built(labels: dict[str, Any]) -> Labels:
    return Labels.build(**{k: v for k, v in with_preset(labels).items() if k != "preset"})


def names_alone(layout: Layout) -> ClassList | None:
    """The names that a public set gives the two values of its masks, as if in a list."""
    found = [(name, own["names"]) for name, own in layout.known if own.keys() == {"names"}]
    return ClassList(Path(found[0][0]), tuple(found[0][1])) if found else None


def known_labels(
    known: Sequence[tuple[str, dict[str, Any]]],
    values: MaskValues,
    classes: ClassList | None,
    lenient: bool,
) -> tuple[LabelGuess | None, list[str]]:
    """The first labels that fit the masks, and the reasons against those before.

    Args:
        known: Names of sets, each with its `labels:` block.
        values: The values of the masks.
        classes: A list of classes beside the masks, if there is one.
        lenient: Whether values without a rule are no reason against it.
    """
    reasons = []
    for name, block in known:
        labels = dict(block)
        if labels.keys() == {"names"}:
            continue
        if reason := _against(labels, values, classes, lenient):
            reasons.append(f"not the preset {labels.get('preset', name)}: {reason}")
        else:
            return _fitting(name, labels, values), reasons
    return None, reasons


def _against(
    labels: dict[str, Any], values: MaskValues, classes: ClassList | None, lenient: bool
) -> str:
    """The reason against labels whose folders these are, "" if there is none.

    Anybody may use the folder names of a known data set. Adds a tolerance for damaged colours.
    """
    own = _built(labels)
    if values.kind != own.kind:
        return f"masks hold {values.kind}"
    known = {name.lower() for name in own.names}
    if classes is not None and any(
        name.lower() not in known and not is_background(name) for name in classes.names
    ):
        return f"{classes.file.name} lists other classes"
    rules = {raw: class_id for raw, class_id in own.rules if raw >= 0}
    counts: Mapping[int, int] = values.counts
    if own.kind == "ids":
        strange = sorted(counts.keys() - rules.keys() - set(NO_LABEL))
    else:
        counts, strange = _mended(labels, own, values, [*rules])
    if strange and not lenient:
        shown = [f"#{v:06X}" if own.kind == "colors" else str(v) for v in strange[:3]]
        return f"masks hold {', '.join(shown)}, which it has no class for"
    if labels.get("preset", "").startswith("cityscapes"):  # its file names are proof enough
        return ""
    seen = len({rules[raw] for raw in counts.keys() & rules.keys()} - {own.ignore_index})
    expected = max(_FEWEST_VALUES, own.num_labels * min(0.5, values.num_masks / _ALL_SEEN))
    if len(counts.keys() & rules.keys()) < _FEWEST_VALUES or seen < min(
        expected, own.num_labels - 1
    ):
        return f"only {seen} of its {own.num_labels} classes occur in {values.num_masks} masks"
    return ""


def _mended(
    labels: dict[str, Any], own: Labels, values: MaskValues, table: list[int]
) -> tuple[dict[int, int], list[int]]:
    """The pixels of each colour with a rule, and the colours that are none, not even damaged."""
    raw = np.array([*values.counts], np.int32)
    near = distances(raw, np.array(table, np.int32))
    nearest, off = np.array(table)[near.argmin(1)], near.min(1)
    pixels = np.array([*values.counts.values()])
    # Damage is rare: a colour in many pixels, or many colours, are classes of another set.
    far = off > _NEAR
    strange = raw[
        far & ((off > max(own.tolerance, TOLERANCE)) | (pixels >= DAMAGED * values.total))
    ]
    if pixels[far].sum() > _DAMAGED_AT_MOST * values.total:
        strange = raw[far]
    if off.max(initial=0) > own.tolerance and not len(strange):
        labels["tolerance"] = int(off.max())
    counts = {int(v): int(pixels[nearest == v].sum()) for v in np.unique(nearest[off == 0])}
    return counts, sorted(strange.tolist())


def _fitting(name: str, labels: dict[str, Any], values: MaskValues) -> LabelGuess:
    preset = labels.get("preset")
    found = {
        "cityscapes": "masks of the 19 train ids",
        "cityscapes-label-ids": "masks of the 34 label ids, translated by the official table",
    }.get(preset or "", f"masks hold {values.kind} of the classes of {name}")
    assumed = [f"classes are those of {name}, because the folders have its names"]
    own = _built(labels)
    known = {raw for raw, _ in own.rules}
    if values.kind == "ids" and (more := sorted(values.counts.keys() & set(NO_LABEL) - known)):
        ignored = {raw for raw, i in own.rules if i == own.ignore_index and raw >= 0}
        labels["ignore"] = sorted({*with_preset(labels).get("ignore", ignored), *more})
        assumed.append(f"{more[0]} is not a class and is ignored")
    if "tolerance" in labels:
        assumed.append(
            f"colours up to {labels['tolerance']} per channel off count as the nearest class's"
        )
    return LabelGuess(labels, (found,), tuple(assumed))
