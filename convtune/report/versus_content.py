"""A comparison as data, the same for every format."""

from __future__ import annotations

from typing import Any

from convtune.ranks import as_cost, as_time
from convtune.record import Record, installed_versions
from convtune.report.kernels import SIDE, Kernels, key, side_by_side
from convtune.report.versus import Group, Pair, Versus


def versus_data(versus: Versus, tolerance: float | None, kernels: Kernels | None = None) -> dict[str, Any]:
    """The whole comparison.

    tolerance: a slower B than by this share is a regression; None: not asked. kernels: of both sides' schedules that
    differ, where they were built.
    """
    regressions = [] if tolerance is None else versus.regressions(tolerance)
    return {
        "versions": dict(installed_versions()),
        "a": versus.a,
        "b": versus.b,
        "compared": versus.compared,
        "fail_on": tolerance,
        "regressions": [{"name": pair.name, "spec": str(pair.spec), "origin": pair.origin} for pair in regressions],
        "groups": [_group(group, kernels) for group in versus.groups],
    }


def _group(group: Group, kernels: Kernels | None) -> dict[str, Any]:
    return {
        "target": dict(group.target),
        "origin": group.origin,
        "verdicts": dict(group.verdicts),
        "ratio_geometric_mean": group.geometric_mean,
        "layers": [_pair(pair) | kernels_data(pair, kernels) for pair in group.pairs],
    }


def _pair(pair: Pair) -> dict[str, Any]:
    found = pair.bounds
    return {
        "name": pair.name,
        "spec": str(pair.spec),
        "variant": pair.spec.variant,
        "verdict": pair.verdict,
        "ratio": found.ratio if found else None,
        "lower": found.lower if found else None,
        "upper": found.upper if found else None,
        "in_turn": found.in_turn if found else None,
        "differing": {name: list(values) for name, values in pair.differing.items()},
        "a": _side(pair.a),
        "b": _side(pair.b),
    }


def kernels_data(pair: Pair, kernels: Kernels | None) -> dict[str, Any]:
    """Both sides' kernels and how their loop nests differ; nothing where they were not built, or are the same."""
    if kernels is None or not isinstance(pair.a, Record) or not isinstance(pair.b, Record) or not pair.differing:
        return {}
    sides = [kernels[key(side)] for side in (pair.a, pair.b)]
    scripts = [side["script"] for side in sides]
    diff = side_by_side(*scripts) if all(scripts) else []
    a, b = ({name: side.get(name) for name in SIDE} for side in sides)
    return {"kernels": {"a": a, "b": b, "diff": [list(row) for row in diff]}}


def _side(side: Record | str) -> dict[str, Any]:
    if isinstance(side, str):
        return {"status": side, "us": None, "cost": None, "times_us": [], "error": None, "candidate": None}
    knobs = {"trace": side.candidate.key} if "trace" in side.candidate.knobs else dict(side.candidate.knobs)
    return {
        "status": "ok",
        "us": as_time(side.rank, side.origin),
        "cost": as_cost(side.rank, side.origin),
        "times_us": list(side.times_us),
        "error": side.error,
        "candidate": {"space": side.candidate.space, "knobs": knobs},
        "counts": dict(side.counts) if side.counts else None,
        "resources": {name: dict(used) for name, used in side.resources.items()} if side.resources else None,
        "utc": side.utc,
    }
