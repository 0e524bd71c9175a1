"""`convtune tune`: searches for the fastest schedule of every layer, and says what was gained."""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from convtune.cli import options, peaks, progress, tables
from convtune.cli.application import DONE, FAILED, Invocation, exit_code_of, one_line
from convtune.cli.notices import tell, warn_of
from convtune.cli.stages import with_stages
from convtune.engines import ENGINES
from convtune.errors import BuildError, LogError, MeasureError, ScheduleError, VerifyError

if TYPE_CHECKING:
    from convtune.cli.summary import Layer, Summary
    from convtune.tuner import Tuner
    from convtune.tuning import TuneResult
    from convtune.workloads import Workload


@click.command("tune")
@options.workloads()
@options.target
@options.trials("Candidates a layer, those in the log included.")
@click.option(
    "--budget",
    callback=options.duration_s,
    metavar="TIME",
    help="For all layers together, such as 90s, 5m or 1h30m. One candidate of each layer is tried in any case.",
)
@options.log("Log to go on with, or to make; otherwise $CONVTUNE_LOG, or one in your data directory.")
@options.accuracy
@click.option(
    "--seed", type=options.IntegerRange(min=0), default=0, show_default=True, metavar="N", help="Of the search."
)
@click.option("--engine", type=click.Choice(ENGINES), default=ENGINES[0], show_default=True, help="What searches.")
@options.stages
@options.layout
@options.threads
@options.rpc
@options.as_json
@click.pass_obj
def command(
    invocation: Invocation,
    *,
    workloads: tuple[str, ...],
    target: str,
    trials: int,
    budget: float | None,
    log: Path | None,
    accuracy: str,
    seed: int,
    engine: str,
    stages: bool,
    layout: str | None,
    threads: int | None,
    rpc: str | None,
    rpc_key: str | None,
    as_json: bool,
) -> int:
    """Find the fastest schedule of every layer, verified before it is timed.

    Without --rpc, kernels for what is not in this machine are verified by emulation. A GPU's times are then estimates
    of a static model; an ARM CPU's kernels are compared by the instructions that they execute, which are no times.

    Every candidate goes into the log at once: an interrupted run goes on where it stopped, and what is in the log
    with enough trials costs nothing.
    """
    from convtune import targets
    from convtune.cli.summary import Summary
    from convtune.remote import remote_of
    from convtune.tuner import Tuner
    from convtune.workloads import parse

    remote = remote_of(rpc, rpc_key)
    named = parse(workloads, layout)
    layers = distinct(with_stages(named) if stages else named)
    machine = targets.resolve(target, threads, elsewhere=remote is not None)
    tell(machine)
    with Tuner(machine, log, accuracy=accuracy, seed=seed, engine=engine, remote=remote) as tuner:
        warn_of(tuner.log.problems)
        peak = peaks.of(machine)
        _check_writable(tuner.log.path)
        try:
            tuned = _tune_all(tuner, layers, trials, None if budget is None else time.monotonic() + budget)
        except KeyboardInterrupt as stop:
            click.echo(_interrupted(tuner, layers, invocation), err=True)
            return exit_code_of(stop)
        summary = Summary(tuned, machine, peak.again(), tuner.origin, tuner.log.path, str(invocation))
    _print(summary, as_json)
    return FAILED if any(layer.failure for layer in tuned) else DONE


def _print(summary: Summary, as_json: bool) -> None:
    if as_json:
        tables.print_json(summary.data())
    else:
        click.echo(summary.text())


def distinct(workloads: Sequence[Workload]) -> list[Workload]:
    """The workloads with equal specs made one, with their counts together, of the first one's name that has a count."""
    found: dict[str, Workload] = {}
    for workload in workloads:
        earlier = found.get(str(workload.spec), workload)
        named = earlier if earlier.count else workload
        count = workload.count + (0 if earlier is workload else earlier.count)
        found[str(workload.spec)] = dataclasses.replace(named, count=count)
    return list(found.values())


def _tune_all(tuner: Tuner, layers: Sequence[Workload], trials: int, deadline: float | None) -> list[Layer]:
    from convtune.cli.summary import Layer

    tuned = []
    with progress.display(len(layers), deadline) as shown:
        for number, workload in enumerate(layers, start=1):
            shown.begin(number, workload.name)
            # what a layer leaves of its share goes to those after it
            share = None if deadline is None else max(deadline - time.monotonic(), 0) / (len(layers) - number + 1)
            try:
                result = tuner.tune(workload.spec, trials, share, shown.update)
            except (BuildError, MeasureError, ScheduleError, VerifyError) as problem:
                layer = Layer(workload, None, one_line(str(problem)))
            else:
                layer = Layer(workload, result, "" if result.best else _why(tuner, result))
            tuned.append(layer)
            shown.finish(_line(layer))
    return tuned


def _why(tuner: Tuner, result: TuneResult) -> str:
    """Why none of the candidates will do: their statuses, and the last one's message."""
    last = [r for r in tuner.log.records(result.spec, result.target.fingerprint) if r.origin == tuner.origin][-1]
    inaccurate = "" if result.failures else ", all beyond the accuracy asked for"
    said = f"; the last one: {one_line(last.message)[:300]}" if last.message else ""
    return f"no candidate works ({tables.counts(result.failures) or 'none failed'}{inaccurate}){said}"


def _line(layer: Layer) -> str:
    """What is said of a layer as soon as it is done."""
    result = layer.result
    if result is None or layer.failure:
        return f"failed: {layer.failure}"
    gained = f", {layer.speedup:.2f}x" if layer.speedup else ""
    best, default = (tables.rank(value, result.origin) for value in (result.best_rank, result.default_rank))
    line = f"{best} (default {default}{gained})"
    if result.from_log:
        return f"{line}, all from the log"
    line += f" after {tables.plural(result.trials, 'trial')} in {result.elapsed_s:.1f} s; ended by {result.stopped}"
    return f"{line}; failed: {tables.counts(result.failures)}" if result.failures else line


def _interrupted(tuner: Tuner, layers: Sequence[Workload], invocation: Invocation) -> str:
    fingerprint = tuner.target.fingerprint
    kept = {(r.spec, r.candidate.key) for la in layers for r in tuner.log.records(la.spec, fingerprint)}
    return (
        f"convtune: interrupted; {tables.plural(len(kept), 'candidate')} of these layers "
        f"{'is' if len(kept) == 1 else 'are'} in {tuner.log.path}; to go on:\n{invocation}"
    )


def _check_writable(path: Path) -> None:
    """Finds out before anything is measured that no record could be kept. Makes missing directories."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as problem:
        raise LogError(f"log {path}: {problem.strerror} ({problem.filename})") from problem
    place = path if path.exists() else path.parent
    if not os.access(place, os.W_OK):
        raise LogError(f"log {path} cannot be written: no permission to write {place}")
