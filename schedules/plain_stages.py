"""What the spaces of last resort share: a spec's stages one after the other, each whole, with nothing to tune."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from convtune.expression import Geometry, plain, plain_pack
from convtune.space import Knobs, KnobValue, Machine, PackStep, Space

if TYPE_CHECKING:
    from convtune.spec import ConvSpec


class PlainStages(Space[Machine]):
    """Zeros are added where the input is read; how the loops of one stage are placed is up to the subclass."""

    last_resort: ClassVar[bool] = True

    def knobs(self, spec: ConvSpec, target: Machine) -> Mapping[str, tuple[KnobValue, ...]]:
        return {}

    def default(self, spec: ConvSpec, target: Machine) -> Knobs:
        return {}

    def pack(self, spec: ConvSpec, target: Machine, knobs: Knobs) -> tuple[tuple[PackStep, ...], ...]:
        return plain_pack(spec)

    def schedule(self, spec: ConvSpec, target: Machine, knobs: Knobs) -> Any:
        from tvm.s_tir import Schedule

        sch = Schedule(plain(spec))
        last = len(spec.stages) - 1
        for number, stage in enumerate(spec.stages):
            suffix = "" if number == last else str(number)
            if not Geometry.of(stage).inside(stage):
                sch.compute_inline(sch.get_sblock(f"pad{suffix}"))
            self._place(sch, stage, target, f"mid{suffix}" if suffix else "y", f"acc{suffix}")
        return sch.mod

    @abstractmethod
    def _place(self, sch: Any, spec: ConvSpec, target: Machine, result: str, sums: str) -> None:
        """Places the loops of one convolution: those of the block `result`, with those of `sums` inside."""
