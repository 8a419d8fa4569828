"""SegFormer for exporters: plain operators, and every product of weights formed once.

`PlainForm` is the trained model without the parts that only training needs. Batch norm and the
head's fusion are multiplied into the projections, which saves a quarter of B0's weights. Keys and
values are one product, the query's weights hold the scale of the scores, and the sequence-reducing
convolution is one again. Mix-FFN keeps the convolutions' (B, C, H, W) from its first product to its
last, so a runtime transposes the narrow map and not the four times wider one.
"""

import copy
import io
import json
import logging
import warnings
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal, TypeAlias, TypeVar

import torch
import torch.nn.functional as F
import yaml
from huggingface_hub import ModelCard
from torch import Tensor, nn
from transformers.utils import cached_file

from finetune.inference import Segmenter
from finetune.inference.models import digest_of
from finetune.segformer.configuration import smallest_side
from finetune.segformer.functional import fold_batch_norm, fold_projections

Output: TypeAlias = Literal["logits", "labels"]
Layer = TypeVar("Layer", nn.Linear, nn.Conv2d)

PRODUCER = "finetune"
"""The producer in our ONNX files; files of other producers are never replaced."""
MARK = "finetune.json"
"""The extra file of a `.pt2` that holds the same facts as an ONNX file's metadata."""


class _Attention(nn.Module):
    def __init__(self, attention: Any):
        super().__init__()
        inner = attention.self
        self.heads = inner.num_heads
        self.query = _linear(inner.query.weight * inner.scaling, inner.query.bias * inner.scaling)
        self.key_value = _linear(
            torch.cat([inner.key.weight, inner.value.weight]),
            torch.cat([inner.key.bias, inner.value.bias]),
        )
        reduces = inner.sr_ratio > 1
        self.sr = _convolution(inner.sr.weight, inner.sr.bias) if reduces else None
        self.norm = inner.layer_norm if reduces else None
        self.dense = _linear(attention.output.dense.weight, attention.output.dense.bias)

    def forward(self, x: Tensor, size: tuple[int, int]) -> Tensor:  # (B, N, C) -> the same
        reduced = x
        if self.sr is not None and self.norm is not None:
            reduced = self.norm(_as_sequence(self.sr(_as_map(x, size))))  # (B, M, C)
        query = self._heads(self.query(x))  # (B, h, N, d)
        key, value = map(self._heads, self.key_value(reduced).chunk(2, dim=-1))  # (B, h, M, d)
        context = (query @ key.transpose(-2, -1)).softmax(-1) @ value
        if self.heads > 1:
            context = context.transpose(1, 2).flatten(2)
        return self.dense(context)

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(2, (self.heads, -1)).transpose(1, 2) if self.heads > 1 else x


class _MixFFN(nn.Module):
    def __init__(self, mlp: Any):
        super().__init__()
        self.dense1 = _pointwise(mlp.dense1.weight, mlp.dense1.bias)
        self.dwconv = mlp.dwconv.dwconv
        self.act = mlp.intermediate_act_fn
        self.dense2 = _pointwise(mlp.dense2.weight, mlp.dense2.bias)

    def forward(self, x: Tensor, size: tuple[int, int]) -> Tensor:  # (B, N, C) -> the same
        x = self.act(self.dwconv(self.dense1(_as_map(x, size))))  # (B, 4 C, H, W)
        return _as_sequence(self.dense2(x))


class _Block(nn.Module):
    def __init__(self, layer: Any):
        super().__init__()
        self.norm1, self.attention = layer.layer_norm_1, _Attention(layer.attention)
        self.norm2, self.ffn = layer.layer_norm_2, _MixFFN(layer.mlp)

    def forward(self, x: Tensor, size: tuple[int, int]) -> Tensor:  # (B, N, C) -> the same
        x = x + self.attention(self.norm1(x), size)
        return x + self.ffn(self.norm2(x), size)


class _Stage(nn.Module):
    def __init__(self, embeddings: Any, blocks: Any, norm: nn.Module):
        super().__init__()
        self.proj, self.norm_in = embeddings.proj, embeddings.layer_norm
        self.blocks = nn.ModuleList(_Block(layer) for layer in blocks)
        self.norm_out = norm

    def forward(self, x: Tensor) -> Tensor:  # (B, C, H, W) -> (B, C', H / stride, W / stride)
        x = self.proj(x)
        size = (x.shape[2], x.shape[3])
        x = self.norm_in(_as_sequence(x))
        for block in self.blocks:
            x = block(x, size)
        return _as_map(self.norm_out(x), size)


