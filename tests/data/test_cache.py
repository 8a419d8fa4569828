"""The cache of decoded samples: always the same bits, whatever happens to its file."""

import os
import resource
import signal
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image
from torch.utils.data import DataLoader

from finetune.augment import TrainTransform
from finetune.data import cache, slots
from finetune.data import samples as reading
from finetune.data.cache import CachedSamples, cache_folder, describe
from finetune.data.loader import train_loader
from finetune.data.masks import PictureMasks
from finetune.data.order import GlobalOrder
from finetune.data.samples import with_channels
from finetune.data.sources.folders import image_folder
from finetune.errors import UserError
from finetune.labels.translation import Labels

LABELS = Labels.build(["a", "b", "c"])
COUNT = 8


def write_pair(root: Path, index: int, seed: int, size: tuple[int, int] | None = None) -> None:
    rng = np.random.default_rng(seed)
    height, width = size or (20 + index, 31)
    for kind, array in (
        ("images", rng.integers(0, 256, (height, width, 3), np.uint8)),
        ("masks", rng.choice([0, 1, 2, 255], (height, width)).astype(np.uint8)),
    ):
        path = root / f"{kind}/train/{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(array).save(path)


@pytest.fixture
def root(tmp_path, monkeypatch):
    """A set of eight pairs of several sizes, and a cache folder of its own."""
    monkeypatch.setenv("FINETUNE_CACHE", str(tmp_path / "cache"))
    for index in range(COUNT):
        write_pair(tmp_path / "set", index, index)
    return tmp_path / "set"


def rows(root: Path):
    return image_folder(root, "train", LABELS)


def opened(root: Path, mode="auto", labels=LABELS) -> CachedSamples:
    return CachedSamples(image_folder(root, "train", labels), mode)


def content(samples) -> list[tuple]:
    arrays = [(s["image"], s["mask"], s["id"]) for s in (samples[i] for i in range(len(samples)))]
    return [(i.shape, i.tobytes(), m.dtype, m.tobytes(), name) for i, m, name in arrays]


def the_file() -> Path:
    (path,) = cache_folder().glob("*.samples")
    return path


@pytest.fixture
def decoded(monkeypatch) -> list[str]:
    """The names of the images that are decoded from now on."""
    names: list[str] = []
    read = reading.read_image

    def counted(path, *rest):
        names.append(path.name)
        return read(path, *rest)

    monkeypatch.setattr(reading, "read_image", counted)
    return names


# The same bits


def test_the_same_samples_with_and_without_cold_and_warm(root, decoded):
    expected = content(rows(root))
    assert content(opened(root, "none")) == expected
    assert not cache_folder().exists()
    cold = opened(root)
    decoded.clear()
    assert content(cold) == expected
    assert len(decoded) == COUNT
    decoded.clear()
    for warm in (cold, opened(root), opened(root, "disk")):
        assert content(warm) == expected
    assert not decoded
    assert not warm[0]["image"].flags.writeable


def test_more_than_255_classes(root):
    labels = Labels.build([str(i) for i in range(300)], ignore=[65535])
    for path in sorted((root / "masks/train").iterdir()):
        mask = np.array(Image.open(path)).astype(np.uint16)
        mask[0, 0] = 65535
        Image.fromarray(mask).save(path)
    expected = content(image_folder(root, "train", labels))
    assert content(opened(root, labels=labels)) == expected  # cold
    warm = opened(root, labels=labels)
    assert content(warm) == expected
    assert warm[0]["mask"].dtype == np.uint16
    assert all(warm[i]["mask"].flags.aligned for i in range(COUNT))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("channels", [1, 2, 4, 6])
def test_any_number_of_channels_in_eight_and_sixteen_bit(root, decoded, channels, dtype):
    rng = np.random.default_rng(0)
    for path in sorted((root / "images/train").iterdir()):
        height, width = np.array(Image.open(path)).shape[:2]
        array = rng.integers(0, np.iinfo(dtype).max, (channels, height, width), dtype, True)
        tifffile.imwrite(path.with_suffix(".tif"), array, photometric="minisblack")
        path.unlink()
    samples = with_channels(image_folder(root, "train", LABELS), channels)
    expected = content(samples)
    decoded.clear()
    cold = CachedSamples(samples, "auto")
    assert content(cold) == expected
    assert len(decoded) == COUNT
    reopen, arguments = cold.slots.__reduce__()  # as a worker does that is not forked
    elsewhere = CachedSamples(samples, "none")
    elsewhere.slots = reopen(*arguments)
    for warm in (cold, CachedSamples(samples, "disk"), elsewhere):
        assert content(warm) == expected
        assert warm[0]["image"].dtype == dtype
        assert all(warm[i]["image"].flags.aligned for i in range(COUNT))
    assert len(decoded) == COUNT


