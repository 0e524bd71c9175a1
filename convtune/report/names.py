"""Names of specs: a layer of the zoo is called as it is there."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Iterable, Mapping

from convtune.spec import ConvSpec
from convtune.workloads.zoo import zoo

_CHANNELS_FIRST = {"NHWC": "NCHW", "NWC": "NCW", "NDHWC": "NCDHW"}


def names_among(specs: Iterable[ConvSpec]) -> Mapping[str, tuple[str, ...]]:
    """By canonical string, each spec's names in the zoo, in either layout; where it has none, that string.

    Networks share layers, and no record says for which one it was tuned. So the name in the network that has the most
    of these specs comes first, of equal ones that in the zoo's first network.
    """
    found = {text: _zoo().get(text, (text,)) for text in map(str, specs)}
    sizes = Counter(_network(name) for names in found.values() for name in names)
    return {text: tuple(sorted(names, key=lambda name: -sizes[_network(name)])) for text, names in found.items()}


def _network(name: str) -> str:
    return name.partition("/")[0]


@functools.cache
def _zoo() -> Mapping[str, tuple[str, ...]]:
    found: dict[str, tuple[str, ...]] = {}
    for network in zoo().values():
        for workload in network.workloads:
            spec = workload.spec
            other = spec.replace(layout=_CHANNELS_FIRST[spec.layout])
            for text in (str(spec), str(other)):
                found[text] = (*found.get(text, ()), workload.name)
    return found
