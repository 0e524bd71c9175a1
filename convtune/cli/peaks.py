"""The peak that a table's rates are shares of: measured on this machine, or published of a GPU."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from convtune.errors import TargetError

if TYPE_CHECKING:
    from convtune.targets import CpuTarget, Target


@dataclass(frozen=True)
class MeasuredPeak:
    """A CPU's FMA peak in GFLOP/s, as measured before the first layer and after the last one."""

    target: CpuTarget
    before: float
    after: float

    def gflops(self, dtype: str) -> float:
        """In which kernels of a dtype are counted; float32 alone has any on CPUs."""
        return max(self.before, self.after)

    def again(self) -> MeasuredPeak:
        """With the second measurement made now."""
        from convtune import probe

        return dataclasses.replace(self, after=probe.fma_peak_gflops(self.target))

    def __str__(self) -> str:
        twice = f"before {self.before:.0f}, after {self.after:.0f}"
        return f"FMA peak measured in this run: {max(self.before, self.after):.0f} GFLOP/s ({twice})"

    def data(self) -> dict[str, Any]:
        """For `--json`."""
        return {"fma_peak_gflops": {"before": self.before, "after": self.after}}


@dataclass(frozen=True)
class PublishedPeak:
    """A GPU's peaks in GFLOP/s by its target's facts: of float32, and of the Tensor Cores for float16."""

    fp32_gflops: float
    tensor_gflops: float

    def gflops(self, dtype: str) -> float:
        """In which kernels of a dtype are counted."""
        return self.tensor_gflops or self.fp32_gflops if dtype == "float16" else self.fp32_gflops

    def again(self) -> PublishedPeak:
        return self

    def __str__(self) -> str:
        tensor = f", {self.tensor_gflops:.0f} GFLOP/s of float16" if self.tensor_gflops else ""
        return f"peak by its facts: {self.fp32_gflops:.0f} GFLOP/s of float32{tensor}"

    def data(self) -> dict[str, Any]:
        """For `--json`."""
        return {"published_peak_gflops": {"float32": self.fp32_gflops, "float16": self.tensor_gflops or None}}


@dataclass(frozen=True)
class UnknownPeak:
    """Of a CPU elsewhere."""

    def gflops(self, dtype: str) -> None:
        return None

    def again(self) -> UnknownPeak:
        return self

    def __str__(self) -> str:
        return "its FMA peak is not known here"

    def data(self) -> dict[str, Any]:
        """For `--json`."""
        return {}


Peak = MeasuredPeak | PublishedPeak | UnknownPeak


def of(target: Target) -> Peak:
    """The target's peak; this CPU's is measured now."""
    from convtune import probe
    from convtune.targets import CpuTarget, GpuTarget

    if isinstance(target, CpuTarget) and not target.is_host:
        return UnknownPeak()
    if isinstance(target, CpuTarget):
        before = probe.fma_peak_gflops(target)
        return MeasuredPeak(target, before, before)
    if isinstance(target, GpuTarget):
        return PublishedPeak(target.fp32_gflops, target.tensor_gflops)
    raise TargetError(f"target {target.name!r}: no peak is known of {type(target).__name__}")
