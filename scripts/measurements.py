"""The measurements behind `figures.py`. The machine may be shared: what is compared is measured in turn, A B A B."""

from __future__ import annotations

import math
import os
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import click
from finals import finals

from convtune import accuracy, compiler, probe, space, targets, workloads
from convtune.measure import Bench, CpuBench
from convtune.space import Candidate
from convtune.spec import ConvSpec
from convtune.tuner import BATCH, Tuner, tune

DENSE = ConvSpec.parse("conv,ic=64,oc=64,in=56x56,k=3x3,p=1,layout=NHWC")
NETWORKS = ("mobilenet_v2", "resnet50_v1.5", "resnext50_32x4d")
IMPORT, HELP = ("-c", "import convtune"), ("-m", "convtune.cli", "--help")


@dataclass(frozen=True)
class Figure:
    """A row of the table: what was measured, what is wanted of it, what it came to, and its spread."""

    what: str
    wanted: str
    measured: str
    spread: str


def peak(log: Path, trials: int, rounds: int) -> list[Figure]:
    """A tuned dense kernel's share of the FMA peak, the two measured in turn."""
    target = targets.native()
    tune(DENSE, target, trials, log)
    kernel = compiler.compile(DENSE, target, log=log)
    peaks, speeds = list[float](), list[float]()
    for _ in range(rounds):
        peaks.append(probe.fma_peak_gflops(target, seconds=0.01))
        speeds.append(DENSE.flops / float(kernel.time(repeat=1)[0]) / 1e9)
    shares = [100 * speed / most for speed, most in zip(speeds, peaks)]
    medians = f"{statistics.median(speeds):.0f} of {statistics.median(peaks):.0f} GFLOP/s"
    what = f"conv 64→64 3x3 @56 NHWC, tuned with {trials} trials: share of the FMA peak"
    return [Figure(what, "≥ 85 %", f"{statistics.median(shares):.0f} %, {medians}", spread(shares, "%", 0))]


def candidates(count: int) -> list[Figure]:
    """From knobs to a verified time, one dense candidate after the other, with workers that are warm."""
    target = targets.native()
    limit = accuracy.limit(DENSE, "standard")
    everything = [c for s in space.accepting(DENSE, target) for c in space.enumerate_candidates(s, DENSE, target)]
    default = space.default_candidate(DENSE, target)
    whole_s, build_s = list[float](), list[float]()
    with CpuBench(target) as bench:
        best_us = _warm(bench, default, limit)
        for candidate in random.Random(0).sample(everything, count):
            start = time.perf_counter()
            (built,) = bench.build(DENSE, [candidate])
            build_s.append(time.perf_counter() - start)
            outcome = bench.measure(DENSE, built, limit, best_us)
            whole_s.append(time.perf_counter() - start)
            bench.discard(built)
            if outcome.status == "ok":
                best_us = min(best_us, statistics.median(outcome.times_us))
        batched_s = _batches(bench, everything, count)
    return [
        timed("a dense candidate, from knobs to a verified time", "≤ 0.4 s", whole_s),
        timed("of which the build, alone", "< 0.15 s", build_s),
        timed(f"a build's share of a batch of {BATCH}, as the tuner builds", "< 0.15 s", batched_s),
    ]


def _batches(bench: Bench, candidates: Sequence[space.Candidate], count: int) -> list[float]:
    """Seconds a candidate, of batches that keep every worker busy."""
    seconds = list[float]()
    for seed in range(1, 1 + max(3, count // BATCH)):
        batch = random.Random(seed).sample(candidates, BATCH)
        start = time.perf_counter()
        results = bench.build(DENSE, batch)
        seconds.append((time.perf_counter() - start) / BATCH)
        for built in results:
            bench.discard(built)
    return seconds


def _warm(bench: Bench, default: Candidate, limit: float) -> float:
    """Has every worker do its work once; the default's time in microseconds."""
    built = bench.build(DENSE, [default] * len(os.sched_getaffinity(0)))
    return statistics.median(bench.measure(DENSE, built[0], limit).times_us)


def network(log: Path, trials: int) -> list[Figure]:
    """All of mobilenet_v2 by the command, and again with the same log."""
    command = [sys.executable, "-m", "convtune.cli", "tune", NETWORKS[0], "--trials", str(trials), "--log", str(log)]
    first_s, again_s = process_s(command, sys.stderr), process_s(command, sys.stderr)
    return [
        Figure(f"all of {NETWORKS[0]}, {trials} trials a layer", "≤ 300 s", f"{first_s:.0f} s", "one run"),
        Figure("again with the same log", "< 10 s", f"{again_s:.1f} s", "one run"),
    ]


def defaults(log: Path, trials: int) -> list[Figure]:
    """The default's speed over the tuned kernel's, from finals that measured the two in turn; each layer once."""
    with Tuner(targets.native(), log) as tuner:
        networks = {name: _shares(tuner, name, trials) for name in NETWORKS}
    every = {spec: share for shares in networks.values() for spec, share in shares.items()}
    known = {spec: share for spec, share in every.items() if share is not None}
    means = [f"{name} {geometric_mean(s for s in shares.values() if s):.2f}" for name, shares in networks.items()]
    missing = f"; {len(every) - len(known)} layers without a default that is right" if len(known) < len(every) else ""
    what = f"the default's speed over the tuned one's, {trials} trials: geometric mean of {len(known)} layers"
    details = f"{', '.join(means)}; lowest {min(known.values()):.2f}{missing}"
    return [Figure(what, "≥ 0.7", f"{geometric_mean(known.values()):.2f}", details)]


def _shares(tuner: Tuner, network: str, trials: int) -> dict[str, float | None]:
    """The default's speed over the winner's, by spec; None where the finals do not have both."""
    shares: dict[str, float | None] = {}
    for workload in workloads.parse([network]):
        click.echo(f"tuning {workload.name}", err=True)
        tuner.tune(workload.spec, trials)
        default = space.default_candidate(workload.spec, tuner.target)
        found = finals(workload.spec, default, tuner.log.records(workload.spec, tuner.target.fingerprint))
        shares[str(workload.spec)] = found and found[0].time_us / found[1].time_us
    return shares


def start(repeat: int) -> list[Figure]:
    """Whole processes, in turn."""
    times = [(process_s([sys.executable, *IMPORT]), process_s([sys.executable, *HELP])) for _ in range(repeat)]
    imports, helps = zip(*times)
    return [
        timed("`import convtune`, the whole process", "≤ 0.2 s", imports),
        timed("`convtune --help`", "≤ 0.5 s", helps),
    ]


def process_s(command: Sequence[str], output: IO[str] | int = subprocess.DEVNULL) -> float:
    """Seconds that a command takes."""
    begin = time.perf_counter()
    subprocess.run(command, check=True, stdout=output)
    return time.perf_counter() - begin


def geometric_mean(values: Iterable[float]) -> float:
    return math.exp(statistics.fmean(math.log(value) for value in values))


def timed(what: str, wanted: str, seconds: Sequence[float]) -> Figure:
    return Figure(what, wanted, f"{statistics.median(seconds):.3f} s", spread(seconds, "s", 3))


def spread(values: Sequence[float], unit: str, digits: int) -> str:
    """The quartiles, and of how many."""
    low, _, high = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else [*values] * 3
    return f"half within {low:.{digits}f} to {high:.{digits}f} {unit}, n = {len(values)}"
