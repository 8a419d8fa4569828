"""`finetune export`: writes a trained model as files that run without PyTorch.

`graph` writes the model in operators that exporters read, `check` compares each file with the
model, `quantise` makes the 8 bit form, `comparison` measures, `web` writes a page. transformers.js
looks for these names beside config.json and preprocessor_config.json:

    onnx/model.onnx             logits, float32
    onnx/model_quantized.onnx   logits, 8 bit inside (--int8)
    onnx/model_fp16.onnx        logits, 16 bit inside (--fp16)
    onnx/model_labels.onnx      class ids at the size of pixel_values, the model's input (--labels)
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

from finetune.disk import make_folder, write_whole
from finetune.errors import UserError
from finetune.inference import Segmenter
from finetune.inference.models import digest_of
from finetune.programs.export.check import Check, check, load, sizes_of
from finetune.programs.export.graph import (
    PlainForm,
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
"""The forms of a model, in the places where transformers.js looks for those that it knows."""
CALIBRATION = 64
"""Training images that calibrate the 8 bit form."""
_NOT_FINITE = {
    "fp16": "weights or activations do not fit into 16 bit (65504 at most). Export without --fp16: "
    "onnx/model.onnx is float32, and --int8 makes a smaller file",
    "int8": "the ranges of the training images are too narrow. Use more images (--calibration), or "
    "export without --int8",
}
COPIED = ("config.json", "preprocessor_config.json", "model.safetensors", "README.md")
"""The other files of a model folder, for transformers.js and for stock transformers."""


@dataclass(frozen=True)
class Exported:
    """One file.

    Attributes:
        form: a key of `FILES`.
        path: its place.
        bytes: its size.
        check: its comparison with the model.
    """

    form: str
    path: Path
    bytes: int
    check: Check


@dataclass(frozen=True)
class Options:
    """The forms wanted besides `onnx/model.onnx`."""

    labels: bool = False
    int8: bool = False
    fp16: bool = False
    pt2: bool = False
    web: Path | None = None
    web_runtime: Path | None = None
    calibration: int | None = None
    """Training images for `int8`; None: `CALIBRATION`."""
    scores: bool = False
    """Whether the recipe's validation split will be read and must be there."""

    @property
    def forms(self) -> list[str]:
        """The forms to write, keys of `FILES`."""
        return ["onnx", *(form for form in FILES if getattr(self, form, False))]


def need_packages() -> None:
    """Raises a UserError with the command to install if a package is missing."""
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
    """Writes a model's files, each only after a comparison with the model.

    Args:
        model: a folder or Hub id.
        output: the folder to write into; None: the model's own.
        options: the wanted files.
        recipe: its training images calibrate the 8 bit form; it must have the model's classes.

    Returns:
        The model, and the files in the order of `FILES`.

    Raises:
        UserError: the model cannot be read, or a file cannot be written or is somebody else's.
    """
    need_packages()
    options = options or Options()
    if options.int8 and recipe is None:
        raise UserError("--int8: needs --recipe, whose training images give the ranges")
    if options.calibration is not None and not options.int8:
        raise UserError("--calibration: is read by --int8 alone; add --int8, or leave it out")
    if options.web_runtime is not None and options.web is None:
        raise UserError("--web-runtime: is copied beside a page; name the page's folder with --web")
    folder = _folder(model, output)
    if options.web is not None:
        given = {"MODEL": Path(model)} if Path(model).is_dir() else {}
        check_apart(options.web, {**given, "-o": folder})
    segmenter = Segmenter.load(model, device="cpu")
    if recipe is not None:
        task_of(recipe).check_model(segmenter, f"model {model}")
    copies = _copies(model, folder)
    if options.web is not None:
        check_page(options.web, segmenter, options.web_runtime)
    for form in options.forms:
        refuse_foreign(folder / FILES[form])
    stale = _stale(folder, segmenter, options.forms)
    if recipe is not None:  # a wrong data.path is found before anything takes time
        task = task_of(recipe, segmenter.preprocessing)
        if options.int8:
            task.check_split(task.train_samples)
        if options.scores:
            task.check_split(task.val_samples)
    done: dict[str, Check] = {}
    bar = progress_bar(
        total=len(options.forms), desc="exporting", unit="file", show=True, leave=False
    )
    with _scratch() as scratch, closing(bar):
        for form in options.forms:
            made = scratch / Path(FILES[form]).name
            _make(form, made, segmenter, options, recipe)
            done[form] = _checked(form, made, segmenter)
            copies[folder / FILES[form]] = made
            bar.update()
        make_folder(folder / "onnx")
        for target, source in copies.items():
            write_whole(target, source.read_bytes())
        _remove(folder, stale)
    if options.web is not None:
        write_page(options.web, segmenter, folder / FILES["onnx"], options.web_runtime)
    sizes = {form: (folder / FILES[form]).stat().st_size for form in done}
    return segmenter, [
        Exported(form, folder / FILES[form], sizes[form], checked) for form, checked in done.items()
    ]


