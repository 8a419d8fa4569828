"""The classes of a mask, and those among them that become objects."""

import re
from dataclasses import dataclass

import numpy as np

from finetune.labels.colors import RGB
from finetune.labels.rules import is_outside

_NOT_XML = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff\ufffe\uffff]")


@dataclass(frozen=True)
class Classes:
    """The names and colours of the classes, by id."""

    names: tuple[str, ...]
    colors: tuple[RGB, ...]

    def objects_in(self, mask: np.ndarray) -> list[int]:
        """The classes that occur in a mask of ids (H, W), without the background.

        The background is a class of that name, because tools annotate objects and `init` makes
        the rest of the picture background. Other classes are objects, also the first of them.
        """
        present = np.flatnonzero(np.bincount(mask.ravel(), minlength=len(self.names)))
        return [int(i) for i in present if i < len(self.names) and not is_outside(self.names[i])]

    def hex_color(self, number: int) -> str:
        """The colour of a class as #rrggbb."""
        return "#" + bytes(self.colors[number]).hex()


def xml_text(text: str) -> str:
    """Text without the characters that XML cannot hold; names of files and classes may have any."""
    return _NOT_XML.sub("\ufffd", text)
