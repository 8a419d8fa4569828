"""Data sets of the Hub, and Parquet and Arrow that `datasets` writes, here or in a bucket.

They are opened as a whole table or, for streaming, file by file (`finetune.data.shards`).
"""

import json
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

import datasets
import fsspec

from finetune.data.columns import Columns, table_samples
from finetune.data.shards import Shard, read_footers
from finetune.errors import UserError, first_line
from finetune.labels.translation import Labels

T = TypeVar("T")


def hub(
    path: str,
    split: str,
    labels: Labels,
    columns: Columns,
    *,
    revision: str | None = None,
    subset: str | None = None,
) -> datasets.Dataset:
    """A split as Samples.

    Args:
        path: A Hub id, a folder of Parquet files or of `save_to_disk`, or the address of a folder
            of Parquet files that fsspec understands, such as s3://bucket/set.
        split: The split's name.
        labels: What mask values mean.
        columns: The columns of images, masks and ids.
        revision: Branch, tag or commit of a Hub id.
        subset: One of a repository's subsets ("config" in `datasets`).

    Raises:
        UserError: There is no such data set, split or column.
    """
    table = open_table(path, split, revision=revision, subset=subset)
    return table_samples(table, labels, columns, f"{path} ({split})")


def open_table(
    path: str, split: str, *, revision: str | None = None, subset: str | None = None
) -> datasets.Dataset:
    """A split as `datasets` opens it; arguments as for `hub`.

    Raises:
        UserError: There is no such data set or split.
    """
    return _opened(path, split, revision, subset, streaming=False)


def _opened(
    path: str, split: str, revision: str | None, subset: str | None, *, streaming: bool
) -> Any:
    if (saved := _saved(path)) is not None:
        _check_split(path, split, saved)
        return saved[split]
    options: dict[str, Any] = {"split": split, "streaming": streaming}
    if "://" in path or read_index(path) is not None:
        options |= {"path": "parquet", "data_files": {split: shard_addresses(path, split)}}
    else:
        if not streaming:
            _check_split(path, split, split_names(path, revision=revision, subset=subset))
        options |= {"path": _local(path), "name": subset, "revision": revision}
        options["verification_mode"] = "no_checks"
    return _asked(path, lambda: datasets.load_dataset(**options))


def hub_shards(
    path: str, split: str, *, revision: str | None = None, subset: str | None = None
) -> list[Shard]:
    """The Parquet files of a split, by name; arguments as for `hub`.

    Raises:
        UserError: There is no such data set or split, or it is not kept as Parquet.
    """
    if _saved(path) is not None:
        raise UserError(
            f"data.streaming: save_to_disk wrote {path}, which cannot be streamed. Set "
            "data.streaming=false."
        )
    if (index := read_index(path)) is not None:
        _check_split(path, split, index.splits)
        return index.splits[split]
    if "://" in path:
        return read_footers(shard_addresses(path, split))
    files = _data_files(path, revision, subset)
    _check_split(path, split, files)
    addresses = sorted(files[split])
    if others := [file for file in addresses if not file.endswith(".parquet")]:
        raise UserError(
            f"data.streaming: {others[0]} is not a Parquet file, which streaming needs. Set "
            "data.streaming=false, or write Parquet with `finetune pack`."
        )
    return read_footers(addresses)


def split_names(path: str, *, revision: str | None = None, subset: str | None = None) -> list[str]:
    """The names of a data set's splits; arguments as for `hub`.

    Raises:
        UserError: There is no such data set.
    """
    if (saved := _saved(path)) is not None:
        return list(saved)
    if (index := read_index(path)) is not None:
        return list(index.splits)
    if "://" in path:
        return _splits_at(path)
    return list(_data_files(path, revision, subset))


def first_rows(
    path: str, split: str, count: int, *, revision: str | None = None, subset: str | None = None
) -> tuple[datasets.Features, list[dict[str, Any]]]:
    """The columns and the first rows of a split, with encoded pictures. Other rows are not read.

    Raises:
        UserError: There is no such data set or split.
    """
    data = _opened(path, split, revision, subset, streaming=True)
    for name, feature in (data.features or {}).items():
        if isinstance(feature, datasets.Image):
            data = data.cast_column(name, datasets.Image(decode=False))
    return data.features, _asked(path, lambda: list(data.take(count)))


def shard_addresses(path: str, split: str) -> list[str]:
    """The Parquet files of a split in a folder of any file system.

    They come from the index of `finetune pack`, so that a folder that cannot be listed works too,
    or from `datasets`' own patterns.

    Raises:
        UserError: The folder cannot be reached, or holds none.
    """
    if (index := read_index(path)) is not None:
        _check_split(path, split, index.splits)
        return [shard.address for shard in index.splits[split]]
    patterns = [f"data/{split}-*.parquet", f"{split}-*.parquet", f"{split}/*.parquet"]
    patterns.append(f"{split}.parquet")
    for pattern in patterns:
        if files := _globbed(path, pattern):
            return [address for address, _ in files]
    raise UserError(
        f"data.path: {path} holds no Parquet files of the split {split!r} (looked for "
        f"{', '.join(patterns)})."
    )


