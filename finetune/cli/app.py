"""The `finetune` command itself, and the arguments that several verbs share."""

import inspect
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer
from typer import Argument, Option

import finetune
from finetune.errors import UserError

Verb = TypeVar("Verb", bound=Callable[..., Any])


class Command(typer.core.TyperCommand):
    """A verb whose help has a line for the name of each option: a narrow table cuts names off."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Lists the arguments, then the options."""
        for kind in ("argument", "option"):
            parameters = [p for p in self.get_params(ctx) if p.param_type_name == kind]
            if found := [p.get_help_record(ctx) for p in parameters]:
                with formatter.section(f"{kind.title()}s"):
                    formatter.write_dl(found, col_max=2)


class App(typer.Typer):
    """Verbs whose help wraps as paragraphs; typer keeps the line breaks of a docstring."""

    def command(self, name: str | None = None) -> Callable[[Verb], Verb]:  # type: ignore[override]
        """Registers a verb; each paragraph of its docstring becomes one line."""

        def register(verb: Verb) -> Verb:
            paragraphs = (inspect.getdoc(verb) or "").split("\n\n")
            lines = [" ".join(paragraph.split()) for paragraph in paragraphs]
            add = super(App, self).command
            return add(name, cls=Command, help="\n\n".join(lines), short_help=lines[0])(verb)

        return register


app = App(
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={
        "help_option_names": ["-h", "--help"],
        "terminal_width": max(20, min(100, shutil.get_terminal_size().columns) - 2),
    },
)


def complete_recipe(incomplete: str) -> Iterator[str]:
    """Completes a recipe in a shell: shipped names, YAML files and folders."""
    from finetune.recipe import shipped_recipes

    yield from (p.stem for p in shipped_recipes() if p.stem.startswith(incomplete))
    folder, _, start = incomplete.rpartition("/")
    for path in sorted(Path(folder or ("/" if incomplete[:1] == "/" else ".")).glob("*")):
        if path.name.startswith(start) and (path.is_dir() or path.suffix == ".yaml"):
            yield f"{path}/" if path.is_dir() else str(path)


RECIPE = Argument(
    metavar="RECIPE",
    help="A YAML file, or the name of a shipped recipe.",
    autocompletion=complete_recipe,
)
RecipeArgument = Annotated[str, RECIPE]
ModelArgument = Annotated[str, Argument(metavar="MODEL", help="A model folder or Hub id.")]
Overrides = Annotated[
    list[str] | None, Argument(metavar="[key=value]...", help="Overrides, such as train.steps=100.")
]
Choice = Annotated[int | None, Option(help="Number of the layout, if several fit the folder.")]
Device = Annotated[str | None, Option(help="cpu, cuda or cuda:N. Default: a GPU if there is one.")]
Threads = Annotated[int | None, Option(min=1, help="CPU threads. Default: all usable cores.")]
AsJson = Annotated[bool, Option("--json", help="Print JSON and nothing else.")]


def sides_of(option: str, text: str, limits: tuple[int, int] = (1, 65535)) -> tuple[int, int]:
    """Height and width, from "512" or "512x1024".

    Raises:
        UserError: The text is neither, or a side is beyond the limits.
    """
    parts = text.lower().split("x")
    if len(parts) > 2 or not all(part.isascii() and part.isdigit() for part in parts):
        raise UserError(f"{option} {text!r}: give a number, or height x width, such as 512x1024")
    if not all(limits[0] <= int(part) <= limits[1] for part in parts):
        raise UserError(f"{option} {text!r}: sides must be {limits[0]} to {limits[1]} pixels")
    return int(parts[0]), int(parts[-1])


def version(wanted: bool) -> None:
    """Prints the version and exits."""
    if wanted:
        print(f"finetune {finetune.__version__}")
        raise typer.Exit


@app.callback()
def options(
    _: Annotated[
        bool, Option("--version", callback=version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Fine-tune SegFormer from a recipe; the result is a stock Hugging Face model."""
