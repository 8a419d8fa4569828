"""Files of weights of others: what they are of, and what a training takes of them."""

import json
import os
import re
import warnings
import zipfile
from contextlib import suppress
from pathlib import Path

import originals
import pytest
import torch
import transformers
from safetensors.torch import save_file

from finetune.errors import UserError
from finetune.recipe import load_recipe
from finetune.segformer import VARIANTS, SegformerConfig, SegformerForSemanticSegmentation
from finetune.train import fit
from finetune.trainers.segmentation import SegmentationTask
from finetune.weights.cards import NVIDIA, licence_of
from finetune.weights.reading import read_weights

TINY = [
    "model.depths=[1,1,1,1]",
    "model.hidden_sizes=[8,16,40,64]",
    "model.decoder_hidden_size=32",
    "data.train_samples=8",
    "data.val_samples=2",
    "data.size=[64,64]",
    "data.workers=0",
    "augment.crop=[64,64]",
    "train.global_batch=2",
    "train.steps=2",
    "train.eval_every=2",
    "train.warmup_steps=0",
]
TINY_SIZE = {
    "depths": [1] * 4,
    "hidden_sizes": [8, 16, 40, 64],
    "decoder_hidden_size": 32,
}
SHAPES = 6  # classes of the recipe


def saved(folder: Path, content, name: str = "weights.pth", **options) -> Path:
    torch.save(content, folder / name, **options)
    return folder / name


def as_trained(model, **meta) -> dict:
    """A file as mmcv's runner writes it."""
    meta = {"epoch": 1, "iter": 160000, "mmcv_version": "1.3.0", "config": "model = dict()", **meta}
    return {"meta": meta, "state_dict": model.state_dict(), "optimizer": {"state": {}}}


def built(init, *more: str):
    """A recipe's model that starts from `init`, and what was said about it."""
    recipe = load_recipe("shapes", [*TINY, f"model.init={init}", *more])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model = SegmentationTask(recipe).build()
    return model, [str(warning.message) for warning in caught]


# ---------------------------------------------------------------------------- what a file is of


@pytest.mark.parametrize("make", [originals.nvlabs, originals.mmseg])
@pytest.mark.parametrize("variant", ["b0", "b2"])
def test_published_sizes_are_known_by_their_shapes(make, variant, tmp_path):
    values = VARIANTS[variant]
    size = {
        "widths": values["hidden_sizes"],
        "depths": values["depths"],
        "heads": (1, 2, 5, 8),
        "decoder": 64,
    }
    found = read_weights(saved(tmp_path, as_trained(make(size, 19))), "file")
    assert found.variant == variant
    stock = transformers.SegformerConfig(**values)
    of_heads = ("decoder_hidden_size", "num_labels")
    mine = {key: value for key, value in found.arguments.items() if key not in of_heads}
    published = {key: getattr(stock, key) for key in mine}
    assert len(mine) == 9
    assert json.loads(json.dumps(mine)) == json.loads(json.dumps(published))  # tuples are lists
    assert not found.assumed


def test_other_sizes_too(tmp_path):
    found = read_weights(saved(tmp_path, as_trained(originals.nvlabs(originals.ODD, 3))), "file")
    assert found.arguments == {
        "num_channels": 5,
        "num_encoder_blocks": 3,
        "depths": [1, 3, 2],
        "hidden_sizes": [12, 24, 48],
        "num_attention_heads": [1, 2, 4],
        "sr_ratios": [4, 2, 1],
        "mlp_ratios": [3, 3, 3],
        "patch_sizes": [7, 3, 3],
        "strides": [4, 2, 2],
        "decoder_hidden_size": 20,
        "num_labels": 3,
    }
    assert found.kind == "segmentation"
    assert "heads" in found.assumed[0]
    assert "strides of 4 2 2 a stage and GELU" in found.assumed[1]
    assert found.variant is None


