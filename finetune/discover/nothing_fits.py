"""Why a folder fits no form: what is in it, why its images and masks do not pair, what would help.

Files are walked a second time, because the first walk keeps only those that some form reads.
"""

import os
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from finetune.discover.forms.annotations import why_no_json
from finetune.discover.forms.label_studio import why_no_regions
from finetune.discover.layouts.evidence import Evidence, Key, gather
from finetune.discover.layouts.glances import Look
from finetune.discover.layouts.layout import MAX_FILES, Tree, split_in
from finetune.discover.layouts.pairs import MATCHING, is_elected
from finetune.discover.values.mask_values import spread
from finetune.pictures.references import JPEG_SUFFIXES, LOSSY_SUFFIXES

_NUM_FOLDERS, _NUM_LOOKED_AT = 4, 3

_VOLUME = (
    "a volume, and pictures are read here. nibabel reads it: save each slice of a scan and of "
    "its labels by one name, `numpy.save('images/x_9.npy', nibabel.load(scan).dataobj[..., 9])`"
)
_DICOM = (
    "DICOM, which is not read here. pydicom reads it: save each scan and its labels under one "
    "name, `numpy.save('images/x.npy', pydicom.dcmread(file).pixel_array)`"
)
_ARCHIVE = "an archive: unpack it"
_VIDEO = "a video: write its frames as pictures, `ffmpeg -i clip.mp4 images/clip_%05d.png`"
_ARRAYS = "a file of arrays: save each image and each mask as .npy under one name"
_RAW = "not a picture that is read here: save it as PNG, or as JPEG if it is an image"
_FOREIGN = {
    **dict.fromkeys((".nii", ".nii.gz", ".nrrd", ".mha", ".mhd"), _VOLUME),
    **dict.fromkeys((".dcm", ".dicom", ".ima"), _DICOM),
    **dict.fromkeys((".zip", ".tar", ".tgz", ".tar.gz", ".rar", ".7z"), _ARCHIVE),
    **dict.fromkeys((".mp4", ".avi", ".mov", ".mkv", ".webm"), _VIDEO),
    **dict.fromkeys((".npz", ".mat", ".h5", ".hdf5", ".pkl", ".pt"), _ARRAYS),
    **dict.fromkeys((".heic", ".heif", ".avif", ".psd", ".jp2", ".cr2", ".nef", ".dng"), _RAW),
    ".xml": "not read, unless it is CVAT's; Pascal VOC's boxes say nothing about pixels",
    ".svs": "a slide: cut it into tiles with openslide, and its annotations with it",
    ".shp": "a map of shapes: draw it on each image's grid with `gdal_rasterize`",
    ".geojson": "a map of shapes: draw it on each image's grid with `gdal_rasterize`",
}
"""What files of other programs are, by suffix, and the tool that turns them into pictures."""


def why_nothing_fits(tree: Tree, look: Look) -> str:
    """What a folder holds, and the likeliest reason that nothing in it pairs, in sentences."""
    kinds = {folder: _kind(stems, look) for folder, stems in tree.folders.items()}
    foreign = _foreign(tree.root)
    held = _held(tree, kinds)
    told = (why_no_json(tree), why_no_regions(tree))
    reasons = (*told, _of_two_types(tree), _foreign_line(foreign))
    reason = next(filter(None, reasons), "") or _why_no_pair(tree, kinds, look)
    return f"{held} {reason}"


def _kind(stems: dict[str, Path], look: Look) -> str:
    """What the files of a folder look like."""
    files = spread(list(stems.values()), _NUM_LOOKED_AT)
    votes = [False if f.suffix.lower() in JPEG_SUFFIXES else look(f).is_mask for f in files]
    known = [vote for vote in votes if vote is not None]
    if not known:
        return "unreadable"
    if True in known and False in known:
        return "images and masks"
    return "masks" if known[0] else "images"


def _held(tree: Tree, kinds: dict[PurePosixPath, str]) -> str:
    if not kinds:
        return "It holds no pictures."
    largest = sorted(tree.folders, key=lambda folder: -len(tree.folders[folder]))
    parts = []
    for folder in largest[:_NUM_FOLDERS]:
        stems = tree.folders[folder]
        first = next(iter(stems.values())).name
        parts.append(f"{folder} ({len(stems)}, such as {first}: {kinds[folder]})")
    more = len(largest) - len(parts)
    return f"Pictures are in {', '.join(parts)}{f' and {more} folders more' if more else ''}."


def _foreign(root: Path) -> Counter[str]:
    """Files of other programs, by suffix, each with an example: {(suffix, path): files}."""
    counts: Counter[str] = Counter()
    for number, (_, subfolders, names) in enumerate(os.walk(root)):
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        for name in names:
            parts = name.lower().split(".")
            for suffix in ("." + ".".join(parts[-2:]), "." + parts[-1]):
                if len(parts) > suffix.count(".") and suffix in _FOREIGN:
                    counts[suffix] += 1
                    break
        if number > MAX_FILES:
            break
    return counts


def _foreign_line(foreign: Counter[str]) -> str:
    if not foreign:
        return ""
    suffix, number = foreign.most_common(1)[0]
    return f"It holds {number} *{suffix}: each is {_FOREIGN[suffix]}."


