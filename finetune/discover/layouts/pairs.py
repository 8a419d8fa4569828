"""Pairs of folders, or of endings in one folder: one of images, one of masks with their names."""

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from finetune.discover.layouts.evidence import SEPARATORS, Evidence, Key, gather
from finetune.discover.layouts.glances import Look
from finetune.discover.layouts.layout import Layout, Tree, unused, with_splits
from finetune.discover.values.mask_values import spread
from finetune.errors import UserError

_NUM_LOOKED_AT = 8  # pairs of a layout
_CLASS = re.compile("[-_.]class[-_.](?=.)", re.IGNORECASE)
MATCHING = 0.9
"""Share of names that images and masks must have in common."""


def pairs(tree: Tree, look: Look) -> list[Layout]:
    """The layouts of a folder with one mask per image, or one per image and class.

    Raises:
        UserError: No recipe can describe the pairs, or the masks' file type keeps no ids.
    """
    evidence = gather(tree, look)
    accepted = {key: found for key, found in evidence.items() if _is_accepted(key, found, look)}
    _refuse_scattered(tree, accepted)
    return [*_grouped(tree, accepted, evidence, look)]


def _is_accepted(key: Key, found: Evidence, look: Look) -> bool:
    """Whether enough names match, and most files look like images and masks."""
    if found.matched < MATCHING * found.expected or 8 * found.matched < found.all_masks:
        return False
    if key.mask_suffix == "" and 3 * found.matched < found.all_masks:
        return False  # most masks have an ending
    return is_elected(found.files, look)


def is_elected(files: Sequence[tuple[Path, Path]], look: Look) -> bool:
    """Whether most pairs look like an image and a mask."""
    votes = []
    for image, mask in spread(files, _NUM_LOOKED_AT):
        seen = look(mask).is_mask, look(image).is_mask
        if None not in seen:
            votes.append(seen == (True, False))
    return 2 * sum(votes) > len(votes)


# ------------------------------------------------------------------------------------------ layouts


def _refuse_scattered(tree: Tree, accepted: dict[Key, Evidence]) -> None:
    """Refuses several folders with pairs, such as v1/images and v1/masks, v2/images, ..."""
    parts: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for key in accepted:
        images, masks = key.images.split("/"), key.masks.split("/")
        for place in range(min(len(images), len(masks))):
            if images[place] != masks[place]:
                break
            if "{split}" not in images[place] and len(images) > place + 1 < len(masks):
                others = [*images[:place], "*", *images[place + 1 :]]
                others += ["", *masks[:place], "*", *masks[place + 1 :], key[2], key[3]]
                parts[tuple(others)].append(images[place])
    for names in parts.values():
        if len(set(names)) > 1:
            key = next(key for key in accepted if names[0] in key.images.split("/"))
            some = ", ".join(sorted(set(names))[:3])
            raise UserError(
                f"{tree.root}: {len(set(names))} folders ({some}, ...) "
                f"have images and masks of their own ({key.images}, {key.masks}). A recipe reads "
                f"one of them: name its folder, or merge them: images/{names[0]} and "
                f"masks/{names[0]}, and so on."
            )


def _grouped(
    tree: Tree, accepted: dict[Key, Evidence], evidence: dict[Key, Evidence], look: Look
) -> Iterator[Layout]:
    """The layouts; those of one class each become one."""
    left = dict(accepted)
    for keys, pattern in _of_classes(tree, accepted, evidence):
        files = [pair for key in keys for pair in evidence[key].files]
        some = spread(files, 2 * _NUM_LOOKED_AT)
        if not all(look(mask).is_binary for _, mask in some) or not is_elected(files, look):
            continue
        classes = tuple(sorted(keys.values()))
        if len(classes) > 2:  # two may also be a mask and its edges: ask the user
            left = {key: found for key, found in left.items() if key not in keys}
        splits = set().union(*(evidence[key].splits for key in keys))
        found = f"one file per class: {', '.join(classes[:12])}"
        layout = _layout(tree, pattern, keys, splits, (found,), classes)
        if _CLASS.match(pattern.mask_suffix):
            beside = [k for k in left if k not in keys and k[:3] == pattern[:3]]
            left = {key: own for key, own in left.items() if key not in (*keys, *beside)}
            if endings := ", ".join(sorted(f"*{key.mask_suffix}" for key in beside)):
                line = f"the masks of single classes are used, not those beside them: {endings}"
                layout = replace(layout, assumed=(*layout.assumed, line))
        yield layout
    for key, own in left.items():
        yield _layout(tree, key, [key], own.splits)


