"""Arguments and options that several commands have, and the reading of durations."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from convtune import accuracy as accuracies
from convtune.workloads import CHANNEL_ORDERS

F = TypeVar("F", bound=Callable[..., Any])
_UNITS_S = (3600, 60, 1)
_DURATION = re.compile(r"(?:(\d+(?:\.\d+)?)h)?(?:(\d+(?:\.\d+)?)m)?(?:(\d+(?:\.\d+)?)s)?", re.ASCII)


def duration_s(ctx: click.Context, param: click.Parameter, value: str | None) -> float | None:
    """Seconds, from hours, minutes and seconds such as 1h30m, 5m or 90s; raises BadParameter for anything else."""
    if value is None:
        return None
    match = _DURATION.fullmatch(value)
    parts = match.groups() if match else ()
    seconds = sum(float(part) * unit for part, unit in zip(parts, _UNITS_S) if part)
    if not seconds:
        raise click.BadParameter(f"{value!r} is not a duration above 0; write it as 90s, 5m or 1h30m.", ctx, param)
    return seconds


def _bounds(numbers: click.IntRange | click.FloatRange) -> str:
    """What a range allows, as it follows "an integer" in a sentence."""
    least = f"above {numbers.min:g}" if numbers.min_open else f"of at least {numbers.min:g}"
    return least if numbers.max is None else f"{least} and at most {numbers.max:g}"


class IntegerRange(click.IntRange):
    """An integer in a range with a lower bound. Click would call what is none no "valid integer range"."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        try:
            int(value)
        except ValueError:
            self.fail(f"{value!r} is not an integer {_bounds(self)}.", param, ctx)
        return super().convert(value, param, ctx)


class FiniteRange(click.FloatRange):
    """A number in a range with a lower bound. No bound keeps NaN out: every comparison with it is false."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        try:
            float(value)
        except ValueError:
            self.fail(f"{value!r} is not a number {_bounds(self)}.", param, ctx)
        number = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{number} is not a finite number.", param, ctx)
        return number


class Place(click.Path):
    """A path that names something: pathlib would read "" as the current directory."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not str(value):
            self.fail("'' names no file.", param, ctx)
        return super().convert(value, param, ctx)


PLACE = Place(path_type=Path)


def workloads(required: bool = True, metavar: str = "WORKLOAD...") -> Callable[[F], F]:
    return click.argument("workloads", nargs=-1, required=required, metavar=metavar)


target = click.option(
    "--target",
    default="native",
    show_default=True,
    metavar="TARGET",
    help="native, cuda, a CPU's or GPU's name, or JSON with a machine's facts, also from a .json file; see `convtune "
    "show targets`.",
)
threads = click.option(
    "--threads",
    type=IntegerRange(min=1),
    metavar="N",
    help="Threads that kernels run on; otherwise $CONVTUNE_NUM_THREADS, or the physical cores.",
)
_rpc_address = click.option(
    "--rpc",
    metavar="HOST:PORT",
    help="TVM's RPC tracker: kernels run on the machines of its servers, which the target must name.",
)
_rpc_key = click.option("--rpc-key", metavar="KEY", help="Of the tracker's servers, those to use.")
accuracy = click.option(
    "--accuracy",
    type=click.Choice(accuracies.NAMES),
    default="standard",
    show_default=True,
    help="The largest error, max |y - reference| / max |reference|: strict is that of direct summation, standard "
    f"{accuracies.STANDARD['float32']:g}, loose {accuracies.LOOSE['float32']:g}; of float16, "
    f"{accuracies.STANDARD['float16']:.2g} and {accuracies.LOOSE['float16']:g}.",
)
layout = click.option(
    "--layout",
    type=click.Choice(CHANNEL_ORDERS),
    help="Of all workloads; otherwise what each says, and channels last for the zoo.",
)
stages = click.option(
    "--stages", is_flag=True, help="Each composite workload is followed by its stages, as workloads of their own."
)
as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON, which docs/cli.md describes.")


def rpc(command: F) -> F:
    return _rpc_address(_rpc_key(command))


def log(meaning: str) -> Callable[[F], F]:
    return click.option("--log", type=PLACE, metavar="FILE", help=meaning)


log_of_schedules = log(
    "Log to take schedules from in place of your own; either is over the one that comes with convtune."
)


def trials(meaning: str) -> Callable[[F], F]:
    number = IntegerRange(min=1)
    return click.option("--trials", type=number, default=64, show_default=True, metavar="N", help=meaning)