@contextmanager
def _scratch() -> Iterator[Path]:
    """A folder for unchecked files."""
    try:
        with TemporaryDirectory() as folder:
            yield Path(folder)
    except OSError as error:
        raise UserError(
            f"cannot write temporary files to {gettempdir()}: {error.strerror or error}; free "
            "some space there, or set TMPDIR to another folder"
        ) from error


def _make(
    form: str, path: Path, segmenter: Segmenter, options: Options, recipe: Recipe | None
) -> None:
    """Writes one form; the forms before it in `FILES` are there already."""
    logits = path.with_name("model.onnx")
    if form in ("onnx", "fp16"):
        program = trace(segmenter, torch.float16 if form == "fp16" else torch.float32)
        path.write_bytes(to_onnx(program, segmenter))
        if form == "onnx" and options.pt2:  # the same graph
            save_pt2(program, segmenter, path.with_name("model.pt2"))
    elif form == "labels":
        path.write_bytes(with_labels(logits.read_bytes(), segmenter))
    elif form == "int8":
        from finetune.programs.export.quantise import quantise  # takes seconds

        assert recipe is not None, "asked for before"
        quantise(logits, path, segmenter, recipe, options.calibration or CALIBRATION)


def _checked(form: str, path: Path, segmenter: Segmenter) -> Check:
    """Compares a file with the model; the differences of 8 and 16 bit are reported only."""
    config = segmenter.model.config
    side = smallest_side_of_pt2(config) if form == "pt2" else smallest_side(config)
    runs = [load(path)]
    if form == "fp16":
        # ONNX Runtime's CPU provider widens half precision inside; runtimes that compute in it
        # overflow.
        runs.append(PlainForm(segmenter.model, torch.float16))
    checks = [check(run, segmenter, sizes_of(side)) for run in runs]
    if form in _NOT_FINITE and not all(one.finite for one in checks):
        raise UserError(f"--{form}: gives NaN or infinity: {_NOT_FINITE[form]}")
    worse = min(checks, key=lambda one: one.equal)
    # A defect of the exporter or of the runtime: nobody should get such a file.
    if form not in _NOT_FINITE and not worse.holds:
        raise RuntimeError(
            f"{FILES[form]} differs from the model: its logits by {worse.difference}, "
            f"its classes in {1 - worse.equal:.4%} of the pixels"
        )
    return worse


def _folder(model: str, output: Path | None) -> Path:
    if output is not None:
        if output.exists() and not output.is_dir():
            raise UserError(f"-o {output}: is a file; name a folder")
        return output
    if not Path(model).is_dir():
        raise UserError(f"model {model}: is not a local folder; name the output folder with -o")
    return Path(model)


def _copies(model: str, folder: Path) -> dict[Path, Path]:
    """The files to copy, as target -> source; refuses a folder that holds another model."""
    copies = {}
    for name in COPIED:
        found = cached_file(model, name, _raise_exceptions_for_missing_entries=False)
        target = folder / name
        if not target.exists():
            if found is not None:
                copies[target] = Path(found)
        elif found is None:
            if name == "model.safetensors":  # the model's weights have another format
                raise UserError(f"-o {folder}: holds another model ({name}); name a new folder")
        elif name != "README.md" and not _same(Path(found), target):
            raise UserError(f"-o {folder}: holds another model ({name} differs); name a new folder")
    return copies


def _same(one: Path, other: Path) -> bool:
    try:
        return one.samefile(other) or filecmp.cmp(one, other, shallow=False)
    except OSError as error:
        raise UserError(f"{other}: cannot be read ({error.strerror})") from error


def refuse_foreign(path: Path) -> None:
    """Raises a UserError for a file that `finetune export` did not write."""
    if path.exists() and facts_of(path) is None:
        raise UserError(f"{path}: was not written by finetune export; move it, or change -o")


def _stale(folder: Path, segmenter: Segmenter, forms: Sequence[str]) -> list[str]:
    """Our forms that were made from other weights, without the forms given."""
    weights = digest_of(segmenter.model)
    known = {form: facts_of(folder / FILES[form]) for form in sorted(FILES.keys() - {*forms})}
    return [form for form, own in known.items() if own and own.get("weights") != weights]


def _remove(folder: Path, forms: Sequence[str]) -> None:
    for form in forms:
        path = folder / FILES[form]
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            raise UserError(
                f"{path}: was made from other weights and cannot be removed ({error.strerror}); "
                "remove it"
            ) from error
        message = f"{path}: removed, since it was made from other weights; --{form} writes it again"
        warnings.warn(message, stacklevel=3)
