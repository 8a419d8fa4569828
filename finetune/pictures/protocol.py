"""How a picture is resized and shown to a model: the rule, without the numbers of its colours."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
from PIL import Image

from finetune.errors import UserError

BILINEAR = Image.Resampling.BILINEAR


@dataclass(frozen=True)
class Protocol:
    """How an image is resized and shown to the model; its mask has the image's own size.

    Sizes are stock's where stock has the rule: a fixed size, a shorter edge, a shorter edge with a
    limit of the longer one, or none. `size_divisor` is mmsegmentation's, of which stock knows
    nothing.

    Attributes:
        fixed_size: height and width, whatever the image's are; None: by the keys that follow.
        shortest_edge: the shorter edge after the resize, in pixels; None: no resize.
        longest_edge: limit of the longer edge, or None.
        size_divisor: each side is rounded up to a multiple of this.
        window: height and width of a sliding window; None: the whole image at once.
        stride: of the window; the last ones are moved back to end at the image's edge.
        scales: sizes at which the image is shown, as factors; the probabilities' mean decides.
        flip: whether it is shown mirrored as well, at each scale.
    """

    fixed_size: tuple[int, int] | None = None
    shortest_edge: int | None = None
    longest_edge: int | None = None
    size_divisor: int = 1
    window: tuple[int, int] | None = None
    stride: tuple[int, int] | None = None
    scales: tuple[float, ...] = (1.0,)
    flip: bool = False

    def __post_init__(self) -> None:
        """Fills in the stride of a window, three quarters of it.

        Raises:
            UserError: A value makes no sense; names the field.
        """
        for key in ("fixed_size", "window", "stride"):
            value = getattr(self, key)
            if value is not None and not (
                type(value) is tuple and len(value) == 2 and all(map(_is_count, value))
            ):
                raise UserError(f"{key} {value}: must be a height and a width, above 0")
        for key in ("shortest_edge", "longest_edge", "size_divisor"):
            value = getattr(self, key)
            if not _is_count(value) and (value is not None or key == "size_divisor"):
                raise UserError(f"{key} {value}: must be a whole number above 0")
        is_sound = type(self.scales) is tuple and len(self.scales) > 0
        if not is_sound or not all(type(s) in (int, float) and 0 < s <= 16 for s in self.scales):
            raise UserError(f"scales {self.scales}: must be factors, such as 0.75, 1, 1.25")
        if self.fixed_size is not None and self.shortest_edge is not None:
            raise UserError("fixed_size: does not go with shortest_edge")
        if self.window is None:
            if self.stride is not None:
                raise UserError("stride: needs a window")
            return
        if self.stride is None:
            height, width = self.window
            stride = max(1, height * 3 // 4), max(1, width * 3 // 4)
            object.__setattr__(self, "stride", stride)
        assert self.stride is not None, "it has just been set"
        if self.stride[0] > self.window[0] or self.stride[1] > self.window[1]:
            raise UserError(f"stride {self.stride}: larger than window {self.window} leaves gaps")

    @property
    def resizes(self) -> bool:
        """Whether images change their size (at the scale 1)."""
        return self.fixed_size is not None or self.shortest_edge is not None

    def to_dict(self) -> dict[str, Any]:
        """For `config.json`."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Protocol":
        """From `config.json`, where tuples are lists.

        Raises:
            UserError: A key or a value is not known.
        """
        keys = {field.name for field in fields(cls)}
        if not isinstance(values, Mapping) or (unknown := values.keys() - keys):
            what = ", ".join(sorted(unknown)) if isinstance(values, Mapping) else repr(values)
            raise UserError(f"{what}: nothing that is known of how images are shown")
        found: Any = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        return cls(**found)

    def replaced(self, **changes: Any) -> "Protocol":
        """Another one; a new window has a stride of its own, and a new size no other.

        Raises:
            UserError: A value makes no sense.
        """
        sizes = ("fixed_size", "shortest_edge", "longest_edge", "size_divisor")
        values = vars(self).copy()
        if "window" in changes:
            values["stride"] = None
        if changes.keys() & {"fixed_size", "shortest_edge"}:
            values |= {field.name: field.default for field in fields(self) if field.name in sizes}
        return Protocol(**{**values, **changes})

    def describe(self) -> str:
        """The protocol in one line."""
        if self.fixed_size is not None:
            text = f"resized to {self.fixed_size[0]} x {self.fixed_size[1]}"
        elif self.shortest_edge is None:
            text = "images at their own size"
        else:
            limit = f", longer at most {self.longest_edge}" if self.longest_edge else ""
            text = f"shorter edge {self.shortest_edge}{limit}"
            if self.size_divisor > 1:
                text += f", sides rounded up to multiples of {self.size_divisor}"
        if self.window and self.stride:
            text += f", sliding window {self.window[0]} x {self.window[1]}"
            text += f" with stride {self.stride[0]} x {self.stride[1]}"
        scales = "single scale"
        if self.scales != (1.0,):
            scales = f"scales {', '.join(f'{scale:g}' for scale in self.scales)}"
        return f"{text}, {scales}{' and mirrored' * self.flip}, scored at the image's own size"

    def size(self, height: int, width: int, scale: float = 1.0) -> tuple[int, int]:
        """The size that an image of height x width is resized to.

        With `size_divisor` the factor is mmsegmentation's for scale (longest, shortest); without
        it rounding is that of stock's `get_resize_output_image_size`, and with `longest_edge` that
        of `get_size_with_aspect_ratio`.
        """
        if self.fixed_size is not None:
            return _scaled(self.fixed_size[0], scale), _scaled(self.fixed_size[1], scale)
        if self.shortest_edge is None:
            return _scaled(height, scale), _scaled(width, scale)
        shortest = _scaled(self.shortest_edge, scale)
        longest = _scaled(self.longest_edge, scale) if self.longest_edge else None
        if self.size_divisor > 1:
            factor = shortest / min(height, width)
            if longest is not None:
                factor = min(factor, longest / max(height, width))
            sides = (max(1, int(side * factor + 0.5)) for side in (height, width))
            rows, columns = (-(-side // self.size_divisor) * self.size_divisor for side in sides)
            return rows, columns
        short, long = min(height, width), max(height, width)
        new = shortest, int(shortest * long / short)
        if longest is not None and long / short * shortest > longest:
            exact = longest * short / long
            new = round(exact), int(exact * long / short)
            if new[0] == short:
                new = short, long
        new = max(1, new[0]), max(1, new[1])
        return new if height <= width else new[::-1]

    def resize(self, image: np.ndarray) -> list[np.ndarray]:
        """An image (H, W, C), once a scale, resized as stock's image processor resizes RGB.

        That is by Pillow's bilinear filter. Other images channel by channel: Pillow takes a fourth
        one for transparency, by which it weighs the colours. 16 bit are rounded to the nearest, as
        Pillow rounds 8 bit.
        """
        height, width = image.shape[:2]
        return [_resized(image, self.size(height, width, scale)) for scale in self.scales]


def _is_count(value: Any) -> bool:
    return type(value) is int and value > 0


def _scaled(side: int, scale: float) -> int:
    return max(1, int(side * scale + 0.5))


def _resized(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    if size == image.shape[:2]:
        return image
    across = size[::-1]
    if image.dtype == np.uint8 and image.shape[2] == 3:
        return np.asarray(Image.fromarray(image).resize(across, BILINEAR))
    resized = np.empty((*size, image.shape[2]), image.dtype)
    for channel in range(image.shape[2]):
        plane = np.ascontiguousarray(image[..., channel])
        if image.dtype == np.uint16:
            deep = Image.fromarray(plane.astype(np.float32)).resize(across, BILINEAR)
            resized[..., channel] = np.rint(np.asarray(deep))  # a mean: never out of range
        else:
            resized[..., channel] = Image.fromarray(plane).resize(across, BILINEAR)
    return resized
