"""The contract of a peer: how it computes a spec's convolution, in which configurations and layouts."""

from __future__ import annotations

import functools
import importlib.metadata
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from convtune.spec import LAYOUTS

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from convtune.reference import OperandArrays
    from convtune.spec import ConvSpec

    Array = NDArray[Any]


class Unsupported(Exception):  # noqa: N818  # it is an answer, not a failure
    """A peer has no operator for the spec; says what is missing."""


@dataclass(frozen=True)
class Configuration:
    """One way in which a peer computes a spec.

    method: the peer's own name of it. layout: of the activations that it is given and gives. inside: the layout that it
    computes in; where that is another, the conversion is inside its time.
    """

    method: str
    layout: str
    inside: str

    @property
    def converts(self) -> bool:
        return self.layout != self.inside

    @property
    def name(self) -> str:
        return f"{self.method} + conversion" if self.converts else self.method


@dataclass(frozen=True)
class Problem:
    """What a peer is to compute. operands: in the spec's layout, weights in PyTorch's. package: of a peer that runs
    convtune's packages, the directory of one."""

    spec: ConvSpec
    operands: OperandArrays
    threads: int
    package: Path | None = None


@dataclass(frozen=True)
class Prepared:
    """A configuration with its arguments bound and its weights packed.

    call: computes once; this is what is timed. output: y of the last call, as NumPy array in the configuration's
    layout; not timed.
    """

    call: Callable[[], object]
    output: Callable[[], Array]


@functools.cache
def _version(distribution: str) -> str | None:
    """None where it is not installed. Found once: it takes milliseconds, and every layer names the versions."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


class Peer(ABC):
    """One peer. Its instance is stateless but for what `start` sets in the process; its module is its registration.

    name: for --against. order: where it stands in tables. distributions: for pip, the one whose version counts first.
    engine: the tuner's engine whose winner it runs; "" for a library. extra: of convtune's own, which installs it in
    the version that figures are of.
    """

    name: str
    order: int = 0
    distributions: tuple[str, ...] = ()
    engine: str = ""
    extra: str = ""

    def versions(self) -> Mapping[str, str]:
        """Of its distributions, those that are installed."""
        found = {name: _version(name) for name in self.distributions}
        return {name: version for name, version in found.items() if version is not None}

    @property
    def required(self) -> tuple[str, ...]:
        """The distributions that it cannot do without."""
        return self.distributions

    def absent(self) -> tuple[str, ...]:
        """What has to be installed before it can be used."""
        there = self.versions()
        return tuple(name for name in self.required if name not in there)

    @property
    def remedy(self) -> str:
        """The command that installs what is absent."""
        return f"pip install 'convtune[{self.extra}]'" if self.extra else f"pip install {' '.join(self.absent())}"

    def start(self, threads: int) -> None:  # noqa: B027  # a peer may have nothing to start
        """Imports its library, in the process that is the peer's, and has it use so many threads."""

    @abstractmethod
    def configurations(self, spec: ConvSpec) -> tuple[Configuration, ...]:
        """All that are worth trying, each in its own layout, and where that is not the spec's with the conversion too.

        Raises Unsupported where there is none.
        """

    @abstractmethod
    def prepare(self, problem: Problem, configuration: Configuration) -> Prepared:
        """Raises Unsupported where it turns out that the library cannot, and whatever the library raises."""


def in_own_layout(spec: ConvSpec, methods: Mapping[str, int]) -> tuple[Configuration, ...]:
    """The configurations of methods, each with the index of its layout: 0 is channels first, 1 channels last."""
    found = []
    for method, index in methods.items():
        inside = LAYOUTS[spec.rank][index]
        found.append(Configuration(method, inside, inside))
        if inside != spec.layout:
            found.append(Configuration(method, spec.layout, inside))
    return tuple(found)


def arranged(array: Array, spec: ConvSpec, layout: str) -> Array:
    """An activation of the spec's layout in another, C-contiguous."""
    import numpy as np

    if layout == spec.layout:
        return np.ascontiguousarray(array)
    return np.ascontiguousarray(np.moveaxis(array, -1, 1) if spec.channels_last else np.moveaxis(array, 1, -1))


def restored(array: Array, spec: ConvSpec, layout: str) -> Array:
    """The result, given in a layout, as the spec has it."""
    import numpy as np

    if layout == spec.layout:
        return array
    return np.moveaxis(array, 1, -1) if spec.channels_last else np.moveaxis(array, -1, 1)


def require_float32(spec: ConvSpec) -> None:
    """Raises Unsupported for another dtype: what is compared is float32."""
    if spec.dtype != "float32":
        raise Unsupported(f"dtype {spec.dtype}: float32 is compared")
