"""Prints results as tables that fit into 80 columns."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from finetune.programs.benchmark.benchmark import Result

LEGEND = """\
time    median of a run, of a picture for the loader
ratio   stock's over this package's
differs the largest difference over the largest value; of class maps, the share
peak    the model's arithmetic a second over that of the machine's best product,
        or, on a GPU, bytes a second over those of a copy, whichever is nearer
memory  highest during a run, above the loaded model and its inputs
loader  one worker a side, which treats freed memory as it does in a training"""


def print_tables(results: Sequence[Result]) -> None:
    """Prints the machine, then the times, then the memory."""
    console = Console()
    facts = results[0].machine
    console.print(
        f"{facts['device_name']} ({facts['device']}), {facts['threads']} threads, "
        f"torch {facts['torch']}, transformers {facts['transformers']}, "
        f"{' / '.join(sorted({result.case.dtype for result in results}))}, "
        f"freed memory {'kept' if facts['keeps_freed_memory'] else 'given back'} by both sides",
        highlight=False,
    )
    console.print(_times(results))
    if any(result.peak_bytes for result in results):
        console.print()
        console.print(_memory(results))
    console.print(f"\n{LEGEND}", highlight=False)


def _times(results: Sequence[Result]) -> Table:
    table = columns_of("time", "images", "this", "stock", "ratio", "differs", "peak")
    for result in results:
        mine, stock = _sides(result.seconds)
        worst = max(result.difference.values(), default=None)
        shares = [value for key, value in result.limit.items() if key.startswith("share")]
        for side, seconds in mine.items():
            is_fastest = seconds == min(mine.values())
            table.add_row(
                _name(result, side),
                _shape(result),
                _seconds(seconds),
                _seconds(stock[0]) if stock else "",
                f"{result.ratio[side]:.2f}" if stock else "",
                "" if worst is None else f"{worst:.0e}",
                f"{max(shares):.0%}" if shares and is_fastest else "",
            )
    return table


def _memory(results: Sequence[Result]) -> Table:
    table = columns_of("memory", "images", "this", "stock", "ratio")
    for result in results:
        mine, stock = _sides(result.peak_bytes)
        for side, size in mine.items():
            theirs = stock[0] if stock else None
            table.add_row(
                _name(result, side),
                _shape(result),
                _megabytes(size),
                _megabytes(theirs) if stock else "",
                f"{theirs / size:.1f}" if size and theirs else "",
            )
    return table


def _sides(values: Mapping[str, Any]) -> tuple[dict[str, Any], list[Any]]:
    """The values of our sides by name, and that of stock's side if there is one."""
    mine = {side: value for side, value in values.items() if side.startswith("ours")}
    return mine, [value for side, value in values.items() if side.startswith("stock")]


def columns_of(*columns: str) -> Table:
    """A table without a box; its first two columns are aligned to the left."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for index, column in enumerate(columns):
        table.add_column(column, justify="left" if index < 2 else "right", no_wrap=True)
    return table


def _name(result: Result, side: str) -> str:
    return " ".join(filter(None, [result.case.what, result.case.variant, side.partition("_")[2]]))


def _shape(result: Result) -> str:
    return f"{result.case.batch}x{result.case.size[0]}x{result.case.size[1]}"


def _seconds(value: float) -> str:
    return f"{value:.4g} s" if value >= 1 else f"{value * 1e3:.3g} ms"


def _megabytes(value: int | None) -> str:
    return "too much" if value is None else f"{value / 1e6:,.0f} MB"
