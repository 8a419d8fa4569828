"""`Segmenter`, a model with its preprocessing, and `segment` for single pictures."""

import os
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import PreTrainedModel

from finetune.errors import UserError, first_line
from finetune.inference.models import (
    check_window,
    class_colors,
    class_names,
    load_preprocessing,
)
from finetune.inference.preprocessing import Preprocessing
from finetune.inference.scores import predict_doubts, predict_masks
from finetune.inference.segmentation import Segmentation
from finetune.labels.colors import default_colors
from finetune.machine import device as default_device
from finetune.pictures.arrays import as_pixels
from finetune.pictures.drawing import Color, as_rgb
from finetune.pictures.opening import check_pixels, pixel_limit
from finetune.pictures.reading import image_size, read_image
from finetune.pictures.references import Encoded, Picture
from finetune.weights.folders import load_config, load_model

DTYPES = {"float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}

AnyImage: TypeAlias = str | Path | bytes | Image.Image | np.ndarray | Tensor


def segment(
    model: "str | Path | PreTrainedModel | Segmenter",
    image: AnyImage,
    *,
    confidence: bool = True,
    max_pixels: int | None = None,
) -> Segmentation:
    """The class of every pixel of a picture of any size.

    Args:
        model: a model folder or Hub id; or a `Segmenter`, whose model stays loaded.
        image: a file's path or its bytes; a PIL image; an array (H, W, C) or (H, W), uint8 or
            uint16; or a tensor (C, H, W), uint8, or floating point of 0..1.
        confidence: whether to return the probability of each pixel's class.
        max_pixels: the largest image, in pixels; None: 178,956,970, Pillow's limit.

    Raises:
        UserError: the model or the image cannot be read; names the reason.
    """
    was_training = isinstance(model, PreTrainedModel) and model.training
    segmenter = model if isinstance(model, Segmenter) else Segmenter.load(model)
    try:
        return segmenter(image, confidence=confidence, max_pixels=max_pixels)
    finally:
        if was_training:
            segmenter.model.train()


class Segmenter:
    """A model with its preprocessing, class names and colours.

    Args:
        model: a SegFormer; it is moved to `device` and set to eval mode.
        preprocessing: how pictures are shown to it.
        names: names of its classes, by id.
        colors: colours of its classes, by id; None: a default palette.
        device: the device; None: the GPU if there is one.
        dtype: type of the matrix products: float32, bfloat16 or float16.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        preprocessing: Preprocessing,
        *,
        names: Sequence[str],
        colors: Sequence[Color] | None = None,
        device: str | torch.device | None = None,
        dtype: str = "float32",
    ):
        if dtype not in DTYPES:
            raise UserError(f"dtype {dtype} is not one of {', '.join(DTYPES)}")
        self.device = _device(device)
        self.model: Any = model.to(self.device).eval()  # type: ignore[arg-type]
        self.preprocessing = preprocessing
        self.names = tuple(names)
        self.colors: tuple[Color, ...] = tuple(colors or default_colors(len(self.names)))
        self.dtype = DTYPES[dtype]

    @classmethod
    def load(
        cls,
        model: str | Path | PreTrainedModel,
        *,
        device: str | torch.device | None = None,
        dtype: str = "float32",
        **protocol: Any,
    ) -> "Segmenter":
        """Loads a folder or a Hub id, or wraps a model that came from one.

        Args:
            model: the folder, the id or the model.
            device: see the class.
            dtype: see the class.
            **protocol: fields of `InferenceProtocol` that override the folder's, such as
                `flip=True` or `window=(1024, 1024)`.

        Raises:
            UserError: the model cannot be read; names the file and the mistake.
        """
        where = str(model.name_or_path if isinstance(model, PreTrainedModel) else model)
        what = f"model {where}"
        if isinstance(model, PreTrainedModel):
            config: Any = model.config
        else:
            config = load_config(where, what)
        preprocessing = load_preprocessing(where, what, config)
        if protocol:
            if "stride" in protocol and not protocol.get("window", preprocessing.protocol.window):
                raise UserError(
                    f"--stride (stride): {what} has no window; add --window (window), such as 1024"
                )
            shown = preprocessing.protocol.replaced(**protocol)
            check_window(shown, config, what)
            preprocessing = replace(preprocessing, protocol=shown)
        if not isinstance(model, PreTrainedModel):
            model, missing = load_model(where, what, config)
            if missing:
                raise UserError(
                    f"{what}: {len(missing)} weights are missing, such as {missing[0]}; this "
                    "is not a SegFormer for semantic segmentation"
                )
        names = class_names(config, what)
        colors = class_colors(config, len(names), what)
        return cls(model, preprocessing, names=names, colors=colors, device=device, dtype=dtype)

    def read(self, image: AnyImage, *, max_pixels: int | None = None) -> np.ndarray:
        """Reads an image of any kind as integers (H, W, C), in the form of the training images.

        Raises:
            UserError: the image cannot be read, or its channels differ; names the reason.
        """
        if isinstance(image, bytes):
            return self.read_picture(Encoded("the image", image), max_pixels=max_pixels)
        if isinstance(image, str | Path):
            path = Path(os.path.expanduser(image))
            if not path.is_file():
                raise UserError(f"{path}: there is no such file")
            return self.read_picture(path, max_pixels=max_pixels)
        pixels = as_pixels(image, self.preprocessing.num_channels)
        self._check(pixels, "the image", max_pixels)
        return pixels

    def read_picture(self, picture: Picture, *, max_pixels: int | None = None) -> np.ndarray:
        """As `read`, for a file or for encoded bytes with a name."""
        with pixel_limit(max_pixels):
            check_pixels(picture, image_size(picture), max_pixels)
            pixels = read_image(picture, self.preprocessing.num_channels)
        self._check(pixels, picture, max_pixels)
        return pixels

    def _check(self, pixels: np.ndarray, what: object, max_pixels: int | None) -> None:
        """Refuses images with other channels or types than the model's, and too large ones."""
        self.check_depth(pixels.dtype, what)
        size = pixels.shape[0], pixels.shape[1]
        check_pixels(what, size, max_pixels)
        for scale in self.preprocessing.protocol.scales:
            resized = self.preprocessing.protocol.size(*size, scale)
            check_pixels(f"{what}, resized", resized, max_pixels)

    def check_depth(self, dtype: np.dtype, what: object) -> None:
        """Refuses images of other integers than the training's.

        Raises:
            UserError: they differ; the message begins with `what`.
        """
        full = self.preprocessing.full
        if self.preprocessing.num_channels != 3 and np.iinfo(dtype).max != full:
            raise UserError(
                f"{what}: has {8 * dtype.itemsize} bits per channel, but rescale_factor in the "
                f"model's preprocessor_config.json is for images whose white is {full}"
            )

    def __call__(
        self, image: AnyImage, *, confidence: bool = True, max_pixels: int | None = None
    ) -> Segmentation:
        """Segments one image; see `segment`."""
        pixels = self.read(image, max_pixels=max_pixels)
        views = self.views([pixels])
        size = pixels.shape[0], pixels.shape[1]
        masks, chances = self.masks(views, size, confidence=confidence)
        chance = chances[0] if chances is not None else None
        return Segmentation(masks[0], self.names, self.colors, chance, as_rgb(pixels))

    def views(self, images: Sequence[np.ndarray]) -> list[Tensor]:
        """Images of one size, resized for the model, as one batch for each scale."""
        return self.stacked([self.preprocessing.protocol.resize(image) for image in images])

    def stacked(self, resized: Sequence[Sequence[np.ndarray]]) -> list[Tensor]:
        """Results of `InferenceProtocol.resize` for images of one size, as one batch a scale."""
        return [_stacked(scale) for scale in zip(*resized, strict=True)]

    def masks(
        self, views: Sequence[Tensor], size: tuple[int, int], *, confidence: bool = False
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """Class ids (B, H, W) uint8 or uint16, and float16 probabilities if asked for.

        Args:
            views: from `views`.
            size: (H, W) of the images.
            confidence: whether to return probabilities.
        """
        with torch.autocast(self.device.type, dtype=self.dtype, enabled=self.dtype is not None):
            masks, chances = predict_masks(
                self.model, views, self.preprocessing, size, confidence=confidence
            )
        return _as_ids(masks), None if chances is None else chances.numpy()

    def doubts(self, views: Sequence[Tensor], truths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Class ids as `masks` gives them, and log p(predicted) - log p(label), float32 (B, H, W).

        Args:
            views: from `views`.
            truths: labels, integer (B, H, W); see `predict_doubts`.
        """
        with torch.autocast(self.device.type, dtype=self.dtype, enabled=self.dtype is not None):
            masks, doubts = predict_doubts(
                self.model, views, self.preprocessing, torch.from_numpy(truths.astype(np.int32))
            )
        return _as_ids(masks), doubts.numpy()


def _as_ids(masks: Tensor) -> np.ndarray:
    """Ids of int64 become uint16; torch cannot compare those."""
    return masks.numpy() if masks.dtype == torch.uint8 else masks.numpy().astype(np.uint16)


def _device(wanted: str | torch.device | None) -> torch.device:
    if wanted is None:
        return default_device()
    try:
        found = torch.device(wanted)
    except RuntimeError as error:
        raise UserError(f"device {wanted}: choose cpu, cuda or cuda:N") from error
    try:
        torch.zeros(1, device=found).cpu()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise UserError(f"device {wanted}: cannot be used here ({first_line(error)})") from error
    return found


def _stacked(images: Sequence[np.ndarray]) -> Tensor:
    """The images as one batch; uint16 becomes int32, since torch cannot compare uint16."""
    batch = np.stack(images) if len(images) > 1 else images[0][None]
    if batch.dtype != np.uint8:
        batch = batch.astype(np.int32)
    with warnings.catch_warnings():
        # Pillow's arrays are read-only; nothing writes to them.
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(batch)
