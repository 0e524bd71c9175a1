"""Spaces whose candidates have a formula for a time: searches can be tested with no compiler, no hardware, no clock."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping
from typing import Any

from convtune.record import Record
from convtune.search import Search
from convtune.space import Candidate, Knobs, KnobValue, PackStep, Space, enumerate_candidates
from convtune.spec import ConvSpec
from convtune.targets import CpuTarget, Target

VERSIONS = {"convtune": "test", "tvm": "test"}


def machine(**changes: Any) -> CpuTarget:
    """A two-core AVX2 machine that exists nowhere."""
    facts: dict[str, Any] = {
        "name": "synthetic",
        "family": "x86",
        "model": "Synthetic",
        "mcpu": "x86-64-v3",
        "triple": "x86_64-linux-gnu",
        "features": (),
        "machine": "x86_64",
        "required_features": (),
        "vector_bytes": 32,
        "vector_registers": 16,
        "threads": 2,
        "l1d_bytes": 32768,
        "l2_bytes": 2**20,
        "l3_bytes": 2**25,
        "is_host": False,
    }
    return CpuTarget(**(facts | changes))


class SyntheticSpace(Space[Any]):
    """A space that only a test's formula times."""

    summary = "synthetic"

    def accepts(self, spec: ConvSpec, target: Target) -> bool:
        return True

    def default(self, spec: ConvSpec, target: Target) -> Knobs:
        raise NotImplementedError

    def pack(self, spec: ConvSpec, target: Target, knobs: Knobs) -> tuple[tuple[PackStep, ...], ...]:
        raise NotImplementedError

    def schedule(self, spec: ConvSpec, target: Target, knobs: Knobs) -> Any:
        raise NotImplementedError

    def time_us(self, spec: ConvSpec, target: Target, knobs: Knobs) -> float | None:
        """What a measurement would say; None for a candidate that fails."""
        raise NotImplementedError


class Small(SyntheticSpace):
    """12 candidates."""

    name = "small"

    def knobs(self, spec: ConvSpec, target: Target) -> Mapping[str, tuple[KnobValue, ...]]:
        return {"ow_tile": (1, 2, 4, 8), "pad_at": ("task", "once", "none")}

    def default(self, spec: ConvSpec, target: Target) -> Knobs:
        return {"ow_tile": 4, "pad_at": "once"}

    def time_us(self, spec: ConvSpec, target: Target, knobs: Knobs) -> float | None:
        return 100.0 + abs(int(knobs["ow_tile"]) - 8) + 5 * (knobs["pad_at"] != "none")


class RegisterTile(SyntheticSpace):
    """Some 23,000 candidates whose knobs interact as a dense direct convolution's do; one in fourteen fails."""

    name = "register_tile"

    def knobs(self, spec: ConvSpec, target: Target) -> Mapping[str, tuple[KnobValue, ...]]:
        return {
            "ow_tile": (1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14),
            "oc_tile": (1, 2, 3, 4),
            "ic_block": (4, 8, 16, 32, 64, 128),
            "oh_block": (1, 2, 4, 7, 14, 28),
            "pad_at": ("task", "once", "none"),
            "order": ("oc_oh", "oh_oc"),
            "unroll": (1, 2, 4),
        }

    def allows(self, spec: ConvSpec, target: Target, knobs: Knobs) -> bool:
        columns, vectors = int(knobs["ow_tile"]), int(knobs["oc_tile"])
        return columns * vectors + vectors + 1 <= target.vector_registers * 2

    def default(self, spec: ConvSpec, target: Target) -> Knobs:
        numbers = {"ow_tile": 4, "oc_tile": 2, "ic_block": 8, "oh_block": 1, "unroll": 1}
        return {**numbers, "pad_at": "task", "order": "oh_oc"}

    def time_us(self, spec: ConvSpec, target: Target, knobs: Knobs) -> float | None:
        columns, vectors, unroll = int(knobs["ow_tile"]), int(knobs["oc_tile"]), int(knobs["unroll"])
        ow, oc = spec.out_size[1], spec.out_channels
        code = unroll * columns * vectors * spec.kernel[-1]
        if code > 200:
            return None
        registers = columns * vectors + vectors + 1
        spilt = 1 + 0.15 * max(0, registers - target.vector_registers)
        loads = max(1.0, (columns + vectors) / (columns * vectors))
        latency = max(1.0, 8 / (columns * vectors))
        lanes = vectors * target.lanes
        waste = math.ceil(ow / columns) * columns / ow * math.ceil(oc / lanes) * lanes / oc
        time_us = spec.flops / 2e5 * waste * max(spilt, loads, latency) * (1 + 0.1 / unroll) * (1 + code / 2000)
        return time_us * self._memory(spec, target, knobs) * (1 + 0.02 * _noise(spec, knobs))

    def _memory(self, spec: ConvSpec, target: Target, knobs: Knobs) -> float:
        ic_block, oh_block, pad = int(knobs["ic_block"]), int(knobs["oh_block"]), knobs["pad_at"]
        oh, ow = spec.out_size
        weights = 4 * ic_block * math.prod(spec.kernel) * int(knobs["oc_tile"]) * target.lanes
        rows = 4 * (oh_block + spec.kernel[0]) * ow * spec.in_channels
        by_cache = (1 + 0.4 * (weights > target.l1d_bytes / 2)) * (1 + 0.3 * (rows > target.l2_bytes / 2))
        again = 1 + 0.5 / math.sqrt(min(ic_block, spec.in_channels))
        again += 0.2 * (knobs["order"] == "oc_oh" and rows > 2**18)
        tasks = math.ceil(oh / oh_block)
        idle = math.ceil(tasks / target.threads) * target.threads / tasks
        halo = {"task": 0.3 * (oh_block + spec.kernel[0] - 1) / oh_block, "once": 0.25, "none": 0.15 * spec.kernel[0]}
        return by_cache * again * idle * (1 + 0.5 * halo[str(pad)])


def _noise(spec: ConvSpec, knobs: Knobs) -> float:
    digest = hashlib.sha256(f"{spec}{sorted(knobs.items())}".encode()).digest()
    return int.from_bytes(digest[:4], "little") / 2**31 - 1


def record(
    spec: ConvSpec, target: Target, candidate: Candidate, time_us: float | None, status: str = "timeout", **fields: Any
) -> Record:
    """A record of this outcome; where there is no time, with this status."""
    if time_us is not None:
        fields = {"times_us": (time_us,), "error": 1e-7, **fields}
    return Record(
        spec=str(spec),
        target=target.facts(),
        candidate=candidate,
        status=status if time_us is None else "ok",
        **{"origin": "measured", "seed": 0, "versions": VERSIONS, "utc": "2026-01-01T00:00:00.000000Z", **fields},
    )


def run(
    search: Search, spec: ConvSpec, target: Target, spaces: Iterable[SyntheticSpace], batch: int = 2
) -> list[Record]:
    """Asks and tells until the search has finished; the records in order."""
    by_name, records = {space.name: space for space in spaces}, []
    while candidates := search.ask(batch):
        for candidate in candidates:
            time_us = by_name[candidate.space].time_us(spec, target, candidate.knobs)
            search.tell(candidate, time_us, "timeout" if time_us is None else "ok")
            records.append(record(spec, target, candidate, time_us))
    return records


def optimum_us(space: SyntheticSpace, spec: ConvSpec, target: Target) -> float:
    """The time of the fastest candidate there is."""
    times = (space.time_us(spec, target, c.knobs) for c in enumerate_candidates(space, spec, target))
    return min(time_us for time_us in times if time_us is not None)
