"""What a run shows while it goes on."""

from __future__ import annotations

import sys

from tqdm.auto import tqdm


def progress_bar(
    *, total: int, desc: str, unit: str, show: bool, initial: int = 0, leave: bool = True
) -> tqdm:
    """A bar that is alive on a terminal and in a notebook, and a line every half minute in a log.

    Only a terminal knows a way up: elsewhere a bar below another would add line after line, so
    that the later one takes the earlier one's line while it lasts.
    """
    terminal, notebook = sys.stderr.isatty(), "ipykernel" in sys.modules
    return tqdm(
        total=total,
        initial=initial,
        desc=desc,
        unit=unit,
        disable=not show,
        leave=leave,
        mininterval=0.5 if terminal or notebook else 30,
        position=None if terminal else 0,
    )
