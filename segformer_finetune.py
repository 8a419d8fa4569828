"""Another project on PyPI is called `finetune`, and it installs into the same folder as this one.

Whichever of the two was installed last owns `finetune/__init__.py`, and uninstalling either takes
that file from both. So the command starts here, outside the folder, and looks before it imports
the package, which looks here when it is imported. This file imports the standard library only.
"""

import os
import signal
import sys
import warnings
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from types import FrameType
from typing import NoReturn

REINSTALL = "`pip uninstall finetune segformer-finetune`, then install segformer-finetune again"


def namesake() -> str:
    """What to say where a distribution `finetune` has a package of that name; "" where none has.

    An old editable install of this project is none: its files are a path and a script.
    """
    for found in metadata.distributions(name="finetune"):
        if any(file.as_posix() == "finetune/__init__.py" for file in found.files or ()):
            return (
                f"`finetune` {found.version} is installed in {found.locate_file('')}: another "
                "project's package, or an old version of this one, under the same import name as "
                "segformer-finetune. Only one of them can be imported, and uninstalling one breaks "
                f"the other. {REINSTALL}"
            )
    return ""


def warn_of_namesake() -> None:
    """Warns where the package that is being imported may be mixed with another's, or hidden."""
    if problem := namesake():
        warnings.warn(problem, stacklevel=3)


def obstacle() -> str:
    """What keeps `import finetune` from being this project's; "" if nothing does.

    Nothing of the package is imported: of another project's it may take long, and fail.
    """
    spec = find_spec("finetune")
    if spec is None or spec.origin is None:  # a folder without __init__.py is a namespace
        return (
            "files of segformer-finetune are missing, as they are after another `finetune` in the "
            f"same folder was uninstalled. {REINSTALL}"
        )
    if warn_of_namesake.__name__ in Path(spec.origin).read_text(encoding="utf-8", errors="replace"):
        return ""
    return namesake() or (
        f"{spec.origin} belongs to another package `finetune`. Start the command elsewhere, or "
        "remove that package"
    )


def interrupt(number: int, frame: FrameType | None) -> None:
    """Ctrl-C: an exception as usual, but the end at once while a module is imported.

    Nothing of ours is going on then, and callbacks of libraries would swallow the exception.
    """
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            leave(number, frame)
        frame = frame.f_back
    raise KeyboardInterrupt


def leave(number: int, frame: FrameType | None) -> NoReturn:
    """Ctrl-C where nothing is left to save."""
    os.write(2, b"\nstopped\n")
    os._exit(130)


def main() -> None:
    """The `finetune` command."""
    is_usual = signal.getsignal(signal.SIGINT) is signal.default_int_handler  # not ignored
    if is_usual:
        signal.signal(signal.SIGINT, interrupt)
    if problem := obstacle():
        print(f"error: {problem}", file=sys.stderr)
        sys.exit(2)
    from finetune.cli import main as command

    try:
        command()
    finally:
        if is_usual:
            signal.signal(signal.SIGINT, leave)
