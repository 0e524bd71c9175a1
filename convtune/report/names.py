"""Names of specs: a layer of the zoo is called as it is there."""

from __future__ import annotations

import functools
from collections.abc import Mapping

from convtune.spec import ConvSpec
from convtune.workloads.zoo import zoo

_CHANNELS_FIRST = {"NHWC": "NCHW", "NWC": "NCW", "NDHWC": "NCDHW"}


def name_of(spec: ConvSpec) -> str:
    """Its first name in the zoo, in either layout; its canonical string where it is not there."""
    return names_of(spec)[0]


def names_of(spec: ConvSpec) -> tuple[str, ...]:
    """All its names in the zoo, whose networks share layers; its canonical string where it has none."""
    text = str(spec)
    return _zoo().get(text, (text,))


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
