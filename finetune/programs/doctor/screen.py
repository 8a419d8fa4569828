"""The screen output of `finetune doctor`."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from finetune.programs.doctor.page import stored, summary
from finetune.run.screen import printable

MAX_PLACES = 5
"""Places of a finding that are printed; doctor.json has them all."""
MAX_CLASSES = 40
"""Classes beyond which only doctor.html has the table."""
_STYLES = {"problem": "bold red", "warning": "yellow"}


def show(facts: Mapping[str, Any], files: Sequence[Path]) -> None:
    """Prints the verdict: the data, its faults, and the files that say more.

    Args:
        facts: The content of doctor.json.
        files: doctor.json and doctor.html.
    """
    console = Console(highlight=False, soft_wrap=True)
    _print(console, f"{facts['name']}: {summary(facts)}", "bold")
    for line in facts["understood"]:
        _print(console, f"  {line}")
    for line in _lines(facts):
        _print(console, line)
    if 0 < len(facts["classes"]) <= MAX_CLASSES:
        console.print()
        console.print(_class_table(facts), soft_wrap=False)
    for finding in facts["findings"]:
        console.print()
        _print_finding(console, finding)
    console.print()
    _print(console, f"Written: {', '.join(str(path) for path in files)}")
    _print(console, *_verdict(facts))


def _print(console: Console, text: str, style: str = "") -> None:
    console.print(Text(printable(text), style))


def _print_finding(console: Console, finding: Mapping[str, Any]) -> None:
    places = finding["places"]
    console.print(
        Text.assemble(
            (finding["severity"], _STYLES[finding["severity"]]),
            f"  {finding['message']}  ",
            (f"[{finding['kind']}]", "dim"),
        )
    )
    for place in places[:MAX_PLACES]:
        names = ", ".join(place["files"][:MAX_PLACES])
        hidden = len(place["files"]) - MAX_PLACES
        names += f" and {hidden} more" if hidden > 0 else ""
        _print(console, "    " + ": ".join(filter(None, (names, place["what"]))))
    if len(places) > MAX_PLACES:
        _print(console, f"    and {len(places) - MAX_PLACES} more")
    _print(console, f"    {finding['remedy']}", "dim")


def _lines(facts: Mapping[str, Any]) -> Iterator[str]:
    sizes, colors = facts["sizes"], facts["colors"]
    if "largest" in sizes:
        low, middle, high = (
            "{1:g} x {0:g}".format(*sizes[key]) for key in ("smallest", "median", "largest")
        )
        several = f"{low} to {high}, median {middle}, {sizes['different']:,} different"
        text = f"{high}, all of them" if sizes["different"] == 1 else several
        crop = "; crop {1} x {0}".format(*sizes["crop"]) if sizes["crop"] else ""
        yield f"sizes (width x height): {text}{crop}"
    ignored = ", ".join(
        f"{name} {split['ignored_pixels'] / (split['pixels'] or 1):.2%}"
        for name, split in facts["splits"].items()
    )
    yield f"masks: {stored(facts) or 'objects'}; ignored pixels: {ignored}"
    if colors["mean"] is not None:
        shown = {key: ", ".join(f"{value:.3f}" for value in colors[key]) for key in colors}
        yield (
            f"mean {shown['mean']} (recipe: {shown['recipe_mean']}); std {shown['std']} "
            f"(recipe: {shown['recipe_std']})"
        )


def _class_table(facts: Mapping[str, Any]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("class", overflow="ellipsis", no_wrap=True, max_width=30)
    for name in facts["splits"]:
        table.add_column(Text(printable(name)), justify="right")
        table.add_column("images", justify="right")
    table.add_column("weight", justify="right")
    for row in facts["classes"]:
        cells: list[str] = []
        for name in facts["splits"]:
            pixels, images = row[name]["pixels"], row[name]["images"]
            total = sum(each[name]["pixels"] for each in facts["classes"])
            cells += [f"{pixels / total:.2%}" if pixels else "-", f"{images:,}"]
        weight = "-" if row["weight"] is None else f"{row['weight']:.2f}"
        table.add_row(Text(printable(row["name"])), *cells, weight)
    return table


def _verdict(facts: Mapping[str, Any]) -> tuple[str, str]:
    warnings, problems = (
        f"{facts[kind]} {kind[: -1 if facts[kind] == 1 else None]}"
        for kind in ("warnings", "problems")
    )
    if facts["verdict"] == "clean":
        words, style = ("No", "yellow") if facts["warnings"] else ("Clean: no", "green")
        return f"{words} problem, {warnings}.", f"bold {style}"
    return f"{problems}, {warnings}.", "bold red"
