"""`finetune benchmark`: compares the speed of this package with stock transformers.

One process runs both sides in turns (A B A B) and takes medians. On a shared machine only their
ratios mean anything. `plan` turns options into cases, `measure` measures one. Peak memory, the
machine's limits, `metric`, `loader`, `predict` and `training` are in `benchmarks/` beside the
package of a checkout. Its modules import this one; the verb finds them and hands them in, as a
`Checkout`.

Both sides share the process's settings: its threads, and the C library's handling of freed memory.
By default glibc decides about it, as in any script. With `--keep-freed-memory` it is kept, as in
`fit`; stock gains more from that, since its tensors are larger.
"""

import functools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from finetune.errors import UserError, first_line
from finetune.machine import device, is_out_of_memory, keep_freed_memory, set_threads, take_turns
from finetune.programs.benchmark.cases import BENCHMARKS, DTYPES, Benchmark, Case, Work
from finetune.programs.benchmark.meters import differences, machine
from finetune.segformer import VARIANTS
from finetune.segformer.costs import count_flop

Checkout = Callable[[str], ModuleType | None]
"""Returns the module of `benchmarks/` with this name; None if the package is in no checkout."""

PER_PICTURE = ("loader", "predict")
"""The cases of a checkout whose seconds are those of a picture."""


@dataclass(frozen=True)
class Options:
    """The options of the command line; None and () leave the choice to each benchmark."""

    variants: Sequence[str] = ()
    size: tuple[int, int] | None = None
    batch: int | None = None
    num_labels: int = 150
    dtype: str = "float32"
    device: str | None = None
    threads: int | None = None
    rounds: int | None = None
    compile: bool = False
    vs: str = "stock"
    memory: bool = True
    keep_freed_memory: bool = False
    data: Path | None = None
    model: Path | None = None


@dataclass(frozen=True)
class Result:
    """One row: the case, the machine and the figures, with the sides as keys."""

    case: Case
    rounds: int
    machine: dict[str, Any]
    seconds: dict[str, float]
    """Median of a run (of a picture, for `loader` and `predict`)."""
    ratio: dict[str, float]
    """Stock's seconds over the seconds of each of our sides."""
    difference: dict[str, float]
    """Difference from stock, relative to the largest value; the worst of our sides."""
    peak_bytes: dict[str, int | None] = field(default_factory=dict)
    """Peak beyond loaded model and inputs; None: it did not fit. Empty without a checkout."""
    limit: dict[str, float] = field(default_factory=dict)
    """Our fastest side relative to the machine's limits. Empty without a checkout."""

    def to_dict(self) -> dict[str, Any]:
        """A flat dict for JSON."""
        values = {**vars(self.case), **self.machine, **vars(self)}
        if self.case.what in PER_PICTURE:
            values["images_per_second"] = {side: 1 / value for side, value in self.seconds.items()}
        return {key: value for key, value in values.items() if key not in ("case", "machine")}


def table(checkout: Checkout) -> list[str]:
    """The default benchmarks; `predict` needs a model, and `training` takes its minutes twice."""
    return [*BENCHMARKS, *(name for name in ("metric", "loader") if checkout(name))]


def benchmark_of(name: str, checkout: Checkout) -> Benchmark:
    """The kind of a case.

    Raises:
        UserError: Only a checkout has it.
    """
    return BENCHMARKS[name] if name in BENCHMARKS else from_checkout(name, checkout).BENCHMARK


def from_checkout(what: str, checkout: Checkout) -> ModuleType:
    """The module of a benchmark that only a checkout has.

    Raises:
        UserError: The package is not in a checkout.
    """
    if (module := checkout(what)) is None:
        raise UserError(
            f"benchmark {what}: needs a checkout of the source and `pip install -e .`; this "
            f"installation has {', '.join(BENCHMARKS)}"
        )
    return module


def plan(what: Iterable[str], options: Options, checkout: Checkout) -> list[Case]:
    """The cases of the given benchmarks, in order.

    Raises:
        UserError: An option is wrong; the message names it and its possible values.
    """
    where = _device(options.device)
    _check_choice("--dtype", options.dtype, DTYPES)
    _check_choice("--vs", options.vs, ("stock", "none"))
    for variant in options.variants:
        _check_choice("--variant", variant, VARIANTS)
    if not 2 <= options.num_labels <= 255:
        raise UserError(f"--num-labels {options.num_labels}: must be 2 to 255")
    if options.data is not None and not options.data.is_dir():
        raise UserError(f"--data {options.data}: no such folder")
    cases = []
    for name in what:
        _check_choice("WHAT", name, (*BENCHMARKS, "metric", *PER_PICTURE, "training"))
        if name in PER_PICTURE:
            cases.append(from_checkout(name, checkout).case_of(options, where))
            continue
        benchmark = benchmark_of(name, checkout)
        shape = options.size or benchmark.size, options.batch or benchmark.batch, options.num_labels
        with_model = benchmark.variants != (None,)
        variants = (options.variants or benchmark.variants) if with_model else (None,)
        cases += [Case(name, variant, *shape, options.dtype, where) for variant in variants]
    return cases


