"""Model folders: stock files, swapped in whole."""

import json
import os

import numpy as np
import pytest
import torch
import transformers
import yaml

from finetune.errors import UserError
from finetune.inference import InferenceProtocol, Preprocessing
from finetune.publish import model_card, save_model_folder
from finetune.segformer import SegformerConfig, SegformerForSemanticSegmentation


def model():
    torch.manual_seed(0)
    config = SegformerConfig(
        depths=[1, 1, 1, 1],
        hidden_sizes=[8, 16, 40, 64],
        decoder_hidden_size=32,
        id2label={0: "road", 1: "a|b"},
        label2id={"road": 0, "a|b": 1},
    )
    return SegformerForSemanticSegmentation(config).eval()


def card():
    return model_card(
        name="streets",
        base_model=None,
        names=["road", "a|b"],
        results={"mean IoU": 0.51234},
        per_class_iou={"road": 0.9, "a|b": None},
        protocol=InferenceProtocol(),
        facts={"steps": 7},
    )


def save(folder, protocol=InferenceProtocol()):  # noqa: B008 - frozen
    save_model_folder(
        folder,
        model(),
        preprocessing=Preprocessing(protocol, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)),
        colors=[(1, 2, 3), (4, 5, 6)],
        card=card(),
        recipe="name: streets\n",
    )


def test_a_saved_folder_is_stock(tmp_path):
    folder = tmp_path / "best"
    save(folder)
    save(folder)  # again, over the first
    assert os.listdir(tmp_path) == ["best"]
    stock = transformers.SegformerForSemanticSegmentation.from_pretrained(folder).eval()
    image = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        expected = model()(image).logits
        assert (stock(image).logits - expected).abs().max() <= 1e-5 * expected.abs().max()
    config = json.loads((folder / "config.json").read_text())
    assert config["model_type"] == "segformer"
    assert config["architectures"] == ["SegformerForSemanticSegmentation"]
    assert "auto_map" not in config
    assert config["id2label"] == {"0": "road", "1": "a|b"}


@pytest.mark.parametrize(
    ("protocol", "shape"),
    [
        (InferenceProtocol(), (90, 121)),
        (InferenceProtocol(shortest_edge=64), (64, 86)),
        (InferenceProtocol(shortest_edge=64, longest_edge=80), (60, 80)),
    ],
)
def test_stock_reads_the_preprocessor(protocol, shape, tmp_path):
    values = Preprocessing(protocol, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)).to_stock()
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(values))
    processor = transformers.AutoImageProcessor.from_pretrained(tmp_path)
    assert list(processor.image_mean) == [0.1, 0.2, 0.3]
    assert not processor.do_reduce_labels
    pixels = processor(np.zeros((90, 121, 3), np.uint8), return_tensors="pt")["pixel_values"]
    assert pixels.shape[1] == 3
    mine = protocol.size(90, 121)
    assert mine == shape
    assert all(abs(a - b) <= 1 for a, b in zip(pixels.shape[2:], mine, strict=True))


def test_the_card_has_metadata_and_results():
    text = str(card())
    _, metadata, body = text.split("---\n", 2)
    values = yaml.safe_load(metadata)
    assert values["pipeline_tag"] == "image-segmentation"
    assert values["library_name"] == "transformers"
    assert "51.23%" in body
    assert "| road | 90.00% |" in body
    assert "| a\\|b | - |" in body


def test_whoever_may_read_the_card_may_read_the_weights(tmp_path):
    save(tmp_path / "model")
    modes = {path.stat().st_mode for path in (tmp_path / "model").iterdir()}
    assert len(modes) == 1


def test_a_folder_that_cannot_be_written_is_a_message(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match=r"cannot write the model folder .*file"):
        save(tmp_path / "file" / "best")


@pytest.mark.parametrize("full", [255, 65535])
@pytest.mark.parametrize("channels", [1, 2, 4, 6])
def test_stock_normalises_any_number_of_channels(channels, full, tmp_path):
    mean, std = np.linspace(0.1, 0.6, channels), np.linspace(0.2, 0.3, channels)
    values = Preprocessing(
        InferenceProtocol(), tuple(mean.tolist()), tuple(std.tolist()), full
    ).to_stock()
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(values))
    processor = transformers.AutoImageProcessor.from_pretrained(tmp_path)
    dtype = np.uint8 if full == 255 else np.uint16
    image = np.random.default_rng(0).integers(0, full, (40, 50, channels), dtype, True)
    found = processor(image, input_data_format="channels_last", return_tensors="np")
    expected = (image / full - mean) / std
    np.testing.assert_allclose(found["pixel_values"][0].transpose(1, 2, 0), expected, atol=1e-6)


@pytest.mark.parametrize(("channels", "read"), [(1, "[..., None]"), (6, "")])
def test_the_card_of_other_images_shows_arrays(channels, read):
    text = str(
        model_card(
            name="bands",
            base_model=None,
            names=["a", "b"],
            results={},
            per_class_iou={},
            protocol=InferenceProtocol(),
            num_channels=channels,
            facts={},
        )
    )
    assert f'tifffile.imread("picture.tif"){read}  # (height, width, {channels})' in text
    assert "pipeline(" not in text
    code = text.split("```python\n")[1].split("```")[0]
    compile(code, "card", "exec")