class PlainForm(nn.Module):
    """A trained SegFormer for semantic segmentation, for exporters.

    Args:
        model: of our classes; it stays unchanged.
        dtype: of the arithmetic; input and output are always float32.
    """

    def __init__(self, model: Any, dtype: torch.dtype = torch.float32):
        super().__init__()
        assert not model.training
        encoder, head = model.segformer.encoder, model.decode_head
        with torch.no_grad():
            matrices, bias = fold_projections(
                head.linear_fuse.weight.flatten(1),
                [mlp.proj.weight for mlp in head.linear_c],
                [mlp.proj.bias for mlp in head.linear_c],
            )
            matrices, bias = fold_batch_norm(head.batch_norm, matrices, bias)
            parts = zip(encoder.patch_embeddings, encoder.block, encoder.layer_norm, strict=True)
            self.stages = nn.ModuleList(_Stage(*part) for part in parts)
            self.projections = nn.ModuleList(
                _pointwise(matrix, bias if i == 0 else None) for i, matrix in enumerate(matrices)
            )
        self.classifier = head.classifier
        self.dtype = dtype
        # A copy, since the model's own layers are among them.
        self._modules = copy.deepcopy(self._modules)
        self.requires_grad_(False).to(dtype).eval()

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Logits (B, K, H / 4, W / 4) for (B, C, H, W), both float32."""
        x, maps = pixel_values.to(self.dtype), []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        first, *others = (project(x) for project, x in zip(self.projections, maps, strict=True))
        for x in others:
            first = first + F.interpolate(x, size=first.shape[2:], mode="bilinear")
        return self.classifier(first.relu()).float()


def _as_map(x: Tensor, size: tuple[int, int]) -> Tensor:  # (B, N, C) -> (B, C, H, W)
    return x.transpose(1, 2).unflatten(2, size)


def _as_sequence(x: Tensor) -> Tensor:  # (B, C, H, W) -> (B, N, C)
    return x.flatten(2).transpose(1, 2)


def _linear(weight: Tensor, bias: Tensor) -> nn.Linear:
    return _with(nn.Linear(weight.shape[1], weight.shape[0], device="meta"), weight, bias)


def _convolution(weight: Tensor, bias: Tensor | None) -> nn.Conv2d:
    """Torch's own convolution of squares that do not overlap, for a weight (C', C, size, size)."""
    size, has_bias = (weight.shape[2], weight.shape[3]), bias is not None
    channels = weight.shape[1], weight.shape[0]
    layer = nn.Conv2d(*channels, size, stride=size, bias=has_bias, device="meta")
    return _with(layer, weight, bias)


def _pointwise(weight: Tensor, bias: Tensor | None) -> nn.Conv2d:
    """A linear layer as a 1 x 1 convolution."""
    return _convolution(weight[:, :, None, None], bias)


def _with(layer: Layer, weight: Tensor, bias: Tensor | None) -> Layer:
    layer.weight = nn.Parameter(weight.detach())
    if bias is not None:
        layer.bias = nn.Parameter(bias.detach())
    return layer


# ----------------------------------------------------------------------------------------- writing


def trace(segmenter: Segmenter, dtype: torch.dtype = torch.float32) -> torch.export.ExportedProgram:
    """The model's graph with free batch, height and width, and folded batch norm.

    The file that `torch.export.save` writes of it needs none of our code.

    Args:
        segmenter: the model and its preprocessing, on the CPU.
        dtype: see `PlainForm`.
    """
    side, dim = smallest_side_of_pt2(segmenter.model.config), torch.export.Dim
    sizes = {0: dim("batch"), 2: dim("height", min=side), 3: dim("width", min=side)}
    # The exporter would take a batch of 1 for a constant.
    example = torch.zeros(2, segmenter.model.config.num_channels, 2 * side, 3 * side)
    with quietly():
        return torch.export.export(
            PlainForm(segmenter.model, dtype),
            (example,),
            dynamic_shapes={"pixel_values": sizes},
            strict=False,
        )


def save_pt2(program: torch.export.ExportedProgram, segmenter: Segmenter, path: Path) -> None:
    """Writes a file for `torch.export.load`."""
    with quietly():
        notes = {MARK: json.dumps(facts(segmenter, "logits"))}
        content = io.BytesIO()  # torch's own error for a full disk is not understandable
        torch.export.save(program, content, extra_files=notes)
        path.write_bytes(content.getbuffer())


def to_onnx(program: torch.export.ExportedProgram, segmenter: Segmenter) -> bytes:
    """An ONNX file with its weights inside and `facts` in its metadata.

    Its input is `pixel_values` and its output `logits`, as transformers.js expects. It takes all
    sizes that the model takes; the `.pt2` does not.

    Args:
        program: from `trace`.
        segmenter: its model.
    """
    import onnx

    with quietly(), TemporaryDirectory() as folder:
        made = torch.onnx.export(
            program,
            dynamo=True,
            input_names=["pixel_values"],
            output_names=["logits"],
            external_data=False,
            verbose=False,
        )
        assert made is not None, "dynamo=True returns one"
        path = Path(folder) / "model.onnx"
        made.save(path)  # keeps the weights in the file
        model = onnx.load(path)
    # The exporter's symbols in it differ from run to run.
    del model.graph.value_info[:]
    given = model.graph.input[0].type.tensor_type.shape.dim
    found = model.graph.output[0].type.tensor_type.shape.dim
    for axis, name in {0: "batch", 2: "height", 3: "width"}.items():
        given[axis].dim_param = name
        found[axis].dim_param = f"{name}/4" if axis else name
    return with_facts(model, facts(segmenter, "logits"))


def with_labels(content: bytes, segmenter: Segmenter) -> bytes:
    """Turns a file with logits into one with `labels` (B, H, W): the class of each pixel.

    Logits are first upsampled bilinearly to the size of `pixel_values`. The labels are uint8 up to
    256 classes, else int32. With one class, stock's binary head, class 1 is a logit above 0.

    Args:
        content: of `to_onnx`.
        segmenter: its model.
    """
    import onnx
    from onnx.helper import make_node, make_tensor, make_tensor_value_info

    model = onnx.load_from_string(content)
    num_labels = segmenter.model.config.num_labels
    kind = onnx.TensorProto.UINT8 if num_labels <= 256 else onnx.TensorProto.INT32
    how = {"mode": "linear", "coordinate_transformation_mode": "half_pixel"}
    nodes = [
        make_node("Shape", ["pixel_values"], ["image_size"], start=2),
        make_node("Shape", ["logits"], ["batch_and_classes"], end=2),
        make_node("Concat", ["batch_and_classes", "image_size"], ["large_size"], axis=0),
        make_node("Resize", ["logits", "", "", "large_size"], ["large"], **how),
    ]
    if num_labels > 1:
        nodes.append(make_node("ArgMax", ["large"], ["ids"], axis=1, keepdims=0))
    else:
        zero = make_tensor("zero", onnx.TensorProto.FLOAT, [], [0.0])
        axis = make_tensor("class_axis", onnx.TensorProto.INT64, [1], [1])
        model.graph.initializer.extend([zero, axis])
        nodes.append(make_node("Greater", ["large", "zero"], ["is_there"]))
        nodes.append(make_node("Squeeze", ["is_there", "class_axis"], ["ids"]))
    nodes.append(make_node("Cast", ["ids"], ["labels"], to=kind))
    model.graph.node.extend(nodes)
    del model.graph.output[:]
    sizes = ["batch", "height", "width"]
    model.graph.output.append(make_tensor_value_info("labels", kind, sizes))
    return with_facts(model, facts(segmenter, "labels"))


def with_facts(graph: Any, known: Mapping[str, Any]) -> bytes:
    """The bytes of a graph's file, with its producer and its facts."""
    import onnx

    graph.producer_name, graph.producer_version = PRODUCER, known["version"]
    onnx.helper.set_model_props(graph, {key: json.dumps(value) for key, value in known.items()})
    inner = graph.graph
    for part in (*inner.node, *inner.input, *inner.output, *inner.initializer):
        part.ClearField("metadata_props")  # the exporter's notes: names and lines of its sources
        part.ClearField("doc_string")
    inner.ClearField("metadata_props")
    return graph.SerializeToString()


