"""A Space: the demo as a folder that the Hub runs, with everything except the model.

    write_space(Path("space"), "somebody/street-scenes", title="Street scenes")

app.py is the demo's own, byte for byte, and the package's source lies beside it, so that nothing
of ours has to be on an index. The model is read from the Hub by the id that README.md names.
"""

import re
import shutil
from importlib import metadata
from importlib.resources import as_file, files
from pathlib import Path

from huggingface_hub import SpaceCard, SpaceCardData

from finetune.disk import whole_folder
from finetune.errors import UserError
from finetune.publish.markdown import render

GRADIO = "6.31.0"
"""The version that the Space's page is tested with; constraints.txt has the same."""
PYTHON = "3.11"
REQUIREMENTS = (
    *("huggingface-hub", "jinja2", "numpy", "opencv-python-headless", "pillow", "pydantic"),
    *("pyyaml", "safetensors", "tifffile", "torch", "transformers"),
)
"""The demo's imports besides Gradio, which a Space installs by its header."""


def write_space(folder: Path, model_repo: str, *, title: str) -> None:
    """Writes a Space's files aside and renames them into place.

    They are README.md with the Space's header, app.py, requirements.txt and the package.

    Args:
        folder: a new one.
        model_repo: the model's id on the Hub, OWNER/NAME.
        title: the Space's.

    Raises:
        UserError: the title is blank, or the folder cannot be written.
    """
    if not title.strip():
        raise UserError("the Space has no title; set `name` in the recipe")
    with whole_folder(folder, "the Space") as new:
        (new / "README.md").write_text(_readme(model_repo, title), encoding="utf-8")
        (new / "requirements.txt").write_text("\n".join(requirements()) + "\n", encoding="utf-8")
        with as_file(files("finetune")) as package:
            shutil.copyfile(package / "programs" / "demo" / "demo.py", new / "app.py")
            unwanted = shutil.ignore_patterns("__pycache__", "*.pyc", "*.pyi", "recipes")
            shutil.copytree(package, new / "finetune", ignore=unwanted)


def requirements() -> list[str]:
    """Lines of requirements.txt: the bounds of this package's own dependencies.

    Raises:
        UserError: the package is not installed, or by another name.
    """
    try:
        lines = metadata.requires("segformer-finetune") or []
        known = {re.split(r"[^\w.-]", line)[0].lower(): line for line in lines if ";" not in line}
        return [known[name] for name in REQUIREMENTS]
    except (metadata.PackageNotFoundError, KeyError) as error:
        raise UserError(
            "the Space's requirements are unknown, because this package is not installed; run "
            "`pip install -e .` in its checkout"
        ) from error


def _readme(model_repo: str, title: str) -> str:
    header = SpaceCardData(
        title=title,
        emoji="🖼️",
        colorFrom="blue",
        colorTo="green",
        sdk="gradio",
        sdk_version=GRADIO,
        python_version=PYTHON,
        app_file="app.py",
        license="apache-2.0",
        models=[model_repo],
        tags=["image-segmentation", "segformer"],
    )
    text = render("programs/push/space.md", title=title, model=model_repo)
    return str(SpaceCard(f"---\n{header.to_yaml()}\n---\n\n{text}"))
