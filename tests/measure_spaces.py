"""A space whose candidates do to their build worker what must be survived, and the build worker that knows it."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from convtune import space
from convtune.errors import ScheduleError
from convtune.measure.builder import Builder
from convtune.space import Knobs, KnobValue, PackStep, Space
from convtune.spec import ConvSpec
from convtune.targets import Target

SPEC = ConvSpec("pointwise", in_channels=4, out_channels=3, in_size=5, kernel=1, layout="NWC", bias=True, residual=True)


class FaultySpace(Space):
    """y = x . weight + bias + residual; the knob `fault` says what goes wrong on the way."""

    name = "faulty"
    summary = "for tests"

    def accepts(self, spec: ConvSpec, target: Target) -> bool:
        return True

    def knobs(self, spec: ConvSpec, target: Target) -> Mapping[str, tuple[KnobValue, ...]]:
        return {"fault": ("none", "raise", "hang", "abort", "eat", "exit", "tvm", "undefined", "wrong")}

    def default(self, spec: ConvSpec, target: Target) -> Knobs:
        return {"fault": "none"}

    def pack(self, spec: ConvSpec, target: Target, knobs: Knobs) -> tuple[tuple[PackStep, ...], ...]:
        return (({"op": "reshape", "shape": [3, 4]}, {"op": "transpose", "axes": [1, 0]}),)

    def schedule(self, spec: ConvSpec, target: Target, knobs: Knobs) -> Any:
        from tvm.s_tir import Schedule

        fault = str(knobs["fault"])
        if fault == "raise":
            raise ScheduleError("no such knob")
        if fault == "hang":
            time.sleep(600)
        if fault == "abort":
            os.abort()
        if fault == "exit":
            os._exit(3)
        if fault == "eat":
            hoard = []
            while True:
                hoard.append(bytearray(1 << 20))
        schedule = Schedule(expression(fault))
        if fault == "tvm":
            schedule.get_sblock("there is no such block")
        schedule.parallel(schedule.get_loops(schedule.get_sblock("y"))[1])
        return schedule.mod


def expression(fault: str) -> Any:
    """The function of the space; two of the faults are in it."""
    import tvm
    from tvm import te

    x, weight = te.placeholder((1, 5, 4), name="x"), te.placeholder((4, 3), name="weight")
    bias, residual = te.placeholder((3,), name="bias"), te.placeholder((1, 5, 3), name="residual")
    c = te.reduce_axis((0, 4), name="c")
    acc = te.compute((1, 5, 3), lambda n, w, o: te.sum(x[n, w, c] * weight[c, o], axis=c), name="acc")

    def value(n: Any, w: Any, o: Any) -> Any:
        y = acc[n, w, o] + bias[o] + residual[n, w, o]
        if fault == "wrong":
            return y * 1.001
        if fault == "undefined":
            return y + tvm.tirx.call_extern("float32", "there_is_no_such_function", o)
        return y

    y = te.compute((1, 5, 3), value, name="y")
    return te.create_prim_func([x, weight, bias, residual, y])


class FaultyBuilder(Builder):
    """A build worker whose spaces include the faulty one."""

    def __init__(self, target: Target, cache_dir: Path) -> None:
        known = space.known()
        space.known = lambda: {**known, FaultySpace.name: FaultySpace()}
        super().__init__(target, cache_dir)
