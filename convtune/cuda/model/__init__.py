"""A static model of CUDA kernels: which of two schedules is faster, told without a GPU."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from convtune.cuda.program import Launch, Lowered
from convtune.cuda.toolkit import Resources
from convtune.errors import ScheduleError
from convtune.targets.gpu import WARP, GpuTarget

from . import facts, traffic, tree
from .counting import Counted, count
from .regions import Counts
from .timing import Clock, combined


@dataclass(frozen=True)
class KernelEstimate:
    """What one launch does and takes.

    bound: the limit that takes longest: "fma", "issue", "integer", "special", "tensor", "shared", "l1", "l2", "dram" or
    "latency".
    waves: of blocks, the last one in part. occupancy: resident warps of those that an SM can hold, 0 to 1.
    counts: of one block, in instructions of warps, 32-byte sectors, wavefronts.
    l2_bytes, dram_bytes: of the launch.
    """

    kernel: str
    time_us: float
    bound: str
    waves: float
    occupancy: float
    resident_blocks: int
    blocks: int
    counts: Counts
    l2_bytes: float
    dram_bytes: float


@dataclass(frozen=True)
class Estimate:
    """time_us: of all launches, with what starting them costs. Nothing of it was measured."""

    time_us: float
    kernels: tuple[KernelEstimate, ...]


def estimate(lowered: Lowered, resources: Mapping[str, Resources], target: GpuTarget) -> Estimate:
    """Estimates a program's time from its lowered functions.

    resources: of each kernel, from ptxas.
    Raises ScheduleError where a kernel does not fit on the GPU, or has a statement that the model does not know.
    """
    kernels = []
    counted: dict[str, tuple[tree.Kernel, Counted]] = {}
    arrays = {a.name: a for a in (*lowered.program.parameters, *lowered.program.workspaces)}
    for launch in lowered.program.launches:
        if launch.kernel not in counted:
            kernel = tree.read(lowered.functions[launch.kernel])
            counted[launch.kernel] = kernel, count(kernel)
        kernel, found = counted[launch.kernel]
        sizes = {}
        for buffer, position in kernel.arguments.items():
            array = arrays[launch.arguments[position]]
            sizes[buffer.key] = array.count * buffer.bytes
        used = resources[launch.kernel]
        kernels.append(_launch(found, used, launch, sizes, target))
    return Estimate(sum(kernel.time_us for kernel in kernels), tuple(kernels))


def _launch(
    counted: Counted, used: Resources, launch: Launch, sizes: Mapping[int, int], target: GpuTarget
) -> KernelEstimate:
    blocks, threads = launch.blocks, launch.threads
    shared = used.shared_bytes + launch.dynamic_shared_bytes
    resident = target.resident_blocks(threads, used.registers, shared)
    if resident == 0:
        raise ScheduleError(
            f"{launch.kernel}: {threads} threads with {used.registers} registers and {shared} bytes of shared memory "
            f"do not fit on {target.name}"
        )
    counted = _with_spills(counted, used)
    slots = target.sms * resident
    published = facts.of(target)
    cache = (published.unified_bytes - resident * (shared + target.shared_reserved)) / resident
    here = traffic.estimate(counted, blocks, slots, cache, target.l2_bytes, sizes)
    clock = Clock(counted, here, blocks, target)
    full, rest = divmod(blocks, slots)
    first = clock.wave(min(resident, -(-blocks // target.sms)))
    tail = clock.wave(-(-rest // target.sms)) if rest else None
    clocks = full * first.clocks + (tail.clocks if tail else 0.0)
    hertz = target.clock_mhz * 1e6
    l2 = here.l2_loaded + here.l2_stored
    seconds = {
        (first if full or tail is None else tail).bound: clocks / hertz,
        "l2 ": l2 / (published.l2_bytes * target.sms * hertz),
        "dram": here.dram / (target.dram_gbs * 1e9 * published.dram_share),
    }
    return KernelEstimate(
        kernel=launch.kernel,
        time_us=combined(seconds) * 1e6 + facts.LAUNCH_US,
        bound=max(seconds, key=seconds.__getitem__).strip(),
        waves=blocks / slots,
        occupancy=min(1.0, resident * counted.sampler.warps * WARP / target.threads_per_sm),
        resident_blocks=resident,
        blocks=blocks,
        counts=counted.per_block(),
        l2_bytes=l2,
        dram_bytes=here.dram,
    )


def _with_spills(counted: Counted, used: Resources) -> Counted:
    """ptxas says how many bytes are spilled, not where: taken to be around the loop that takes most of the time.

    Arrays that are indexed by what is not a constant are in local memory only if ptxas says so: it may have unrolled.
    """
    busiest = max(counted.regions, key=lambda region: region.executions * region.counts.instructions)
    trips = busiest.frames[-1].trips if busiest.frames else 1.0
    regions = []
    for region in counted.regions:
        requests = region.counts.local_requests if used.stack_bytes else 0.0
        if region is busiest:
            requests += (used.spill_loads_bytes + used.spill_stores_bytes) / 4 / trips
        regions.append(replace(region, counts=replace(region.counts, local_requests=requests)))
    return replace(counted, regions=regions)