def _splits_at(path: str) -> list[str]:
    """The splits of a folder of any file system, in the patterns of `shard_addresses`."""
    names: dict[str, None] = {}  # an ordered set
    for _, file in [*_globbed(path, "*.parquet"), *_globbed(path, "*/*.parquet")]:
        is_shard = str(file.parent) in (".", "data")
        names[file.stem.partition("-")[0] if is_shard else file.parent.name] = None
    if not names:
        raise UserError(f"data.path: {path} holds no Parquet files.")
    return list(names)


def _globbed(path: str, pattern: str) -> list[tuple[str, PurePosixPath]]:
    """Addresses and relative paths of the files of a folder of any file system."""

    def found() -> list[tuple[str, PurePosixPath]]:
        system, folder = fsspec.core.url_to_fs(path.rstrip("/"))
        files = sorted(system.glob(f"{folder}/{pattern}"))
        return [(system.unstrip_protocol(f), PurePosixPath(f).relative_to(folder)) for f in files]

    return _asked(path, found)


@dataclass(frozen=True)
class Index:
    """The index that `finetune pack` writes."""

    splits: dict[str, list[Shard]]
    labels: dict[str, Any]
    """A `labels:` block."""


def read_index(path: str) -> Index | None:
    """The index of a pack, here or elsewhere; None for any other folder.

    Raises:
        UserError: The pack is not finished, its index is damaged, or a file differs from it.
    """
    is_here = "://" not in path
    root = str(Path(path).expanduser().absolute()) if is_here else path.rstrip("/")
    if is_here and not Path(root).is_dir():
        return None
    try:
        with fsspec.open(f"{root}/index.json", "rt", encoding="utf-8") as file:
            content = json.load(file)
    except (FileNotFoundError, NotADirectoryError):
        if is_here and (Path(root) / ".pack.json").is_file():
            raise UserError(
                f"data.path: {path} is an unfinished pack. Run `finetune pack` again."
            ) from None
        return None
    except json.JSONDecodeError:
        return None
    except Exception as error:  # each file system raises its own
        raise _not_opened(root, error) from error
    if not isinstance(content, dict) or "finetune" not in content:
        return None
    try:
        splits = {
            str(split): [_indexed(root, shard, is_here) for shard in entry["shards"]]
            for split, entry in content["splits"].items()
        }
        Labels.build(**content["labels"])
        return Index(splits, content["labels"])
    except UserError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{root}/index.json: is damaged ({error!r}). Pack again.") from error


def _indexed(root: str, entry: dict[str, Any], is_here: bool) -> Shard:
    name = str(entry["file"])
    if name.startswith(("/", ".")) or ".." in name.split("/") or "://" in name or "\\" in name:
        raise UserError(f"{root}/index.json: {name!r} lies outside its folder. Pack again.")
    if is_here:
        file = Path(root) / name
        if not file.is_file() or file.stat().st_size != entry["bytes"]:
            raise UserError(f"{file}: differs from {root}/index.json. Run `finetune pack` again.")
    return Shard(f"{root}/{name}", tuple(int(rows) for rows in entry["row_groups"]))


def _data_files(path: str, revision: str | None, subset: str | None) -> dict[str, list[str]]:
    builder = _asked(
        path, lambda: datasets.load_dataset_builder(_local(path), subset, revision=revision)
    )
    files = builder.config.data_files
    if not isinstance(files, dict) or not files:
        raise UserError(f"data.path: {path} holds no files that `datasets` reads without a script.")
    # `datasets` gives names such as validation a class of its own.
    return {str(name): [str(file) for file in found] for name, found in files.items()}


def _asked(path: str, ask: Callable[[], T]) -> T:
    """The answer of `datasets` or a file system; its failure becomes a message of one line."""
    try:
        return ask()
    except UserError:
        raise
    except Exception as error:  # readers of networks and of others' files raise anything
        raise _not_opened(path, error) from error


def _not_opened(path: str, error: Exception) -> UserError:
    reason, hint = first_line(error), ""
    if "Config name is missing" in reason:
        names = " ".join(str(error).strip().splitlines()[1:])
        return UserError(f"data.subset: {path} has several subsets; name one. {names}")
    if "://" not in path and not Path(path).expanduser().exists():
        hint = " A Hub id is owner/name; private sets need `hf auth login`."
        if os.environ.get("HF_HUB_OFFLINE", "0") not in ("", "0"):
            hint += " HF_HUB_OFFLINE is set: only cached data sets can be opened."
    return UserError(f"data.path: {path} cannot be opened ({reason}).{hint}")


def _check_split(path: str, split: str, names: Iterable[str]) -> None:
    if split not in (names := list(names)):
        raise UserError(
            f"data: {path} has no split {split!r}; there are {', '.join(names)}. Set "
            "data.train_split and data.val_split."
        )


def _local(path: str) -> str:
    expanded = Path(path).expanduser()
    return str(expanded) if expanded.exists() else path


def _saved(path: str) -> dict[str, datasets.Dataset] | None:
    """The splits of a folder that `save_to_disk` wrote, None for any other."""
    folder = Path(path).expanduser()
    if not any((folder / name).is_file() for name in ("dataset_dict.json", "state.json")):
        return None
    saved = _asked(path, lambda: datasets.load_from_disk(str(folder)))
    return saved if isinstance(saved, dict) else {str(saved.split or "train"): saved}
