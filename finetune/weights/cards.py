"""Model cards of others, and the licence of the weights according to them."""

import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard
from transformers.utils import cached_file

NVIDIA = (
    "The MiT and SegFormer weights that NVIDIA published, and whatever is trained from them, may "
    "be used non-commercially only: for research or evaluation (NVIDIA Source Code License for "
    "SegFormer)."
)

_OWNER = "nvidia/"
_NVIDIA_FIELDS = {
    "license": "other",
    "license_name": "nvidia-source-code-license-for-segformer",
    "license_link": "https://github.com/NVlabs/SegFormer/blob/master/LICENSE",
}
_NAME = re.compile(r"nvidia\W*(source\W*code|.*segformer)", re.IGNORECASE)
_LINK = re.compile(r"github(usercontent)?\.com/nvlabs/segformer\b", re.IGNORECASE)
# NVIDIA's cards link their licence in the text by this address; the header says "other".
_FILE = re.compile(r"github\.com/nvlabs/segformer/blob/\w+/license", re.IGNORECASE)


@dataclass(frozen=True)
class Card:
    """A model card as found; empty if there is no readable card.

    Attributes:
        header: its YAML.
        text: the text after the header.
    """

    header: dict[str, Any] = field(default_factory=dict)
    text: str = ""


def card_of(model: str, *, fetch: bool = True) -> Card:
    """The card of a model folder or Hub id; `fetch` asks the Hub for one. Warns of a bad header."""
    path = Path(model, "README.md") if Path(model).is_dir() else _found(model, fetch)
    if path is None or not path.is_file():
        return Card()
    try:
        card = ModelCard.load(path, ignore_metadata_errors=True)
        return Card(card.data.to_dict(), card.text)
    except Exception as error:  # foreign YAML: its readers raise anything
        reason = " ".join(str(error).split())
        warnings.warn(f"{path}: its header cannot be read and is ignored ({reason})", stacklevel=2)
        return Card()


def licence_of(model: str) -> str:
    """A remark on the licence of the weights of a model folder or Hub id, or ""."""
    if model.startswith(_OWNER) and not Path(model).is_dir():
        return NVIDIA
    return licence_in(card_of(model))


def licence_in(card: Card) -> str:
    """A remark on the licence according to a card's fields, or ""; other text does not count."""
    names = any(_NAME.search(text) for text in _texts(card.header.get("license_name")))
    links = any(_LINK.search(text) for text in _texts(card.header.get("license_link")))
    bases = any(text.startswith(_OWNER) for text in _texts(card.header.get("base_model")))
    other = card.header.get("license") == "other" and _FILE.search(card.text)
    return NVIDIA if names or links or bases or other or NVIDIA in card.text else ""


def licence_fields(remark: str) -> dict[str, str]:
    """The fields of a card's header for a remark of `licence_of` or `licence_in`."""
    return dict(_NVIDIA_FIELDS) if remark == NVIDIA else {"license": "other"} if remark else {}


def _texts(value: Any) -> Iterator[str]:
    yield from (str(text) for text in (value if isinstance(value, list) else [value]))


def _found(model: str, fetch: bool) -> Path | None:
    """The card's file of a Hub id, or None."""
    try:
        found = cached_file(model, "README.md", local_files_only=not fetch)
    except Exception:  # no network, no card, no such id: a card is optional
        return None
    return Path(found) if found else None