def _of_two_types(tree: Tree) -> str:
    """About an image and a mask that differ in their file type only."""
    if tree.twins is not None:
        one, other = tree.twins
        return (
            f"{one.name} and {other.name} in {one.parent} differ in their file type only: put the "
            "masks into a folder of their own."
        )
    by_stem: dict[tuple[str, str], Path] = {}
    for folder, stems in tree.folders.items():
        split = split_in(folder).name
        for stem, file in stems.items():
            other = by_stem.setdefault((split, stem), file)
            suffixes = {other.suffix.lower(), file.suffix.lower()}
            if other is not file and suffixes <= set(LOSSY_SUFFIXES):
                return (
                    f"{other} and {file} have the same name, but neither can be a mask: JPEG "
                    "and WebP change the values of pixels. Export masks as PNG."
                )
    return ""


# ------------------------------------------------------------------------------ names that differ


def _why_no_pair(tree: Tree, kinds: dict[PurePosixPath, str], look: Look) -> str:
    """Which names were compared, with one example of each side."""
    if not kinds:
        return "Name the folder above the images and the masks."
    if len(set(kinds.values())) == 1 and "images" in kinds.values():
        return (
            "None looks like a mask: masks have few values, and PNG, TIFF, BMP, GIF and .npy keep "
            "them. Export masks from the annotation tool, or its JSON."
        )
    if len(set(kinds.values())) == 1 and "masks" in kinds.values():
        return "All look like masks. Put the images beside them."
    evidence = {key: found for key, found in gather(tree, look).items() if found.matched}
    if evidence:
        key = max(evidence, key=lambda key: evidence[key].matched)
        return _why_not_accepted(tree, key, evidence[key], look)
    images, masks = _sides(tree, kinds)
    return _compared(tree, images, masks)


def _why_not_accepted(tree: Tree, key: Key, found: Evidence, look: Look) -> str:
    """Why the best of the layouts does not do."""
    where = f"{key.images}/*{key.image_suffix} and {key.masks}/*{key.mask_suffix}"
    if found.matched >= MATCHING * found.expected and not is_elected(found.files, look):
        image, mask = found.files[0]
        kind = "look like masks both" if look(image).is_mask else "do not look like image and mask"
        return f"{where} have the same names, but {_pair(tree, image, mask)} {kind}."
    left = {file for pair in found.files for file in pair}
    folders = (key.images, key.masks)
    alone = [
        next((str(f.relative_to(tree.root)) for f in _files(tree, at) if f not in left), "")
        for at in folders
    ]
    examples = " and ".join(filter(None, dict.fromkeys(alone)))
    return (
        f"{where} have {found.matched} of {max(found.expected, found.all_masks)} names in common, "
        f"which is too few to be sure{f'; {examples} have no partner' if examples else ''}. "
        "Remove what is no image or mask, or give each image and its mask one name."
    )


def _files(tree: Tree, pattern: str) -> Iterator[Path]:
    parts = re.compile("[^/]*".join(map(re.escape, pattern.split("{split}"))) + "(/.*)?")
    for folder, stems in tree.folders.items():
        if pattern == "." or parts.fullmatch(str(folder)):
            yield from stems.values()


def _sides(tree: Tree, kinds: dict[PurePosixPath, str]) -> tuple[list[Path], list[Path]]:
    """The files that look like images, and those that look like masks."""
    sides: list[list[Path]] = []
    for kind in ("images", "masks"):
        own = [f for f, found in kinds.items() if found in (kind, "images and masks")]
        sides.append([file for folder in own for file in tree.folders[folder].values()])
    return sides[0], sides[1]


def _compared(tree: Tree, images: list[Path], masks: list[Path]) -> str:
    """What the names of images and of masks have in common, and how to make them one."""
    if not images or not masks:
        return "No folder was taken for the images, or none for the masks."
    image, mask = images[0], masks[0]
    for rule, reason in _ALIKE:
        by_name = {rule(file.stem): file for file in reversed(images)}
        both = [file for file in masks if rule(file.stem) and rule(file.stem) in by_name]
        if 2 * len(both) > min(len(images), len(masks)):
            image, mask = by_name[rule(both[0].stem)], both[0]
            return f"{_pair(tree, image, mask)} {reason}"
    return (
        f"The names of {_pair(tree, image, mask)} were compared, as those of all others: a mask's "
        "name must begin with its image's name. Rename the masks, or the images."
    )


def _pair(tree: Tree, image: Path, mask: Path) -> str:
    return f"{image.relative_to(tree.root)} and {mask.relative_to(tree.root)}"


_ALIKE = (
    (str, "have one name, but lie in folders of different splits."),
    (str.casefold, "differ in upper and lower case: give both the same name."),
    (
        lambda stem: "".join(re.findall(r"\d+", stem)),
        "have the same number in other words: a mask's name must begin with its image's name. "
        "Rename the masks, or the images.",
    ),
    (
        lambda stem: str(int(number[-1])) if (number := re.findall(r"\d+", stem)) else "",
        "have the same number, written with other zeros: rename the masks, or the images.",
    ),
)
"""How names may differ: what makes them one, and what to do then."""
