"""Parquet and Arrow, opened whole: CamVid as tables gives the same labels as its files."""

import io
import shutil
import socket
import socketserver
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler
from pathlib import Path

import datasets
import fsspec
import numpy as np
import pytest
from PIL import Image

from finetune.data import cache
from finetune.data.cache import CachedSamples
from finetune.data.columns import Columns, TablePictures, guess_columns
from finetune.data.samples import preflight
from finetune.data.shards import read_footers, read_rows
from finetune.data.sources.archives import camvid
from finetune.data.sources.hub import first_rows, hub, hub_shards, split_names
from finetune.errors import UserError
from finetune.labels.presets import PRESETS
from finetune.labels.translation import Labels

CAMVID = PRESETS["camvid"]
LABELS = Labels.build(**CAMVID)
FEATURES = datasets.Features(
    {"image": datasets.Image(), "mask": datasets.Image(), "name": datasets.Value("string")}
)
COUNT = 7


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "hf"))


@pytest.fixture(scope="module")
def samples(shared_data):
    """The first validation pictures as our own reader of files gives them."""
    data = camvid(shared_data / "camvid", "val", LABELS)
    return [data[i] for i in range(COUNT)]


@pytest.fixture(scope="module")
def rows(shared_data) -> list[dict]:
    files = sorted((shared_data / "camvid/val").glob("*.jpg"))[:COUNT]
    return [
        {
            "image": {"bytes": file.read_bytes(), "path": file.name},
            "mask": {
                "bytes": (shared_data / f"camvid/valannot/{file.stem}.png").read_bytes(),
                "path": None,
            },
            "name": file.stem,
        }
        for file in files
    ]


@pytest.fixture
def table(rows) -> datasets.Dataset:
    return datasets.Dataset.from_list(rows, features=FEATURES)


def as_parquet(table: datasets.Dataset, folder: Path, split: str = "train", files: int = 2) -> None:
    for i in range(files):
        part = table.shard(files, i, contiguous=True)
        part.to_parquet(folder / f"data/{split}-{i:05d}-of-{files:05d}.parquet", batch_size=2)


def assert_same(found: datasets.Dataset, samples: list[dict]) -> None:
    assert len(found) == len(samples)
    for index, sample in enumerate(samples):
        own = found[index]
        assert own["id"] == sample["id"]
        assert np.array_equal(own["image"], sample["image"])
        assert np.array_equal(own["mask"], sample["mask"])


def test_parquet_as_datasets_writes_it(table, samples, tmp_path):
    as_parquet(table, tmp_path / "set")
    assert_same(hub(str(tmp_path / "set"), "train", LABELS, Columns(id="name")), samples)
    assert_same(hub(str(tmp_path / "set"), "train", LABELS, Columns()), samples)  # ids of the files


def test_a_folder_of_save_to_disk(table, samples, tmp_path):
    table.save_to_disk(tmp_path / "one")
    datasets.DatasetDict(validation=table, test=table.select([0])).save_to_disk(tmp_path / "two")
    assert_same(hub(str(tmp_path / "one"), "train", LABELS, Columns()), samples)
    assert_same(hub(str(tmp_path / "two"), "validation", LABELS, Columns()), samples)
    assert split_names(str(tmp_path / "two")) == ["validation", "test"]
    with pytest.raises(UserError, match=r"no split 'val'; there are validation, test"):
        hub(str(tmp_path / "two"), "val", LABELS, Columns())
    with pytest.raises(UserError, match=r"save_to_disk"):
        hub_shards(str(tmp_path / "two"), "validation")


def test_rows_that_were_chosen_before_saving_keep_their_masks(table, samples, tmp_path):
    """`select` leaves the Arrow table as it is and maps indices: rows must follow the mapping."""
    chosen = [5, 2, 3]
    table.select(chosen).save_to_disk(tmp_path / "set")
    assert_same(
        hub(str(tmp_path / "set"), "train", LABELS, Columns()), [samples[i] for i in chosen]
    )


def test_other_names_of_columns_and_plain_bytes(rows, samples, tmp_path):
    """As other writers keep pictures: bytes, without `datasets`' description of the columns."""
    table = datasets.Dataset.from_dict(
        {
            "pixel_values": [row["image"]["bytes"] for row in rows],
            "label": [row["mask"]["bytes"] for row in rows],
            "number": list(range(COUNT)),
        },
        features=datasets.Features(
            pixel_values=datasets.Value("binary"),
            label=datasets.Value("large_binary"),
            number=datasets.Value("int64"),
        ),
    )
    as_parquet(table, tmp_path)
    columns = Columns("pixel_values", "label", "number")
    found = hub(str(tmp_path), "train", LABELS, columns)
    numbered = [{**sample, "id": str(i)} for i, sample in enumerate(samples)]
    assert_same(found, numbered)
    found = hub(str(tmp_path), "train", LABELS, Columns("pixel_values", "label"))
    assert [found[i]["id"] for i in range(2)] == ["row-0", "row-1"]


