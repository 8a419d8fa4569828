"""GeoTIFFs in and out: the mask lies where its image lies, whatever fits into memory."""

import json

import numpy as np
import pytest
import tifffile
from tiny import COLORS, save_tiny

from finetune.errors import UserError
from finetune.inference import InferenceProtocol, Segmenter, large
from finetune.inference.preprocessing import Preprocessing
from finetune.programs.predict.predict import predict
from tests.pictures.test_geotiff import PLACE


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("model") / "best")


@pytest.fixture(scope="module")
def image():
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (9, 11, 3), np.uint8)
    return np.kron(coarse, np.ones((24, 20, 1), np.uint8))[:200, :210]


def only(folder):
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*.*") if p.is_file())


def test_a_mask_is_a_geotiff_if_its_image_is(model, image, tmp_path):
    (tmp_path / "in").mkdir()
    tifffile.imwrite(tmp_path / "in/scene.v2.tif", image, extratags=PLACE)
    tifffile.imwrite(tmp_path / "in/plain.tif", image)
    out = tmp_path / "out"
    segmenter = Segmenter.load(model)
    done = predict(segmenter, [str(tmp_path / "in")], out, writes=("coco",))
    assert (done.made, done.failed) == (2, ())
    expected = segmenter(image).mask
    with tifffile.TiffFile(out / "ids/scene.v2.tif") as file:
        assert np.array_equal(file.asarray(), expected)
        assert file.geotiff_metadata["ProjectedCSTypeGeoKey"] == 32633
        assert file.geotiff_metadata["ModelTiepoint"] == list(PLACE[1][3])
        assert (file.pages.first.colormap[:, 1] // 257).tolist() == list(COLORS[1])
    assert "ids/plain.png" in only(out)
    assert "ids/scene.v2.png" not in only(out)
    again = predict(segmenter, [str(tmp_path / "in")], out, writes=("coco",))
    assert (again.made, again.there) == (0, 2)


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_a_picture_larger_than_memory(model, image, tmp_path, monkeypatch, capsys, flip, dtype):
    """Bands of rows give the mask that the whole picture gives."""
    monkeypatch.setattr("finetune.inference.scores._BAND", 4000)
    protocol = InferenceProtocol(window=(96, 64), stride=(40, 48), flip=flip)
    segmenter = Segmenter.load(model, **protocol.model_dump(include={"window", "stride", "flip"}))
    stored = image if dtype == np.uint8 else image.astype(np.uint16) * 256 + 7
    path = tmp_path / "scene.tif"
    tifffile.imwrite(path, stored, tile=(32, 48), compression="zlib", extratags=PLACE)
    expected = segmenter(image).mask
    monkeypatch.setattr(large, "MAX_WHOLE", 1000)
    monkeypatch.setattr("finetune.programs.predict.predict.LARGE", 1000)
    read = []
    rows = large.TiffRows.rows
    monkeypatch.setattr(
        large.TiffRows,
        "rows",
        lambda self, own: read.append(own.stop - own.start) or rows(self, own),
    )
    done = predict(segmenter, [str(path)], tmp_path / "out", max_pixels=1000)
    assert (done.made, done.failed) == (1, ())
    assert read, "it was read by rows"
    assert max(read) <= 96  # a window's
    with tifffile.TiffFile(tmp_path / "out/ids/scene.tif") as file:
        assert np.array_equal(file.asarray(), expected)
        assert file.geotiff_metadata["ProjectedCSTypeGeoKey"] == 32633
    assert "210 x 200 pixels: ids alone, without overlay" in capsys.readouterr().err
    assert only(tmp_path / "out/ids") == ["scene.tif"]
    areas = json.loads((tmp_path / "out/areas.json").read_text())
    counts = np.bincount(expected.ravel(), minlength=5)
    found = [part["pixels"] for part in areas["scene"].values()]
    assert found == counts[counts > 0].tolist()
    again = predict(segmenter, [str(path)], tmp_path / "out", max_pixels=1000)
    assert (again.made, again.there) == (0, 1)


def test_a_protocol_that_resizes_needs_the_whole_picture(model, image, tmp_path, monkeypatch):
    monkeypatch.setattr(large, "MAX_WHOLE", 1000)
    tifffile.imwrite(tmp_path / "x.tif", image, extratags=PLACE)
    segmenter = Segmenter.load(model, shortest_edge=64)
    assert large.large_view(segmenter, tmp_path / "x.tif") is None


def test_a_damaged_tile_leaves_nothing_and_others_go_on(model, image, tmp_path, monkeypatch):
    monkeypatch.setattr(large, "MAX_WHOLE", 1000)
    monkeypatch.setattr("finetune.programs.predict.predict.LARGE", 1000)
    for name in ("a", "b"):
        path = tmp_path / f"{name}.tif"
        tifffile.imwrite(path, image, tile=(32, 48), compression="zlib", extratags=PLACE)
    with tifffile.TiffFile(tmp_path / "a.tif") as file:
        last = file.pages.first.dataoffsets[-1]
    with open(tmp_path / "a.tif", "r+b") as file:
        file.seek(last)
        file.write(b"\xff" * 9)
    segmenter = Segmenter.load(model, window=(96, 64), stride=(40, 48))
    done = predict(segmenter, [str(tmp_path / "*.tif")], tmp_path / "out", writes=())
    assert done.made == 1
    assert "a.tif" in done.failed[0]
    assert [path.name for path in (tmp_path / "out/ids").iterdir()] == ["b.tif"]


def test_integers_must_be_those_of_the_training(image, tmp_path, monkeypatch):
    monkeypatch.setattr(large, "MAX_WHOLE", 1000)
    four = np.dstack([image, image[..., :1]])
    tifffile.imwrite(tmp_path / "x.tif", four, photometric="minisblack", planarconfig="contig")
    deep = Preprocessing(InferenceProtocol(), (0.5,) * 4, (0.5,) * 4, full=65535)
    segmenter = Segmenter.load(save_tiny(tmp_path / "model", deep, num_channels=4))
    with pytest.raises(UserError, match="8 bits per channel"):
        large.large_view(segmenter, tmp_path / "x.tif")
