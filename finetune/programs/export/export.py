"""A trained model as files that run without PyTorch: the program behind `finetune export`.

`graph` writes what exporters can read of the model, `check` compares each file with it, `quantise`
makes 8 bit of it, `table` measures, `web` writes a page. What is written beside config.json and
preprocessor_config.json is what transformers.js looks for:

    onnx/model.onnx             logits, float32
    onnx/model_quantized.onnx   logits, 8 bit inside (--int8)
    onnx/model_fp16.onnx        logits, 16 bit inside (--fp16)
    onnx/model_labels.onnx      class ids at the size of pixel_values, that was shown (--labels)
    model.pt2                   logits, for torch.export.load (--pt2)
"""

import filecmp
import warnings
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory, gettempdir

import torch
from transformers.utils import cached_file

from finetune.disk import write_whole
from finetune.errors import UserError
from finetune.inference import Segmenter
from finetune.programs.export.check import Check, check, run_in, session, sizes_of
from finetune.programs.export.graph import (
    PlainForm,
    digest_of,
    facts_of,
    save_pt2,
    smallest_side_of_pt2,
    to_onnx,
    trace,
    with_labels,
)
from finetune.programs.export.web import check_apart, check_page, write_page
from finetune.recipe import Recipe
from finetune.run.screen import progress_bar
from finetune.segformer.configuration import smallest_side
from finetune.trainers.tasks import task_of

PACKAGES = ("onnx", "onnxruntime", "onnxscript")
FILES = {
    "onnx": "onnx/model.onnx",
    "int8": "onnx/model_quantized.onnx",
    "fp16": "onnx/model_fp16.onnx",
    "labels": "onnx/model_labels.onnx",
    "pt2": "model.pt2",
}
"""The forms that a model can take, and where transformers.js looks for those that it knows."""
CALIBRATION = 64
"""Training images that give 8 bit its ranges."""
COPIED = ("config.json", "preprocessor_config.json", "model.safetensors", "README.md")
"""What else a folder needs to be a model's, for transformers.js and for stock transformers."""


@dataclass(frozen=True)
class Exported:
    """One file.

    Attributes:
        form: a key of `FILES`.
        path: where it is.
        bytes: its size.
        check: how it compares with the model.
    """

    form: str
    path: Path
    bytes: int
    check: Check


@dataclass(frozen=True)
class Options:
    """What is wanted beside `onnx/model.onnx`."""

    labels: bool = False
    int8: bool = False
    fp16: bool = False
    pt2: bool = False
    web: Path | None = None
    web_runtime: Path | None = None
    calibration: int | None = None
    """Training images for `int8`; None: `CALIBRATION`."""
    scores: bool = False
    """Whether the recipe's validation split is going to be read, and had better be there."""

    @property
    def forms(self) -> list[str]:
        """What is to be written, keys of `FILES`."""
        return ["onnx", *(form for form in FILES if getattr(self, form, False))]


def need_packages() -> None:
    """Raises a UserError that says what to install, if something is missing."""
    missing = [name for name in PACKAGES if find_spec(name) is None]
    if missing:
        raise UserError(
            f"export needs {', '.join(missing)}: pip install 'segformer-finetune[export]'"
        )


def export(
    model: str,
    output: Path | None = None,
    options: Options | None = None,
    recipe: Recipe | None = None,
) -> tuple[Segmenter, list[Exported]]:
    """Writes a model's files, each only after it has been compared with the model.

    Args:
        model: a folder or Hub id.
        output: the folder that is to hold them; None: the model's own.
        options: which files.
        recipe: whose training images 8 bit is calibrated on; must be of the model's classes.

    Returns:
        The model, and the files in the order of `FILES`.

    Raises:
        UserError: it cannot be read, or a file cannot be written or is somebody else's.
    """
    need_packages()
    options = options or Options()
    if options.int8 and recipe is None:
        raise UserError("--int8: needs --recipe, whose training images give the ranges")
    if options.calibration is not None and not options.int8:
        raise UserError("--calibration: is for 8 bit; add --int8, or leave it out")
    if options.web_runtime is not None and options.web is None:
        raise UserError("--web-runtime: goes beside a page; name its folder with --web")
    folder = _folder(model, output)
    if options.web is not None:
        check_apart(options.web, {"MODEL": Path(model)} if Path(model).is_dir() else {})
        check_apart(options.web, {"-o": folder})
    segmenter = Segmenter.load(model, device="cpu")
    if recipe is not None:
        task_of(recipe).check_model(segmenter, f"model {model}")
    copies = _copies(model, folder)
    if options.web is not None:
        check_page(options.web, segmenter, options.web_runtime)
    for form in options.forms:
        refuse_foreign(folder / FILES[form])
    stale = _stale(folder, segmenter, options.forms)
    if recipe is not None:
        _open_splits(segmenter, recipe, options)
    done = []
    bar = progress_bar(
        total=len(options.forms), desc="exporting", unit="file", show=True, leave=False
    )
    with _scratch() as scratch, closing(bar):
        for form in options.forms:
            made = scratch / Path(FILES[form]).name
            _make(form, made, segmenter, options, recipe)
            done.append((form, made, _checked(form, made, segmenter)))
            bar.update()
        _write(folder, copies, [(form, made) for form, made, _ in done])
        _remove(folder, stale)
    if options.web is not None:
        write_page(options.web, segmenter, folder / FILES["onnx"], options.web_runtime)
    files = [(form, folder / FILES[form], checked) for form, _, checked in done]
    return segmenter, [
        Exported(form, path, path.stat().st_size, checked) for form, path, checked in files
    ]


