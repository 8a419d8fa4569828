"""The folder to push: a stock model folder and its card, without private data."""

import json
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from finetune import segformer
from finetune.disk import alone_in, swap_folder, write_whole
from finetune.errors import UserError
from finetune.programs.push.card import PICTURES
from finetune.programs.push.evidence import Evidence, identity_of, public
from finetune.run.environment import SECRET_VALUE

AUTO_MAP = {
    f"AutoModel{task}": f"modeling.Segformer{task or 'Model'}"
    for task in ("", "ForSemanticSegmentation", "ForImageClassification")
}
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
KNOWN = {
    *("README.md", "config.json", "preprocessor_config.json", "recipe.yaml", WEIGHTS, INDEX),
    *(PICTURES, "onnx"),
}
"""Top-level names of a staged model folder, besides shards of weights and the model's code."""
SPACE = {"README.md", "app.py", "requirements.txt", "finetune", "examples"}
# A name such as hf_transfer or hf_landslides; tokens are longer, or have other characters too.
_NAME = re.compile(r"hf_[a-z]{8,19}")
_SHARD = re.compile(r"model-\d+-of-\d+\.safetensors")


def stage(evidence: Evidence, folder: Path, *, with_code: bool) -> None:
    """Copies the files of a model into an empty folder; the source is only read.

    Other files of the source are left out, since their owner may not want to publish them.

    Args:
        evidence: names the source.
        folder: empty.
        with_code: whether to add the model's code, for `trust_remote_code`.

    Raises:
        UserError: the weights are not safetensors, or a file cannot be read or written.
    """
    source = evidence.folder
    if (source / WEIGHTS).is_file():
        names = [WEIGHTS]
    elif (source / INDEX).is_file():
        names = [INDEX, *sorted(_shards(source / INDEX))]
    else:
        raise UserError(
            f"{source}: has no {WEIGHTS}. Weights are shared as safetensors, which run no code: "
            f"run `finetune convert {source} OUT`, then push OUT"
        )
    try:
        for name in [*names, "preprocessor_config.json"]:
            shutil.copyfile(source / name, folder / name)
        config = json.loads((source / "config.json").read_text(encoding="utf-8"))
        is_other = identity_of(source) != evidence.identity
    except OSError as error:
        raise UserError(
            f"cannot copy {source} to {folder}: {error.strerror or error}; free some space"
        ) from error
    if is_other:
        raise UserError(f"{source}: was replaced by a better one while it was read; push again")
    config.pop("auto_map", None)  # it names code of somebody, which is left out
    config.pop("_name_or_path", None)  # a path of this machine
    if with_code:
        config["auto_map"] = AUTO_MAP
        for file in code_files():
            write_whole(folder / file.name, file.read_bytes())
    write_whole(folder / "config.json", json.dumps(config, indent=2, ensure_ascii=False) + "\n")
    recipe = public(evidence)
    if recipe is not None:
        write_whole(folder / "recipe.yaml", recipe.to_yaml())


def code_files() -> list[Path]:
    """The model's modules; they import torch, transformers and each other only."""
    found = sorted(Path(segformer.__file__).parent.glob("*.py"))
    return [path for path in found if path.name not in ("__init__.py", "costs.py")]


def _shards(index: Path) -> set[str]:
    names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    if any(Path(name).name != name for name in names):
        raise UserError(f"{index}: names files in other folders; only files beside it are pushed")
    return names


def check_nothing_secret(folder: Path) -> None:
    """Raises a UserError if a text file to push seems to hold a token."""
    for path in sorted(folder.rglob("*")):
        if path.suffix in (".md", ".json", ".yaml", ".py", ".txt", ".html"):
            text = path.read_text(encoding="utf-8", errors="replace")
            if any(not _NAME.fullmatch(found[0]) for found in SECRET_VALUE.finditer(text)):
                raise UserError(
                    f"{path.relative_to(folder)} seems to hold a token of the Hub (hf_...), so "
                    "nothing is pushed. Remove it from the recipe, the class names or the card"
                )


# ---------------------------------------------------------------------------------------- folders


def files_of(folder: Path) -> dict[str, Path]:
    """The files of a folder by their names in the repository, without hidden ones."""
    names = {path.relative_to(folder): path for path in sorted(folder.rglob("*"))}
    return {
        name.as_posix(): path
        for name, path in names.items()
        if path.is_file() and not any(part.startswith(".") for part in name.parts)
    }


def check_dry_run(output: Path, model: Path, kind: str) -> None:
    """Raises a UserError unless a folder is new, empty, or the output of an earlier dry run.

    Args:
        output: the folder.
        model: the model folder to push.
        kind: model or space.
    """
    target = output.resolve()
    if target == model.resolve() or target in model.resolve().parents:
        raise UserError(f"-o {output}: holds the model itself; name a new folder")
    try:
        if not output.exists():
            return
        names = {path.name for path in output.iterdir()}
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise UserError(f"-o {output}: not a usable folder ({error}); name another") from error
    others = names - (SPACE if kind == "space" else KNOWN | {path.name for path in code_files()})
    others = {name for name in others if not _SHARD.fullmatch(name)}
    # Model folders hold no pictures of a card.
    mark = "app.py" if kind == "space" else PICTURES
    if names and (others or mark not in names):
        raise UserError(
            f"-o {output}: holds {min(others or names)}, which no dry run wrote; name a new folder"
        )


@contextmanager
def scratch_beside(target: Path, *, or_elsewhere: bool) -> Iterator[Path]:
    """An empty folder beside `target`, on its file system; it is deleted after the block.

    Args:
        target: a folder; it need not exist.
        or_elsewhere: whether to take the system's temporary folder if nothing can be written
            beside `target`.

    Raises:
        UserError: nothing can be written there, or another push is using it.
    """
    target = target.resolve()
    folder = target.with_name(f".{target.name}.push")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        if not or_elsewhere:
            raise UserError(f"-o {target}: cannot be made ({error.strerror})") from error
        with tempfile.TemporaryDirectory(prefix="finetune-push-") as other:
            yield Path(other)
        return
    with alone_in(folder, f"{target}: another push is sending it; wait until that push ends"):
        for left in folder.iterdir():  # by a push that was killed
            shutil.rmtree(left) if left.is_dir() else left.unlink()
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def put_in_place(staged: Path, output: Path) -> None:
    """Renames a staged folder, on the same file system, to `output`, whole or not at all."""
    try:
        swap_folder(staged, output.resolve())
    except OSError as error:
        raise UserError(
            f"-o {output}: cannot be written ({error.strerror or error}); free some space, or name "
            "another folder"
        ) from error
