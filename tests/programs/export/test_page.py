"""The page of --web in headless Chromium, used as a person would: a file in, a PNG out."""

import itertools
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from finetune import disk
from finetune.errors import UserError
from finetune.inference import InferenceProtocol, Segmenter, segment
from finetune.programs.export import export as program
from finetune.programs.export import web
from finetune.programs.export.web import RUNTIME, RUNTIME_VERSION, check_page, write_page

from .conftest import COLORS, NAMES, PACKAGE, write_model
from .page import Page
from .pictures import picture

pytestmark = pytest.mark.slow  # every test needs an exported model


@pytest.fixture(scope="module")
def page(browser, served, exported, node_modules):
    folder, segmenter, _ = exported
    root, address = served
    runtime = node_modules / "onnxruntime-web" / "dist"
    write_page(root / "plain", segmenter, folder / "onnx" / "model.onnx", runtime)
    with Page(*browser) as tab:
        tab.open(f"{address}/plain/")
        tab.wait("document.getElementById('status').textContent === 'Ready.'")
        yield tab


def saved(path, pixels, **options):
    Image.fromarray(pixels).save(path, **options)
    return path


def check_mask(page, segmenter, path, *, least=0.9999):
    said = page.choose(path)
    expected = segment(segmenter, str(path))
    height, width = expected.mask.shape
    assert said.startswith(f"{width} x {height} pixels in"), said
    mask = page.download()
    assert mask.mode == "P"
    assert tuple(mask.getpalette()[:18]) == tuple(itertools.chain(*COLORS))
    assert (np.asarray(mask) == expected.mask).mean() >= least
    return expected


@pytest.mark.parametrize("size", [(96, 128), (75, 101), (61, 33), (20, 40), (1, 1)])
def test_the_mask_is_ours(page, exported, tmp_path, size):
    path = saved(tmp_path / "picture.png", picture(*size, seed=size[0]))
    expected = check_mask(page, exported[1], path)
    legend = page.value("[...document.querySelectorAll('#legend li')].map(x => x.innerText)")
    areas = sorted(expected.areas().items(), key=lambda item: -item[1]["pixels"])
    shown = [line.split("\n")[0] for line in legend]
    assert shown == [name for name, area in areas if area["pixels"]]
    assert set(shown) <= set(NAMES)


