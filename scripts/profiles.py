"""Shows what limits kernels: where perf finds them at work, the instructions there, and what a model of caches fetches.

python scripts/profiles.py WORKLOAD...      # on a quiet machine; needs perf, objdump and readelf
"""

from __future__ import annotations

import bisect
import os
import re
import statistics
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import click
from layouts import prepared
from tabulate import tabulate

import convtune
from convtune import assembly, probe, targets, workloads
from convtune.cli.options import FiniteRange
from convtune.measure.inspection import inspect
from convtune.runtime.compiled import CompiledConv
from convtune.space import Candidate
from convtune.spec import ConvSpec
from convtune.targets import CpuTarget

HERTZ = 5000
SHOWN = {"multiply-add": "fma", "other vector arithmetic": "other", "vector load": "load", "vector store": "store"}
LOOPS = 2
HEADS = (
    "layer",
    "schedule",
    "us",
    "% of peak",
    "% of read",
    "L1 MB",
    "L2 MB",
    "L3 MB",
    "samples: loop (its instructions)",
)


@dataclass(frozen=True)
class Region:
    """A part of a kernel's code, and which share of the samples is in it."""

    share: float
    mix: assembly.Mix | None  # of an innermost loop
    name: str = ""  # of what is none

    def __str__(self) -> str:
        if not self.mix:
            return f"{self.share:.0%} {self.name}"
        kinds = ((SHOWN.get(kind, kind), self.mix.kinds.get(kind, 0)) for kind in assembly.KINDS)
        return f"{self.share:.0%} ({', '.join(f'{number} {kind}' for kind, number in kinds if number)})"


@click.command()
@click.argument("names", nargs=-1, required=True, metavar="WORKLOAD...")
@click.option(
    "--seconds",
    type=FiniteRange(min=0, min_open=True),
    default=1.0,
    show_default=True,
    help="Of samples, a layer.",
)
@click.option("--target", default="native", show_default=True)
def main(names: tuple[str, ...], seconds: float, target: str) -> None:
    """Print a row for each of WORKLOADs, as compiled from the logs.

    Shares are of the direct convolution's FLOPs in the peak that is measured beside, and of each tensor once in the
    memory's bandwidth. MB go into the caches a call, by the analytic model. Samples outside the kernel are waits.
    """
    machine = targets.resolve(target)
    if not isinstance(machine, CpuTarget):
        raise click.ClickException(f"target {target} is no CPU")
    bandwidth, rows = probe.bandwidth_gbs(machine).read_gbs, list[Sequence[str]]()
    for spec, name in {workload.spec: workload.name for workload in workloads.parse(names)}.items():
        click.echo(name, err=True)
        rows.append((name, *profile(spec, machine, bandwidth, seconds)))
    click.echo(tabulate(rows, HEADS, disable_numparse=True))


def profile(spec: ConvSpec, target: CpuTarget, bandwidth: float, seconds: float) -> tuple[str, ...]:
    """The cells of a layer's row."""
    with tempfile.TemporaryDirectory() as directory:
        package, data = Path(directory) / "kernel", Path(directory) / "perf.data"
        convtune.compile(spec, target).save(package)
        kernel = convtune.load(package)
        library = package / kernel.manifest.library_name
        time_s = sampled(kernel, data, seconds)
        found = list(regions(library, addresses(data, library)))
    peak = probe.fma_peak_gflops(target, seconds=0.01)
    used = Candidate(str(kernel.manifest.candidate["space"]), kernel.manifest.candidate["knobs"])
    return (
        used.space,
        f"{time_s * 1e6:.1f}",
        f"{spec.flops / time_s / peak / 1e7:.0f}",
        f"{spec.bytes / time_s / bandwidth / 1e7:.0f}",
        *fetched(spec, target, used),
        "; ".join(map(str, found)),
    )


