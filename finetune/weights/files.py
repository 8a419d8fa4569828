"""Readers of weight files that make only tensors and plain containers and run no code."""

import re
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from finetune.errors import UserError


def opened(path: Path, what: str) -> Any:
    """The content of a weight file, as tensors and plain containers; no code in it is run."""
    try:
        with path.open("rb") as file:
            start = file.read(64)
    except OSError as error:
        raise UserError(f"{what}: cannot be read ({error.strerror})") from error
    if not start:
        raise UserError(f"{what}: the file is empty; download it again")
    if start.startswith(b"version https://git-lfs"):
        raise UserError(f"{what}: a Git LFS pointer; `git lfs pull` downloads the file")
    try:
        if path.suffix.lower() == ".safetensors":
            return safetensors.torch.load_file(path)
        # Mapped tensors stay on disk until they are read; an optimizer's state never is.
        mapped = zipfile.is_zipfile(path)
        if mapped:
            with zipfile.ZipFile(path) as archive:
                _check_stored(archive, path, what)
                # torch compares no checksums
                if (damaged := archive.testzip()) is not None:
                    raise ValueError(f"wrong checksum of {damaged}")
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Detected pickle protocol")
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except UserError:
        raise
    except Exception as error:  # foreign files: readers raise anything, KeyError too
        said = str(error)
        wanted = re.search(r"GLOBAL ([\w.]+)", said)
        pickled = start[:1] == b"\x80" and "Unsupported operand" in said
        if wanted or pickled or "TorchScript" in said:
            thing = wanted[1] if wanted else "a pickle or script that torch.save did not write"
            raise UserError(
                f"{what}: holds more than plain tensors and text ({thing}), which could run code. "
                "It was not opened, and nothing was run. If you trust it, load it where it was "
                "made and save its tensors alone: "
                "torch.save({'state_dict': checkpoint['state_dict']}, 'weights.pth')"
            ) from error
        raise UserError(
            f"{what}: the file is damaged, truncated, or holds no weights. Download it again, and "
            "compare its size or checksum with the source's"
        ) from error


def _check_stored(archive: zipfile.ZipFile, path: Path, what: str) -> None:
    """Refuses archives with compressed or overlapping members, by the directory alone.

    A compressed member can be many times its size when read, and mapping would misread it.
    """
    members = archive.infolist()
    packed = [member for member in members if member.compress_type != zipfile.ZIP_STORED]
    size = path.stat().st_size
    if packed:
        raise UserError(
            f"{what}: {packed[0].filename} in it is compressed, which torch.save never does, so it "
            "was not unpacked. If you trust it, save it again: "
            "torch.save(torch.load('weights.pth', weights_only=True, mmap=False), 'stored.pth')"
        )
    if sum(member.file_size for member in members) > size:
        raise UserError(
            f"{what}: its members claim more than the {size} bytes of the file, which torch.save "
            "never does. Download it again from a source that you trust"
        )


def tensors_of(content: Any, what: str) -> dict[str, Tensor]:
    """The tensors by name, taken out of the containers around them."""
    for wrapper in ("state_dict", "model"):
        if isinstance(content, Mapping) and isinstance(content.get(wrapper), Mapping):
            content = content[wrapper]
    if not isinstance(content, Mapping) or not content:
        found = "nothing" if isinstance(content, Mapping) else type(content).__name__
        raise UserError(f"{what}: holds no state_dict, but {found}")
    if not all(isinstance(k, str) and isinstance(v, Tensor) for k, v in content.items()):
        raise UserError(
            f"{what}: holds no state_dict, but other values than tensors by name. Its first names "
            f"are {', '.join(map(str, list(content)[:4]))}"
        )
    for name, tensor in content.items():
        # With strides of zero, a few bytes may claim to be a tensor of any size.
        plain = tensor.layout == torch.strided and tensor.device.type == "cpu"
        if not plain or tensor.numel() * tensor.itemsize > tensor.untyped_storage().nbytes():
            raise UserError(f"{what}: {name} is not a dense tensor that stores each number")
    tensors = {name: tensor.detach() for name, tensor in content.items()}
    while all(name.startswith("module.") for name in tensors):  # DataParallel's
        tensors = {name.removeprefix("module."): tensor for name, tensor in tensors.items()}
    return tensors


def classes_of(content: Any, count: int) -> tuple[Any, Any]:
    """Names and colours of the classes, if their number equals the head's."""
    meta = content.get("meta") if isinstance(content, Mapping) else None
    if not isinstance(meta, Mapping):
        return None, None
    newer = meta.get("dataset_meta")
    newer = newer if isinstance(newer, Mapping) else {}
    names = meta.get("CLASSES") or newer.get("classes")
    if not (isinstance(names, list | tuple) and all(isinstance(name, str) for name in names)):
        return None, None
    names = tuple(name.strip() for name in names)
    if len(names) != count or len({*names}) != count or not all(names):
        return None, None
    colors = as_colors(meta.get("PALETTE") or newer.get("palette"))
    return names, colors if colors is not None and len(colors) == count else None


def as_colors(found: Any) -> tuple[tuple[int, int, int], ...] | None:
    """A list of [R, G, B], 0 to 255 each, as tuples; None for anything else."""
    if not isinstance(found, list | tuple):
        return None
    if not all(isinstance(color, list | tuple) and len(color) == 3 for color in found):
        return None
    if not all(type(value) is int and 0 <= value <= 255 for color in found for value in color):
        return None
    return tuple((color[0], color[1], color[2]) for color in found)