def test_orientation_and_transparency_are_read_as_ours(page, exported, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    turned = saved(tmp_path / "turned.png", picture(64, 96), exif=exif)
    assert check_mask(page, exported[1], turned).mask.shape == (96, 64)
    clear = picture(64, 96, seed=3, channels=4)
    clear[:, :30, 3] = 0  # a canvas forgets the colours of what cannot be seen
    check_mask(page, exported[1], saved(tmp_path / "clear.png", clear))
    check_mask(page, exported[1], saved(tmp_path / "grey.png", picture(64, 96)[..., 0]))


def test_a_jpeg_is_decoded_alike(page, exported, tmp_path):
    """Two decoders may round differently."""
    path = saved(tmp_path / "picture.jpg", picture(96, 128, seed=7), quality=90)
    check_mask(page, exported[1], path, least=0.999)


def test_mistakes_are_named(page, tmp_path):
    (tmp_path / "note.txt").write_text("not a picture")
    assert page.choose(tmp_path / "note.txt").startswith("note.txt is no picture")
    Image.new("L", (8000, 5000)).save(tmp_path / "huge.png")
    assert page.choose(tmp_path / "huge.png").startswith("8000 x 5000 pixels are too many")


def test_resized_pictures_get_the_same_mask(
    browser, served, exported, node_modules, tmp_path, monkeypatch
):
    folder, _, _ = exported
    root, address = served
    content = (folder / "onnx" / "model.onnx").read_bytes()  # of the same weights
    monkeypatch.setattr(program, "trace", lambda *_: None)
    monkeypatch.setattr(program, "to_onnx", lambda *_: content)
    runtime = node_modules / "onnxruntime-web" / "dist"
    protocols = {
        "edge": InferenceProtocol(shortest_edge=96),
        "limited": InferenceProtocol(shortest_edge=96, longest_edge=120, size_divisor=32),
        "fixed": InferenceProtocol(fixed_size=(70, 150)),
    }
    port, profile = browser
    for name, protocol in protocols.items():
        made = write_model(tmp_path / name, protocol)
        options = program.Options(web=root / name, web_runtime=runtime)
        segmenter, _ = program.export(str(made), options=options)
        tab_folder = profile / name
        tab_folder.mkdir()
        with Page(port, tab_folder) as tab:
            tab.open(f"{address}/{name}/")
            path = saved(tmp_path / f"{name}.png", picture(143, 211, seed=1))
            check_mask(tab, segmenter, path)


def test_the_page_loads_the_runtime_that_is_tested(exported, node_modules, tmp_path):
    folder, segmenter, _ = exported
    write_page(tmp_path / "page", segmenter, folder / "onnx" / "model.onnx")
    known = (tmp_path / "page" / "model.json").read_text()
    assert f"https://cdn.jsdelivr.net/npm/onnxruntime-web@{RUNTIME_VERSION}/dist/" in known
    assert f'"onnxruntime-web": "{RUNTIME_VERSION}"' in PACKAGE.read_text()
    names = {path.name for path in (tmp_path / "page").iterdir()}
    assert names == {
        *("index.html", "page.js", "worker.js", "pixels.js"),
        "model.json",
        "model.onnx",
    }


def test_a_page_goes_into_a_folder_of_its_own(exported, tmp_path):
    folder, segmenter, _ = exported
    (tmp_path / "note.txt").touch()
    with pytest.raises(UserError, match="holds other files"):
        check_page(tmp_path, segmenter)
    with pytest.raises(UserError, match="is a file"):
        check_page(tmp_path / "note.txt", segmenter)
    with pytest.raises(UserError, match=r"has no ort\.wasm\.bundle\.min\.mjs"):
        check_page(tmp_path / "new", segmenter, tmp_path)
    for _ in range(2):  # ours is replaced
        write_page(tmp_path / "new", segmenter, folder / "onnx" / "model.onnx")


def test_a_page_is_swapped_in_whole(exported, tmp_path, monkeypatch):
    folder, segmenter, _ = exported
    page, model = tmp_path / "page", folder / "onnx" / "model.onnx"
    write_page(page, segmenter, model)
    before = {path.name: path.read_bytes() for path in page.iterdir()}

    def killed(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(web.json, "dumps", killed)
        for target in (page, tmp_path / "other"):
            with pytest.raises(KeyboardInterrupt):
                write_page(target, segmenter, model)
    with monkeypatch.context() as patch:
        patch.setattr(disk, "swap_folder", killed)
        for target in (page, tmp_path / "other"):
            with pytest.raises(KeyboardInterrupt):
                write_page(target, segmenter, model)
    assert {path.name: path.read_bytes() for path in page.iterdir()} == before
    assert not (tmp_path / "other").exists()
    (tmp_path / ".other.new" / "ort").mkdir(parents=True)
    write_page(tmp_path / "other", segmenter, model)  # what a kill left is not in the way
    assert {path.name for path in tmp_path.iterdir()} == {"page", "other"}
    assert not (tmp_path / "other" / "ort").exists()
    (page / "CNAME").write_text("example.org")
    with pytest.raises(UserError, match="holds CNAME, which is not a file of the page"):
        write_page(page, segmenter, model)
    with pytest.raises(UserError, match="holds the working directory"):
        check_page(Path(), segmenter)


def test_a_page_overlaps_with_nothing(exported, tmp_path, monkeypatch):
    folder, _, _ = exported
    monkeypatch.setattr(program, "trace", None)
    out = tmp_path / "out"
    for web_ in (out, out / "page", tmp_path, folder, folder / "page", folder.parent):
        with pytest.raises(UserError, match=r"--web .*: overlaps with (-o|MODEL)"):
            program.export(str(folder), out, program.Options(web=web_))
    assert not list(tmp_path.iterdir())


def test_windows_are_warned_of_once(exported, tmp_path, monkeypatch):
    folder, _, _ = exported
    content = (folder / "onnx" / "model.onnx").read_bytes()
    monkeypatch.setattr(program, "trace", lambda *_: None)
    monkeypatch.setattr(program, "to_onnx", lambda *_: content)
    made = write_model(tmp_path / "model", InferenceProtocol(window=(64, 64), stride=(40, 40)))
    with pytest.warns(UserWarning, match="once at full size") as said:
        program.export(str(made), options=program.Options(web=tmp_path / "page"))
    assert len([one for one in said if "once at full size" in str(one.message)]) == 1


def test_names_of_classes_are_text(browser, served, exported, node_modules, tmp_path):
    folder, segmenter, _ = exported
    root, address = served
    evil = "<img src=x onerror=window.ran=1>"
    names = [f"{evil} {i} \"quoted\" 'too'\nand a second line" for i in range(len(NAMES))]
    other = Segmenter(
        segmenter.model, segmenter.preprocessing, names=names, colors=COLORS, device="cpu"
    )
    runtime = node_modules / "onnxruntime-web" / "dist"
    write_page(root / "evil", other, folder / "onnx" / "model.onnx", runtime)
    port, profile = browser
    (profile / "evil").mkdir()
    with Page(port, profile / "evil") as tab:
        tab.open(f"{address}/evil/")
        tab.value(
            "window.broken = []; document.addEventListener('securitypolicyviolation', "
            "(event) => broken.push(event.violatedDirective)); 0"
        )
        said = tab.choose(saved(tmp_path / "picture.png", picture(96, 128)))
        assert said.startswith("128 x 96 pixels in"), said
        assert tab.download().size == (128, 96)
        shown = tab.value("[...document.querySelectorAll('#legend span')].map(x => x.textContent)")
        assert shown
        assert set(shown) <= set(names)
        assert tab.value("document.querySelectorAll('main img').length") == 0
        assert tab.value("broken") == []
        # And were it markup, the policy would not let it run.
        tab.value(f"document.querySelector('#legend').innerHTML = {evil!r}; 0")
        tab.wait("broken.length > 0")
        assert tab.value("typeof window.ran") == "undefined"


def test_only_the_runtime_is_loaded_from_elsewhere(exported, node_modules, tmp_path):
    folder, segmenter, _ = exported
    model = folder / "onnx" / "model.onnx"
    write_page(tmp_path / "far", segmenter, model)
    write_page(tmp_path / "near", segmenter, model, node_modules / "onnxruntime-web" / "dist")
    far, near = ((tmp_path / name / "index.html").read_text() for name in ("far", "near"))
    assert far.count(RUNTIME) == 2
    assert far.replace(f" {RUNTIME}", "") == near
    assert "RUNTIME" not in far
    assert "https:" not in near