def _of_classes(
    tree: Tree, accepted: dict[Key, Evidence], evidence: dict[Key, Evidence]
) -> Iterator[tuple[dict[Key, str], Key]]:
    """Groups of layouts that differ in one word, which may be a class: {layout: word}, pattern."""
    by_ending: dict[tuple[Key, str], list[Key]] = defaultdict(list)
    for key, found in evidence.items():
        if key.mask_suffix and found.matched >= MATCHING * found.expected:
            # RectLabel writes x_class_cat.png beside x_all_objects.png and x_object1.png.
            start = _CLASS.match(key.mask_suffix)
            by_ending[key._replace(mask_suffix=""), start[0] if start else ""].append(key)
    for (whole, named), keys in by_ending.items():
        # Rare classes have too few files to be accepted on their own.
        matched = sum(evidence[key].matched for key in keys)
        if (len(keys) < 2 and not named) or 8 * matched < evidence[keys[0]].all_masks:
            continue
        first, last = min(key[3] for key in keys), max(key[3] for key in keys)
        same = [one == other for one, other in zip(first, last, strict=False)]
        common = first[: [*same, False].index(False)]
        common = named or re.sub(rf"[^{re.escape(SEPARATORS)}]*$", "", common)
        names = {key: key.mask_suffix[len(common) :] for key in keys}
        numbered = not named and any(map(str.isdigit, names.values()))
        if common and all(names.values()) and not numbered:
            yield names, whole._replace(mask_suffix=common + "{class}")
    by_folder: dict[tuple[Key, int], list[Key]] = defaultdict(list)
    for key in accepted:
        parts = key.masks.split("/")
        for place, part in enumerate(parts):
            if "{split}" not in part and part != ".":
                masks = "/".join([*parts[:place], "{class}", *parts[place + 1 :]])
                by_folder[key._replace(masks=masks), place].append(key)
    for (pattern, place), keys in by_folder.items():
        names = {key: key.masks.split("/")[place] for key in keys}
        if len(keys) > 1 and _siblings(tree, keys[0], place, accepted) == set(names.values()):
            yield names, pattern


def _siblings(tree: Tree, key: Key, place: int, accepted: dict[Key, Evidence]) -> set[str]:
    """The names of the folders beside one with masks."""
    split = min(accepted[key].splits)
    above = tree.root.joinpath(*key.masks.replace("{split}", split).split("/")[:place])
    return {f.name for f in above.iterdir() if f.is_dir() and not f.name.startswith(".")}


def _layout(
    tree: Tree,
    key: Key,
    parts: Iterable[Key],
    splits: set[str],
    more: tuple[str, ...] = (),
    classes: tuple[str, ...] = (),
) -> Layout:
    """The layout of a key, or of the keys of its classes."""
    data = {"source": "folder", "path": str(tree.root), "images": key.images, "masks": key.masks}
    suffixes = {"image_suffix": key.image_suffix, "mask_suffix": key.mask_suffix}
    data |= {name: suffix for name, suffix in suffixes.items() if suffix}
    found = (
        f"images in {key.images}/*{key.image_suffix}, their masks in {key.masks}/*{key.mask_suffix}"
    )
    layout = with_splits(Layout(data, (found, *more), classes=classes), splits)
    patterns = {pattern for part in parts for pattern in (part.images, part.masks)}
    folders = [pattern.replace("{split}", split) for pattern in patterns for split in splits]
    return unused(tree, layout, folders)
