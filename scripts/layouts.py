"""Compares channels-first kernels with channels-last ones: each layer's default schedule in both layouts, in turn.

python scripts/layouts.py WORKLOAD... --build      # compiles into the cache
python scripts/layouts.py WORKLOAD...              # on a quiet machine; compiles what is not there yet
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import click
import numpy as np
from tabulate import tabulate

import convtune
from convtune import accuracy, space, targets, workloads
from convtune.cli.options import FiniteRange
from convtune.runtime.arrays import empty_aligned
from convtune.runtime.compiled import CompiledConv
from convtune.runtime.kernel import Call
from convtune.spec import LAYOUTS, ConvSpec
from convtune.targets import Target

WANTED = 1.10  # times channels last


@dataclass(frozen=True)
class Row:
    """A layer's medians in microseconds, channels last and first; ratio: the median of the turns' own."""

    name: str
    last_us: float
    first_us: float
    ratio: float
    spaces: tuple[str, str]


@click.command()
@click.argument("names", nargs=-1, required=True, metavar="WORKLOAD...")
@click.option("--build", is_flag=True, help="Compile only.")
@click.option("--rounds", type=click.IntRange(min=1), default=9, show_default=True, help="Of turns.")
@click.option(
    "--turn",
    "turn_ms",
    type=FiniteRange(min=0, min_open=True),
    default=5.0,
    show_default=True,
    metavar="MS",
    help="Of a turn's calls.",
)
@click.option("--target", default="native", show_default=True)
def main(names: tuple[str, ...], build: bool, rounds: int, turn_ms: float, target: str) -> None:
    """Print a table of WORKLOADs: channels last, channels first, and their ratio."""
    machine, rows = targets.resolve(target), list[Row]()
    layers = {workload.spec: workload.name for workload in workloads.parse(names)}
    for number, (spec, name) in enumerate(layers.items(), start=1):
        click.echo(f"{number}/{len(layers)} {name}", err=True)
        kernels = [compiled(spec.replace(layout=layout), machine) for layout in reversed(LAYOUTS[spec.rank])]
        if not build:
            rows.append(compared(name, kernels, rounds, turn_ms / 1e3))
    if rows:
        click.echo(table(rows))


def compiled(spec: ConvSpec, target: Target) -> CompiledConv:
    candidate = space.default_candidate(spec, target, accuracy.limit(spec, "standard"))
    return convtune.compile(spec, target, candidate=candidate)


def compared(name: str, kernels: Sequence[CompiledConv], rounds: int, seconds: float) -> Row:
    """The two kernels' times, channels last first, in turn."""
    calls = [prepared(kernel) for kernel in kernels]
    number = [max(1, math.ceil(seconds / max(float(call.time(number=1, repeat=3).min()), 1e-9))) for call in calls]
    times = [[float(call.time(number=n, repeat=1)[0]) for call, n in zip(calls, number)] for _ in range(rounds)]
    last, first = (statistics.median(column) * 1e6 for column in zip(*times))
    ratio = statistics.median(first / last for last, first in times)
    used = [str(kernel.manifest.candidate["space"]) for kernel in kernels]
    for kernel in kernels:
        kernel.kernel.place_threads(False)
    return Row(name, last, first, ratio, (used[0], used[1]))


def prepared(conv: CompiledConv) -> Call:
    """A call with random data, each thread on a CPU of its own."""
    rng, arrays = np.random.default_rng(0), []
    for argument in conv.manifest.arguments:
        array = empty_aligned(argument.shape, argument.dtype)
        array[...] = rng.random(argument.shape, dtype=np.float32)
        arrays.append(array)
    call = conv.kernel.prepare(arrays)
    conv.kernel.place_threads(True)
    call()
    return call


def table(rows: Sequence[Row]) -> str:
    """All rows, the largest ratio first, and what they come to."""
    ordered = sorted(rows, key=lambda row: -row.ratio)
    lines = [(r.name, f"{r.last_us:.1f}", f"{r.first_us:.1f}", f"{r.ratio:.2f}", *r.spaces) for r in ordered]
    heads = ("layer", "channels last us", "first us", "ratio", "by", "first by")
    over = sum(row.ratio > WANTED for row in rows)
    mean = math.exp(statistics.fmean(math.log(row.ratio) for row in rows))
    text = tabulate(lines, heads, disable_numparse=True, colalign=("left", "right", "right", "right", "left", "left"))
    return f"{text}\n\n{len(rows)} layers: geometric mean {mean:.2f}, {over} above {WANTED:.2f}"


if __name__ == "__main__":
    main()
