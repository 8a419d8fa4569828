"""The screen output of `finetune doctor`."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from finetune.programs.doctor.page import summary

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
    console.print(Text(_printable(text), style))


def _printable(text: str) -> str:
    """Names on one line: a file name may hold any character, even terminal escape sequences."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


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
        between = ": " if names and place["what"] else ""
        _print(console, f"    {names}{between}{place['what']}")
    if len(places) > MAX_PLACES:
        _print(console, f"    and {len(places) - MAX_PLACES} more")
    _print(console, f"    {finding['remedy']}", "dim")


def _lines(facts: Mapping[str, Any]) -> list[str]:
    lines = []
    sizes, colors = facts["sizes"], facts["colors"]
    if "largest" in sizes:
        if sizes["different"] == 1:
            text = f"{sizes['largest'][1]} x {sizes['largest'][0]}, all of them"
        else:
            ends = [f"{sizes[key][1]:g} x {sizes[key][0]:g}" for key in ("smallest", "largest")]
            median = f"{sizes['median'][1]:g} x {sizes['median'][0]:g}"
            text = f"{ends[0]} to {ends[1]}, median {median}, {sizes['different']:,} different"
        crop = f"; crop {sizes['crop'][1]} x {sizes['crop'][0]}" if sizes["crop"] else ""
        lines.append(f"sizes (width x height): {text}{crop}")
    stored = ", ".join(f"{count:,} {kind}" for kind, count in facts["masks"]["stored"].items())
    ignored = ", ".join(
        f"{name} {split['ignored_pixels'] / (split['pixels'] or 1):.2%}"
        for name, split in facts["splits"].items()
    )
    lines.append(f"masks: {stored or 'objects'}; ignored pixels: {ignored}")
    if colors["mean"] is not None:
        mean, std, recipe_mean, recipe_std = (
            ", ".join(f"{value:.3f}" for value in colors[key])
            for key in ("mean", "std", "recipe_mean", "recipe_std")
        )
        lines.append(f"mean {mean} (recipe: {recipe_mean}); std {std} (recipe: {recipe_std})")
    return lines


def _class_table(facts: Mapping[str, Any]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("class", overflow="ellipsis", no_wrap=True, max_width=30)
    for name in facts["splits"]:
        table.add_column(Text(_printable(name)), justify="right")
        table.add_column("images", justify="right")
    table.add_column("weight", justify="right")
    total = {
        name: sum(row[name]["pixels"] for row in facts["classes"]) or 1 for name in facts["splits"]
    }
    for row in facts["classes"]:
        cells: list[str] = []
        for name in facts["splits"]:
            pixels, images = row[name]["pixels"], row[name]["images"]
            cells += [f"{pixels / total[name]:.2%}" if pixels else "-", f"{images:,}"]
        weight = "-" if row["weight"] is None else f"{row['weight']:.2f}"
        table.add_row(Text(_printable(row["name"])), *cells, weight)
    return table


def _verdict(facts: Mapping[str, Any]) -> tuple[str, str]:
    warnings = f"{facts['warnings']} warning{'s' * (facts['warnings'] != 1)}"
    if facts["verdict"] == "clean":
        return f"Clean: no problem, {warnings}.", "bold green"
    problems = f"{facts['problems']} problem{'s' * (facts['problems'] != 1)}"
    return f"{problems}, {warnings}.", "bold red"
