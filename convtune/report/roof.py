"""Roof: what a machine can do at most, in computing and in reading memory, where that is known."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from convtune.record import Record
from convtune.spec import ConvSpec


@dataclass(frozen=True)
class Roof:
    """A machine's peak and its memory's bandwidth. source: how they are known, for people.

    tensor_gflops: of float16 by Tensor Cores, where there are any.
    """

    gflops: float
    memory_gbs: float
    source: str
    tensor_gflops: float | None = None

    def least_us(self, spec: ConvSpec) -> float:
        """The least time that a spec can take where each tensor crosses the memory bus once.

        Tensors that are in a cache already may take less.
        """
        gflops = (self.tensor_gflops if spec.dtype == "float16" else None) or self.gflops
        return max(spec.flops / gflops, spec.bytes / self.memory_gbs) / 1e3


def roofs_of(records: Iterable[Record]) -> dict[str, Roof]:
    """The roofs of the records' targets, by fingerprint: a GPU's by its facts, this machine's as it is measured.

    Raises:
        MeasureError: this machine's peaks cannot be measured.
    """
    targets = {record.fingerprint: record.target for record in records}
    found = {fingerprint: roof_of(facts) for fingerprint, facts in targets.items()}
    return {fingerprint: roof for fingerprint, roof in found.items() if roof}


def roof_of(facts: Mapping[str, Any]) -> Roof | None:
    """The roof of a record's target; None where it is neither a GPU nor this machine."""
    return _published(facts) if facts["family"] == "cuda" else _measured(facts)


def _published(facts: Mapping[str, Any]) -> Roof | None:
    try:
        gflops, tensor = (
            2e-3 * facts["sms"] * facts[lanes] * facts["clock_mhz"] for lanes in ("fp32_lanes", "fp16_tensor_lanes")
        )
        return Roof(gflops, float(facts["dram_gbs"]), "published: peak and bandwidth by its facts", tensor or None)
    except (KeyError, TypeError):  # an older record, or one of another program
        return None


def _measured(facts: Mapping[str, Any]) -> Roof | None:
    from convtune import probe, targets
    from convtune.errors import TargetError

    try:
        here = targets.native(threads=facts["threads"])
    except TargetError:  # this machine is of no known family, or has fewer cores
        return None
    if here.fingerprint != facts["fingerprint"]:
        return None
    known = probe.recall(here)
    if known:
        return Roof(known.fma_gflops, known.bandwidth.read_gbs, "measured by convtune doctor on this machine")
    try:
        gflops, memory_gbs = probe.fma_peak_gflops(here), probe.bandwidth_gbs(here).read_gbs
    except TargetError:  # there is no C compiler: the report has no roof then, and says so
        return None
    return Roof(gflops, memory_gbs, "measured on this machine when the report was made")
