"""Tells what the ranking of emulated candidates is worth: its cost against times measured on an x86 machine.

    python scripts/ranking.py build DIR [--threads N] [--candidates N] [--seed N]
    python scripts/ranking.py time DIR [--passes N] [--seconds N]    # on a quiet machine, until it says: all done
    python scripts/ranking.py report DIR

`build` draws random candidates of every space that takes each of LAYERS, besides the spaces' defaults, for the target
x86-64-v2 with this machine's caches: SSE, which the emulator knows. It builds them, emulates them, and models their
caches. `time` verifies and times them as `convtune tune` does, several times, minutes apart; the lowest median counts.
`report` prints, for each layer, Spearman's and Kendall's rank correlation of cost and time over the candidates that
were right; "again" is Spearman's of the times of even and of odd passes: how well they repeat. Then what picking costs:
the time of the candidate of the least cost, of the best of the 3 and of the 8 of the least cost, of the default, and of
one picked at random (the mean over all), each over the best time of the layer. A second table compares other costs.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import math
import random
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats
from tabulate import tabulate

from convtune import space, targets
from convtune.cache_model import Traffic, traffic
from convtune.emulation.cost import cost, critical
from convtune.emulation.counts import KINDS, Counts
from convtune.emulation.kernel import EmulatedKernel
from convtune.errors import ConvtuneError
from convtune.measure import Bench, CpuBench
from convtune.measure.bench import Built
from convtune.measure.builder import Builder, BuildRequest, Library, scheduled
from convtune.measure.device import Case
from convtune.measure.verify import alignments_of
from convtune.paths import cache_dir
from convtune.space import Candidate
from convtune.spec import ConvSpec
from convtune.targets import CpuTarget

LAYERS = (
    "conv,ic=64,oc=64,in=28x28,k=3x3,p=1",
    "conv,ic=128,oc=128,in=14x14,k=3x3,p=1",
    "conv,ic=3,oc=32,in=112x112,k=3x3,s=2,p=1",
    "conv,ic=64,oc=64,in=501,k=5,p=2",
    "conv,ic=8,oc=16,in=8x28x28,k=3x3x3,p=1",
    "pointwise,ic=64,oc=128,in=28x28,k=1x1",
    "pointwise,ic=512,oc=256,in=7x7,k=1x1",
    "depthwise,ic=96,oc=96,in=56x56,k=3x3,p=1,g=96",
    "depthwise,ic=256,oc=256,in=14x14,k=5x5,p=2,g=256",
    "grouped,ic=128,oc=128,in=28x28,k=3x3,p=1,g=32",
    "dilated,ic=32,oc=64,in=28x28,k=3x3,p=2,d=2",
    "transposed,ic=64,oc=32,in=14x14,k=4x4,s=2,p=1",
    "deformable,ic=32,oc=32,in=28x28,k=3x3,p=1",
    "depthwise_separable,ic=32,oc=64,in=28x28,k=3x3,p=1",
)
ERROR = 1e-3  # some spaces trade accuracy for speed; here any that is about right counts
TOP = (1, 3, 8)
NOTHING = Traffic(0, 0, 0, 0)
Entry = dict[str, Any]


def machine(threads: int) -> CpuTarget:
    """x86-64-v2 as this machine runs it: its own caches."""
    here, named = targets.resolve("native", threads), targets.resolve("x86-64-v2", threads)
    assert isinstance(here, CpuTarget) and isinstance(named, CpuTarget)
    return dataclasses.replace(named, l1d_bytes=here.l1d_bytes, l2_bytes=here.l2_bytes, l3_bytes=here.l3_bytes)


def candidates(spec: ConvSpec, target: CpuTarget, count: int, seed: int) -> Iterator[Candidate]:
    """The default first, the defaults of the other spaces, then random ones of all spaces alike."""
    owners = space.accepting(spec, target)
    found = [space.default_candidate(spec, target), *(Candidate(o.name, o.default(spec, target)) for o in owners)]
    generator = random.Random(f"{seed} {spec}")
    domains = [(owner, owner.knobs(spec, target)) for owner in owners]
    for _ in range(100 * count):
        owner, domain = generator.choice(domains)
        knobs = {name: generator.choice(values) for name, values in domain.items()}
        if owner.allows(spec, target, knobs):
            found.append(Candidate(owner.name, knobs))
    yield from list({candidate.key: candidate for candidate in found}.values())[:count]


def build(directory: Path, threads: int, count: int, seed: int) -> None:
    """Builds, emulates and models what is not there yet."""
    target = machine(threads)
    builder = Builder(target, cache_dir())
    directory.mkdir(exist_ok=True)
    (directory / "machine.json").write_text(json.dumps({"threads": threads}))
    for number, text in enumerate(LAYERS):
        spec = ConvSpec.parse(text)
        if (directory / f"{number}.json").exists():
            continue
        case = Case(spec, 0, directory)
        entries = [
            _built(builder, case, candidate, directory / f"{number}-{turn}", target)
            for turn, candidate in enumerate(candidates(spec, target, count, seed))
        ]
        _save(directory / f"{number}.json", [entry for entry in entries if entry])
        print(f"{text}: {len(entries)} candidates", flush=True)


def _built(builder: Builder, case: Case, candidate: Candidate, directory: Path, target: CpuTarget) -> Entry | None:
    directory.mkdir(exist_ok=True)
    try:
        library = builder(BuildRequest(case.spec, candidate, directory))
        modelled = traffic(scheduled(case.spec, target, candidate)[0], target)
        inputs = case.inputs(library.pack)
        with EmulatedKernel(library.path, target.threads, [*inputs, "y"]) as kernel:
            kernel([*inputs.values(), case.y], list(alignments_of(inputs).values()))
            counts = kernel.counts
    except ConvtuneError as problem:
        print(f"{candidate}: {problem}", file=sys.stderr)
        return None
    return {
        "space": candidate.space,
        "knobs": dict(candidate.knobs),
        "library": dataclasses.asdict(dataclasses.replace(library, path=str(library.path))),  # type: ignore[arg-type]
        "traffic": dataclasses.asdict(modelled),
        "instructions": counts.instructions,
        "by_kind": dict(counts.by_kind),
        "regions": counts.regions,
    }


def measure(directory: Path, seconds: float, passes: int) -> None:
    """Times what is not timed so often yet, all in turn, until the seconds are over."""
    end = time.monotonic() + seconds
    with CpuBench(machine(_threads(directory))) as bench:
        for turn, (number, text) in itertools.product(range(passes), enumerate(LAYERS)):
            path, spec = directory / f"{number}.json", ConvSpec.parse(text)
            entries = json.loads(path.read_text())
            try:
                for entry in entries:
                    if len(entry.setdefault("passes", [])) > turn or entry.get("status", "ok") != "ok":
                        continue
                    if time.monotonic() > end:
                        print(f"stopped at {text}")
                        return
                    _time(bench, spec, entry)
            finally:
                _save(path, entries)
    print("all done")


def _time(bench: Bench, spec: ConvSpec, entry: Entry) -> None:
    given = entry["library"]
    library = Library(**{**given, "path": Path(given["path"]), "pack": tuple(map(tuple, given["pack"]))})
    outcome = bench.measure(spec, Built(Candidate(entry["space"], entry["knobs"]), "ok", library=library), ERROR)
    entry.update(status=outcome.status, message=outcome.message)
    entry["passes"].append(outcome.times_us)


def report(directory: Path) -> None:
    """Prints the ranking by cost, layer by layer, and what other costs would be worth."""
    target, layers = machine(_threads(directory)), list(_measured(directory))
    rows: list[list[Any]] = []
    for text, entries, medians in layers:
        again = stats.spearmanr(medians[:, ::2].min(axis=1), medians[:, 1::2].min(axis=1)).statistic
        rows.append([text, len(entries), again, *_row([cost(*_counted(e), target) for e in entries], medians)])
    head = ["layer", "candidates", "again", "Spearman", "Kendall", *(f"top {n}" for n in TOP), "default", "random"]
    rows.append(["median", sum(row[1] for row in rows), *np.median([row[2:] for row in rows], axis=0)])
    means = np.exp(np.mean(np.log([row[5:] for row in rows[:-1]]), axis=0))
    rows.append(["geometric mean", "", None, None, None, *means])
    print(tabulate(rows, head, tablefmt="github", floatfmt=("", "", *[".2f"] * 8)))
    print()
    others = []
    for name, alternative in ALTERNATIVES.items():
        found = [_row([alternative(*_counted(e), target) for e in es], medians) for _, es, medians in layers]
        spearman, top = [row[0] for row in found], [row[2] for row in found]
        mean = math.exp(statistics.mean(map(math.log, top)))
        others.append([name, statistics.median(spearman), statistics.mean(spearman), min(spearman), mean, max(top)])
    head = ["cost", "Spearman, median", "mean", "least", "top 1, geometric mean", "worst"]
    print(tabulate(others, head, tablefmt="github", floatfmt=".2f"))


def _measured(directory: Path) -> Iterator[tuple[str, list[Entry], Any]]:
    """Of each layer the candidates that are right, and the median of each whole pass: (candidates, passes)."""
    for number, text in enumerate(LAYERS):
        entries = [e for e in json.loads((directory / f"{number}.json").read_text()) if e.get("status") == "ok"]
        whole = min(len(entry["passes"]) for entry in entries)
        yield text, entries, np.array([[statistics.median(times) for times in e["passes"][:whole]] for e in entries])


def _scarcest(counts: Counts, modelled: Traffic, target: CpuTarget) -> float:
    """Not the sum over the kinds but the largest: what a core that overlaps all of them waits for."""
    nothing = dict.fromkeys(KINDS, 0)
    groups = (("vector_arithmetic", "scalar_arithmetic", "shuffle"), ("load",), ("store",))
    alone = [
        cost(dataclasses.replace(counts, by_kind=nothing | {k: counts.by_kind[k] for k in group}), NOTHING, target)
        for group in groups
    ]
    empty = dataclasses.replace(counts, by_kind=nothing)
    return max(*alone, critical(counts)) + cost(empty, modelled, target)


def _row(costs: Sequence[float], medians: Any) -> Sequence[float]:
    times = medians.min(axis=1)
    order, best = np.argsort(costs, kind="stable"), times.min()
    spearman, kendall = stats.spearmanr(costs, times).statistic, stats.kendalltau(costs, times).statistic
    picked = [times[order[:count]].min() / best for count in TOP]
    return [spearman, kendall, *picked, times[0] / best, times.mean() / best]


def _counted(entry: Mapping[str, Any]) -> tuple[Counts, Traffic]:
    regions = tuple(map(tuple, entry["regions"]))
    return Counts(entry["instructions"], entry["by_kind"], {}, regions), Traffic(**entry["traffic"])


ALTERNATIVES: Mapping[str, Callable[[Counts, Traffic, CpuTarget], float]] = {
    "weighted instructions and caches: the cost": cost,
    "weighted instructions": lambda counts, _, target: cost(counts, NOTHING, target),
    "instructions": lambda counts, modelled, target: critical(counts),
    "the scarcest kind and caches": _scarcest,
    "caches alone": lambda counts, modelled, target: cost(
        dataclasses.replace(counts, by_kind=dict.fromkeys(KINDS, 0)), modelled, target
    ),
}


def _threads(directory: Path) -> int:
    return int(json.loads((directory / "machine.json").read_text())["threads"])


def _save(path: Path, entries: Sequence[Entry]) -> None:
    unfinished = path.with_suffix(".unfinished")
    unfinished.write_text(json.dumps(entries))
    unfinished.replace(path)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=("build", "time", "report"))
    parser.add_argument("directory", type=Path)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--candidates", type=int, default=24, help="of each layer")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=1e9, help="after which timing stops, to be gone on with")
    parser.add_argument("--passes", type=int, default=6, help="each candidate is timed so often, all of them in turn")
    arguments = parser.parse_args()
    if arguments.stage == "build":
        build(arguments.directory, arguments.threads, arguments.candidates, arguments.seed)
    elif arguments.stage == "time":
        measure(arguments.directory, arguments.seconds, arguments.passes)
    else:
        report(arguments.directory)
    return 0


if __name__ == "__main__":
    sys.exit(main())
