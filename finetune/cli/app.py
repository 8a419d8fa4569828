"""The `finetune` command itself, and the arguments that several verbs take."""

from typing import Annotated

import typer

import finetune

app = typer.Typer(
    help="Fine-tune SegFormer from a recipe; what is saved is a stock Hugging Face model.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

RecipeArgument = Annotated[
    str, typer.Argument(metavar="RECIPE", help="A YAML file, or the name of a shipped recipe.")
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="[key=value]...", help="Overrides, such as train.steps=100."),
]


def version(wanted: bool) -> None:
    """Prints the version and leaves."""
    if wanted:
        print(f"finetune {finetune.__version__}")
        raise typer.Exit


@app.callback()
def options(
    _: Annotated[
        bool, typer.Option("--version", callback=version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Fine-tune SegFormer from a recipe; what is saved is a stock Hugging Face model."""
