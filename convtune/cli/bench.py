"""`convtune bench`: compares convtune with the libraries, layer by layer, in turn in one run."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from convtune.cli import options, tables
from convtune.cli.application import DONE, FAILED, Invocation, exit_code_of, one_line
from convtune.cli.bench_time import TimeLeft
from convtune.cli.notices import tell, warn_of
from convtune.cli.progress import display
from convtune.cli.tune import distinct
from convtune.errors import MeasureError, TargetError

if TYPE_CHECKING:
    from convtune.comparison import Comparison, ResultFile, Settings
    from convtune.comparison.comparison import Entrants
    from convtune.peers import Peer
    from convtune.targets import CpuTarget
    from convtune.workloads import Workload

_ROUNDS = 9
_FEWEST_ROUNDS = 6  # convtune.comparison.verdict.FEWEST_PAIRS
_LONGEST_TURN_MS = 10_000.0  # with its warm-up far below the least time that a contender has for an answer


@click.command("bench")
@options.workloads()
@click.option(
    "--against",
    multiple=True,
    metavar="PEERS",
    help="torch, onnxruntime, openvino, metaschedule: a list with commas, or repeated; otherwise all libraries that "
    "are installed.",
)
@options.target
@options.log_of_schedules
@options.accuracy
@click.option(
    "-o", "--output", type=options.PLACE, metavar="FILE", help="JSON to write after every layer, and to go on with."
)
@click.option("--again", is_flag=True, help="Measure what FILE already has, too.")
@click.option(
    "--rounds",
    type=options.IntegerRange(min=_FEWEST_ROUNDS),
    default=_ROUNDS,
    show_default=True,
    metavar="N",
    help="Of turns.",
)
@click.option(
    "--turn",
    "turn_ms",
    type=options.FiniteRange(min=0, min_open=True, max=_LONGEST_TURN_MS),
    default=30.0,
    show_default=True,
    metavar="MS",
    help="How long the calls of a turn take, milliseconds; at least 3 calls.",
)
@options.trials("Of MetaSchedule, for each layer.")
@click.option(
    "--metaschedule-log",
    type=options.PLACE,
    metavar="FILE",
    help="Log of MetaSchedule's search; otherwise metaschedule.jsonl beside your own log.",
)
@options.layout
@options.threads
@options.as_json
@click.pass_obj
def command(
    invocation: Invocation,
    *,
    workloads: tuple[str, ...],
    against: tuple[str, ...],
    target: str,
    log: Path | None,
    accuracy: str,
    output: Path | None,
    again: bool,
    rounds: int,
    turn_ms: float,
    trials: int,
    metaschedule_log: Path | None,
    layout: str | None,
    threads: int | None,
    as_json: bool,
) -> int:
    """Compare convtune's kernels with libraries and with stock MetaSchedule.

    Every contender runs in a process of its own, its results are compared with the float64 reference first, and they
    take turns in every round while all others are at rest. A row is a win or a loss where the median of the ratios of
    a round's times is, with 95 % confidence, on one side of 1 and at least 2 % from it.
    """
    from convtune.comparison import Comparison, ResultFile, Settings
    from convtune.comparison.comparison import chosen
    from convtune.compiler import open_logs
    from convtune.workloads import parse

    peers = chosen([name.strip() for text in against for name in text.split(",")])
    engine_log = _engine_log(metaschedule_log, peers)
    layers = distinct(parse(workloads, layout))
    machine = _measurable(target, threads)
    tell(machine)
    results = ResultFile(output, machine, accuracy)
    settings = Settings(rounds, turn_ms / 1e3, trials, engine_log)
    logs = open_logs(log)
    with Comparison(machine, logs, peers, settings, accuracy) as comparison:
        warn_of(logs.problems)
        _tell_absent(peers, named=bool(against))
        run = Run(comparison, results, peers, settings, invocation)
        stop = run.compare(layers, again)
    _show(results, layers, as_json)
    if stop is not None:
        click.echo(_interrupted(layers, results, output, invocation), err=True)
        return exit_code_of(stop)
    return FAILED if any(_has_failed(results, workload) for workload in layers) else DONE


def _engine_log(named: Path | None, peers: Sequence[Peer]) -> Path:
    """The log of MetaSchedule's search; raises UsageError where one is named for nothing."""
    from convtune.paths import log_path

    if named and not any(peer.engine for peer in peers):
        raise click.UsageError(
            "--metaschedule-log is of the peer metaschedule, which takes no part; name it in --against."
        )
    return named or log_path().with_name("metaschedule.jsonl")


