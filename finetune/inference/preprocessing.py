"""The preprocessing of pictures, the same for all programs.

`finetune.pictures.reading.read_image` gives orientation and colour, the `InferenceProtocol` gives
the size, and the numbers are normalised on the model's device. Training's evaluation, `finetune
eval`, `predict`, `segment` and the checks of an export use this file. A model folder holds the same
in stock's `preprocessor_config.json`. That file has no keys for rounding up to a multiple, windows
and several scales: they stand in `config.json` under `finetune_eval`.
"""

import functools
import json
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from finetune.errors import UserError
from finetune.recipe import InferenceProtocol

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
_FULL = (255, 65535)
_BILINEAR = 2  # PIL.Image.Resampling


@dataclass(frozen=True)
class Preprocessing:
    """From the pixels of a picture to `pixel_values`.

    Attributes:
        protocol: how the picture is resized and shown.
        image_mean: mean per channel, of values in 0..1.
        image_std: standard deviation per channel, of values in 0..1.
        full: the pixel value that becomes 1: 255, or 65535 for images of 16 bit.
    """

    protocol: InferenceProtocol = field(default_factory=InferenceProtocol)
    image_mean: tuple[float, ...] = IMAGENET_MEAN
    image_std: tuple[float, ...] = IMAGENET_STD
    full: int = 255

    @property
    def num_channels(self) -> int:
        """Number of channels of the images."""
        return len(self.image_mean)

    def normalise(self, pixels: Tensor) -> Tensor:
        """Normalises integer pixels (B, H, W, C) on any device to float32 (B, C, H, W)."""
        mean, std = (
            _constant(values, pixels.device) for values in (self.image_mean, self.image_std)
        )
        return normalise(pixels, mean, std)

    def to_stock(self) -> dict[str, Any]:
        """`preprocessor_config.json`: the nearest settings of the stock image processor.

        Labels are translated already, so stock must not reduce them. Stock normalises arrays of any
        number of channels as this class does (other than 1, 3 and 4 if `input_data_format` is
        given). It resizes only 8 bit images of 1, 3 or 4 channels, and raises for others.
        """
        protocol = self.protocol
        size = {"height": 512, "width": 512}  # stock's default, for do_resize: false
        if protocol.fixed_size is not None:
            size = dict(zip(("height", "width"), protocol.fixed_size, strict=True))
        elif protocol.shortest_edge is not None:
            size = {"shortest_edge": protocol.shortest_edge}
            if protocol.longest_edge is not None:
                size["longest_edge"] = protocol.longest_edge
        return {
            "image_processor_type": "SegformerImageProcessor",
            "do_resize": protocol.resizes,
            "size": size,
            "resample": _BILINEAR,
            "do_rescale": True,
            "rescale_factor": 1 / self.full,
            "do_normalize": True,
            "image_mean": list(self.image_mean),
            "image_std": list(self.image_std),
            "do_reduce_labels": False,
        }

    @classmethod
    def from_stock(
        cls, values: Mapping[str, Any], exact: Mapping[str, Any] | None = None
    ) -> "Preprocessing":
        """Reads `preprocessor_config.json`, and the more exact values of `config.json`.

        Args:
            values: content of `preprocessor_config.json`; missing keys have stock's defaults.
            exact: `finetune_eval` of `config.json`. If the two contradict each other,
                `preprocessor_config.json` was edited later and wins.

        Raises:
            UserError: a value is not supported; names the key.
        """
        if (resample := values.get("resample", _BILINEAR)) != _BILINEAR:
            raise UserError(f"resample={resample} is not supported; use 2, bilinear")
        full = 1
        if values.get("do_rescale", True):
            factor = values.get("rescale_factor", 1 / 255)
            full = next((full for full in _FULL if abs(factor * full - 1) < 1e-6), 0)
        if full not in _FULL:
            raise UserError("rescale_factor must be 1/255 or 1/65535, and do_rescale true")
        mean = tuple(map(float, values.get("image_mean", IMAGENET_MEAN)))
        std = tuple(map(float, values.get("image_std", IMAGENET_STD)))
        if not values.get("do_normalize", True):
            mean, std = (0.0,) * len(mean), (1.0,) * len(mean)
        if len(mean) != len(std) or not all(value > 0 for value in std):
            raise UserError("image_mean and image_std need one number per channel, std above 0")
        protocol = _protocol_of(values)
        found = cls(protocol, mean, std, full)
        if exact is not None:
            try:
                exactly = cls(InferenceProtocol.read(exact), mean, std, full)
            except UserError as error:
                raise UserError(f"finetune_eval in config.json: {error}") from error
            if _sizes(exactly.to_stock()) == _sizes(found.to_stock()):
                return exactly
            warnings.warn(
                "preprocessor_config.json and finetune_eval in config.json give different sizes; "
                f"the first one is used ({protocol.describe()})",
                stacklevel=2,
            )
        return found


def _sizes(values: Mapping[str, Any]) -> Any:
    return values["do_resize"] and values["size"]


def _protocol_of(values: Mapping[str, Any]) -> InferenceProtocol:
    if not values.get("do_resize", True):
        return InferenceProtocol()
    size = values.get("size", {"height": 512, "width": 512})
    if isinstance(size, int):  # the form of transformers 4
        size = {"height": size, "width": size}
    if isinstance(size, dict) and all(type(side) is int and side > 0 for side in size.values()):
        if size.keys() == {"height", "width"}:
            return InferenceProtocol(fixed_size=(size["height"], size["width"]))
        if size.keys() in ({"shortest_edge"}, {"shortest_edge", "longest_edge"}):
            return InferenceProtocol(**size)
    raise UserError(
        f"size={json.dumps(size)} is not supported; give height and width, or shortest_edge with "
        "or without longest_edge"
    )


def normalise(pixels: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Normalises pixels (B, H, W, C) to float32 (B, C, H, W), a view in channels-last memory.

    Args:
        pixels: integers on any device; 255 becomes 1 in uint8, 65535 in other types.
        mean: (C,), of values in 0..1, on the same device.
        std: (C,), of values in 0..1, on the same device.
    """
    batch, height, width, channels = pixels.shape
    # By rows of width x channels: broadcasting along an axis of three numbers takes 20 times as
    # long on a CPU. In place, since new memory costs more than the arithmetic.
    rows = pixels.reshape(batch, height, width * channels).to(torch.float32, copy=True)
    full = 255 if pixels.dtype == torch.uint8 else 65535
    rows = rows.div_(full).sub_(mean.repeat(width)).div_(std.repeat(width))
    return rows.view(batch, height, width, channels).permute(0, 3, 1, 2)


@functools.cache
def _constant(values: tuple[float, ...], device: torch.device) -> Tensor:
    """A cached tensor on a device: a transfer would wait until a GPU has emptied its queue."""
    return torch.tensor(values, device=device)
