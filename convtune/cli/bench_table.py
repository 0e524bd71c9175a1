"""What `convtune bench` prints: the layers, what came of each, and the geometric means by kind."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from convtune.cli import tables
from convtune.comparison.kinds import ALL, KINDS

Data = Mapping[str, Any]

_DISTURBED = 0.05
"""Share of the CPUs' time that others had, from which on a layer is named: what is measured then may be theirs."""
_NAMED = 5
_VERDICTS = {"win": "win", "loss": "loss", "no_difference": "no difference"}


def text(data: Data) -> str:
    """All of it. data: as the file has it, with one layer at least."""
    layers = data["layers"]
    network, names = _short(layers)
    parts = [*([network, ""] if network else []), _layers(layers, names), ""]
    parts += _notes(layers, names)
    parts += [_kinds(data["summary"]), "", *_against(data["summary"]), *_origin(data)]
    return "\n".join(parts)


def _short(layers: Sequence[Data]) -> tuple[str, list[str]]:
    from convtune.spec import ConvSpec
    from convtune.workloads import Workload

    return tables.short_names([Workload(layer["name"], ConvSpec.parse(layer["spec"])) for layer in layers])


def _peers(layers: Sequence[Data]) -> list[str]:
    return list(dict.fromkeys(name for layer in layers for name in layer["peers"]))


def _layers(layers: Sequence[Data], names: Sequence[str]) -> str:
    """A row for each: ours, each peer in the layout that it likes best, and what the conversion costs the best one."""
    peers = _peers(layers)
    ours = [layer["ours"] and layer["ours"]["us"] for layer in layers]
    theirs = [peer["us"] for layer in layers for peer in layer["peers"].values()]
    column = tables.RankColumn.of([*ours, *theirs])
    columns = {"layer": "left", f"ours {column.unit}": "right"}
    columns |= {f"{name}": "right" for name in peers}
    columns |= {"best": "left", "conversion": "right", "ratio": "right", "95 %": "left", "verdict": "left"}
    columns |= {"roofline": "right", "error": "right"}
    rows = [_row(layer, name, peers, column) for layer, name in zip(layers, names)]
    return tables.render(columns, rows)


def _row(layer: Data, name: str, peers: Sequence[str], column: tables.RankColumn) -> list[str | None]:
    own, ratio = layer["ours"], layer["ratio"]
    return [
        name,
        column.text(own and own["us"]),
        *(_theirs(layer["peers"].get(peer), column) for peer in peers),
        layer["best"],
        _conversion(layer, column),
        tables.speedup(ratio and ratio["median"]),
        f"{ratio['lower']:.2f} to {ratio['upper']:.2f}" if ratio else None,
        _VERDICTS.get(layer["verdict"] or ""),
        tables.share(layer["share"]),
        tables.error(own and own["error"]),
    ]


def _theirs(peer: Data | None, column: tables.RankColumn) -> str | None:
    if peer is None:
        return None
    return column.text(peer["us"]) if peer["us"] is not None else str(peer["status"])


def _conversion(layer: Data, column: tables.RankColumn) -> str | None:
    """What the best peer needs more where it is given the spec's layout; nothing where that is its own."""
    best = layer["best"] and layer["peers"][layer["best"]]
    if not best or best["converted_us"] is None or best["converted_us"] <= best["us"]:
        return None
    return f"+{column.text(best['converted_us'] - best['us'])}"


def _notes(layers: Sequence[Data], names: Sequence[str]) -> list[str]:
    """Why there is no time: of ours, of a peer."""
    notes = [f"{name}: {layer['failure']}" for layer, name in zip(layers, names) if layer["failure"]]
    reasons: dict[tuple[str, str], list[str]] = {}
    for layer, name in zip(layers, names):
        for peer, found in layer["peers"].items():
            if found["us"] is None and not layer["failure"]:
                reasons.setdefault((peer, f"{found['status']}: {found['message']}"), []).append(name)
    for (peer, reason), where in reasons.items():
        more = f" and {len(where) - 1} more" if len(where) > 1 else ""
        notes.append(f"{where[0]}{more}: {peer}: {reason}")
    disturbed = [name for layer, name in zip(layers, names) if (layer["others"] or 0.0) > _DISTURBED]
    if disturbed:
        share, which = tables.share(_DISTURBED), ", ".join(disturbed[:_NAMED])
        more = f" and {len(disturbed) - _NAMED} more" if len(disturbed) > _NAMED else ""
        notes.append(f"disturbed: other processes had over {share} of the CPUs' time during the turns of {which}{more}")
    return [*notes, ""] if notes else []


def _kinds(summary: Data) -> str:
    columns = {"kind": "left", "layers": "right", "win": "right", "loss": "right", "no difference": "right"}
    columns |= {"geometric mean": "right", "in the spec's layout": "right"}
    rows = [
        [
            KINDS.get(kind["kind"], ALL),
            str(kind["layers"]),
            *(str(kind[verdict]) for verdict in _VERDICTS),
            tables.speedup(kind["geomean"]),
            tables.speedup(kind["geomean_converted"]),
        ]
        for kind in summary["kinds"]
    ]
    return tables.render(columns, rows)


def _against(summary: Data) -> list[str]:
    means = [f"{name} {tables.speedup(mean)}" for name, mean in summary["peers"].items() if mean]
    return [f"geometric mean against each: {', '.join(means)}"] if means else []


def _origin(data: Data) -> list[str]:
    """The machine, its limits, versions and commands, of every run that layers are from."""
    machine = data["machine"]
    lines = [f"{machine['model']}, {machine['threads']} threads ({machine['name']}); accuracy {data['accuracy']}"]
    used = sorted({layer["run"] for layer in data["layers"] if layer["run"] is not None})
    for run in (data["runs"][index] for index in used):
        peak, bandwidth = run["peak_gflops"], run["bandwidth_gbs"]
        lines.append(
            f"{run['started'][:16].replace('T', ' ')} UTC, {run['rounds']} rounds of {run['turn_s'] * 1e3:g} ms: FMA "
            f"peak {max(peak.values()):.0f} GFLOP/s (before {peak['before']:.0f}, after {peak['after']:.0f}), memory "
            f"{bandwidth['read']:.0f} GB/s"
        )
        lines.append(", ".join(f"{name} {version}" for name, version in run["versions"].items()))
        lines.append(run["command"])
    return lines