def sampled(kernel: CompiledConv, data: Path, seconds: float) -> float:
    """Calls a kernel while perf writes samples of this process to `data`; the median time of a call, in seconds."""
    call, times = prepared(kernel), list[float]()
    number = max(1, int(0.01 / float(call.time(number=1, repeat=3).min())))
    command = ["perf", "record", "-q", "-F", str(HERTZ), "-p", str(os.getpid()), "-o", str(data)]
    with subprocess.Popen([*command, "sleep", str(seconds)], stderr=subprocess.PIPE, text=True) as perf:
        while perf.poll() is None:
            times.append(float(call.time(number=number, repeat=1)[0]))
        said = perf.stderr.read() if perf.stderr else ""
    if perf.returncode:
        raise click.ClickException(f"perf record ended with {perf.returncode}: {said.strip()}")
    kernel.kernel.place_threads(False)
    return statistics.median(times)


def addresses(data: Path, library: Path) -> Counter[int | None]:
    """How many samples fell on each address of a loaded library, counted as in its file; None: on other code."""
    starts = [
        (int(low, 16), int(high, 16), int(offset, 16))
        for low, high, offset, path in re.findall(
            r"^([0-9a-f]+)-([0-9a-f]+) \S+ ([0-9a-f]+) \S+ \S+ +(.+)$",
            Path("/proc/self/maps").read_text(),
            re.MULTILINE,
        )
        if path == str(library.resolve())
    ]
    segments = [
        tuple(int(number, 16) for number in segment)
        for segment in re.findall(r"LOAD +(0x\w+) (0x\w+) 0x\w+ (0x\w+)", output("readelf", "-lW", str(library)))
    ]
    found = Counter[int | None]()
    for line in output("perf", "script", "-i", str(data), "-F", "ip").split():
        ip = int(line, 16)
        offset = next((ip - low + at for low, high, at in starts if low <= ip < high), None)
        inside = (offset - at + to for at, to, size in segments if offset is not None and at <= offset < at + size)
        found[next(inside, None)] += 1
    return found


def regions(library: Path, samples: Mapping[int | None, int]) -> Iterator[Region]:
    """The innermost loops with the most samples, the rest of the kernel, and what is in no kernel."""
    text, places = disassembled(library)
    loops, total = [(where, mix, 0) for where, mix in assembly.innermost_loops(text)], sum(samples.values())
    hits = Counter[int]()
    for address, count in samples.items():
        if address is not None:
            hits[bisect.bisect_right(places, address) - 1] += count
    loops = [(where, mix, sum(hits[n] for n in where)) for where, mix, _ in loops]
    hottest = sorted(loops, key=lambda loop: -loop[2])[:LOOPS]
    for _, mix, count in hottest:
        yield Region(count / total, mix)
    inside = total - samples.get(None, 0)
    yield Region((inside - sum(count for *_, count in hottest)) / total, None, "elsewhere in the kernel")
    yield Region(1 - inside / total, None, "outside of it")


def disassembled(library: Path) -> tuple[str, list[int]]:
    """A library's code as assembly with labels, and the address of each instruction."""
    lines = re.findall(
        r"^ +([0-9a-f]+):\t(.+)$", output("objdump", "-d", "--no-show-raw-insn", str(library)), re.MULTILINE
    )
    jumps = {match[1] for _, code in lines if (match := re.match(r"j\w+ +([0-9a-f]+) <", code))}
    text = list[str]()
    for address, code in lines:
        if address in jumps:
            text.append(f".L{address}:")
        text.append("\t" + re.sub(r"^(j\w+) +([0-9a-f]+) <.*", r"\1 .L\2", code.split("#")[0].rstrip()))
    return "\n".join(text), [int(address, 16) for address, _ in lines]


def fetched(spec: ConvSpec, target: CpuTarget, used: Candidate) -> tuple[str, ...]:
    """Megabytes a call into the three levels of caches, by the analytic model; "-" where it cannot tell."""
    (found,) = inspect(target.facts(), [(spec, used)])
    if isinstance(found, str) or not found.traffic:
        return ("-",) * 3
    traffic = found.traffic
    return tuple(f"{size / 1e6:.1f}" for size in (traffic.l1_bytes, traffic.l2_bytes, traffic.l3_bytes))


def output(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


if __name__ == "__main__":
    main()
