"""How a block of threads makes a composite variant on a GPU: its threads, passes and chunks, shared memory and work."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from convtune.schedules.chain_plan import Stage, plan
from convtune.schedules.gpu_tiling import WIDE, shared_scope
from convtune.schedules.gpu_work import Work
from convtune.schedules.tiling import Tile, ceil_div, round_up

from convtune.expression import Geometry
from convtune.spec import count

if TYPE_CHECKING:
    from convtune.space import Knobs, PackStep
    from convtune.spec import ConvSpec


@dataclass(frozen=True)
class Block:
    """What a block of threads is, and what it computes of each stage, with channels cut into passes.

    channels: of a pass; thread_channels: of those, a thread's. rounds: of the last stage, tiles of columns of a thread.
    chunk: input channels at a time. lanewise: whether all stages but the first are depthwise; then a block has one pass
    of each stage.
    """

    stages: tuple[Stage[Tile], ...]
    channels: int
    thread_channels: int
    rounds: int
    chunk: int
    lanewise: bool
    channels_last: bool

    @property
    def across(self) -> int:
        """Threads along the positions."""
        last = self.stages[-1]
        return count(last.out) // (last.tile.columns * self.rounds)

    @property
    def threads(self) -> tuple[int, int]:
        """Along y and x: neighbours along x store to neighbouring memory."""
        along = self.channels // self.thread_channels
        return (self.across, along) if self.channels_last else (along, self.across)

    @property
    def channel_split(self) -> tuple[int, int, int]:
        """Channels of a pass as (part of a thread, thread, vector of a thread)."""
        inner = min(WIDE, self.thread_channels)
        return self.thread_channels // inner, self.channels // self.thread_channels, inner

    def passes(self, stage: Stage[Tile]) -> int:
        return ceil_div(stage.spec.out_channels, self.channels)

    def turns(self, stage: Stage[Tile]) -> int:
        """Passes of a stage that one block makes."""
        return 1 if self.lanewise else self.passes(stage)

    def tiles(self, stage: Stage[Tile]) -> int:
        """Tiles of columns that a block computes of a stage."""
        return count(stage.out) // stage.tile.columns

    def rounds_of(self, stage: Stage[Tile]) -> int:
        """Tiles of columns that a thread computes of a stage."""
        return ceil_div(self.tiles(stage), self.across)

    def leaves_none_idle(self) -> bool:
        """Whether the stages after it read something of every thread of each stage.

        A stride longer than the kernel may pass over all that some threads make, and `compute_at` leaves those out.
        """
        return all(self._threads_read(*pair) == self.across for pair in zip(self.stages, self.stages[1:]))

    def _threads_read(self, stage: Stage[Tile], later: Stage[Tile]) -> int:
        """How many threads, counted from the first, make what the later stage reads."""
        geometry, (_, high, wide) = Geometry.of(later.spec), stage.out
        steps = zip(later.out, geometry.kernel, geometry.stride, geometry.dilation)
        read = [{o * s + k * d for o in range(out) for k in range(taps)} for out, taps, s, d in steps]
        columns = {w // stage.tile.columns for w in read[2]}
        lines = {d * high + h for d in read[0] for h in read[1]}
        return 1 + max((line * (wide // stage.tile.columns) + at) % self.across for line in lines for at in columns)

    def sums(self, stage: Stage[Tile]) -> int:
        """Of a thread."""
        return self.rounds_of(stage) * stage.tile.columns * self.thread_channels

    def chunks(self, stage: Stage[Tile]) -> tuple[int, int]:
        """How many chunks of the input channels of a dense stage there are, and how many channels one has.

        They are all channels that the stage before makes, those beyond its last one too: `compute_at` would leave out
        what nobody reads, and some threads with it.
        """
        chunk, channels = min(self.chunk, self.channels), stage.spec.in_channels
        if stage is not self.stages[0]:
            channels = round_up(channels, self.channels)
        return ceil_div(channels, chunk), chunk

    def outer(self, stage: Stage[Tile]) -> tuple[int, ...]:
        """(*blocks, channel block, pass): of a stage's sums what is before the channels and positions of a pass."""
        passes = self.passes(stage)
        return (*stage.source.blocks, *((passes, 1) if self.lanewise else (1, passes)))

    def weight_shape(self, stage: Stage[Tile]) -> tuple[int, ...]:
        """(pass, chunk, input channel, tap, channel of a pass) of the packed weight; (pass, tap, channel) depthwise."""
        taps = count(stage.spec.kernel)
        inner = (taps,) if stage.lanewise else (*self.chunks(stage), taps)
        return (self.passes(stage), *inner, self.channels)

    @property
    def shared_bytes(self) -> int:
        """Of what lies between the stages, the largest chunk of the input, and every stage's filters."""
        first, *_ = self.stages
        elements = self.chunks(first)[1] * first.source.positions
        for number, stage in enumerate(self.stages):
            elements += count(self.weight_shape(stage)[-2 if stage.lanewise else -3 :])
            if number < len(self.stages) - 1:
                channels = self.channels * self.turns(stage)
                elements += channels * self.rounds_of(stage) * self.across * stage.tile.columns
        return 4 * elements

    @property
    def scope(self) -> str:
        """Where TVM is to keep what is shared."""
        return shared_scope(self.shared_bytes)

    @property
    def registers(self) -> int:
        """Of a thread, about: a stage's sums, what they are the products of, and addresses."""
        return max(map(self.sums, self.stages)) + 2 * self.thread_channels + 48


