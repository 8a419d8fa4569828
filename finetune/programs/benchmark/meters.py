"""The machine behind a figure, and the difference between the two sides' results."""

from collections.abc import Mapping
from typing import Any

import torch
import transformers

from finetune.machine import processor


def machine(device: str, *, keeps_memory: bool) -> dict[str, Any]:
    """The facts about machine and process that a figure depends on."""
    on_gpu = torch.device(device).type == "cuda"
    return {
        "device": device,
        "device_name": torch.cuda.get_device_name(device) if on_gpu else processor(),
        "threads": torch.get_num_threads(),
        "keeps_freed_memory": keeps_memory,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def differences(mine: Mapping[str, Any], theirs: Mapping[str, Any]) -> dict[str, float]:
    """The largest difference over the largest value; for class maps, the share that differs."""
    return {name: _difference(mine[name], theirs[name]) for name in theirs}


def _difference(mine: Any, theirs: Any) -> float:
    mine, theirs = torch.as_tensor(mine), torch.as_tensor(theirs)
    if not theirs.is_floating_point():
        return float((mine != theirs).float().mean())
    mine, theirs = mine.double(), theirs.double()
    return float((mine - theirs).abs().max() / theirs.abs().max().clamp(min=1e-300))
