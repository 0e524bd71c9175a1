"""How `gpu_depthwise` cuts the output into blocks of threads, and what a block has to do then."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import gcd
from typing import TYPE_CHECKING, Any

from convtune.schedules.gpu_tiling import Dims, ThreadTile, largest_divisor
from convtune.schedules.gpu_work import Work
from convtune.schedules.tiling import ceil_div

from convtune.expression import Geometry, cube
from convtune.space import Knobs
from convtune.spec import DTYPES, count
from convtune.targets.gpu import WARP

if TYPE_CHECKING:
    from convtune.spec import ConvSpec


LARGEST_BODY = 640  # FMAs in an unrolled body: nvcc's time grows with it
LONGEST_LINE = 64  # taps, which take as many registers
OTHER_REGISTERS = 28  # of a thread: addresses, indices and loads on their way
LOAD_INSTRUCTIONS = 4  # for an element of global memory: conditions, an address
COPY_INSTRUCTIONS = 12  # for one to shared memory: where it comes from and goes to, too
START_INSTRUCTIONS = 40
LARGEST_Z = 64  # threads of a block along z


@dataclass(frozen=True)
class Plan(ThreadTile):
    """How the output is cut, along h, w and the channels.

    threads: of a block. outputs: of a thread. taps: of kh and kw that are unrolled. adjacent: a thread's columns are
    neighbours. shared: inputs are staged in shared memory. run, depth: output and input channels of a group.
    """

    taps: Dims
    adjacent: bool
    shared: bool
    run: int
    depth: int

    @property
    def inputs(self) -> int:
        """Input channels of a block, where they are whole groups or part of one."""
        return max(1, self.block[2] // self.run) * self.depth

    def blocks(self, spec: ConvSpec) -> Dims:
        """Blocks along h, w and the channels."""
        sizes = (*Geometry.of(spec).out[1:], spec.out_channels)
        return tuple(ceil_div(size, block) for size, block in zip(sizes, self.block))

    def rounded(self, spec: ConvSpec) -> Dims:
        """h, w and channels of the output in whole blocks."""
        return tuple(blocks * block for blocks, block in zip(self.blocks(spec), self.block))

    def width(self, spec: ConvSpec) -> int:
        """Input channels that are copied at once: as many as a thread has, or more where it has but one."""
        alone = self.vector == 1 and self.shared and spec.channels_last
        return gcd(gcd(spec.in_channels, self.inputs), 4) if alone else self.vector

    @property
    def vector(self) -> int:
        """Channels of a thread."""
        return self.outputs[2]

    def place(self, block: Sequence[Any], thread: Sequence[Any], output: Sequence[Any]) -> tuple[Any, Any, Any]:
        """h, w and channel of an output of a thread of a block."""
        h, w, c = ((b * n + t) * m + i for b, n, t, m, i in zip(block, self.threads, thread, self.outputs, output))
        if not self.adjacent:
            w = (block[1] * self.outputs[1] + output[1]) * self.threads[1] + thread[1]
        return h, w, c


def _even(size: int, most: int) -> int:
    """The smallest block that needs no more blocks than one of `most`."""
    return ceil_div(size, ceil_div(size, most))


def channel_block(spec: ConvSpec, most: int) -> int:
    """Output channels of a block: whole groups or part of one, and a divisor of all of them if one is large enough."""
    run = spec.out_channels // spec.groups
    whole = [d for d in range(most // 2 + 1, most + 1) if spec.out_channels % d == 0 and (d % run == 0 or run % d == 0)]
    if whole:
        return max(whole)
    return run * _even(spec.groups, most // run) if most >= run else largest_divisor(run, most)


def plan_of(spec: ConvSpec, knobs: Knobs) -> Plan:
    outputs = (int(knobs["oh_tile"]), int(knobs["ow_tile"]), int(knobs["vector"]))
    adjacent, kernel = knobs["columns"] == "adjacent", cube(spec.kernel)
    line = largest_divisor(kernel[2 if adjacent else 1], max(1, min(LARGEST_BODY // count(outputs), LONGEST_LINE)))
    taps = kernel[1:] if knobs["unroll"] == "window" else (1, line) if adjacent else (line, 1)
    return Plan(
        threads=(_threads_last if spec.channels_last else _threads_first)(spec, knobs, outputs),
        outputs=outputs,
        taps=taps,
        adjacent=adjacent,
        shared=knobs["staging"] == "shared",
        run=spec.out_channels // spec.groups,
        depth=spec.in_channels // spec.groups,
    )


def _threads_last(spec: ConvSpec, knobs: Knobs, outputs: Dims) -> Dims:
    """All the channels' threads, and as many positions, of the shape that reads the fewest inputs twice."""
    lanes = ceil_div(int(knobs["channels"]), outputs[2])
    positions = max(1, int(knobs["threads"]) // lanes)
    _, *out = Geometry.of(spec).out
    _, *stride = cube(spec.stride)
    _, *span = cube(spec.span)

    def inputs(high: int) -> int:
        shape = (high, positions // high)
        blocks = [ceil_div(size, n * tile) for size, n, tile in zip(out, shape, outputs)]
        read = [(n * tile - 1) * s + k for n, tile, s, k in zip(shape, outputs, stride, span)]
        return count(blocks) * count(read)

    most = min(positions, LARGEST_Z, ceil_div(out[0], outputs[0]))
    high = min(range(1, most + 1), key=inputs)
    return (high, min(positions // high, ceil_div(out[1], outputs[1])), lanes)


def _threads_first(spec: ConvSpec, knobs: Knobs, outputs: Dims) -> Dims:
    """A warp of columns if there are so many, then rows, then channels."""
    _, high, wide = Geometry.of(spec).out
    threads = int(knobs["threads"])
    across = _even(ceil_div(wide, outputs[1]), WARP)
    down = _even(ceil_div(high, outputs[0]), min(threads // across, LARGEST_Z))
    return (down, across, channel_block(spec, min(threads // (across * down), LARGEST_Z)))


def blocks_of(spec: ConvSpec, plan: Plan) -> int:
    return spec.batch * Geometry.of(spec).out[0] * count(plan.blocks(spec))


def shared_bytes(spec: ConvSpec, plan: Plan) -> int:
    return DTYPES[spec.dtype] * _block_inputs(spec, plan) if plan.shared else 0


def _window(spec: ConvSpec, plan: Plan) -> int:
    """Inputs that a thread holds."""
    tile = (plan.outputs[0], plan.outputs[1] if plan.adjacent else 1)
    _, *stride = cube(spec.stride)
    _, *dilation = cube(spec.dilation)
    sizes = zip(tile, stride, plan.taps, dilation)
    return plan.vector * count([min((n - 1) * s + (k - 1) * d + 1, n * k) for n, s, k, d in sizes])


def registers_of(spec: ConvSpec, plan: Plan) -> int:
    weights = plan.vector * min(count(plan.taps), 16)
    return plan.sums + _window(spec, plan) + weights + OTHER_REGISTERS


def work_of(spec: ConvSpec, plan: Plan) -> Work:
    """What the blocks do, counted coarsely."""
    kernel, rows, columns = cube(spec.kernel), *plan.outputs[:2]
    taps, last = count(kernel) * plan.depth, spec.channels_last
    # how far apart neighbouring threads store and read, in elements
    stored = 1 if last or not plan.adjacent else columns
    read = 1 if last else cube(spec.stride)[2] * stored
    windows = taps // count(plan.taps) * (1 if plan.adjacent else columns)
    loads, copies = windows * _window(spec, plan) // plan.vector, 0.0
    wavefronts: float = (taps * _lines(spec, plan, 1) if last else taps) + rows * columns * _lines(spec, plan, stored)
    inputs, slabs = _block_inputs(spec, plan), kernel[0]
    if plan.shared:
        copies = slabs * inputs / plan.size
        wavefronts += 2 * copies + loads * plan.vector * gcd(read, WARP)
    else:
        wavefronts += loads * _lines(spec, plan, read)
    moved = slabs * inputs + count(plan.block) * min(stored, WARP // 4)
    loading = loads + copies * COPY_INSTRUCTIONS / plan.width(spec) if plan.shared else loads * LOAD_INSTRUCTIONS
    return Work(
        blocks=blocks_of(spec, plan),
        threads=plan.size,
        registers=registers_of(spec, plan),
        shared_bytes=shared_bytes(spec, plan),
        fmas=plan.sums * taps,
        instructions=loading + taps + 4 * plan.sums + START_INSTRUCTIONS,
        wavefronts=wavefronts,
        waits=slabs + 1 if plan.shared else 1 + windows / 4,
        l2_bytes=DTYPES[spec.dtype] * moved,
        dram_bytes=spec.bytes,
    )


def _block_inputs(spec: ConvSpec, plan: Plan) -> int:
    """Inputs of a block that one kd reads."""
    _, *stride = cube(spec.stride)
    _, *span = cube(spec.span)
    return plan.inputs * count([(n - 1) * s + k for n, s, k in zip(plan.block, stride, span)])


def _lines(spec: ConvSpec, plan: Plan, apart: int) -> int:
    """Lines of 128 bytes that a warp touches at once, its neighbouring threads that many elements apart."""
    lanes = min(WARP, plan.threads[2 if spec.channels_last else 1])
    return ceil_div(WARP, lanes) * ceil_div(DTYPES[spec.dtype] * lanes * apart * plan.vector, 128)