def test_other_channels_are_another_set(root):
    grey = with_channels(rows(root), 1)
    expected = content(rows(root)), content(grey)
    for _ in range(2):
        assert content(CachedSamples(rows(root), "auto")) == expected[0]
        assert content(CachedSamples(grey, "auto")) == expected[1]
    assert len(list(cache_folder().glob("*.samples"))) == 2


@pytest.mark.slow
def test_the_same_crops_with_any_cache_and_any_number_of_workers(root):
    def crops(samples, workers, first=0):
        transform = TrainTransform((16, 16), ignore_index=255, image_fill=(0, 0, 0))
        order = GlobalOrder(
            COUNT,
            seed=3,
            micro_batch=4,
            accumulation=1,
            rank=0,
            world_size=1,
            first_step=first,
            last_step=5,
        )
        loader = train_loader(samples, transform, order, workers=workers, pin_memory=False)
        return [
            (b["pixel_values"].numpy().tobytes(), b["labels"].numpy().tobytes(), b["ids"])
            for b in loader
        ]

    expected = crops(rows(root), 0)
    assert len({pixels for pixels, _, _ in expected}) == 5
    for workers in (0, 2, 3):
        for mode in ("none", "auto", "disk"):
            assert crops(opened(root, mode), workers) == expected  # the first of these is cold
    the_file().unlink()
    assert crops(opened(root), 2) == expected  # filled by two workers at once
    assert crops(opened(root), 2, first=2) == expected[2:]  # a resume


@pytest.mark.slow  # a spawned worker imports torch
@pytest.mark.parametrize("context", ["fork", "spawn"])
def test_workers_fill_and_read_the_file_of_the_main_process(root, context):
    expected = [pixels for _, pixels, *_ in content(rows(root))]
    samples = opened(root)
    loader = DataLoader(samples, batch_size=None, num_workers=1, multiprocessing_context=context)
    for _ in range(2):
        assert [np.asarray(sample["image"]).tobytes() for sample in loader] == expected
    assert all(samples.slots._record(index) for index in range(COUNT))


# Source files change


@pytest.mark.parametrize("kind", ["images", "masks"])
def test_a_changed_source_is_read_again_at_once_and_after(root, kind, decoded):
    samples = opened(root)
    before = content(samples)
    path = root / f"{kind}/train/3.png"
    old = path.stat()
    array = np.array(Image.open(path))
    Image.fromarray(np.roll(array, 1, 0)).save(path)
    os.utime(path, ns=(old.st_atime_ns, old.st_mtime_ns + 1))  # a nanosecond is enough
    expected = content(rows(root))
    assert expected != before
    for again in (samples, samples, opened(root), opened(root)):
        assert content(again) == expected
    decoded.clear()
    assert content(opened(root)) == expected
    assert not decoded  # and it is kept from the next run on


def test_a_source_of_another_size(root):
    samples = opened(root)
    content(samples)
    write_pair(root, 3, seed=99, size=(40, 50))
    expected = content(rows(root))
    for again in (samples, opened(root), opened(root)):
        assert content(again) == expected


def test_the_old_file_stays_for_who_reads_it(root):
    samples = opened(root)
    content(samples)
    kept = samples[0]["image"]
    before = kept.copy()
    write_pair(root, 0, seed=99)
    newer = opened(root)
    content(newer)
    assert np.array_equal(kept, before)
    assert newer.slots.generation != samples.slots.generation


def test_other_labels_are_another_set(root):
    other = Labels.build(["a", "b"], map={0: 1, 1: 0, 2: 0, 255: None})
    content(opened(root))
    assert content(opened(root, labels=other)) == content(image_folder(root, "train", other))
    assert len(list(cache_folder().glob("*.samples"))) == 2


def test_bad_files_are_named_as_without_a_cache(root):
    samples = opened(root)
    (root / "images/train/2.png").write_bytes(b"rubbish")
    (root / "masks/train/4.png").unlink()
    Image.fromarray(np.full((25, 31), 9, np.uint8)).save(root / "masks/train/5.png")
    for index in (2, 4, 5):
        paths = root / f"images/train/{index}.png", root / f"masks/train/{index}.png"
        with pytest.raises(UserError) as expected:
            reading.ReadSamples(LABELS, PictureMasks(of_ids=True)).read(*map(str, paths))
        for _ in range(2):
            with pytest.raises(UserError) as found:
                samples[index]
            assert str(found.value) == str(expected.value)


