"""A model folder as a run leaves it, small enough to be made in every room of the tests."""

from collections.abc import Sequence
from pathlib import Path

import torch
from huggingface_hub import ModelCard

from finetune.inference import InferenceProtocol, Preprocessing
from finetune.publish import save_model_folder
from finetune.segformer import SegformerConfig, SegformerForSemanticSegmentation

NAMES = ("road", "tree", "sky", "car", "house")
COLORS = ((0, 200, 0), (10, 180, 30), (20, 160, 60), (30, 140, 90), (40, 120, 120))


def save_tiny(
    folder: Path,
    preprocessing: Preprocessing | None = None,
    *,
    names: Sequence[str] = NAMES,
    colors: Sequence[tuple[int, int, int]] | None = None,
    num_channels: int = 3,
    seed: int = 0,
) -> Path:
    """A stock folder with fresh weights, of which no two are equal; returns `folder`."""
    torch.manual_seed(seed)
    config = SegformerConfig(
        depths=[1, 2, 1, 1],
        hidden_sizes=[8, 16, 40, 64],
        decoder_hidden_size=32,
        num_channels=num_channels,
        id2label=dict(enumerate(names)),
        label2id={name: i for i, name in enumerate(names)},
        semantic_loss_ignore_index=255 if len(names) <= 255 else 65535,
    )
    model = SegformerForSemanticSegmentation(config).eval()
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if "norm" in name and tensor.is_floating_point():
                tensor.uniform_(0.5, 1.5)  # fresh norms do nothing, folded or not
            elif name.endswith("bias"):
                tensor.uniform_(-0.5, 0.5)
    save_model_folder(
        folder,
        model,
        preprocessing=preprocessing or Preprocessing(InferenceProtocol()),
        colors=colors or [COLORS[i % len(COLORS)] for i in range(len(names))],
        card=ModelCard("---\nlibrary_name: transformers\nlicense: cc0-1.0\n---\n"),
    )
    return folder