def smallest_side_of_pt2(config: Any) -> int:
    """The smallest side that a `.pt2` takes: 61 pixels for B0 to B5.

    torch.export takes a size of 1 for a constant, so every map must be larger than that, after the
    sequence reduction too.
    """
    doubled = copy.copy(config)
    doubled.sr_ratios = [2 * ratio for ratio in config.sr_ratios]
    return smallest_side(doubled)


def facts(segmenter: Segmenter, output: Output) -> dict[str, Any]:
    """The facts that one needs to use a file alone; in ONNX's metadata each value is JSON."""
    import finetune

    how = segmenter.preprocessing
    return {
        "version": finetune.__version__,
        "weights": digest_of(segmenter.model),
        "output": output,
        "names": list(segmenter.names),
        "colors": [list(color) for color in segmenter.colors],
        "mean": list(how.image_mean),
        "std": list(how.image_std),
        "full": how.full,
        "sizes": how.protocol.model_dump(mode="json"),
        "smallest_side": smallest_side(segmenter.model.config),
        "license": _license(segmenter.model),
    }


def facts_of(path: Path) -> dict[str, Any] | None:
    """The `facts` in a file that we wrote; None for any other file."""
    if path.suffix == ".pt2":
        try:
            with zipfile.ZipFile(path) as archive:
                marks = [name for name in archive.namelist() if name.endswith(f"/{MARK}")]
                return dict(json.loads(archive.read(marks[0]))) if marks else None
        except (zipfile.BadZipFile, zlib.error, OSError, EOFError, ValueError, TypeError):
            return None
    import onnx
    from google.protobuf.message import DecodeError

    try:
        model = onnx.load(path, load_external_data=False)
        if model.producer_name != PRODUCER:
            return None
        return {entry.key: json.loads(entry.value) for entry in model.metadata_props}
    except (DecodeError, OSError, ValueError):
        return None


def _license(model: Any) -> str | None:
    """The licence that the model's card states, if there is one."""
    try:
        card = cached_file(model.name_or_path, "README.md")
        found = None if card is None else ModelCard.load(card).data.license
    except (OSError, ValueError, yaml.YAMLError):  # no card, or a broken one, reported by loading
        return None
    return None if found is None else str(found)


@contextmanager
def quietly() -> Iterator[None]:
    """Silences the exporters' messages about themselves; users cannot act on them."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
