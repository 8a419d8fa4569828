"""The kinds of findings: their names, messages and remedies.

Their names stand in doctor.json: a kind keeps its name.
"""

from dataclasses import dataclass
from typing import Literal

Severity = Literal["problem", "warning"]


@dataclass(frozen=True)
class Kind:
    """A kind of finding: `{n}` in its message is the number of places."""

    severity: Severity
    one: str
    many: str
    remedy: str


KINDS: dict[str, Kind] = {
    "split-missing": Kind(
        "problem",
        "a split cannot be opened",
        "{n} splits cannot be opened",
        "Correct data.path, data.train_split or data.val_split.",
    ),
    "empty-file": Kind(
        "problem",
        "1 file is empty (0 bytes)",
        "{n} files are empty (0 bytes)",
        "Fetch them again, or remove each together with its image or mask.",
    ),
    "unreadable-file": Kind(
        "problem",
        "1 file cannot be read: damaged, cut off, or of no known format",
        "{n} files cannot be read: damaged, cut off, or of no known format",
        "Fetch them again, or remove each together with its image or mask.",
    ),
    "missing-file": Kind(
        "problem",
        "1 file is not there any more",
        "{n} files are not there any more",
        "Put them back, or remove each one's image or mask too.",
    ),
    "size-mismatch": Kind(
        "problem",
        "1 mask has another size than its image",
        "{n} masks have another size than their images",
        "Export these masks again at the size of the image; where height and width are swapped, "
        "an EXIF orientation was applied to one of the two only.",
    ),
    "image-without-mask": Kind(
        "problem",
        "1 image has no mask",
        "{n} images have no mask",
        "Add the mask under the same name (lossless: png, bmp or tif), or remove the image.",
    ),
    "mask-without-image": Kind(
        "problem",
        "1 mask has no image",
        "{n} masks have no image",
        "Add the image under the same name, or remove the mask.",
    ),
    "same-name": Kind(
        "problem",
        "2 files differ in their file type only, so that pairing by name is undecided",
        "{n} times files differ in their file type only, so that pairing by name is undecided",
        "Keep one of each.",
    ),
    "listed-but-missing": Kind(
        "problem",
        "1 sample is in a list but not on disk",
        "{n} samples are in a list but not on disk",
        "Add the files, or take the names out of the list.",
    ),
    "mask-of-no-class": Kind(
        "problem",
        "1 mask file or folder belongs to no class of labels.names",
        "{n} mask files or folders belong to no class of labels.names",
        "Correct the names, or add the classes to labels.names.",
    ),
    "mask-not-ids": Kind(
        "problem",
        "1 mask holds colours where the others hold ids",
        "{n} masks hold colours where there must be ids",
        "Convert them to one channel of ids; if all masks are colours, set labels.kind=colors.",
    ),
    "mask-not-colors": Kind(
        "problem",
        "1 mask does not hold 8 bit colours",
        "{n} masks do not hold 8 bit colours",
        "Convert them; if all masks hold ids, set labels.kind=ids.",
    ),
    "bad-annotation": Kind(
        "problem",
        "1 annotation cannot be used",
        "{n} annotations cannot be used",
        "Correct the lines or objects that are named.",
    ),
    "uncovered-value": Kind(
        "problem",
        "1 mask holds values that no rule of `labels` covers",
        "{n} masks hold values that no rule of `labels` covers",
        "Mend the masks, or say what the values mean: labels.map, labels.ignore, "
        "labels.reduce_zero, or labels.tolerance for damaged colours.",
    ),
    "rare-value": Kind(
        "problem",
        "1 mask holds a value that is in hardly any mask and few pixels",
        "{n} masks hold values that are in hardly any mask and few pixels",
        "Probably slips: mend these masks. If a value is a class, write a recipe that names it.",
    ),
    "smeared-values": Kind(
        "problem",
        "masks hold many values in few pixels, as if they had been resized or compressed smoothly",
        "masks hold many values in few pixels, as if they had been resized or compressed smoothly",
        "Export the masks again, with nearest-neighbour resizing and lossless compression.",
    ),
    "no-labelled-pixel": Kind(
        "problem",
        "1 mask has no pixel that counts",
        "{n} masks have no pixel that counts",
        "Label them, or remove them with their images: they teach nothing.",
    ),
    "tiny-image": Kind(
        "problem",
        "1 image is smaller than the model takes",
        "{n} images are smaller than the model takes",
        "Replace them by larger ones, or remove them.",
    ),
    "duplicate-across-splits": Kind(
        "problem",
        "1 image is in more than one split, pixel for pixel",
        "{n} images are in more than one split, pixel for pixel",
        "Keep each in one split: what is trained on says nothing about new images.",
    ),
    "conflicting-masks": Kind(
        "problem",
        "1 image is there several times with different masks",
        "{n} images are there several times with different masks",
        "Keep the right mask of each.",
    ),
    "class-only-in-val": Kind(
        "problem",
        "1 class is evaluated but never trained on",
        "{n} classes are evaluated but never trained on",
        "Put images that show it into the training split (with data.val_fraction: another "
        "data.split_seed), or ignore the class in labels.map.",
    ),
    "near-duplicate": Kind(
        "warning",
        "1 image looks nearly the same as one of the training split",
        "{n} images look nearly the same as one of the training split",
        "Look at the pairs; frames of one scene belong into one split (data.split_group).",
    ),
    "duplicate-in-split": Kind(
        "warning",
        "1 image is in its split several times, with the same mask",
        "{n} images are in their split several times, with the same mask",
        "Keep one of each, unless they shall count more.",
    ),
    "same-split": Kind(
        "warning",
        "training and evaluation read the same split",
        "training and evaluation read the same split",
        "Fine to see whether a model can learn at all; scores say nothing about new images.",
    ),
    "class-never-seen": Kind(
        "warning",
        "1 class is in no mask",
        "{n} classes are in no mask",
        "Correct labels.names or labels.map, or expect no score for it.",
    ),
    "rare-class": Kind(
        "warning",
        "1 class is in hardly any mask and few pixels",
        "{n} classes are in hardly any mask and few pixels",
        "Look whether these pixels are slips; otherwise label more, or weigh the class.",
    ),
    "ignored-value": Kind(
        "warning",
        "1 mask holds values without a rule, which do not count",
        "{n} masks hold values without a rule, which do not count",
        "As labels.unknown=ignore says. Give them a class in labels.map if they mean one.",
    ),
    "mended-colors": Kind(
        "warning",
        "1 mask holds damaged colours, taken for the nearest class within labels.tolerance",
        "{n} masks hold damaged colours, taken for the nearest class within labels.tolerance",
        "Lossless masks (png) would say exactly what is meant.",
    ),
    "mixed-mask-kinds": Kind(
        "warning",
        "masks store their pixels in several ways",
        "masks store their pixels in several ways",
        "Look whether the same number means the same class in each kind.",
    ),
    "blank-image": Kind(
        "warning",
        "1 image is of one colour all over",
        "{n} images are of one colour all over",
        "Look whether something went wrong when they were written.",
    ),
    "smaller-than-crop": Kind(
        "warning",
        "1 image is smaller than augment.crop and will be padded",
        "{n} images are smaller than augment.crop and will be padded",
        "Choose a smaller augment.crop, or enlarge images by augment.base_size.",
    ),
    "mostly-ignored": Kind(
        "warning",
        "most pixels of a split do not count",
        "most pixels of {n} splits do not count",
        "Look whether labels.ignore and labels.map say what you mean.",
    ),
}
