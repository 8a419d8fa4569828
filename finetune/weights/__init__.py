"""Readers of foreign checkpoint files, which rename tensors to the names of Hub files."""

from finetune.weights.cards import Card, card_of, licence_in, licence_of
from finetune.weights.reading import Weights, is_checkpoint_file, read_weights
from finetune.weights.shapes import ARCHITECTURES, Kind, variant_of

__all__ = [
    "ARCHITECTURES",
    "Card",
    "Kind",
    "Weights",
    "card_of",
    "is_checkpoint_file",
    "licence_in",
    "licence_of",
    "read_weights",
    "variant_of",
]
