"""How good a short search, a transferred schedule and the default are, each against the tuned one, measured in turn."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from shutil import copyfile

import click
from measurements import Figure, geometric_mean, spread

from convtune import accuracy, resolution, space, targets, workloads
from convtune.log import Layer, Log, LogStack, Problem
from convtune.measure import Bench, CpuBench
from convtune.record import Record, winner
from convtune.space import Candidate
from convtune.spec import ConvSpec
from convtune.targets import Target
from convtune.tuner import Tuner


class Without:
    """A log as it would be had this spec never been tuned."""

    def __init__(self, log: Layer, spec: ConvSpec) -> None:
        self.name, self.problems = f"{log.name} without {spec}", list[Problem]()
        self._log, self._spec = log, str(spec)

    def records(self, spec: ConvSpec | str | None = None, fingerprint: str | None = None) -> list[Record]:
        return [record for record in self._log.records(spec, fingerprint) if record.spec != self._spec]


@click.command()
@click.argument("names", nargs=-1, required=True, metavar="WORKLOAD...")
@click.option("--trials", type=click.IntRange(min=1), default=32, show_default=True, help="A layer.")
@click.option("--log", type=click.Path(path_type=Path), required=True, help="Log to go on with.")
@click.option("--longer", type=click.IntRange(min=0), default=0, help="Of how many layers a ten times longer search.")
def main(names: tuple[str, ...], trials: int, log: Path, longer: int) -> None:
    """Print the figures for WORKLOADs as rows of a table; what is not in the log yet is tuned first."""
    target = targets.native()
    specs = list(dict.fromkeys(workload.spec for workload in workloads.parse(names)))
    seconds = tuned(specs, target, trials, log)
    with CpuBench(target) as bench:
        figures = against_tuned(bench, specs, target, Log(log))
        if longer:
            figures.append(ten_times(bench, spaced(specs, longer), target, trials, log))
    if seconds:
        figures.append(
            Figure("tuning a layer", "≤ 15 s", f"{statistics.median(seconds):.1f} s", spread(seconds, "s", 1))
        )
    for figure in figures:
        click.echo(f"| {figure.what} | {figure.wanted} | {figure.measured} | {figure.spread} |")


def tuned(specs: Sequence[ConvSpec], target: Target, trials: int, log: Path) -> list[float]:
    """Seconds of each search that was not in the log."""
    seconds = []
    with Tuner(target, log) as tuner:
        for number, spec in enumerate(specs, start=1):
            click.echo(f"{number}/{len(specs)} tuning {spec}", err=True)
            start = time.perf_counter()
            if not tuner.tune(spec, trials).from_log:
                seconds.append(time.perf_counter() - start)
    return seconds


def against_tuned(bench: Bench, specs: Sequence[ConvSpec], target: Target, log: Log) -> list[Figure]:
    """The default's speed, and that of what is transferred from the other layers of the log, over the tuned one's."""
    shares: dict[str, list[float]] = {"default": [], "transfer": []}
    for number, spec in enumerate(specs, start=1):
        click.echo(f"{number}/{len(specs)} comparing {spec}", err=True)
        limit = accuracy.limit(spec, "standard")
        best = winner(log.records(spec, target.fingerprint), max_error=limit)
        assert best is not None, "it was tuned"
        stack = LogStack([Without(log, spec)])
        choice = next(resolution.choices(spec, target, stack, limit))
        default = space.default_candidate(spec, target, limit)
        times = contest(bench, spec, limit, [best.candidate, default, choice.candidate])
        for kind, microseconds, candidate in zip(shares, times[1:], (default, choice.candidate)):
            shares[kind].append(times[0] / microseconds)
            click.echo(f"    {kind} {times[0] / microseconds:.2f}: {candidate} for {best.candidate}", err=True)
    return [
        Figure(f"the {kind}'s speed over the tuned one's, {len(found)} layers", wanted, f"{geometric_mean(found):.2f}",
               f"{spread(found, '', 2)}, lowest {min(found):.2f}, highest {max(found):.2f}")
        for (kind, found), wanted in zip(shares.items(), ("≥ 0.8", "≥ 0.9"))
    ]  # fmt: skip


def ten_times(bench: Bench, specs: Sequence[ConvSpec], target: Target, trials: int, log: Path) -> Figure:
    """The tuned kernel's speed over that of the best of ten times as many trials."""
    found = []
    more = log.with_suffix(".longer.jsonl")
    copyfile(log, more)
    with Tuner(target, more) as tuner:
        for spec in specs:
            click.echo(f"ten times as long: {spec}", err=True)
            limit = accuracy.limit(spec, "standard")
            short = winner(Log(log).records(spec, target.fingerprint), max_error=limit)
            long = tuner.tune(spec, 10 * trials).best
            assert short is not None and long is not None, "both were tuned"
            times = contest(bench, spec, limit, [short.candidate, long.candidate])
            found.append(times[1] / times[0])
    what = f"tuned with {trials} trials: speed over the best of {10 * trials}, {len(found)} layers"
    return Figure(what, "≥ 0.95", f"{geometric_mean(found):.2f}", f"{spread(found, '', 2)}, lowest {min(found):.2f}")


def contest(bench: Bench, spec: ConvSpec, limit: float, candidates: Sequence[Candidate]) -> list[float]:
    """Median times in turn, in microseconds; equal candidates are measured once and have one time."""
    different = list(dict.fromkeys(candidates))
    built = bench.build(spec, different)
    for kernel in built:
        outcome = bench.verify(spec, kernel, limit)
        if outcome.status != "ok":
            raise click.ClickException(f"{spec}: {kernel.candidate} is {outcome.status}: {outcome.message}")
    if len(different) == 1:
        return [1.0] * len(candidates)
    times = dict(zip(different, map(statistics.median, bench.finals(spec, built))))
    for kernel in built:
        bench.discard(kernel)
    return [times[candidate] for candidate in candidates]


def spaced(specs: Sequence[ConvSpec], count: int) -> list[ConvSpec]:
    """That many of the specs, evenly spaced."""
    return [specs[i * len(specs) // count] for i in range(min(count, len(specs)))]


if __name__ == "__main__":
    main()
