"""How `gpu_phases` cuts each phase of a transposed convolution into blocks of threads, and what a block has to do."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from math import gcd
from typing import TYPE_CHECKING

from convtune.schedules.gpu_tiling import WIDE, Dims, ThreadTile, largest_divisor
from convtune.schedules.gpu_work import Work
from convtune.schedules.tiling import ceil_div, round_up
from convtune.schedules.transposed_phases import Phases, phases_of

from convtune.expression import Geometry, cube
from convtune.space import Knobs
from convtune.spec import DTYPES, count
from convtune.targets.gpu import WARP

if TYPE_CHECKING:
    from convtune.spec import ConvSpec


MOST_TAPS = 16  # whose weights lie in shared memory at a time
MOST_THREADS = 512
LARGEST_BODY = 1024  # FMAs in an unrolled body: nvcc's time grows with it
MOST_OPERANDS = 128  # sums and weights of an unrolled body: nvcc loads most of the weights first
STEP_INSTRUCTIONS = 4  # of a turn of the loop over input channels
COPY_INSTRUCTIONS = 12  # for an element to shared memory: conditions, where it comes from and goes to
START_INSTRUCTIONS = 60
OTHER_REGISTERS = 40  # of a thread: addresses, indices and what is on its way to shared memory


@dataclass(frozen=True)
class Plan(ThreadTile):
    """What a block and each of its threads compute of an image, along (rows, columns, phases of w, channels).

    Rows and columns are those of one phase; a thread's columns lie a block's threads apart, its channels and phases are
    neighbours. chunk: input channels in shared memory at a time. taps: of a phase along h and w in shared memory.
    """

    chunk: int
    taps: Dims

    @property
    def unrolled(self) -> int:
        """How many of the loops jw and jh are unrolled, from the inside: as many as keep the body small."""
        taps = (1, self.taps[1], count(self.taps))
        weights = self.outputs[2] * self.outputs[3]
        fitting = [
            loops
            for loops, n in enumerate(taps)
            if self.sums * n <= LARGEST_BODY and self.sums + n * weights <= MOST_OPERANDS
        ]
        return max(fitting, default=0)

    def blocks(self, spec: ConvSpec) -> Dims:
        """Blocks along rows, columns, phases of w, and the channels of a group."""
        _, high, wide = phase_size(spec)
        sizes = (high, wide, phases_of(spec)[2].stride, spec.out_channels // spec.groups)
        return tuple(ceil_div(size, block) for size, block in zip(sizes, self.block))

    def shifts(self, spec: ConvSpec) -> tuple[int, int]:
        """The least and the largest distance along w between a phase's outputs and their first input.

        Both are 0 where all of a block is one phase: its inputs are then taken from where they begin.
        """
        phase = phases_of(spec)[2]
        found = [phase.shift(a) for a in range(phase.stride)] if self.block[2] > 1 else [0]
        return min(found), max(found)

    def inputs(self, spec: ConvSpec) -> Dims:
        """Input rows and columns of a block."""
        low, high = self.shifts(spec)
        reach = [(taps - 1) * distance(phase) for taps, phase in zip(self.taps, phases_of(spec)[1:])]
        return self.block[0] + reach[0], self.block[1] + reach[1] + high - low

    def depth(self, spec: ConvSpec) -> int:
        """Input channels of a group, in whole chunks."""
        return round_up(spec.in_channels // spec.groups, self.chunk)


def distance(phase: Phases) -> int:
    """Input elements between neighbouring taps of a phase."""
    return phase.dilation // phase.gcd


def phase_size(spec: ConvSpec) -> Dims:
    """The outputs of the largest phase."""
    return tuple(ceil_div(size, phase.stride) for size, phase in zip(cube(spec.out_size), phases_of(spec)))


def geometry_of(spec: ConvSpec, plan: Plan) -> Geometry:
    """A phase as a dense convolution; its outputs are those of the largest phase, in whole blocks."""
    phases = phases_of(spec)
    rows, columns = (blocks * block for blocks, block in zip(plan.blocks(spec)[:2], plan.block))
    out = (phase_size(spec)[0], rows, columns)
    shifts = [[phase.shift(a) for a in range(phase.stride)] for phase in phases]
    before = [max(0, (phase.taps - 1) * distance(phase) - min(shift)) for phase, shift in zip(phases, shifts)]
    return Geometry(
        out=out,
        kernel=tuple(phase.taps for phase in phases),
        stride=(1, 1, 1),
        dilation=tuple(map(distance, phases)),
        before=tuple(before),
        padded=tuple(b + size + max(shift) for b, size, shift in zip(before, out, shifts)),
    )


def plan_of(spec: ConvSpec, knobs: Knobs) -> Plan:
    positions, channels = (int(part) for part in str(knobs["thread_tile"]).split("x"))
    phase = phases_of(spec)[2]
    phases = (1, 1)  # threads, and of a thread
    if knobs["phases"] == "together":
        own = phase.stride if phase.stride <= WIDE else 1
        phases = (largest_divisor(phase.stride // own, WARP), own)
    taps = _staged_taps(spec)
    (down, across), (rows, columns) = _shape(spec, int(knobs["positions"]), positions, taps)
    return Plan(
        threads=(down, across, phases[0], int(knobs["channels"]) // channels),
        outputs=(rows, columns, phases[1], channels),
        chunk=int(knobs["chunk"]),
        taps=taps,
    )


def _staged_taps(spec: ConvSpec) -> Dims:
    _, high, wide = phases_of(spec)
    columns = largest_divisor(wide.taps, MOST_TAPS if distance(wide) <= WIDE else 1)
    whole = columns == wide.taps and distance(high) <= WIDE
    return (largest_divisor(high.taps, MOST_TAPS // columns) if whole else 1, columns)


def _shape(spec: ConvSpec, block: int, thread: int, taps: Dims) -> tuple[Dims, Dims]:
    """The rows and columns of a block's threads, and of a thread, that waste the fewest outputs and inputs."""
    _, high, wide = phase_size(spec)
    _, *phases = phases_of(spec)
    reach = [(n - 1) * distance(phase) for n, phase in zip(taps, phases)]
    powers = [1 << i for i in range(block.bit_length())]

    def cost(shape: tuple[int, int]) -> tuple[float, int]:
        across, columns = shape
        width, height = across * columns, block // (across * columns)
        blocks = ceil_div(high, height) * ceil_div(wide, width)
        # neighbouring threads read neighbouring inputs, channels first, and store such outputs
        alone = 0 if spec.channels_last else max(0.0, 1 - across / 16)
        return blocks * (4 * block + (height + reach[0]) * (width + reach[1])) * (1 + alone), -across

    fitting = [
        (across, columns)
        for across, columns in itertools.product(powers, repeat=2)
        if thread % columns == 0 and (block // thread) % across == 0
    ]
    across, columns = min(fitting, key=cost)
    return (block // thread // across, across), (thread // columns, columns)


def blocks_of(spec: ConvSpec, plan: Plan) -> int:
    phases = phases_of(spec)
    outer = spec.batch * spec.groups * phase_size(spec)[0] * phases[0].stride * phases[1].stride
    return outer * count(plan.blocks(spec))


def shared_bytes(spec: ConvSpec, plan: Plan) -> int:
    """Of a block's inputs and weights."""
    elements = count(plan.inputs(spec)) + count(plan.taps) * plan.block[2] * plan.block[3]
    return DTYPES[spec.dtype] * plan.chunk * elements


def registers_of(plan: Plan) -> int:
    rows, columns, phases, channels = plan.outputs
    taps = (1, plan.taps[1], count(plan.taps))[plan.unrolled]
    return plan.sums + rows * columns + taps * phases * channels + OTHER_REGISTERS


def input_width(spec: ConvSpec, plan: Plan) -> int:
    """Input channels that are copied at once."""
    return gcd(gcd(spec.in_channels // spec.groups, plan.chunk), WIDE) if spec.channels_last else 1


def work_of(spec: ConvSpec, plan: Plan) -> Work:
    """What the blocks do, counted coarsely; a phase has as many taps as the largest one, if it has any."""
    phases, (rows, columns, own, channels) = phases_of(spec), plan.outputs
    taps = count([phase.taps for phase in phases])
    chunks, depth = taps // count(plan.taps) * plan.depth(spec) // plan.chunk, plan.depth(spec)
    real = count(spec.kernel) / count([phase.step for phase in phases])  # of a phase on average
    inputs, weights = count(plan.inputs(spec)), count(plan.taps) * plan.block[2] * plan.block[3]
    copies = (inputs / input_width(spec, plan) + weights / gcd(plan.block[3], WIDE)) * plan.chunk / plan.size
    loads = rows * columns + own * ceil_div(channels, WIDE)
    lanes = plan.threads[3] if spec.channels_last else plan.threads[1] * plan.threads[2]
    apart = 1 if spec.channels_last or plan.block[2] > 1 else phases[2].stride
    stored = plan.sums / (channels if spec.channels_last else 1)
    return Work(
        blocks=blocks_of(spec, plan),
        threads=plan.size,
        registers=registers_of(plan),
        shared_bytes=shared_bytes(spec, plan),
        fmas=plan.sums * real * depth,
        instructions=depth * (taps * loads + STEP_INSTRUCTIONS)
        + chunks * copies * COPY_INSTRUCTIONS
        + 4 * plan.sums
        + START_INSTRUCTIONS,
        wavefronts=depth * taps * (rows * columns + own * channels)
        + chunks * copies * 4
        + stored * ceil_div(WARP, min(lanes, WARP)) * apart,
        waits=2 * chunks,
        l2_bytes=DTYPES[spec.dtype] * (chunks * plan.chunk * (inputs + weights) + count(plan.block) * min(apart, 8)),
        dram_bytes=spec.bytes,
    )