def test_masks_in_colours(rows, samples, tmp_path):
    colors = np.array([*CAMVID["colors"], (0, 0, 0)], np.uint8)
    painted = []
    for row in rows:
        raw = np.asarray(Image.open(io.BytesIO(row["mask"]["bytes"])))
        buffer = io.BytesIO()
        Image.fromarray(colors[raw]).save(buffer, "PNG")
        painted.append({**row, "mask": {"bytes": buffer.getvalue(), "path": None}})
    as_parquet(datasets.Dataset.from_list(painted, features=FEATURES), tmp_path)
    labels = Labels.build(
        CAMVID["names"], colors=CAMVID["colors"], kind="colors", ignore=["#000000"]
    )
    assert_same(hub(str(tmp_path), "train", labels, Columns()), samples)


def test_columns_that_are_not_there(table, tmp_path):
    as_parquet(table, tmp_path)
    opened = partial(hub, str(tmp_path), "train", LABELS)
    with pytest.raises(UserError, match=r"data\.mask_column: the column 'masks' .* image, mask"):
        opened(Columns(mask="masks"))
    with pytest.raises(UserError, match=r"data\.image_column: the column 'name' .* holds string"):
        opened(Columns(image="name"))
    with pytest.raises(UserError, match=r"data\.id_column: .* no column 'ids'"):
        opened(Columns(id="ids"))
    repeated = table.remove_columns("name").add_column("name", ["a"] * COUNT)
    as_parquet(repeated, tmp_path / "repeated")
    with pytest.raises(UserError, match=r"holds 'a' more than once"):
        hub(str(tmp_path / "repeated"), "train", LABELS, Columns(id="name"))


