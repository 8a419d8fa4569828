"""The kinds of findings: their names, messages and remedies.

Their names stand in doctor.json: a kind keeps its name.
"""

import re
from typing import Literal

Severity = Literal["problem", "warning"]

# Kind: (message, remedy). In a message {n} is the number of places; [one|many] depends on it.
PROBLEMS = {
    "split-missing": (
        "{n} split[|s] cannot be opened",
        "Correct data.path, data.train_split or data.val_split.",
    ),
    "empty-file": (
        "{n} file[ is|s are] empty (0 bytes)",
        "Fetch the file again, or remove it together with its image or mask.",
    ),
    "unreadable-file": (
        "{n} file[|s] cannot be read: damaged, cut off, or of an unknown format",
        "Fetch the file again, or remove it together with its image or mask.",
    ),
    "missing-file": (
        "{n} file[ is|s are] missing",
        "Put the file back, or remove its image or mask too.",
    ),
    "size-mismatch": (
        "{n} mask[ has another size than its image|s have another size than their images]",
        "Export the mask again at the size of the image. If height and width are swapped, an EXIF "
        "orientation was applied to only one of the two.",
    ),
    "image-without-mask": (
        "{n} image[ has|s have] no mask",
        "Add the mask under the same name (lossless: png, bmp or tif), or remove the image.",
    ),
    "mask-without-image": (
        "{n} mask[ has|s have] no image",
        "Add the image under the same name, or remove the mask.",
    ),
    "same-name": (
        "{n} name[ belongs|s belong] to several files that differ only in their type",
        "Keep one file of each name: pairs are found by name.",
    ),
    "listed-but-missing": (
        "{n} listed sample[ has|s have] no file",
        "Add the files, or take the names out of the list.",
    ),
    "mask-of-no-class": (
        "{n} mask [file or folder belongs|files or folders belong] to no class of labels.names",
        "Correct the names, or add the classes to labels.names.",
    ),
    "mask-not-ids": (
        "{n} mask[ holds|s hold] colours instead of ids",
        "Convert them to one channel of ids. If all masks hold colours, set labels.kind=colors.",
    ),
    "mask-not-colors": (
        "{n} mask[ does|s do] not hold 8 bit colours",
        "Convert them. If all masks hold ids, set labels.kind=ids.",
    ),
    "bad-annotation": (
        "{n} annotation[|s] cannot be used",
        "Correct the lines or objects named here.",
    ),
    "uncovered-value": (
        "{n} mask[ holds|s hold] values without a rule in `labels`",
        "Mend the masks, or give the values a meaning: labels.map, labels.ignore, "
        "labels.reduce_zero, or labels.tolerance for damaged colours.",
    ),
    "rare-value": (
        "{n} mask[ holds|s hold] a value that occurs in hardly any mask and few pixels",
        "These are probably slips: mend the masks. If a value is a class, name it in a recipe.",
    ),
    "smeared-values": (
        "masks hold many values in few pixels, as after smooth resizing or lossy compression",
        "Export the masks again, with nearest-neighbour resizing and lossless compression.",
    ),
    "no-labelled-pixel": (
        "{n} mask[ has|s have] no labelled pixel",
        "Label the mask, or remove it with its image: it teaches nothing.",
    ),
    "tiny-image": (
        "{n} image[ is|s are] smaller than the model's smallest input",
        "Replace the image by a larger one, or remove it.",
    ),
    "duplicate-across-splits": (
        "{n} image[ is|s are] in more than one split, pixel for pixel",
        "Keep each image in one split: scores on training images say nothing about new ones.",
    ),
    "conflicting-masks": (
        "{n} image[ occurs|s occur] several times with different masks",
        "Keep the right mask of each image.",
    ),
    "class-only-in-val": (
        "{n} class[ is|es are] evaluated but never trained on",
        "Put images that show the class into the training split (with data.val_fraction: choose "
        "another data.split_seed), or ignore the class in labels.map.",
    ),
}
WARNINGS = {
    "near-duplicate": (
        "{n} image[ looks|s look] nearly like an image of the training split",
        "Look at the pairs. Frames of one scene belong in one split (data.split_group).",
    ),
    "duplicate-in-split": (
        "{n} image[ occurs|s occur] several times in a split, with the same mask",
        "Keep one copy, unless the image is meant to count more.",
    ),
    "same-split": (
        "training and evaluation read the same split",
        "This shows whether a model can learn at all; the scores say nothing about new images.",
    ),
    "class-never-seen": (
        "{n} class[ is|es are] in no mask",
        "Correct labels.names or labels.map, or expect no score for the class.",
    ),
    "rare-class": (
        "{n} class[ is|es are] in hardly any mask and few pixels",
        "Check whether these pixels are slips. If not, label more, or weight the class.",
    ),
    "ignored-value": (
        "{n} mask[ holds|s hold] values without a rule, which are ignored",
        "labels.unknown=ignore does this. If a value is a class, enter it in labels.map.",
    ),
    "mended-values": (
        "{n} mask[ holds|s hold] damaged values, read as the nearest class in labels.tolerance",
        "Use lossless masks (png) that were resized by nearest neighbour to be exact.",
    ),
    "far-values": (
        "{n} mask[ has|s have] many pixels that are far from every class's value",
        "Look at these masks: they may be blurred, photographs, or of other classes.",
    ),
    "mixed-mask-kinds": (
        "masks store their pixels in several ways",
        "Check that a number means the same class in each kind.",
    ),
    "blank-image": (
        "{n} image[ has|s have] a single colour",
        "Check whether something went wrong when the image was written.",
    ),
    "smaller-than-crop": (
        "{n} image[ is|s are] smaller than augment.crop and will be padded",
        "Choose a smaller augment.crop, or enlarge images by augment.base_size.",
    ),
    "mostly-ignored": (
        "[most pixels of a split are ignored|most pixels of {n} splits are ignored]",
        "Check labels.ignore and labels.map.",
    ),
}
KINDS = PROBLEMS | WARNINGS


def message_of(kind: str, number: int) -> str:
    """The message of a finding in a number of places."""
    chosen = r"\1" if number == 1 else r"\2"
    return re.sub(r"\[(.*?)\|(.*?)\]", chosen, KINDS[kind][0]).format(n=number)
