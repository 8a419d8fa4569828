"""Reader of foreign checkpoint files, which renames tensors to the names of Hub files.

The names of a file's tensors tell its layout, and their shapes tell its model:

    NVlabs          `backbone.block1.0.attn.kv`, `decode_head.linear_c1.proj`; `mit_b*.pth` without
                    `backbone.` and with `head`, the ImageNet classifier
    mmsegmentation  `backbone.layers.0.1.0.attn.attn.in_proj_weight`, `decode_head.convs.0.conv`;
                    the encoder alone also without `backbone.`
    transformers    `segformer.encoder.block.0.0.attention.self.query`, as on the Hub,
                    or `segformer.stages.0.blocks.0.attention.q_proj`, as version 5 in memory

Encoder and head are recognised one by one, since forks mix them. `torch.load(weights_only=True)` or
safetensors open the files, so that no code in them is run.

NVlabs normalises with epsilon 1e-6 in blocks and after stages, mmsegmentation everywhere. Stock
transformers and this package use 1e-5 everywhere, which changes a norm's output by 4.5e-6 /
variance of it. Measured on B0 with random weights, 150 classes, 512 x 512, against a reference with
NVlabs' names (tests/originals.py): logits differ from stock's by 4e-7 of the largest at equal
epsilon, by 3e-6 with the original's.

Sources: mix_transformer.py and segformer_head.py of NVlabs/SegFormer; mit.py, segformer_head.py and
tools/model_converters/mit2mmseg.py of open-mmlab/mmsegmentation.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from finetune.errors import UserError
from finetune.labels.rules import MAX_CLASSES
from finetune.weights.cards import NVIDIA, licence_of
from finetune.weights.files import classes_of, opened, tensors_of
from finetune.weights.heads import stock_head
from finetune.weights.naming import ENCODER, ENCODERS, HEAD, layout_of, renamed
from finetune.weights.shapes import Kind, checked, encoder_arguments, shape_of, variant_of

SUFFIXES = (".pth", ".pt", ".bin", ".ckpt", ".safetensors")

_AUXILIARY = "auxiliary_head."
# The classifier of the encoder's pre-training; some segmentors still contain it.
_IMAGENET = ("head.weight", "head.bias", "classifier.weight", "classifier.bias", "backbone.head.")


@dataclass(frozen=True)
class Weights:
    """The content of a checkpoint file.

    Attributes:
        state: tensors in float32, by the names on disk of a model of its `kind`; always the
            encoder's, and the head's if stock's head can express it.
        arguments: arguments of `SegformerConfig` from the shapes; `num_labels` if there is a head.
        kind: the kind of model; "encoder" without a usable head.
        layout: the origin of its names, such as "NVlabs".
        names: names of its classes, if the file has them.
        colors: colours of its classes, if the file has them.
        assumed: sentences about values that neither names nor shapes give.
        left_out: names of unused tensors.
        lost_head: why the file's head cannot be used; empty if it can, or if there is none.
        licence: a sentence on its licence, or empty.
    """

    state: dict[str, Tensor]
    arguments: dict[str, Any]
    kind: Kind
    layout: str
    names: tuple[str, ...] | None = None
    colors: tuple[tuple[int, int, int], ...] | None = None
    assumed: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()
    lost_head: str = ""
    licence: str = ""

    @property
    def variant(self) -> str | None:
        """The published size of the encoder, such as "b0", or None; the head's width is ignored."""
        return variant_of(self.arguments["depths"], self.arguments["hidden_sizes"])

    def describe(self) -> str:
        """A short description."""
        size = f"MiT-{self.variant.upper()}" if self.variant else "a MiT of another size"
        what = f"{self.layout} weights of {size}"
        if self.kind == "encoder":
            return f"{what}, no head"
        head = "the head" if self.kind == "segmentation" else "the classifier"
        return f"{what} and {head} of {self.arguments['num_labels']} classes"


def is_checkpoint_file(name: str) -> bool:
    """Whether a name means a file of weights, which need not exist, not a folder or Hub id."""
    path = Path(name)
    return path.is_file() or (path.suffix.lower() in SUFFIXES and not path.is_dir())


def read_weights(
    path: Path,
    what: str,
    *,
    heads: Sequence[int] | None = None,
    check_size: Callable[[dict[str, Any]], None] | None = None,
) -> Weights:
    """Reads a checkpoint file without running code in it.

    Args:
        path: a `.safetensors` file, or a file of `torch.save`.
        what: its name in messages, such as "model.init=mit_b0.pth".
        heads: number of attention heads of each stage, which no shape gives. None: the published
            numbers for published sizes; else a guess from the widths, noted in `assumed`.
        check_size: called with `depths` and `hidden_sizes` before the heads are checked.

    Raises:
        UserError: the file does not exist, is damaged or needs more than plain tensors; its layout
            is unknown; tensors are missing, have other shapes or are not finite.
    """
    content = opened(path, what)
    tensors = tensors_of(content, what)
    prefixes = ("backbone.", "segformer.")
    prefix = next((p for p in prefixes if any(name.startswith(p) for name in tensors)), "")
    body, head, outside = {}, {}, {}
    for name, tensor in tensors.items():
        if name.startswith(HEAD):
            head[name.removeprefix(HEAD)] = tensor
        elif name.startswith(prefix) and not name.startswith(_AUXILIARY):
            body[name.removeprefix(prefix)] = tensor
        else:
            outside[name] = tensor
    layout = layout_of(body, ENCODERS)
    if layout is None:
        raise UserError(
            f"{what}: its names are not those of SegFormer in NVlabs, mmsegmentation or "
            f"transformers. The first ones are {', '.join(list(tensors)[:4])}"
        )
    encoder, unknown = renamed(body, layout, ENCODERS, what)
    outside |= {prefix + name: tensor for name, tensor in unknown.items()}
    state = {ENCODER + name: tensor for name, tensor in encoder.items()}
    arguments, assumed = encoder_arguments(state, what, heads, check_size)

    kind: Kind = "encoder"
    lost_head = ""
    left_out: list[str] = []
    if head:
        found, lost_head, left_out = stock_head(head, state, what)
        if not lost_head:
            kind = "segmentation"
            state |= {HEAD + name: tensor for name, tensor in found.items()}
            width = shape_of(state, f"{HEAD}linear_fuse.weight", what)[0]
            arguments["decoder_hidden_size"] = width
    else:
        classifier = {name: outside.pop(name) for name in _IMAGENET if name in outside}
        if classifier:
            kind = "classification"
            state |= {f"classifier.{n.rpartition('.')[2]}": t for n, t in classifier.items()}
    if kind != "encoder":
        last = (HEAD if kind == "segmentation" else "") + "classifier.weight"
        arguments["num_labels"] = shape_of(state, last, what)[0]
        if arguments["num_labels"] > MAX_CLASSES:
            raise UserError(
                f"{what}: {arguments['num_labels']} classes; at most {MAX_CLASSES} work"
            )
    strange = [name for name in outside if not name.startswith((_AUXILIARY, *_IMAGENET))]
    if strange:
        raise UserError(
            f"{what}: the SegFormer of {layout} lacks {len(strange)} of its tensors, such as "
            f"{strange[0]}; this is another model"
        )
    state = checked(state, arguments, kind, what)
    classes = arguments["num_labels"] if kind == "segmentation" else 0
    names, colors = classes_of(content, classes)
    return Weights(
        state,
        arguments,
        kind,
        layout,
        names,
        colors,
        assumed,
        tuple(sorted([*left_out, *outside])),
        lost_head,
        licence_of(str(path.parent)) if layout == "transformers" else NVIDIA,
    )
