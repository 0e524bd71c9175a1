"""Which threads and iterations of a kernel are looked at: seeded, and spread evenly over every variable's range."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

SAMPLES = 128
LANES = 32
_AXES = "xyz"


class Sampler:
    """Draws the samples; each is one warp of one block, at one iteration of every loop around it."""

    def __init__(self, extents: dict[str, int], seed: int = 0) -> None:
        self.random = np.random.default_rng(seed)
        self.block = [extents.get(f"threadIdx.{axis}", 1) for axis in _AXES]
        self.grid = [extents.get(f"blockIdx.{axis}", 1) for axis in _AXES]
        self.threads = int(np.prod(self.block))
        self.warps = -(-self.threads // LANES)
        warps = self._warps()
        self.size = len(warps)
        self.blocks = warps // self.warps
        self.linear = warps % self.warps * LANES + np.arange(LANES)
        self.active = self.linear < self.threads  # the last warp may be a part of one

    def _warps(self) -> NDArray[np.int64]:
        """(samples, 1) warps of the launch: each as often where there are few, else one of each of equal parts."""
        launched = self.warps * int(np.prod(self.grid))
        if launched <= SAMPLES:
            return np.repeat(np.arange(launched), SAMPLES // launched)[:, None]
        part = launched / SAMPLES
        chosen = (np.arange(SAMPLES) + self.random.random(SAMPLES)) * part
        return np.minimum(chosen.astype(np.int64), launched - 1)[:, None]

    def spread(self, extent: int | NDArray[Any]) -> NDArray[np.int64]:
        """(samples, 1) numbers below extent, evenly spread, in random order: what is counted has little noise."""
        unit = (self.random.permutation(self.size) + 0.5) / self.size
        return np.asarray(unit[:, None] * extent).astype(np.int64)

    def noise(self, kind: str) -> NDArray[Any]:
        """What is read from memory: numbers around zero, as the offsets of deformable convolution are."""
        if kind == "float":
            return self.random.standard_normal((self.size, LANES))
        return self.random.integers(0, 1 << 10, (self.size, LANES))

    def axis(self, name: str) -> NDArray[np.int64]:
        """(samples or 1, lanes or 1) of "threadIdx.x" or "blockIdx.z"."""
        position = _AXES.index(name[-1])
        if name.startswith("threadIdx"):
            return self.split(self.linear, self.block, position)
        return self.split(self.blocks, self.grid, position)

    @staticmethod
    def split(linear: NDArray[Any], extents: list[int], position: int) -> NDArray[np.int64]:
        """One coordinate of a linear index whose first coordinate runs fastest."""
        inner = int(np.prod(extents[:position]))
        return np.asarray(linear // inner % extents[position], dtype=np.int64)