def test_names_and_colours_of_the_classes(tmp_path):
    model = originals.nvlabs(originals.SMALL, 2)
    old = as_trained(model, CLASSES=("road ", "car"), PALETTE=[[1, 2, 3], [4, 5, 6]])
    new = as_trained(model)
    new["meta"]["dataset_meta"] = {"classes": ["road", "car"], "palette": [(1, 2, 3), (4, 5, 6)]}
    for content in (old, new):
        found = read_weights(saved(tmp_path, content), "file")
        assert found.names == ("road", "car")
        assert found.colors == ((1, 2, 3), (4, 5, 6))
    for classes in (("road",), ("a", "a"), "ab", (1, 2), None, ("", "a")):
        path = saved(tmp_path, as_trained(model, CLASSES=classes, PALETTE=[[1, 2, 999], "x"]))
        assert read_weights(path, "file").names is None


@pytest.mark.parametrize("wrap", ["bare", "model", "module", "legacy", "half", "safetensors"])
def test_the_same_weights_in_other_wrappings(wrap, tmp_path):
    model = originals.mit(originals.SMALL, 7)
    state = {k: v.clone() for k, v in model.state_dict().items()}
    expected = read_weights(saved(tmp_path, state), "file")
    path = tmp_path / "other.pth"
    if wrap == "bare":
        saved(tmp_path, dict(state), path.name)
    elif wrap == "model":
        saved(tmp_path, {"model": state}, path.name)
    elif wrap == "module":
        wrapped = {f"module.{name}": tensor for name, tensor in state.items()}
        saved(tmp_path, {"state_dict": wrapped}, path.name)
    elif wrap == "legacy":  # as PyTorch wrote before 1.6
        saved(tmp_path, state, path.name, _use_new_zipfile_serialization=False)
    elif wrap == "half":
        state = {name: tensor.half() for name, tensor in state.items()}
        saved(tmp_path, state, path.name)
    else:
        path = tmp_path / "other.safetensors"
        save_file(state, path)
    found = read_weights(path, "file")
    assert found.kind == "classification"
    assert found.arguments == expected.arguments
    assert found.state.keys() == expected.state.keys()
    for name, tensor in found.state.items():
        assert tensor.dtype == torch.float32
        torch.testing.assert_close(tensor, expected.state[name], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    "name",
    ["SegformerModel", "SegformerForImageClassification", "SegformerForSemanticSegmentation"],
)
def test_what_transformers_calls_them_in_memory(name, tmp_path):
    model = getattr(transformers, name)(transformers.SegformerConfig(**TINY_SIZE, num_labels=3))
    model.save_pretrained(tmp_path)
    expected = read_weights(tmp_path / "model.safetensors", "file")
    found = read_weights(saved(tmp_path, model.state_dict()), "file")
    assert found.layout == "transformers"
    assert (found.kind, found.arguments) == (expected.kind, expected.arguments)
    assert found.state.keys() == expected.state.keys()
    assert all(torch.equal(tensor, expected.state[key]) for key, tensor in found.state.items())


def test_an_encoder_alone(tmp_path):
    model = originals.mmseg(originals.SMALL, 2).backbone
    bare = read_weights(saved(tmp_path, model.state_dict()), "file")
    prefixed = {f"backbone.{name}": tensor for name, tensor in model.state_dict().items()}
    found = read_weights(saved(tmp_path, {"state_dict": prefixed}), "file")
    for weights in (bare, found):
        assert weights.kind == "encoder"
        assert not weights.lost_head
        assert "num_labels" not in weights.arguments
    assert all(torch.equal(tensor, found.state[name]) for name, tensor in bare.state.items())
    assert all(name.startswith("segformer.encoder.") for name in found.state)


