"""The section `evaluation`, the protocol by which an image becomes a mask of its own size.

`InferenceProtocol` comes from recipes and from `finetune_eval` in config.json, by the same rules.
"""

from collections.abc import Iterator
from typing import Annotated, Any

import numpy as np
from pydantic import Field, ValidationError, ValidationInfo, field_validator

from finetune.errors import UserError
from finetune.pictures.resizing import resized
from finetune.recipe.errors import error_lines
from finetune.recipe.section import PositiveInt, Section, Size


class InferenceProtocol(Section):
    """How an image is resized and shown to the model; its mask has the image's own size.

    Four rules for the size are stock's: a fixed size, a shorter edge, a shorter edge with a limit
    of the longer one, or none. `size_divisor` is mmsegmentation's; stock does not have it.
    """

    fixed_size: Size | None = Field(
        None, description="resize to this height and width, whatever the ratio; null: keep it"
    )
    shortest_edge: PositiveInt | None = Field(
        None, description="resize to this shorter edge, keeping the ratio; null: no resize"
    )
    longest_edge: PositiveInt | None = Field(
        None, description="with shortest_edge: the longer edge's limit"
    )
    size_divisor: PositiveInt = Field(
        1, description="with shortest_edge: sides rounded up to multiples of this"
    )
    window: Size | None = Field(None, description="sliding window; null: the whole image at once")
    stride: Size | None = Field(
        None, validate_default=True, description="stride of the sliding window; null: 3/4 of window"
    )
    scales: tuple[Annotated[float, Field(gt=0, le=16)], ...] = Field(
        (1.0,), min_length=1, description="sizes at which images are shown; the mean decides"
    )
    flip: bool = Field(False, description="show images mirrored as well, at each scale")

    @field_validator("stride")
    @classmethod
    def _stride(cls, stride: Size | None, info: ValidationInfo) -> Size | None:
        window = info.data.get("window")
        if stride is not None or window is None:
            return stride
        return max(1, window[0] * 3 // 4), max(1, window[1] * 3 // 4)

    def _problems(self) -> Iterator[str]:
        if self.fixed_size is not None and self.shortest_edge is not None:
            yield ".fixed_size: does not go with .shortest_edge; give one of them"
        if self.shortest_edge is None:
            for key, default in (("longest_edge", None), ("size_divisor", 1)):
                if getattr(self, key) != default:
                    yield f".{key}: needs .shortest_edge"
        if self.stride is not None and self.window is None:
            yield ".stride: needs .window"
        sides = zip(self.stride or (), self.window or (), strict=False)
        if any(stride > window for stride, window in sides):
            yield ".stride: is larger than .window, which would leave gaps; take a smaller one"

    @classmethod
    def read(cls, values: Any) -> "InferenceProtocol":
        """Reads the values of `config.json`, or the options of a program.

        Raises:
            UserError: A key or a value is unknown; the message names it.
        """
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            raise UserError("; ".join(error_lines(error))) from None

    @property
    def resizes(self) -> bool:
        """Whether the protocol resizes images (at scale 1)."""
        return self.fixed_size is not None or self.shortest_edge is not None

    def replaced(self, **changes: Any) -> "InferenceProtocol":
        """A changed copy. A new window drops the old stride, a new size the other sizes.

        Raises:
            UserError: A value is invalid.
        """
        left_out = {"stride"} if "window" in changes else set()
        if changes.keys() & {"fixed_size", "shortest_edge"}:
            left_out |= {"fixed_size", "shortest_edge", "longest_edge", "size_divisor"}
        return InferenceProtocol.read({**self.model_dump(exclude=left_out), **changes})

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
        """The size to which an image of height x width is resized.

        With `size_divisor` the factor is mmsegmentation's for scale (longest, shortest). Otherwise
        the rounding is that of stock's `get_resize_output_image_size`, or with `longest_edge` of
        `get_size_with_aspect_ratio`.
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
        """Resizes an image (H, W, C), once for each scale."""
        height, width = image.shape[:2]
        return [resized(image, self.size(height, width, scale)) for scale in self.scales]


class EvaluationSection(InferenceProtocol):
    """The protocol: how an image becomes a mask of its own size."""

    batch_size: PositiveInt = Field(1, description="images of one size evaluated at once")

    @property
    def protocol(self) -> InferenceProtocol:
        """The part of the section that a model folder keeps."""
        return InferenceProtocol(**self.model_dump(exclude={"batch_size"}))


def _scaled(side: int, scale: float) -> int:
    return max(1, int(side * scale + 0.5))