def test_bad_rows_are_named(rows, tmp_path):
    mask = np.full((360, 480), 77, np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(mask).save(buffer, "PNG")
    bad = [
        {**rows[0], "image": {"bytes": b"rubbish", "path": None}},
        {**rows[1], "mask": {"bytes": buffer.getvalue(), "path": None}},
        {**rows[2], "mask": {"bytes": rows[2]["mask"]["bytes"][:500], "path": None}},
        {**rows[3], "image": {"bytes": None, "path": "gone.jpg"}},
    ]
    as_parquet(datasets.Dataset.from_list(bad, features=FEATURES), tmp_path, files=1)
    found = hub(str(tmp_path), "train", LABELS, Columns())
    messages = [
        r"row 0, image: cannot be read \(7 bytes\)",
        r"row 1, mask: the mask holds values .* 77 \(172800 pixels\)",
        r"row 2, mask: cannot be read \(500 bytes\)",
        r"row 3, image: there are no bytes, only the name gone\.jpg",
    ]
    for index, message in enumerate(messages):
        with pytest.raises(UserError, match=message):
            found[index]
    with pytest.raises(UserError, match="row 0, image"):
        preflight(found)


def test_a_table_too_large_to_be_kept_is_not_read_to_find_that_out(table, tmp_path, monkeypatch):
    monkeypatch.setenv("FINETUNE_CACHE", str(tmp_path / "cache"))
    as_parquet(table, tmp_path)
    samples = hub(str(tmp_path), "train", LABELS, Columns())
    whole = CachedSamples(samples, "auto")
    assert whole.slots is not None
    read = []
    monkeypatch.setattr(cache, "_memory", lambda: 2**20)
    monkeypatch.setattr(cache, "_NUM_LOOKED_AT", 2)
    opened = TablePictures.open
    monkeypatch.setattr(
        TablePictures, "open", lambda own, row: read.append(row) or opened(own, row)
    )
    (next((tmp_path / "cache").glob("*.samples"))).unlink()
    assert "more than half of the memory" in CachedSamples(samples, "auto").refusal
    assert set(read) == {"0", str(COUNT - 1)}


def test_what_is_no_data_set(tmp_path):
    with pytest.raises(UserError, match=r"owner/nothing cannot be opened .* HF_HUB_OFFLINE is set"):
        hub("owner/nothing", "train", LABELS, Columns())
    (tmp_path / "set.py").write_text("raise SystemExit('was run')")
    with pytest.raises(UserError, match="cannot be opened"):
        hub(str(tmp_path), "train", LABELS, Columns())
    with pytest.raises(UserError, match=r"holds no Parquet files of the split 'train'"):
        hub_shards(tmp_path.as_uri(), "train")
    (tmp_path / "train.parquet").write_bytes(b"PAR1 but not really PAR1")
    with pytest.raises(UserError, match=r"train\.parquet: cannot be read as Parquet"):
        hub_shards(tmp_path.as_uri(), "train")


def test_columns_by_their_names():
    picture, text = datasets.Image(), datasets.Value("string")

    def guessed(**features):
        return guess_columns(datasets.Features(features), "a set")

    assert guessed(image=picture, mask=picture, name=text) == Columns("image", "mask")
    assert guessed(pixel_values=picture, label=picture) == Columns("pixel_values", "label")
    assert guessed(Image=picture, annotation=picture, depth=picture) == Columns(
        "Image", "annotation"
    )
    assert guessed(image=picture, lesion=picture) == Columns("image", "lesion")
    assert guessed(xray=picture, mask=picture) == Columns("xray", "mask")
    for unclear in (
        {"a": picture, "b": picture},
        {"image": picture, "depth": picture, "normal": picture},
        {"image": picture, "label": datasets.ClassLabel(names=["a", "b"])},
    ):
        with pytest.raises(UserError, match=r"do not tell the image from the mask\. Columns of"):
            guessed(**unclear)


def test_the_first_rows(table, rows, tmp_path):
    as_parquet(table, tmp_path / "set")
    table.save_to_disk(tmp_path / "saved")
    for path in (tmp_path / "set", tmp_path / "saved", (tmp_path / "set").as_uri()):
        features, found = first_rows(str(path), "train", 3)
        assert list(features) == list(FEATURES)
        assert found == rows[:3]


# Anywhere


def test_any_file_system(table, samples, tmp_path):
    memory = fsspec.filesystem("memory")
    as_parquet(table, tmp_path)
    memory.put(str(tmp_path / "data"), "/bucket/data", recursive=True)
    shards = hub_shards("memory://bucket", "train")
    assert [shard.row_groups for shard in shards] == [(2, 2), (2, 1)]
    names = [row.values["name"] for row in read_rows(shards, ["name"], 0, COUNT)]
    assert names == [sample["id"] for sample in samples]
    assert_same(hub(tmp_path.as_uri(), "train", LABELS, Columns()), samples)


@pytest.fixture
def server(tmp_path):
    """A web server that breaks the connection when told to."""
    broken: list[int] = []

    class Handler(SimpleHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self):
            if broken and broken.pop():
                self.close_connection = True
                self.connection.shutdown(socket.SHUT_RDWR)
                return
            data = Path(self.translate_path(self.path)).read_bytes()
            first, last = 0, len(data) - 1
            if asked := self.headers.get("Range"):
                start, _, end = asked.removeprefix("bytes=").partition("-")
                first, last = int(start), min(int(end or last), last)
            body = data[first : last + 1]
            self.send_response(206 if asked else 200)
            if asked:
                self.send_header("Content-Range", f"bytes {first}-{last}/{len(data)}")
            self.send_header("Content-Length", str(len(body)))
            self.send_header("Accept-Ranges", "bytes")
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *arguments):
            pass

    handler = partial(Handler, directory=str(tmp_path))
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), handler) as http:
        http.daemon_threads = True
        threading.Thread(target=http.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{http.server_address[1]}", broken
        http.shutdown()


def test_a_connection_that_breaks_is_made_again(table, samples, tmp_path, server, monkeypatch):
    monkeypatch.setattr("finetune.data.shards.time.sleep", lambda _: None)
    as_parquet(table, tmp_path, files=1)
    address, broken = server
    (shard,) = read_footers([f"{address}/data/train-00000-of-00001.parquet"])
    broken += [0, 1, 0, 1, 1, 0]  # the last is asked first
    names = [row.values["name"] for row in read_rows([shard], ["name", "image"], 0, COUNT)]
    assert names == [sample["id"] for sample in samples]
    assert not broken
    broken += [1] * 1000
    with pytest.raises(UserError, match=r"train-00000-of-00001\.parquet: cannot be read"):
        list(read_rows([shard], ["name"], 0, COUNT))


def test_rows_by_range(table, tmp_path):
    """Every range of two files of uneven row groups, against slicing."""
    as_parquet(table, tmp_path)
    shards = hub_shards(str(tmp_path), "train")
    everything = table["name"][:]
    for first in range(COUNT + 1):
        for last in range(first, COUNT + 1):
            rows = list(read_rows(shards, ["name"], first, last))
            assert [row.values["name"] for row in rows] == everything[first:last]
    swapped = [row.values["name"] for row in read_rows(shards[::-1], ["name"], 2, 6)]
    assert swapped == (everything[4:] + everything[:4])[2:6]
    shutil.rmtree(tmp_path / "data")
    with pytest.raises(UserError, match=r"cannot be read as Parquet"):
        list(read_rows(shards, ["name"], 0, 1))
