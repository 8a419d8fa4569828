"""What `finetune demo` answers when it is called wrongly."""

import json
import socket

import pytest
from PIL import Image
from tiny import save_tiny
from typer.testing import CliRunner

from finetune import cli
from finetune.errors import UserError
from finetune.inference import Segmenter
from finetune.programs.demo import demo as program
from finetune.programs.demo.answers import Model


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("model") / "street" / "best")


def refused(*arguments):
    """The message of the UserError that the command ends with."""
    done = CliRunner().invoke(cli.app, ["demo", *map(str, arguments)])
    assert isinstance(done.exception, UserError), done.output
    return str(done.exception)


def test_a_port_that_is_taken(model):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        assert refused(model, "--port", port).startswith(f"--port {port}: in use; name another")


def test_an_address_of_somebody_else(model):
    assert refused(model, "--host", "192.0.2.1").startswith("--host 192.0.2.1: not an address")
    assert refused(model, "--host", "no such host").startswith("--host no such host: not an")


def test_a_model_that_is_none(model, tmp_path):
    assert "not a model folder or Hub id" in refused(tmp_path)
    other = tmp_path / "other"
    other.mkdir()
    (other / "config.json").write_text(json.dumps({"model_type": "bert"}))
    assert f"model {other}: a model of type bert; only segformer" in refused(model, other)


def test_an_example_that_is_none(model, tmp_path):
    missing, text = tmp_path / "missing.png", tmp_path / "note.txt"
    text.write_text("not a picture")
    assert refused(model, "--example", missing) == f"--example {missing}: there is no such file"
    said = refused(model, "--example", text)
    assert said == f"--example {text}: not a picture that can be read"  # no word of masks


def test_gradio_that_is_not_there(model, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert refused(model) == "`finetune demo` needs Gradio: pip install 'segformer-finetune[demo]'"


def test_names_of_models(model, tmp_path):
    (one,) = program.load([str(model)])
    assert one.name == "street/best"
    twin = save_tiny(tmp_path / "street" / "best")
    assert [known.name for known in program.load([str(model), str(twin)])] == [
        str(model),
        str(twin),
    ]


def test_the_page_says_whose_the_weights_are(tmp_path):
    folder = save_tiny(tmp_path / "model")
    (folder / "README.md").write_text("---\nlicense: other\nbase_model: nvidia/mit-b0\n---\n")
    with pytest.warns(UserWarning, match="non-commercial"):
        loaded = Segmenter.load(folder)
    remark = program.describe([Model("model", loaded)], [str(folder)])
    assert "5 classes" in remark
    assert "non-commercial" in remark


def test_what_is_kept_is_private_and_examples_stay(model, tmp_path):
    Image.new("RGB", (40, 40)).save(tmp_path / "example.png")
    with program.private_cache() as cache:
        known = [Model("model", Segmenter.load(model))]
        page = program.build(known, examples=[tmp_path / "example.png"])
        (kept,) = (path for path in cache.rglob("*") if path.is_file())
        assert cache.stat().st_mode & 0o077 == 0
        answer = cache / "answer"
        (answer / "0").mkdir(parents=True)
        (cache / "begun").mkdir()  # an answer's that is in work
        pictures = [kept.with_name("upload.png"), cache / "cut-off"]
        pictures += [answer / "picture.jpg", answer / "0" / "mask.png"]
        for path in pictures:
            path.touch()
        program.sweep(page, cache, program.KEPT_SECONDS)
        assert all(path.exists() for path in pictures)
        program.sweep(page, cache, -1)  # of any age
        assert set(cache.rglob("*")) == {kept, kept.parent, cache / "begun"}
    assert not kept.exists()
