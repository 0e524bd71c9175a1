"""Numbers that describe a candidate, a spec and a target, chosen so that a model carries over between specs."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from convtune.space import default_knobs
from convtune.spec import count

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from convtune.search.domain import Domain
    from convtune.space import Candidate
    from convtune.spec import ConvSpec
    from convtune.targets import Target

Columns = dict[str, "NDArray[np.floating[Any]]"]


def extents(spec: ConvSpec) -> dict[str, int]:
    """The sizes of a spec's loops by the names that knobs start with: n, g, ic, oc, od, oh, ow, kd, kh, kw.

    ic and oc are a group's channels; all channels where a group has only one, as in depthwise.
    """
    missing = (1,) * (3 - spec.rank)
    group_ic, group_oc = spec.in_channels // spec.groups, spec.out_channels // spec.groups
    return {
        "n": spec.batch,
        "g": spec.groups,
        "ic": group_ic if group_ic > 1 else spec.in_channels,
        "oc": group_oc if group_oc > 1 else spec.out_channels,
        **dict(zip(("od", "oh", "ow"), (*missing, *spec.out_size))),
        **dict(zip(("kd", "kh", "kw"), (*missing, *spec.kernel))),
    }


@functools.lru_cache(maxsize=4096)  # a distance to each spec of a log is asked for again and again
def spec_numbers(spec: ConvSpec) -> Mapping[str, float]:
    """A spec as numbers: log2 of the sizes, of the FLOPs and of the FLOPs a byte; stride, dilation and layout."""
    numbers = {name: math.log2(size) for name, size in extents(spec).items()}
    return numbers | {
        "group_ic": math.log2(spec.in_channels // spec.groups),
        "stride": math.log2(count(spec.stride)),
        "dilation": math.log2(count(spec.dilation)),
        "flops": math.log2(spec.flops),
        "flops_per_byte": math.log2(spec.flops / spec.bytes),
        "channels_last": float(spec.channels_last),
    }


def target_numbers(facts: Mapping[str, Any]) -> dict[str, float]:
    """A target's numeric facts: vector bytes, threads, caches, whichever a record holds."""
    return {name: float(value) for name, value in facts.items() if isinstance(value, (int, float))}


class Encoder:
    """Turns candidates into rows of numbers, in the columns that matter for one search.

    Columns of a row, missing ones NaN:
      - the spec's and the target's numbers;
      - which space; every number knob; for every word that a knob may take here, whether it does;
      - for a knob named after a loop, such as `ow_tile` or `oc_block`: how many tiles, and the share of the last tile
        that is wasted; for channels also with the knob counted in vectors;
      - the product of all `*_tile` knobs, which is what registers hold;
      - a number knob's ratio to the space's default for that spec, and what the space adds with `features`: both only
        for rows of this target, as the default and the features depend on facts that records do not keep.
        The ratios are missing where `rows` is told so.
    Numbers need no scaling: trees only compare.
    """

    def __init__(self, spec: ConvSpec, target: Target, domains: Mapping[str, Domain]) -> None:
        self._target, self._spaces = target, {name: domain.space for name, domain in domains.items()}
        values = [(knob, value) for domain in domains.values() for knob, vs in domain.values.items() for value in vs]
        self._numeric = sorted({knob for knob, value in values if isinstance(value, int)})
        self._words = sorted({(knob, value) for knob, value in values if isinstance(value, str)})
        example = self._columns(spec, target.facts(), [domain.default for domain in domains.values()])
        self.columns = tuple(example)

    def rows(
        self, spec: ConvSpec, facts: Mapping[str, Any], candidates: Sequence[Candidate], *, to_default: bool = True
    ) -> NDArray[np.float32]:
        """(len(candidates), len(columns)). All candidates are of one spec and one target, which has these facts.

        to_default: whether the ratios to the default are known, which costs the choice of a default, up to 0.1 s.
        """
        rows = np.full((len(candidates), len(self.columns)), np.nan, np.float32)
        found = self._columns(spec, facts, candidates, to_default)
        for place, name in enumerate(self.columns):
            if name in found:
                rows[:, place] = found[name]
        return rows

    def _columns(
        self, spec: ConvSpec, facts: Mapping[str, Any], candidates: Sequence[Candidate], to_default: bool = True
    ) -> Columns:
        scalars = {f"spec:{k}": v for k, v in spec_numbers(spec).items()}
        scalars |= {f"target:{k}": v for k, v in target_numbers(facts).items()}
        columns: Columns = {name: np.full(len(candidates), value, np.float32) for name, value in scalars.items()}
        for space in self._spaces:
            columns[f"space:{space}"] = _column(candidate.space == space for candidate in candidates)
        for knob, word in self._words:
            columns[f"{knob}={word}"] = _column(candidate.knobs.get(knob) == word for candidate in candidates)
        numbers = {knob: _column(_number(c.knobs.get(knob)) for c in candidates) for knob in self._numeric}
        columns |= numbers
        # a vector's lanes on the record's own machine; a GPU has none
        columns |= _tilings(extents(spec), int(facts.get("vector_bytes", 4)) // 4, numbers)
        if facts.get("fingerprint") == self._target.fingerprint:
            columns |= self._of_the_spaces(spec, candidates)
            if to_default:
                columns |= self._to_default(spec, candidates, numbers)
        return columns

    def _of_the_spaces(self, spec: ConvSpec, candidates: Sequence[Candidate]) -> Columns:
        added = [self._spaces[c.space].features(spec, self._target, c.knobs) for c in candidates]
        names = sorted({name for features in added for name in features})
        return {f"space's {name}": _column(features.get(name, math.nan) for features in added) for name in names}

    def _to_default(self, spec: ConvSpec, candidates: Sequence[Candidate], numbers: Columns) -> Columns:
        used = {candidate.space for candidate in candidates}
        defaults = {name: default_knobs(self._spaces[name], spec, self._target) for name in used}
        columns: Columns = {}
        for knob, column in numbers.items():
            default = _column(_number(defaults[c.space].get(knob)) for c in candidates)
            columns[f"{knob}/default"] = (column + 1) / (default + 1)
        return columns


def _tilings(sizes: Mapping[str, int], lanes: int, numbers: Columns) -> Columns:
    columns: Columns = {}
    tiles_of = [np.nan_to_num(value, nan=1) for knob, value in numbers.items() if knob.endswith("_tile")]
    if tiles_of:
        columns["tile volume"] = np.prod(tiles_of, axis=0, dtype=np.float32)
    for knob, value in numbers.items():
        axis = knob.split("_")[0]
        if axis not in sizes:
            continue
        for unit, width in (("", 1), (" vectors", lanes)) if axis in ("ic", "oc") and lanes > 1 else (("", 1),):
            step = np.maximum(value * width, 1)
            tiles = np.ceil(sizes[axis] / step)
            columns[f"{knob}{unit}: tiles"] = tiles
            columns[f"{knob}{unit}: waste"] = tiles * step / sizes[axis]
    return columns


def _column(values: Any) -> NDArray[np.float32]:
    return np.fromiter(values, np.float32)


def _number(value: object) -> float:
    return float(value) if isinstance(value, int) else math.nan