def measure(case: Case, options: Options, checkout: Checkout) -> Result:
    """Measures one case on each side.

    Raises:
        UserError: The case does not fit into the device's memory; the message names the options
            that decide.
    """
    set_threads(options.threads)
    # float32 means float32: on a GPU, torch rounds convolutions to TF32 by default, but not
    # products.
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    if options.keep_freed_memory:
        keep_freed_memory()
    if case.what in PER_PICTURE:
        return from_checkout(case.what, checkout).measure(case, options)
    try:
        return _measure(case, options, checkout)
    except (MemoryError, RuntimeError) as error:
        if is_out_of_memory(error):
            name = f"{case.what} {case.variant or ''}".strip()
            raise UserError(
                f"{name}: does not fit into the memory of {case.device}; lower --batch or --size, "
                "or choose a smaller --variant"
            ) from error
        raise


def _measure(case: Case, options: Options, checkout: Checkout) -> Result:
    benchmark = benchmark_of(case.what, checkout)
    sides = ["ours", "stock"]
    if options.compile and benchmark.compiles:
        torch.compiler.reset()  # graphs of earlier cases count against a limit
        sides = ["ours", "ours_compiled", "stock_compiled"]
    if options.vs == "none":
        sides = [side for side in sides if side.startswith("ours")]
    works = {side: benchmark.load(case, side) for side in sides}
    inputs = benchmark.inputs(case)
    difference = worst_differences(works, inputs)
    rounds = options.rounds or benchmark.rounds
    eager = works["ours"]  # a compiled graph cannot be looked into
    limits = checkout("limits") if eager.products else None
    # Measured right before and right after: shared machines change their pace.
    before = limits.peak_flop_per_second(case.dtype, case.device) if limits else 0.0
    seconds = take_turns(works, inputs, rounds=rounds, device=case.device)
    eager.reset()
    limit: dict[str, float] = {}
    if limits and eager.products:
        limit = limits.distance_to_limit(
            count_flop(functools.partial(eager.products, *inputs)) * benchmark.passes,
            functools.partial(eager.run, *inputs),
            seconds={side: value for side, value in seconds.items() if side.startswith("ours")},
            peak=max(before, limits.peak_flop_per_second(case.dtype, case.device)),
            device=case.device,
        )
    facts = machine(case.device, keeps_memory=options.keep_freed_memory)
    del works, eager, inputs  # frees memory for the child processes
    memory = checkout("memory") if options.memory else None
    peaks = {side: memory.peak_of(case, side) for side in sides} if memory else {}
    return Result(case, rounds, facts, seconds, ratios(seconds), difference, peaks, limit)


def worst_differences(works: dict[str, Work], inputs: Sequence[Any]) -> dict[str, float]:
    """The largest difference between stock and each of our sides, by name; {} without stock."""
    results = {side: work.compare(*inputs) for side, work in works.items()}
    stock = [side for side in results if side.startswith("stock")]
    worst: dict[str, float] = {}
    for side in results.keys() - stock if stock else ():
        for name, value in differences(results[side], results[stock[0]]).items():
            worst[name] = max(value, worst.get(name, 0.0))
    return worst


def ratios(seconds: dict[str, float]) -> dict[str, float]:
    """Stock's seconds over the seconds of each of our sides; {} without stock."""
    stock = [value for side, value in seconds.items() if side.startswith("stock")]
    ours = {side: value for side, value in seconds.items() if side.startswith("ours")}
    return {side: stock[0] / value for side, value in ours.items()} if stock else {}


# ---------------------------------------------------------------------------------------- options


def _check_choice(option: str, value: str, choices: Iterable[str]) -> None:
    if value not in choices:
        raise UserError(f"{option} {value!r}: choose from {', '.join(choices)}")


def _device(name: str | None) -> str:
    if name is None:
        return str(device())
    try:
        kind = torch.device(name)
        if kind.type not in ("cpu", "cuda"):
            raise UserError(f"--device {name!r}: only cpu and cuda can be measured")
        torch.empty(0, device=kind)
    except (RuntimeError, AssertionError) as error:  # an unknown name, or no such GPU here
        raise UserError(f"--device {name!r}: not usable here ({first_line(error)})") from error
    return name