# Damage


def damage(path: Path, kind: str) -> None:
    data = path.read_bytes()
    records = slots._HEADER.size + COUNT * slots._TABLE.itemsize
    places = {
        "key": 20,
        "depth": 32,
        "table": slots._HEADER.size + 2,
        "record": records + 5,
        "pixels": len(data) - 1000,
    }
    if kind == "empty":
        data = b""
    elif kind == "truncated":
        data = data[: len(data) // 2]
    elif kind == "header only":
        data = data[: slots._HEADER.size - 5]
    else:
        changed = bytearray(data)
        changed[places[kind]] ^= 0x55
        data = bytes(changed)
    path.write_bytes(data)


@pytest.mark.parametrize(
    "kind",
    ["key", "depth", "table", "record", "pixels", "empty", "truncated", "header only"],
)
def test_damage_is_not_read_but_mended(root, kind, decoded):
    expected = content(opened(root))
    damage(the_file(), kind)
    assert content(opened(root)) == expected
    decoded.clear()
    assert content(opened(root)) == expected
    assert not decoded


def fill_slowly(root: Path, rounds: int = 1) -> int:
    """Starts a process that pauses in the middle of and after each write; returns its id."""
    child = os.fork()
    if child:
        return child
    write = slots.Slots._write

    def write_in_parts(self, data, position):
        data = bytes(memoryview(data).cast("B"))
        for part in (data[: len(data) // 2], data[len(data) // 2 :]):
            write(self, part, position)
            position += len(part)
            time.sleep(0.002)

    slots.Slots._write = write_in_parts
    status = 1
    try:
        for _ in range(rounds):
            content(opened(root))
        status = 0
    finally:
        os._exit(status)


@pytest.mark.slow
def test_killed_while_filling(root, decoded):
    expected = content(rows(root))
    partly = 0
    for milliseconds in range(2, 1000, 6):  # on a busy machine it takes longer to begin
        if partly > 3:
            break
        child = fill_slowly(root)
        time.sleep(milliseconds / 1000)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        if list(cache_folder().glob("*.samples")):
            data = the_file().read_bytes()
            assert content(opened(root)) == expected
            partly += the_file().read_bytes() != data  # there was something left to fill
            decoded.clear()
            assert content(opened(root)) == expected
            assert not decoded
            the_file().unlink()
    assert partly > 3


def test_several_processes_fill_at_once(root):
    expected = content(rows(root))
    children = [fill_slowly(root, rounds=2) for _ in range(3)]
    assert content(opened(root)) == expected
    assert [os.waitpid(child, 0)[1] for child in children] == [0, 0, 0]
    assert len(list(cache_folder().iterdir())) == 2  # one file, and the folder's lock
    assert content(opened(root)) == expected


# Limits


def in_a_child(function) -> str:
    """Runs it in a forked process, whose limits end with it; returns what it returned."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.write(writer, str(function()).encode())
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as stream:
        result = stream.read()
    os.waitpid(child, 0)
    return result


def test_a_full_disk_ends_caching_with_one_warning(root):
    # The limit on a file's size stands for the disk's end: pwrite fails in the same way.
    expected = content(rows(root))

    def fill() -> str:
        samples = opened(root)
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        half = samples.slots.size // 2
        resource.setrlimit(resource.RLIMIT_FSIZE, (half, resource.RLIM_INFINITY))
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            same = [content(samples) == expected for _ in range(2)]
        there = sum(samples.slots._record(i) is not None for i in range(COUNT))
        messages = [str(warning.message) for warning in caught]
        return f"{same} {0 < there < COUNT} {len(messages)} {messages[0]}"

    result = in_a_child(fill)
    assert result.startswith("[True, True] True 1 no more decoded images are kept")
    assert "data.cache=none" in result
    assert content(opened(root)) == expected  # with room again, the rest is filled


def test_the_reserve_is_left_to_others(root, monkeypatch):
    """Whatever fills the disk while a training goes on, the cache leaves room for a checkpoint."""
    samples = opened(root)
    samples[0]
    monkeypatch.setattr(slots, "RESERVE", 2**62)
    with pytest.warns(UserWarning, match="GB are free") as caught:
        assert content(samples) == content(rows(root))
    assert len(caught) == 1
    assert [samples.slots._record(i) is not None for i in range(COUNT)] == [True] + [False] * 7


def test_processes_that_begin_a_file_at_once_share_it(root, monkeypatch):
    """While headers are read, without the lock, another process has begun the file."""
    others = []
    sizes_of = cache.upright_sizes

    def slowly(rows):
        if not others:
            others.append(None)
            others[0] = opened(root)
        return sizes_of(rows)

    monkeypatch.setattr(cache, "upright_sizes", slowly)
    assert opened(root).slots.generation == others[0].slots.generation


def test_a_folder_of_no_use(tmp_path, root, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("FINETUNE_CACHE", str(tmp_path / "file" / "below"))
    with pytest.warns(UserWarning, match="not kept: .*file/below") as caught:
        samples = opened(root)
    assert len(caught) == 1
    assert content(samples) == content(rows(root))
    with pytest.raises(UserError, match=r"data\.cache=disk: .*FINETUNE_CACHE"):
        opened(root, "disk")


def test_a_read_only_folder(root, monkeypatch):
    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(cache, "begin", refuse)  # root may write anywhere, modes or not
    with pytest.warns(UserWarning, match="Permission denied") as caught:
        samples = opened(root)
    assert len(caught) == 1
    assert content(samples) == content(rows(root))


def sizes(monkeypatch, *, free: float, memory: float) -> None:
    usage = type("Usage", (), {"free": int(free)})
    monkeypatch.setattr(cache.shutil, "disk_usage", lambda _: usage)
    monkeypatch.setattr(cache, "_memory", lambda: int(memory))


def test_auto_keeps_what_fits_into_disk_and_memory(root, monkeypatch):
    need = opened(root).slots.size
    the_file().unlink()
    for free, memory, reason in (
        (3.9 * need, 1e12, "a quarter of the free disk"),
        (1e12, 1.9 * need, "half of the memory"),
    ):
        sizes(monkeypatch, free=free, memory=memory)
        samples = opened(root)
        assert samples.slots is None
        assert reason in samples.refusal
        assert "data.cache=disk" in describe(samples)
        assert not list(cache_folder().glob("*.samples"))
        assert content(samples) == content(rows(root))
    sizes(monkeypatch, free=4.1 * need, memory=2.1 * need)
    assert opened(root).slots is not None


def test_disk_says_what_it_lacks(root, monkeypatch):
    sizes(monkeypatch, free=cache.RESERVE + 10_000, memory=1)
    with pytest.raises(UserError, match=r"data\.cache=disk: .* take \d.* MB, more than"):
        opened(root, "disk")
    sizes(monkeypatch, free=cache.RESERVE + 1e9, memory=1)
    assert opened(root, "disk").slots is not None


def test_the_least_recently_used_makes_room_but_never_one_in_use(tmp_path, root, monkeypatch):
    files = {}
    for age, name in enumerate(["newest", "used", "oldest"]):
        for index in range(COUNT):
            write_pair(tmp_path / name, index, index)
        before = set(cache_folder().glob("*.samples")) if cache_folder().exists() else set()
        samples = opened(tmp_path / name)
        files[name] = (set(cache_folder().glob("*.samples")) - before).pop()
        if name == "used":
            used = samples
        os.utime(files[name], (1000 - 10 * age, 1000 - 10 * age))
    os.utime(files["used"], (1, 1))  # the oldest of all, but open
    del samples
    need = files["used"].stat().st_size
    sizes(monkeypatch, free=4 * 3.5 * need, memory=1e12)
    assert opened(root).slots is not None
    assert not files["oldest"].exists()
    assert files["newest"].exists()
    assert files["used"].exists()
    assert content(used) == content(rows(tmp_path / "used"))
    # one more does not fit beside two that are used
    keep = opened(root)
    sizes(monkeypatch, free=4 * 2.5 * need, memory=1e12)
    for index in range(COUNT):
        write_pair(tmp_path / "more", index, index)
    refused = opened(tmp_path / "more")
    assert refused.slots is None
    assert "other runs" in refused.refusal
    assert not files["newest"].exists()
    assert keep.slots is not None


def test_what_it_says(root, monkeypatch):
    samples = opened(root)
    line = describe(samples, opened(root, "none"))
    assert str(cache_folder()) in line
    assert "MB" in line
    assert "data.cache=none" in line
    assert "\n" not in line
    assert describe(opened(root, "none")) == ""


def test_where_it_is(monkeypatch, tmp_path):
    monkeypatch.setenv("FINETUNE_CACHE", str(tmp_path / "own"))
    assert cache_folder() == tmp_path / "own"
    monkeypatch.delenv("FINETUNE_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "finetune/decoded"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache/finetune/decoded"
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)  # as of a user without a home
    assert cache_folder() == Path(tempfile.gettempdir()) / "finetune/decoded"