def block_of(spec: ConvSpec, knobs: Knobs) -> Block:
    columns = int(knobs["columns"])
    channels, thread_channels = int(knobs["channels"]), int(knobs["thread_channels"])

    def tile(stage: ConvSpec, _size: Any, _last: bool) -> Tile:
        along = max(1, channels // thread_channels)
        return Tile(1, columns, thread_channels, along, along, 1, stage.out_channels)

    size = (int(knobs.get("od_block", 1)), int(knobs.get("oh_block", 1)), int(knobs["ow_block"]))
    lanewise = spec.stages[-1].variant == "depthwise"
    rounds, chunk = int(knobs["rounds"]), int(knobs["chunk"])
    return Block(plan(spec, size, tile), channels, thread_channels, rounds, chunk, lanewise, spec.channels_last)


def pack_stage(block: Block, stage: Stage[Tile]) -> tuple[PackStep, ...]:
    spec, shape = stage.spec, block.weight_shape(stage)
    taps, depth, extra = count(spec.kernel), spec.in_channels // spec.groups, shape[0] * shape[-1] - spec.out_channels
    chunks, chunk = (1, 1) if stage.lanewise else block.chunks(stage)
    return (
        {"op": "reshape", "shape": [spec.out_channels, depth, taps]},
        {"op": "pad", "widths": [[0, extra], [0, chunks * chunk - depth], [0, 0]]},
        {"op": "reshape", "shape": [shape[0], shape[-1], chunks, chunk, taps]},
        {"op": "transpose", "axes": [0, 2, 3, 4, 1]},
        {"op": "reshape", "shape": list(shape)},
    )


def block_work(spec: ConvSpec, block: Block) -> Work:
    """What the blocks have to do, coarsely."""
    threads, first, last = count(block.threads), block.stages[0], block.stages[-1]
    stages = [_stage_work(block, stage, threads) for stage in block.stages]
    fmas, instructions, wavefronts, waits, filters = (sum(numbers) for numbers in zip(*stages))
    inputs = block.turns(first) * first.spec.in_channels * first.source.positions
    instructions += 8 * inputs / threads
    return Work(
        blocks=spec.batch * count(last.source.blocks) * (block.passes(last) if block.lanewise else 1),
        threads=threads,
        registers=block.registers,
        shared_bytes=block.shared_bytes,
        fmas=fmas,
        instructions=instructions,
        wavefronts=wavefronts + 2 * inputs / threads,
        waits=waits,
        l2_bytes=4 * (filters + inputs),
        dram_bytes=spec.bytes,
    )


def _stage_work(block: Block, stage: Stage[Tile], threads: int) -> tuple[float, ...]:
    """Multiply-adds, instructions, wavefronts and waits of a thread, and the weights that a block reads."""
    taps, turns, sums = count(stage.spec.kernel), block.turns(stage), block.sums(stage)
    chunks, chunk = (1, 1) if stage.lanewise else block.chunks(stage)
    steps, columns = turns * chunks * chunk * taps, block.rounds_of(stage) * stage.tile.columns
    operands = columns + ceil_div(block.thread_channels, WIDE)
    if stage.lanewise:
        operands += (block.thread_channels - 1) * columns
    filters = steps * block.channels
    copied = filters / threads / WIDE
    moved = steps * operands + 2 * turns * sums
    return steps * sums, moved + 4 * copied + 20 * turns * chunks, moved + 8 * copied, 2 * turns * chunks, filters