class Run:
    """One run of the command: what it measures, and the machine's peaks around it."""

    def __init__(
        self,
        comparison: Comparison,
        results: ResultFile,
        peers: Sequence[Peer],
        settings: Settings,
        invocation: Invocation,
    ) -> None:
        self._comparison, self._results, self._peers = comparison, results, peers
        self._settings, self._invocation = settings, invocation
        self._facts: dict[str, Any] | None = None

    def compare(self, layers: Sequence[Workload], again: bool) -> KeyboardInterrupt | None:
        """Measures each layer that the file does not have as it would be now. Returns what interrupted it, if so."""
        try:
            self._compare(layers, again)
        except KeyboardInterrupt as stop:
            return stop
        finally:
            self._finish()
        return None

    def _compare(self, layers: Sequence[Workload], again: bool) -> None:
        from convtune.comparison.layer import tried_again, waiting

        known = {w.spec for w in layers if not again and self._results.get(w.spec)}
        flops = {w.spec: w.spec.flops for w in layers}
        left = TimeLeft((flops[s] for s in flops if s not in known), in_file=(flops[s] for s in flops if s in known))
        with display(len(layers), None) as shown:
            for number, workload in enumerate(layers, start=1):
                shown.begin(number, workload.name)
                began = time.monotonic()
                entrants = self._comparison.entrants(workload, shown.update)
                same = self._same(workload, entrants)
                if same and not again and not waiting(same):
                    left.kept(workload.spec.flops)
                    shown.finish(f"{_line(same)}; from the file{_given_up(same)}")
                    continue
                index = self._begin()
                try:
                    layer = self._comparison.measure(workload, entrants)
                except MeasureError as problem:
                    from convtune.comparison.layer import failed

                    layer = failed(workload, str(problem))
                layer["failure"] = one_line(layer["failure"])
                self._results.put(self._bounded({**tried_again(layer, same), "run": index}))
                self._results.save()
                left.measured(workload.spec.flops, time.monotonic() - began, workload.spec in known)
                rest = left.seconds
                shown.finish(_line(layer) + ("" if rest is None else f"; about {tables.duration(rest)} left"))

    def _same(self, workload: Workload, entrants: Entrants) -> dict[str, Any] | None:
        """What the file has of the workload, where that is the same measurement."""
        there = self._results.get(workload.spec)
        if there is None or entrants.ours is None or there["identity"] != self._comparison.identity(entrants):
            return None
        return there

    def _begin(self) -> int:
        """The index of this run among the file's, which exists from its first layer on."""
        if self._facts is None:
            from convtune import probe
            from convtune.record import installed_versions, utc_now

            target = self._comparison.target
            peak, bandwidth = probe.fma_peak_gflops(target), probe.bandwidth_gbs(target)
            versions = dict(installed_versions())
            for peer in self._peers:
                versions |= peer.versions()
            self._facts = {
                "command": str(self._invocation),
                "started": utc_now(),
                "finished": None,
                "rounds": self._settings.rounds,
                "turn_s": self._settings.turn_s,
                "versions": versions,
                "peak_gflops": {"before": peak, "after": peak},
                "bandwidth_gbs": {"read": bandwidth.read_gbs, "triad": bandwidth.triad_gbs},
            }
            self._results.runs.append(self._facts)
        return self._results.runs.index(self._facts)

    def _bounded(self, layer: dict[str, Any]) -> dict[str, Any]:
        """By the highest peaks of all runs of the file: one that was measured in a slow minute is not the machine's."""
        from convtune.comparison.layer import bounded

        runs = self._results.runs
        peak = max(gflops for run in runs for gflops in run["peak_gflops"].values())
        return bounded(layer, peak, max(run["bandwidth_gbs"]["read"] for run in runs))

    def _finish(self) -> None:
        """Measures the peaks again: a machine that was slower at first must not make shares too high."""
        if self._facts is None:
            return
        from convtune import probe
        from convtune.record import utc_now

        target, facts = self._comparison.target, self._facts
        after = probe.bandwidth_gbs(target)
        facts["peak_gflops"]["after"] = probe.fma_peak_gflops(target)
        facts["bandwidth_gbs"] = {
            "read": max(facts["bandwidth_gbs"]["read"], after.read_gbs),
            "triad": max(facts["bandwidth_gbs"]["triad"], after.triad_gbs),
        }
        facts["finished"] = utc_now()
        for layer in self._results.data()["layers"]:
            self._results.put(self._bounded(layer))
        self._results.save()


def _measurable(target: str, threads: int | None) -> CpuTarget:
    from convtune import targets

    machine = targets.resolve(target, threads)
    if not isinstance(machine, targets.CpuTarget):
        raise TargetError(f"target {machine.name!r} is a GPU; the libraries are compared on this CPU")
    if not machine.is_host:
        raise TargetError(f"target {machine.name!r} cannot be compared here: {machine.why_not_here()}")
    return machine


def _tell_absent(peers: Sequence[Peer], named: bool) -> None:
    """Says which libraries are left out because they are not installed, where the user chose none."""
    from convtune import peers as all_peers

    for peer in all_peers.known().values():
        if not named and not peer.engine and peer not in peers:
            click.echo(f"convtune: not compared with {peer.name}: not installed; {peer.remedy}", err=True)


def _line(layer: dict[str, Any]) -> str:
    """What is said of a layer as soon as it is done."""
    if layer["failure"]:
        return f"failed: {layer['failure']}"
    ours = tables.rank(layer["ours"]["us"])
    if layer["ratio"] is None:
        return f"{ours}; no peer has a result"
    best = layer["peers"][layer["best"]]
    verdict = layer["verdict"].replace("_", " ")
    return f"{ours}, {layer['best']} {tables.rank(best['us'])}: {layer['ratio']['median']:.2f}x, {verdict}"


def _given_up(layer: dict[str, Any]) -> str:
    from convtune.comparison.layer import failed_peers

    names = ", ".join(failed_peers(layer))
    return f"; {names} failed twice, --again tries once more" if names else ""


def _has_failed(results: ResultFile, workload: Workload) -> bool:
    layer = results.get(workload.spec)
    return layer is None or bool(layer["failure"])


def _show(results: ResultFile, layers: Sequence[Workload], as_json: bool) -> None:
    from convtune.cli import bench_table

    data = results.data([str(workload.spec) for workload in layers])
    if as_json:
        tables.print_json(data)
    elif data["layers"]:
        click.echo(bench_table.text(data))


def _interrupted(layers: Sequence[Workload], results: ResultFile, output: Path | None, invocation: Invocation) -> str:
    done = sum(results.get(workload.spec) is not None for workload in layers)
    of = f"{done} of {tables.plural(len(layers), 'layer')}"
    if output is None:
        return f"convtune: interrupted; {of} measured, and kept nowhere; with -o FILE.json it could go on"
    return f"convtune: interrupted; {of} {'is' if done == 1 else 'are'} in {output}; to go on:\n{invocation}"