def test_a_fork_s_mixture_of_both(tmp_path):
    encoder = originals.mmseg(originals.SMALL, 2).backbone
    head = originals.nvlabs(originals.SMALL, 2).decode_head
    original = originals.Segmentor(encoder, head).eval()
    path = saved(tmp_path, dict(original.named_parameters()) | dict(original.named_buffers()))
    found = read_weights(path, "file")
    assert found.kind == "segmentation"
    ours = SegformerForSemanticSegmentation(SegformerConfig(**found.arguments))
    ours.load_state_dict(found.state)
    image = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        expected = original(image)
        assert (ours.eval()(image).logits - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_auxiliary_heads_are_left_out_and_counted(tmp_path):
    state = originals.nvlabs(originals.SMALL, 2).state_dict()
    state["auxiliary_head.conv_seg.weight"] = torch.zeros(2, 8, 1, 1)
    found = read_weights(saved(tmp_path, state), "file")
    unused = {f"decode_head.conv_seg.{leaf}" for leaf in ("weight", "bias")}
    assert {*found.left_out} == {"auxiliary_head.conv_seg.weight", *unused}


def test_heads_of_attention_can_be_said_and_must_divide(tmp_path):
    path = saved(tmp_path, originals.mit(originals.SMALL, 2).state_dict())
    assert read_weights(path, "f", heads=[2, 4, 4, 8]).arguments["num_attention_heads"] == [
        *(2, 4, 4, 8)
    ]
    with pytest.raises(UserError, match=r"\[3, 2, 5, 8\] heads do not divide"):
        read_weights(path, "file", heads=[3, 2, 5, 8])
    size = {**originals.SMALL, "widths": (6, 9, 12, 15), "heads": (1, 1, 1, 1)}
    path = saved(tmp_path, originals.mit(size, 2).state_dict())
    with pytest.raises(UserError, match="--heads"):
        read_weights(path, "file")


def test_licences():
    assert "non-commercially" in licence_of("nvidia/mit-b0")
    assert not licence_of("somebody/mit-b0")


@pytest.mark.parametrize(
    ("header", "text", "is_known"),
    [
        ("license: other\nlicense_name: nvidia-source-code-license", "", True),
        ("license_link: https://github.com/NVlabs/SegFormer/blob/master/LICENSE", "", True),
        ("base_model: nvidia/mit-b0", "", True),
        ("base_model: [a/b, nvidia/mit-b0]", "", True),
        ("license: other", "[here](https://github.com/NVlabs/SegFormer/blob/master/LICENSE)", True),
        ("tags: [a]", NVIDIA, True),
        (
            "license: other\ntags: [a]",
            "Trained on NVIDIA H100. See github.com/NVlabs/SegFormer",
            False,
        ),
        ("license: other\nlicense_name: nvidia-open-model-license", "", False),
        ("license: apache-2.0", "nvidia", False),
        ("base_model: [3]\nlicense: [other]\nlicense_link: {a: b}", "", False),
    ],
)
def test_licences_of_folders(header, text, is_known, tmp_path):
    (tmp_path / "README.md").write_text(f"---\n{header}\n---\n{text}\n")
    assert bool(licence_of(str(tmp_path))) == is_known
    state = SegformerForSemanticSegmentation(SegformerConfig(**TINY_SIZE)).state_dict()
    assert bool(read_weights(saved(tmp_path, state), "file").licence) == is_known


@pytest.mark.parametrize("header", [": : [", "- a\n- b", "base_model: nvidia/mit-b0\na: b: c"])
def test_a_broken_header_says_nothing_with_a_warning(header, tmp_path):
    (tmp_path / "README.md").write_text(f"---\n{header}\n---\nNVIDIA\n")
    with pytest.warns(UserWarning, match=r"README\.md: its header cannot be read"):
        assert not licence_of(str(tmp_path))


def test_licences_of_hub_ids_are_read_from_their_cards(tmp_path, monkeypatch):
    card = tmp_path / "README.md"
    card.write_text("---\nbase_model: nvidia/mit-b3\n---\n")
    monkeypatch.setattr("finetune.weights.cards.cached_file", lambda *_, **__: str(card))
    assert licence_of("somebody/mit-b3")


# ------------------------------------------------------------------------------ what is refused


class Bomb:
    """A pickle that would write a file."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("legacy", [False, True])
def test_a_pickle_that_would_run_code_does_not(legacy, tmp_path):
    state = {**originals.mit(originals.SMALL, 2).state_dict(), "x": Bomb(tmp_path / "ran")}
    path = saved(tmp_path, state, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(UserError, match=r"weights.pth.*could run code.*nothing was run"):
        read_weights(path, str(path))
    assert not (tmp_path / "ran").exists()


def test_nor_does_a_pickle_that_torch_did_not_write(tmp_path):
    import pickle

    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        path = tmp_path / "weights.bin"
        path.write_bytes(pickle.dumps(Bomb(tmp_path / "ran"), protocol=protocol))
        with pytest.raises(UserError, match=r"weights\.bin: "):
            read_weights(path, str(path))
        assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("how", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_compressed_members_are_not_unpacked(how, tmp_path, monkeypatch):
    path = saved(tmp_path, originals.mit(originals.SMALL, 2).state_dict())
    packed = tmp_path / "packed.pth"
    with zipfile.ZipFile(path) as whole, zipfile.ZipFile(packed, "w", how) as other:
        for name in whole.namelist():
            other.writestr(name, whole.read(name))
    monkeypatch.setattr(zipfile.ZipFile, "open", None)  # the directory says it
    with pytest.raises(UserError, match=r"packed\.pth: .* is compressed.*torch\.save\("):
        read_weights(packed, str(packed))


def test_members_that_lie_one_on_another_are_refused(tmp_path):
    path = tmp_path / "weights.pth"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data/0", bytes(1 << 16))
        for number in range(1, 9):
            again = zipfile.ZipInfo(f"archive/data/{number}")
            for field in ("CRC", "file_size", "compress_size", "header_offset"):
                setattr(again, field, getattr(archive.filelist[0], field))
            archive.filelist.append(again)
            archive.NameToInfo[again.filename] = again
    with pytest.raises(UserError, match=r"weights\.pth: its members claim more than the \d+ bytes"):
        read_weights(path, str(path))


def test_meta_of_more_than_text_and_numbers_is_refused_with_a_way_out(tmp_path):
    import numpy as np

    path = saved(tmp_path, as_trained(originals.mit(originals.SMALL, 2), mean=np.float64(3)))
    with pytest.raises(UserError, match=r"numpy.*checkpoint\['state_dict'\]"):
        read_weights(path, str(path))


@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors"])
@pytest.mark.parametrize("share", [0, 1e-6, 0.001, 0.3, 0.7, 0.9999])
def test_files_that_are_cut_off(kind, share, tmp_path):
    state = originals.mit(originals.SMALL, 2).state_dict()
    path = tmp_path / ("weights.safetensors" if kind == "safetensors" else "weights.pth")
    if kind == "safetensors":
        save_file(state, path)
    else:
        saved(tmp_path, state, path.name, _use_new_zipfile_serialization=kind == "zip")
    whole = path.read_bytes()
    path.write_bytes(whole[: -(-int(share * len(whole) * 1e6) // 1_000_000)])
    with pytest.raises(UserError, match=rf"{path.name}: (the file is empty|the file is damaged)"):
        read_weights(path, str(path))


def test_one_bit_that_flipped(tmp_path):
    state = originals.mit(originals.SMALL, 2).state_dict()
    path = saved(tmp_path, state)
    content = bytearray(path.read_bytes())
    place = bytes(content).index(state["norm4.bias"].numpy().tobytes())
    content[place + 9] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match="damaged, truncated"):
        read_weights(path, str(path))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"<!DOCTYPE html><html>", "damaged, truncated, or holds no weights"),
        (b"hello\n" * 100, "damaged, truncated, or holds no weights"),
        (b'{"a": 1}', "damaged, truncated, or holds no weights"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
    ],
)
@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_files_that_are_something_else(content, message, suffix, tmp_path):
    path = tmp_path / f"weights.{suffix}"
    path.write_bytes(content)
    with pytest.raises(UserError, match=rf"weights\.{suffix}: .*{message}"):
        read_weights(path, str(path))


@pytest.mark.parametrize(
    "content", [[1, 2], torch.zeros(3), {}, {"epoch": 3}, {"state_dict": {"a": 3}}, {1: 2}]
)
def test_files_without_a_state_dict(content, tmp_path):
    path = saved(tmp_path, content)
    with pytest.raises(UserError, match=r"weights.pth: holds no state_dict"):
        read_weights(path, str(path))


@pytest.mark.parametrize(
    ("leaf", "change", "message"),
    [
        (
            "bias",
            lambda t: torch.quantize_per_tensor(t, 0.1, 0, torch.qint8),
            r"convs\.1\.bn\.bias holds torch\.qint8, not floating point numbers",
        ),
        ("running_var", lambda t: t - 2, r"convs\.1\.bn\.running_var is a variance"),
    ],
)
def test_what_cannot_be_folded_in_mmsegmentation_s_head(leaf, change, message, tmp_path):
    state = dict(originals.mmseg(originals.SMALL, 2).state_dict())
    name = f"decode_head.convs.1.bn.{leaf}"
    state[name] = change(state[name])
    with pytest.raises(UserError, match=message):
        read_weights(saved(tmp_path, state), "file")


def without(name: str):
    def change(state):
        del state[name]

    return change


def with_value(name: str, change):
    return lambda state: state.update({name: change(state[name])})


def not_finite(tensor):
    tensor = tensor.clone()
    tensor.view(-1)[1] = float("nan")
    return tensor


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            without("backbone.block2.0.attn.kv.bias"),
            r"missing, .*block.1.0.attention.self.key.bias",
        ),
        (without("backbone.block1.0.attn.sr.weight"), "SegFormer lacks"),
        (
            with_value("backbone.block1.0.mlp.fc1.weight", lambda t: t[1:]),
            "widens 8 channels to 31",
        ),
        (
            without("backbone.patch_embed3.proj.weight"),
            r"patch_embeddings.2.proj.weight is missing",
        ),
        (without("decode_head.linear_c2.proj.weight"), r"missing, .*linear_c.1.proj.weight"),
        (without("decode_head.linear_pred.weight"), r"classifier.weight is missing"),
        (without("decode_head.linear_fuse.bn.running_var"), r"missing, .*running_var"),
        (
            with_value("backbone.norm4.bias", lambda t: t[:3]),
            r"layer_norm.3.bias has the shape \(3,\)",
        ),
        (with_value("backbone.norm4.bias", not_finite), r"layer_norm.3.bias holds NaN"),
        (with_value("decode_head.linear_pred.bias", not_finite), r"classifier.bias holds NaN"),
        (
            with_value("decode_head.linear_fuse.bn.running_var", lambda t: t - 2),
            r"batch_norm\.running_var is a variance",
        ),
        (
            lambda s: s.update({"backbone.block1.00.norm1.bias": torch.zeros(8)}),
            r"block1\.00\.norm1\.bias and another tensor both stand for",
        ),
        (with_value("backbone.norm4.bias", torch.Tensor.long), "not floating point numbers"),
        (with_value("backbone.block1.0.attn.kv.bias", lambda t: t[:-1]), "must pack 2 tensors"),
        (with_value("backbone.patch_embed1.proj.weight", lambda t: t[0]), "has the shape"),
        (
            lambda s: s.update({"backbone.pos_embed1": torch.zeros(1)}),
            "of its tensors, such as",
        ),
    ],
)
def test_tensors_that_make_no_model(change, message, tmp_path):
    state = dict(originals.nvlabs(originals.SMALL, 2).state_dict())
    change(state)
    path = saved(tmp_path, {"state_dict": state})
    with pytest.raises(UserError, match=message):
        read_weights(path, str(path))


@pytest.mark.parametrize("make", [originals.nvlabs, originals.mmseg, originals.mit])
def test_whatever_is_wrong_with_a_tensor_is_a_message(make, tmp_path):
    """Each tensor of the head and of a block in turn, in every way that a shape can be wrong."""
    whole = make(originals.SMALL, 2).state_dict()
    names = [name for name in whole if re.search("head|block1|layers.0|norm|embed1", name)]
    names = [name for name in names if "num_batches_tracked" not in name]  # nothing depends on it
    assert len(names) > 20
    for number, name in enumerate(names):
        tensor = whole[name]
        changes = [tensor[None]]
        if tensor.ndim:
            changes += [tensor.flatten()[:-1], torch.zeros(()), tensor[..., :0]]
        path = saved(tmp_path, {**whole, name: changes[number % len(changes)]})
        what_head = "conv_seg" in name or re.search(r"decode_head\.(fusion|linear_fuse)", name)
        if make is originals.mit or not what_head:
            with pytest.raises(UserError, match="file: "):
                read_weights(path, "file")
        else:  # NVlabs' own conv_seg is not used, and without the fusion it is another head
            with suppress(UserError):
                read_weights(path, "file")


@pytest.mark.parametrize("kind", ["expanded", "meta", "sparse"])
def test_tensors_that_are_no_plain_ones(kind, tmp_path):
    state = dict(originals.mit(originals.SMALL, 2).state_dict())
    if kind == "expanded":  # four bytes that would fill the memory
        state["head.weight"] = torch.zeros(1).expand(1 << 20, 1 << 20)
    elif kind == "meta":
        state["head.weight"] = torch.zeros(2, 64, device="meta")
    else:
        state["head.weight"] = torch.zeros(2, 64).to_sparse()
    path = saved(tmp_path, state)
    with pytest.raises(UserError, match=r"head\.weight is not a dense tensor"):
        read_weights(path, str(path))


def test_another_model_is_told_by_its_first_names(tmp_path):
    path = saved(tmp_path, {"conv1.weight": torch.zeros(3), "layer1.0.bn1.bias": torch.zeros(3)})
    with pytest.raises(UserError, match=r"its names are not .*conv1.weight, layer1.0.bn1.bias"):
        read_weights(path, str(path))


# ------------------------------------------------------------------------- what a training takes


def test_a_training_starts_from_a_segmentor(tmp_path):
    original = originals.nvlabs(originals.SMALL, SHAPES)
    path = saved(tmp_path, as_trained(original))
    model, said = built(path)
    assert "the encoder and the head are loaded" in said[0]
    assert "new are" not in said[0]
    assert "non-commercially" in said[1]
    image = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        expected = original(image)
        assert (model.eval()(image).logits - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_a_head_of_another_size_is_new_and_said_so(tmp_path):
    path = saved(tmp_path, as_trained(originals.nvlabs(originals.SMALL, 19)))
    model, said = built(path)
    assert said[0].endswith(
        "the encoder is loaded, new are decode_head.classifier.bias, decode_head.classifier.weight"
    )
    weights = read_weights(path, "file")
    assert model.decode_head.classifier.weight.shape[0] == SHAPES
    assert torch.equal(
        model.decode_head.linear_fuse.weight, weights.state["decode_head.linear_fuse.weight"]
    )

    model, said = built(path, "model.decoder_hidden_size=16")
    assert "decode_head.linear_fuse.weight" in said[0]
    name = "segformer.encoder.block.3.0.attention.self.value.weight"
    assert torch.equal(model.state_dict()[name], weights.state[name])


@pytest.mark.parametrize("kind", ["mit", "mmseg", "bare"])
def test_encoders_give_the_original_s_maps(kind, tmp_path):
    original = (
        originals.mit(originals.SMALL, 9)
        if kind == "mit"
        else originals.mmseg(originals.SMALL, SHAPES)
    )
    encoder = original if kind == "mit" else original.backbone
    path = saved(tmp_path, as_trained(encoder if kind == "bare" else original))
    model, said = built(path)
    assert "the encoder is loaded, new are decode_head.batch_norm.bias" in said[0]
    assert ("ReLU" in said[0]) == (kind == "mmseg")
    image = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        maps = originals.NvlabsEncoder.forward(encoder, image) if kind == "mit" else encoder(image)
        found = model.eval().segformer(image, output_hidden_states=True).hidden_states
    assert len(maps) == len(found) == 4
    for expected, mine in zip(maps, found, strict=True):
        assert (mine - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_a_head_that_is_no_segformer_s(tmp_path):
    state = {
        name: tensor
        for name, tensor in originals.nvlabs(originals.SMALL, 2).state_dict().items()
        if name.startswith("backbone.")
    }
    state["decode_head.lateral_convs.0.conv.weight"] = torch.zeros(4, 8, 1, 1)
    _, said = built(saved(tmp_path, state))
    assert "its head is not SegFormer's (lateral_convs.0.conv.weight)" in said[0]


def test_other_channels_and_other_sizes(tmp_path):
    path = saved(tmp_path, originals.mit({**originals.SMALL, "channels": 4}, 2).state_dict())
    _, said = built(path)
    assert "first convolution, which reads 3 channels here and 4 there" in said[0]
    path = saved(tmp_path, originals.mit(originals.B0, 2).state_dict())
    with pytest.raises(UserError, match=r"hidden_sizes|depths .*Set model.variant=b0"):
        built(path)
    with pytest.raises(UserError, match=r"model.init=.*nothing.pth: cannot be read \(No such"):
        built(tmp_path / "nothing.pth")


def test_another_number_of_stages_names_what_to_set(tmp_path):
    path = saved(tmp_path, originals.nvlabs({**originals.ODD, "channels": 3}, 3).state_dict())
    sizes = r"model\.depths=\[1,3,2\] model\.hidden_sizes=\[12,24,48\] and"
    with pytest.raises(UserError, match=rf"Set {sizes} model\.num_attention_heads"):
        built(path)
    widths = {**originals.SMALL, "widths": (6, 12, 18, 24), "heads": (1, 1, 1, 1)}
    path = saved(tmp_path, originals.mit(widths, 3).state_dict())
    with pytest.raises(UserError, match=r"Set model\.depths=.*model\.hidden_sizes=\[6,12,18,24\]"):
        built(path)


def test_a_folder_with_a_restricted_licence_says_so(tmp_path):
    config = transformers.SegformerConfig(
        depths=[1] * 4, hidden_sizes=[8, 16, 40, 64], decoder_hidden_size=32, num_labels=SHAPES
    )
    transformers.SegformerForSemanticSegmentation(config).save_pretrained(tmp_path)
    _, said = built(tmp_path)
    assert not said
    (tmp_path / "README.md").write_text("---\nbase_model: nvidia/mit-b0\n---\n")
    _, said = built(tmp_path)
    assert len(said) == 1
    assert "non-commercially" in said[0]


@pytest.mark.parametrize("make", [originals.nvlabs, originals.mmseg, originals.mit])
def test_two_steps_of_training(make, tmp_path):
    path = saved(tmp_path, as_trained(make(originals.SMALL, 9)))
    recipe = load_recipe("shapes", [*TINY, f"model.init={path}", f"output={tmp_path / 'run'}"])
    with pytest.warns(UserWarning, match="the encoder is loaded"):
        fit(recipe)
    card = (tmp_path / "run/last/README.md").read_text()
    assert re.search(r"^license: other$", card, re.MULTILINE)
    assert "non-commercially" in card
    assert "base_model" not in card
    stock = transformers.SegformerForSemanticSegmentation.from_pretrained(tmp_path / "run/last")
    assert stock.config.num_labels == SHAPES
    assert licence_of(str(tmp_path / "run/last"))  # what is trained from these weights, too
