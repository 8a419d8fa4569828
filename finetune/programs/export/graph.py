"""SegFormer for exporters: plain operators, and every product of weights formed once.

`PlainForm` is the trained model without the parts that only training needs. Batch norm and the
head's fusion are multiplied into the projections, which saves a quarter of B0's weights. Keys and
values are one product, the query's weights hold the scale of the scores, and the sequence-reducing
convolution is one again. Mix-FFN keeps the convolutions' (B, C, H, W) from its first product to its
last, so a runtime transposes the narrow map and not the four times wider one.
"""

import copy
import hashlib
import io
import json
import logging
import warnings
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal, TypeAlias

import torch
import torch.nn.functional as F
import yaml
from huggingface_hub import ModelCard
from torch import Tensor, nn
from transformers.utils import cached_file

from finetune.inference import Segmenter
from finetune.segformer.configuration import smallest_side
from finetune.segformer.functional import fold_batch_norm, fold_projections

Output: TypeAlias = Literal["logits", "labels"]

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
        self.sr = _convolution(inner.sr) if inner.sr_ratio > 1 else None
        self.norm = inner.layer_norm if inner.sr_ratio > 1 else None
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


def _convolution(layer: nn.Conv2d) -> nn.Conv2d:
    """The layer as torch's own convolution; ours is a product on patches, which fixes sizes."""
    size = (layer.kernel_size[0], layer.kernel_size[1])
    plain = nn.Conv2d(layer.in_channels, layer.out_channels, size, stride=size)
    plain.weight, plain.bias = layer.weight, layer.bias
    return plain


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
            first = first + _upsample(x, first.shape[2:])
        return self.classifier(first.relu()).float()


def _as_map(x: Tensor, size: tuple[int, int]) -> Tensor:  # (B, N, C) -> (B, C, H, W)
    return x.transpose(1, 2).unflatten(2, size)


def _as_sequence(x: Tensor) -> Tensor:  # (B, C, H, W) -> (B, N, C)
    return x.flatten(2).transpose(1, 2)


def _upsample(x: Tensor, size: Any) -> Tensor:
    return F.interpolate(x, size=tuple(size), mode="bilinear", align_corners=False)


def _linear(weight: Tensor, bias: Tensor) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0], device="meta")
    layer.weight, layer.bias = nn.Parameter(weight.detach()), nn.Parameter(bias.detach())
    return layer


def _pointwise(weight: Tensor, bias: Tensor | None) -> nn.Conv2d:
    """A linear layer as a 1 x 1 convolution."""
    layer = nn.Conv2d(weight.shape[1], weight.shape[0], 1, bias=bias is not None, device="meta")
    layer.weight = nn.Parameter(weight.detach()[:, :, None, None].clone())
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
    names = ("batch", "", "height", "width")
    for name, given, found in zip(
        names, _dims(model.graph.input[0]), _dims(model.graph.output[0]), strict=True
    ):
        if name:
            given.dim_param = name
            found.dim_param = name if name == "batch" else f"{name}/4"
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
    from onnx.helper import make_node, make_tensor_value_info

    model = onnx.load_from_string(content)
    num_labels = segmenter.model.config.num_labels
    kind = onnx.TensorProto.UINT8 if num_labels <= 256 else onnx.TensorProto.INT32
    nodes = [
        make_node("Shape", ["pixel_values"], ["image_size"], start=2),
        make_node("Shape", ["logits"], ["batch_and_classes"], end=2),
        make_node("Concat", ["batch_and_classes", "image_size"], ["large_size"], axis=0),
        make_node(
            "Resize",
            ["logits", "", "", "large_size"],
            ["large"],
            mode="linear",
            coordinate_transformation_mode="half_pixel",
        ),
    ]
    if num_labels > 1:
        nodes.append(make_node("ArgMax", ["large"], ["ids"], axis=1, keepdims=0))
    else:
        zero = onnx.helper.make_tensor("zero", onnx.TensorProto.FLOAT, [], [0.0])
        axis = onnx.helper.make_tensor("class_axis", onnx.TensorProto.INT64, [1], [1])
        model.graph.initializer.extend([zero, axis])
        nodes.append(make_node("Greater", ["large", "zero"], ["is_there"]))
        nodes.append(make_node("Squeeze", ["is_there", "class_axis"], ["ids"]))
    nodes.append(make_node("Cast", ["ids"], ["labels"], to=kind))
    model.graph.node.extend(nodes)
    del model.graph.output[:]
    sizes = ["batch", "height", "width"]
    model.graph.output.append(make_tensor_value_info("labels", kind, sizes))
    return with_facts(model, facts(segmenter, "labels"))


def _dims(value: Any) -> Any:
    return value.type.tensor_type.shape.dim


def with_facts(graph: Any, known: Mapping[str, Any]) -> bytes:
    """The bytes of a graph's file, with its producer and its facts."""
    import onnx

    graph.producer_name, graph.producer_version = PRODUCER, known["version"]
    onnx.helper.set_model_props(graph, {key: json.dumps(value) for key, value in known.items()})
    for node in graph.graph.node:  # the exporter's notes: names and lines of this machine's sources
        node.ClearField("metadata_props")
        node.ClearField("doc_string")
    for values in (graph.graph.input, graph.graph.output, graph.graph.initializer):
        for value in values:
            value.ClearField("metadata_props")
    graph.graph.ClearField("metadata_props")
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


def digest_of(model: Any) -> str:
    """A digest of a model's weights; it tells which weights a file was made from."""
    digest = hashlib.blake2b(digest_size=16)
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


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
def quietly(
    names: Sequence[str | None] = ("torch.onnx", "onnxscript", "onnx_ir"),
) -> Iterator[None]:
    """Silences the exporters' messages about themselves; users cannot act on them.

    Args:
        names: of their loggers; None is the root logger.
    """
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