@contextmanager
def _scratch() -> Iterator[Path]:
    """A folder for files that are not checked yet."""
    try:
        with TemporaryDirectory() as folder:
            yield Path(folder)
    except OSError as error:
        raise UserError(
            f"cannot export by way of {gettempdir()}: {error.strerror or error}; free some space "
            "there, or name another folder in the variable TMPDIR"
        ) from error


def _make(
    form: str, path: Path, segmenter: Segmenter, options: Options, recipe: Recipe | None
) -> None:
    """Writes one form; the others stand beside it already, in the order of `FILES`."""
    logits = path.with_name("model.onnx")
    if form in ("onnx", "fp16"):
        program = trace(segmenter, torch.float16 if form == "fp16" else torch.float32)
        path.write_bytes(to_onnx(program, segmenter))
        if form == "onnx" and options.pt2:  # the same graph
            save_pt2(program, segmenter, path.with_name("model.pt2"))
    elif form == "labels":
        path.write_bytes(with_labels(logits.read_bytes(), segmenter))
    elif form == "int8":
        from finetune.programs.export.quantise import quantise  # onnxruntime's tools take seconds

        assert recipe is not None, "asked for before"
        quantise(logits, path, segmenter, recipe, options.calibration or CALIBRATION)


def _checked(form: str, path: Path, segmenter: Segmenter) -> Check:
    """Compares a file with the model; of 8 and 16 bit it is only said how far they are off."""
    config = segmenter.model.config
    if form == "pt2":
        module = torch.export.load(path).module()
        found = check(module, segmenter, sizes_of(smallest_side_of_pt2(config)))
    else:
        opened = session(path)
        sizes = sizes_of(smallest_side(config))
        found = check(lambda shown: run_in(opened, shown), segmenter, sizes)
    if form == "fp16":
        # ONNX Runtime's CPU provider widens half precision inside; what computes in it overflows.
        found = found.worse_of(check(PlainForm(segmenter.model, torch.float16), segmenter, sizes))
        if not found.finite:
            raise UserError(
                "--fp16: gives NaN or infinity: weights or activations do not fit into 16 bit "
                "(65504 at most). Export without --fp16: onnx/model.onnx is float32, and --int8 "
                "makes a smaller file"
            )
    if form == "int8" and not found.finite:
        raise UserError(
            "--int8: gives NaN or infinity: the ranges of the training images do not hold. Take "
            "more of them (--calibration), or export without --int8"
        )
    # A defect of the exporter or of the runtime, and nobody should get such a file.
    if form not in ("int8", "fp16") and not found.holds:
        raise RuntimeError(
            f"{FILES[form]} is not the model: logits differ by {found.difference}, "
            f"{1 - found.equal:.4%} of the pixels are of another class"
        )
    return found


def _folder(model: str, output: Path | None) -> Path:
    if output is not None:
        if output.exists() and not output.is_dir():
            raise UserError(f"-o {output}: is a file; name a folder")
        return output
    if not Path(model).is_dir():
        raise UserError(f"model {model}: no local folder; say with -o where the files are to go")
    return Path(model)


def _open_splits(segmenter: Segmenter, recipe: Recipe, options: Options) -> None:
    """Opens the splits that are going to be read: a wrong data.path is to cost nothing."""
    task = task_of(recipe, segmenter.preprocessing)
    if options.int8:
        task.check_split(task.train_samples)
    if options.scores:
        task.check_split(task.val_samples)


def _copies(model: str, folder: Path) -> dict[Path, Path]:
    """What to copy from where; refuses a folder that holds another model."""
    copies = {}
    for name in COPIED:
        found = cached_file(model, name, _raise_exceptions_for_missing_entries=False)
        target = folder / name
        if found is None:
            if name == "model.safetensors" and target.exists():  # the model's are of another format
                raise UserError(f"-o {folder}: holds another model ({name}); name a new folder")
            continue
        source = Path(found)
        if not target.exists():
            copies[target] = source
        elif name != "README.md" and not _same(source, target):
            raise UserError(f"-o {folder}: holds another model ({name} differs); name a new folder")
    return copies


def _same(one: Path, other: Path) -> bool:
    try:
        return one.samefile(other) or filecmp.cmp(one, other, shallow=False)
    except OSError as error:
        raise UserError(f"{other}: cannot be read ({error.strerror})") from error


def refuse_foreign(path: Path) -> None:
    """Raises a UserError if there is a file that `finetune export` did not write."""
    if path.exists() and facts_of(path) is None:
        raise UserError(f"{path}: was not written by finetune export; move it away, or choose -o")


def _stale(folder: Path, segmenter: Segmenter, forms: Sequence[str]) -> list[str]:
    """Forms of ours, none of those given, that were made of other weights."""
    weights = digest_of(segmenter.model)
    stale = []
    for form in FILES.keys() - {*forms}:
        path = folder / FILES[form]
        known = facts_of(path) if path.exists() else None
        if known is not None and known.get("weights") != weights:
            stale.append(form)
    return sorted(stale)


def _remove(folder: Path, forms: Sequence[str]) -> None:
    for form in forms:
        path = folder / FILES[form]
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            raise UserError(
                f"{path}: was made of other weights and cannot be removed ({error.strerror}); "
                "remove it"
            ) from error
        warnings.warn(
            f"{path}: removed, it was made of other weights; --{form} makes it anew", stacklevel=3
        )


def _write(folder: Path, copies: dict[Path, Path], made: Sequence[tuple[str, Path]]) -> None:
    """Each file aside and renamed: what stands there is whole at any time."""
    try:
        (folder / "onnx").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"-o {folder}: cannot be made ({error.strerror})") from error
    for target, source in copies.items():
        write_whole(target, source.read_bytes())
    for form, path in made:
        write_whole(folder / FILES[form], path.read_bytes())
