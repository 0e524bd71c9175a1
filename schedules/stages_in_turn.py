"""Composite variants stage by stage: each stage whole, by the default of a space of its own, in one function.

    mid0 = stage 0 of x          by the space that the knob `stage0` names
    mid1 = stage 1 of mid0       by `stage1`
    …
    y = the last stage, with the epilogue

What lies between two stages has their layout, and is in memory, or in the third cache. So a stage can be what it is
alone: filtered with fewer multiplications, in tiles and tasks of its own, without computing a border of a block twice.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from convtune.schedules.chain_plan import is_chain
from convtune.schedules.estimate import BARRIER_CYCLES, L3_BYTES_PER_CYCLE, MEMORY_BYTES_PER_CYCLE
from convtune.schedules.statements import kept, sequence

from convtune import space
from convtune.accuracy import STANDARD
from convtune.space import Estimating, Knobs, KnobValue, PackStep
from convtune.spec import count

if TYPE_CHECKING:
    from convtune.spec import ConvSpec
    from convtune.targets import CpuTarget, Target


class StagesInTurn(Estimating["CpuTarget"]):
    name = "stages_in_turn"
    summary = "a composite's stages one after the other, each by the best space for it alone"

    def accepts(self, spec: ConvSpec, target: Target) -> bool:
        return is_chain(spec, target)

    def knobs(self, spec: ConvSpec, target: CpuTarget) -> Mapping[str, tuple[KnobValue, ...]]:
        return {f"stage{number}": tuple(_owners(stage, target)) for number, stage in enumerate(spec.stages)}

    def estimate(self, spec: ConvSpec, target: CpuTarget, knobs: Knobs) -> float:
        """Cycles of one call, coarsely."""
        total = 0.0
        for stage, owner, chosen in self._stages(spec, target, knobs):
            total += owner.estimate(stage, target, chosen) + BARRIER_CYCLES
        between = 2 * sum(4 * count(stage.out_shape) for stage in spec.stages[:-1])
        cached = between <= target.l3_bytes / 2
        return total + between / (L3_BYTES_PER_CYCLE if cached else MEMORY_BYTES_PER_CYCLE) / target.threads / 2

    def expected_error(self, spec: ConvSpec, target: CpuTarget, knobs: Knobs) -> float:
        return sum(owner.expected_error(stage, target, own) for stage, owner, own in self._stages(spec, target, knobs))

    def pack(self, spec: ConvSpec, target: CpuTarget, knobs: Knobs) -> tuple[tuple[PackStep, ...], ...]:
        found = [owner.pack(stage, target, chosen) for stage, owner, chosen in self._stages(spec, target, knobs)]
        return tuple(steps for of_stage in found for steps in of_stage)

    def schedule(self, spec: ConvSpec, target: CpuTarget, knobs: Knobs) -> Any:
        stages = self._stages(spec, target, knobs)
        return _joined(spec, [owner.schedule(stage, target, chosen) for stage, owner, chosen in stages])

    def _stages(self, spec: ConvSpec, target: CpuTarget, knobs: Knobs) -> list[tuple[ConvSpec, Estimating[Any], Knobs]]:
        found = []
        for number, stage in enumerate(spec.stages):
            name = str(knobs[f"stage{number}"])
            found.append((stage, *_chosen(stage, target, name)))
        return found


@lru_cache(maxsize=1 << 12)
def _owners(stage: ConvSpec, target: CpuTarget) -> Mapping[str, Estimating[Any]]:
    """The spaces that have a model of their time on this stage, without what is not accurate enough twice: errors of
    stages add up."""
    accepting = space.accepting(stage, target, STANDARD[stage.dtype] / 2)
    return {owner.name: owner for owner in accepting if isinstance(owner, Estimating)}


@lru_cache(maxsize=1 << 12)
def _chosen(stage: ConvSpec, target: CpuTarget, name: str) -> tuple[Estimating[Any], Knobs]:
    """The space of that name, and its default for the stage, which takes long to find: only where it is asked for."""
    owner = space.get(name)
    assert isinstance(owner, Estimating)
    return owner, dict(_owners(stage, target)[name].default(stage, target))


def _joined(spec: ConvSpec, modules: Sequence[Any]) -> Any:
    """One function of the stages' functions, which take x, weight, bias and residual where they have them, and y."""
    from tvm import ir, tirx

    mains = [module["main"] for module in modules]
    arguments = [list(main.params) for main in mains]
    between = [tirx.decl_buffer(stage.out_shape, "float32", name=f"mid{i}") for i, stage in enumerate(spec.stages[:-1])]
    bodies = []
    for main, own, source, result in zip(mains, arguments, [None, *between], [*between, None]):
        given = [(own[0], source), (own[-1], result)]
        bodies.append(_with(main.body, [pair for pair in given if pair[1] is not None]))
    weights = [own[1] for own in arguments]
    biases = [own[2] for stage, own in zip(spec.stages, arguments) if stage.bias]
    last = arguments[-1][2 + spec.stages[-1].bias :]  # residual, if any, and y
    body = sequence([*map(tirx.AllocBuffer, between), *map(kept, between), *bodies])
    main = tirx.PrimFunc([arguments[0][0], *weights, *biases, *last], body, attrs=mains[0].attrs)
    return ir.IRModule({"main": main})


def _with(body: Any, replaced: Sequence[tuple[Any, Any]]) -> Any:
    """The statement with other buffers in place of these."""
    from tvm_ffi import structural_map

    def renamed(variable: Any) -> Any:
        return next((new for old, new in replaced if variable.same_as(old)), variable)

    return structural_map(body, (type(replaced[0][0]), renamed)) if replaced else body


stages_in_turn = StagesInTurn()
