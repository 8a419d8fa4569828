"""From an image to scores and a mask of the image's own size: one protocol for everybody.

What training's evaluation, `finetune eval` and the saved folder say about preprocessing is one
`Protocol`, saved in `config.json` under `finetune_eval` (stock transformers ignores it) and, as far
as it can be said there, in `preprocessor_config.json`.
"""

import pickle
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from transformers import AutoConfig

from finetune.errors import UserError
from finetune.segformer import SegformerConfig, SegformerForSemanticSegmentation
from finetune.segformer.configuration import smallest_side
from finetune.segformer.functional import upsampled_argmax


@dataclass(frozen=True)
class Protocol:
    """How an image is resized and shown to the model.

    Attributes:
        shortest_edge: the shorter edge after the resize, in pixels; None: no resize.
        longest_edge: limit of the longer edge, or None.
        size_divisor: each side is rounded up to a multiple of this.
        window: height and width of a sliding window; None: the whole image at once.
        stride: of the window; the last ones are moved back to end at the image's edge.
    """

    shortest_edge: int | None = None
    longest_edge: int | None = None
    size_divisor: int = 1
    window: tuple[int, int] | None = None
    stride: tuple[int, int] | None = None

    def to_dict(self) -> dict[str, Any]:
        """For `config.json`."""
        return asdict(self)

    def describe(self) -> str:
        """The protocol in one line."""
        if self.shortest_edge is None:
            text = "images at their own size"
        else:
            limit = f", longer at most {self.longest_edge}" if self.longest_edge else ""
            text = f"shorter edge {self.shortest_edge}{limit}"
            if self.size_divisor > 1:
                text += f", sides rounded up to multiples of {self.size_divisor}"
        if self.window and self.stride:
            text += f", sliding window {self.window[0]} x {self.window[1]}"
            text += f" with stride {self.stride[0]} x {self.stride[1]}"
        return text + ", single scale, scored at the image's own size"

    def size(self, height: int, width: int) -> tuple[int, int]:
        """The size that an image of height x width is resized to.

        With `longest_edge` the factor is mmsegmentation's for scale (longest, shortest).
        """
        if self.shortest_edge is None:
            return height, width
        factor = self.shortest_edge / min(height, width)
        if self.longest_edge:
            factor = min(factor, self.longest_edge / max(height, width))
        divisor = self.size_divisor
        sides = (int(side * factor + 0.5) for side in (height, width))
        resized = [max(1, -(-side // divisor)) * divisor for side in sides]
        return resized[0], resized[1]

    def resize(self, image: np.ndarray) -> np.ndarray:
        """Resizes (H, W, C) by Pillow's bilinear filter, as stock's image processor does RGB.

        Other images channel by channel: Pillow takes a fourth one for transparency, by which it
        weighs the colours. 16 bit are rounded to the nearest, as Pillow rounds 8 bit.
        """
        height, width = self.size(*image.shape[:2])
        if (height, width) == image.shape[:2]:
            return image
        size, bilinear = (width, height), Image.Resampling.BILINEAR
        if image.dtype == np.uint8 and image.shape[2] == 3:
            return np.asarray(Image.fromarray(image).resize(size, bilinear))
        resized = np.empty((height, width, image.shape[2]), image.dtype)
        for channel in range(image.shape[2]):
            plane = np.ascontiguousarray(image[..., channel])
            if image.dtype == np.uint16:
                deep = Image.fromarray(plane.astype(np.float32)).resize(size, bilinear)
                resized[..., channel] = np.rint(np.asarray(deep))  # a mean: never out of range
            else:
                resized[..., channel] = Image.fromarray(plane).resize(size, bilinear)
        return resized


def load_config(model: str, what: str) -> SegformerConfig:
    """The configuration of a SegFormer folder or Hub id.

    Args:
        model: the folder or id.
        what: what to call it in messages, such as "model.init=...".

    Raises:
        UserError: there is none, or it is another kind of model's.
    """
    try:
        config = AutoConfig.from_pretrained(model, trust_remote_code=False)
    except Exception as error:  # somebody else's files: their readers raise anything
        raise UserError(f"{what}: not a model folder or Hub id ({_first_line(error)})") from error
    if config.model_type != "segformer":
        raise UserError(f"{what}: a {config.model_type}, not a segformer")
    return config


def load_model(
    model: str, what: str, config: SegformerConfig
) -> tuple[SegformerForSemanticSegmentation, list[str]]:
    """A SegFormer with a head for `config`, in float32, and the names of the weights that are new.

    Raises:
        UserError: the weights cannot be read.
    """
    loaded: Any
    info: dict[str, Any]
    try:
        loaded, info = SegformerForSemanticSegmentation.from_pretrained(  # type: ignore[misc]
            model, config=config, ignore_mismatched_sizes=True, output_loading_info=True
        )
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{what}: its weights are a pickle of more than plain tensors, which is not opened: it "
            "could run code. Ask for model.safetensors."
        ) from error
    except Exception as error:  # somebody else's files: their readers raise anything
        raise UserError(f"{what}: its weights cannot be read ({_first_line(error)})") from error
    if not all(tensor.isfinite().all() for tensor in loaded.state_dict().values()):
        raise UserError(f"{what}: its weights are not finite (NaN or infinity); take another")
    fresh = {*info["missing_keys"], *(key for key, *_ in info["mismatched_keys"])}
    return loaded.float(), sorted(fresh)


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def normalise(pixels: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Pixels (B, H, W, C) to normalised float32 (B, C, H, W), a view in channels-last memory.

    Args:
        pixels: uint8, of which 255 is 1; or any other integers, of which 65535 is; on any device.
        mean: (C,) of values in 0..1, on that device.
        std: (C,), likewise.
    """
    batch, height, width, channels = pixels.shape
    # By rows of width x channels: broadcast along an axis of three numbers, it takes 20 times as
    # long on a CPU. In place, since new memory costs more than the arithmetic.
    rows = pixels.reshape(batch, height, width * channels).to(torch.float32, copy=True)
    full = 255 if pixels.dtype == torch.uint8 else 65535
    rows = rows.div_(full).sub_(mean.repeat(width)).div_(std.repeat(width))
    return rows.view(batch, height, width, channels).permute(0, 3, 1, 2)


@torch.no_grad()
def predict_scores(model: Any, pixel_values: Tensor, protocol: Protocol) -> Tensor:
    """Scores (B, K, h, w), float32, at a resolution from which to upsample to the image's own.

    The whole image gives the logits as they are, at 1/4; a sliding window gives the mean over the
    windows at the resolution of the input, as published. Images below the model's smallest side
    are padded right and bottom with zeros, the mean colour.

    Args:
        model: a SegFormer in eval mode.
        pixel_values: (B, C, H, W), normalised.
        protocol: only its window is looked at.
    """
    if protocol.window is None or protocol.stride is None:
        return _scores(model, pixel_values)
    batch, _, height, width = pixel_values.shape
    total = pixel_values.new_zeros(batch, model.config.num_labels, height, width)
    count = pixel_values.new_zeros(height, width)
    tops = _starts(height, protocol.window[0], protocol.stride[0])
    lefts = _starts(width, protocol.window[1], protocol.stride[1])
    for top in tops:
        for left in lefts:
            rows = slice(top, min(top + protocol.window[0], height))
            columns = slice(left, min(left + protocol.window[1], width))
            crop = pixel_values[:, :, rows, columns]
            scores = _scores(model, crop)
            total[:, :, rows, columns] += F.interpolate(
                scores, size=crop.shape[2:], mode="bilinear", align_corners=False
            )
            count[rows, columns] += 1
    return total / count


def predict_mask(
    model: Any, pixel_values: Tensor, protocol: Protocol, size: tuple[int, int]
) -> Tensor:
    """Class ids (B, H, W) int64 of normalised images, at `size` = (H, W)."""
    return upsampled_argmax(predict_scores(model, pixel_values, protocol), size)


def _scores(model: Any, pixel_values: Tensor) -> Tensor:
    height, width = pixel_values.shape[2:]
    side = smallest_side(model.config)
    if min(height, width) >= side:
        return model(pixel_values).logits.float()
    padding = (0, max(0, side - width), 0, max(0, side - height))
    padded = F.pad(pixel_values, padding)
    logits = model(padded).logits.float()
    upsampled = F.interpolate(logits, size=padded.shape[2:], mode="bilinear", align_corners=False)
    return upsampled[:, :, :height, :width]


def _starts(length: int, window: int, stride: int) -> list[int]:
    """Where windows begin along one axis; the last one ends at the edge."""
    last = max(length - window, 0)
    return [*range(0, last, stride), last]
