"""Content: a report as data, the same for every format; times in microseconds, costs in weighted instructions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from convtune.log import Problem
from convtune.record import METASCHEDULE, STATUSES, Record, installed_versions
from convtune.report.digest import LayerDigest, Section
from convtune.report.kernels import MOST_SCRIPT_BYTES, Kernels, key, shown
from convtune.report.roof import Roof
from convtune.space import KnobValue

MOST_MESSAGES = 12
"""Of a layer's failures; further kinds are counted."""


def content(
    sections: Sequence[Section], logs: Sequence[str], problems: Sequence[Problem], kernels: Kernels | None = None
) -> dict[str, Any]:
    """The whole report, without the candidates. kernels: of the winners, where they were built."""
    found: dict[str, Any] = {
        "versions": dict(installed_versions()),
        "logs": list(logs),
        "skipped_lines": [str(problem) for problem in problems],
        "sections": [section_data(section) for section in sections],
    }
    if kernels is not None:
        _add_kernels(found["sections"], sections, kernels)
    return found


def _add_kernels(data: Sequence[dict[str, Any]], sections: Sequence[Section], kernels: Kernels) -> None:
    room = MOST_SCRIPT_BYTES
    for section, described in zip(sections, data):
        for layer, row in zip(section.layers, described["layers"]):
            row["kernel"] = shown(kernels, key(layer.best), room) if layer.best else None
            room -= len(((row["kernel"] or {}).get("script") or "").encode())


def section_data(section: Section) -> dict[str, Any]:
    """What is said of a target and origin, its layers included."""
    finished = [layer for layer in section.layers if layer.best]
    return {
        "target": dict(section.target),
        "origin": section.origin,
        "roof": _roof(section.roof),
        "trials": section.trials,
        "failures": dict(section.failures),
        "elapsed_s": section.elapsed_s,
        "first_utc": min((r.utc for r in section.records), default=None),
        "last_utc": max((r.utc for r in section.records), default=None),
        "written_with": list(section.versions),
        "peers": list(section.peers),
        "layers_with_kernel": len(finished),
        "speedup_geometric_mean": section.speedup,
        "layers": [layer_data(layer) for layer in section.layers],
    }


def layer_data(layer: LayerDigest) -> dict[str, Any]:
    """What is said of a layer, without its candidates."""
    spec, best = layer.spec, layer.best
    return {
        "name": layer.name,
        "names": list(layer.names),
        "spec": str(spec),
        "variant": spec.variant,
        "dtype": spec.dtype,
        "shape": shape(layer),
        "flops": spec.flops,
        "bytes": spec.bytes,
        **layer.ranks(),
        "speedup": layer.speedup,
        "gflops": layer.gflops,
        "roofline_share": layer.share,
        "bench": layer.peers.data() if layer.peers else None,
        "error": best.error if best else None,
        "candidate": _candidate(best),
        "default_candidate": _candidate(layer.default),
        "resources": {name: dict(found) for name, found in best.resources.items()} if best and best.resources else None,
        "counts": dict(best.counts) if best and best.counts else None,
        "trials": len(layer.trials),
        "failures": dict(layer.failures),
        "elapsed_s": layer.clock_s[-1] if layer.clock_s else 0.0,
    }


def shape(layer: LayerDigest) -> str:
    """The sizes in a few words, such as 64→128, 56×56, 3×3 /2."""
    spec = layer.spec
    across = "×".join
    words = [f"{spec.in_channels}→{spec.out_channels}", across(map(str, spec.in_size)), across(map(str, spec.kernel))]
    if any(stride != 1 for stride in spec.stride):
        words[-1] += " /" + across(map(str, spec.stride if len(set(spec.stride)) > 1 else spec.stride[:1]))
    words += [f"batch {spec.batch}"] if spec.batch != 1 else []
    words += [f"{spec.groups} groups"] if spec.groups not in (1, spec.in_channels) else []
    return ", ".join(words)


def _candidate(record: Record | None) -> dict[str, Any] | None:
    if record is None:
        return None
    return {"space": record.candidate.space, "knobs": _knobs(record)}


def _knobs(record: Record) -> dict[str, KnobValue]:
    """Its knobs; of a MetaSchedule trace, which is kilobytes long, its key."""
    if record.candidate.space == METASCHEDULE:
        return {"trace": record.candidate.key}
    return dict(record.candidate.knobs)


def _roof(roof: Roof | None) -> dict[str, Any] | None:
    return None if roof is None else asdict(roof)


def candidates(layer: LayerDigest) -> dict[str, Any]:
    """A layer's trials, by column and numbered where they repeat: a log of 100,000 must stay a page of some megabytes.

    spaces: each with its knobs' names, and the values of each knob in order. columns: of each trial its space's number,
    its status's number in `statuses`, its rank or null, its error, its build time, its second, and the numbers of its
    knobs' values. finals: of each finalist the number of its trial (null where the log lacks it), and all its ranks.
    """
    spaces = _spaces(layer.trials)
    numbers = {name: number for number, name in enumerate(spaces)}
    rows = [_row(record, at, numbers, spaces) for record, at in zip(layer.trials, layer.clock_s)]
    shown = layer.messages[:MOST_MESSAGES]
    return {
        "spaces": [{"name": name, "knobs": {k: list(v) for k, v in knobs.items()}} for name, knobs in spaces.items()],
        "trials": rows,
        "finals": [[layer.numbers.get(r.candidate.key), _digits(r.ranks)] for r in layer.finals],
        "best": layer.numbers.get(layer.best.candidate.key) if layer.best else None,
        "default": layer.numbers.get(layer.default.candidate.key) if layer.default else None,
        "messages": [list(message) for message in shown],
        "other_messages": sum(count for _, _, count in layer.messages[MOST_MESSAGES:]),
    }


def _spaces(records: Iterable[Record]) -> dict[str, dict[str, dict[KnobValue, int]]]:
    """By space and knob each value's number: numbers in their order, before texts."""
    found: dict[str, dict[str, set[KnobValue]]] = {}
    for record in records:
        knobs = found.setdefault(record.candidate.space, {})
        if record.candidate.space == METASCHEDULE:  # each trace is tried once, so there is no effect to see
            continue
        for name, value in record.candidate.knobs.items():
            knobs.setdefault(name, set()).add(value)
    return {
        space: {
            name: {value: n for n, value in enumerate(sorted(values, key=_order))} for name, values in knobs.items()
        }
        for space, knobs in found.items()
    }


def _order(value: KnobValue) -> tuple[bool, int, str]:
    return (True, 0, value) if isinstance(value, str) else (False, value, "")


def _row(
    record: Record,
    at: float,
    numbers: Mapping[str, int],
    spaces: Mapping[str, Mapping[str, Mapping[KnobValue, int]]],
) -> list[Any]:
    knobs = spaces[record.candidate.space]
    values = [
        known.get(record.candidate.knobs[name]) if name in record.candidate.knobs else None
        for name, known in knobs.items()
    ]
    return [
        numbers[record.candidate.space],
        STATUSES.index(record.status),
        _short(record.rank) if record.status == "ok" else None,
        _short(record.error, 2),
        _short(record.build_s, 2),
        round(at, 1),
        *values,
    ]


def _short(value: float | None, digits: int = 4) -> float | int | None:
    """As many digits as a picture needs."""
    if value is None:
        return None
    rounded = float(f"{value:.{digits}g}")
    return int(rounded) if rounded.is_integer() and rounded < 1e15 else rounded


def _digits(ranks: Sequence[float]) -> list[float | int | None]:
    return [_short(rank) for rank in ranks]
