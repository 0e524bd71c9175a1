"""What the file has of a layer: every side's times and errors, the best peer, and the verdict."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from convtune.comparison import verdict
from convtune.comparison.kinds import kind_of

if TYPE_CHECKING:
    from convtune.comparison.side import Entry, Side
    from convtune.compiler import Package
    from convtune.spec import ConvSpec
    from convtune.workloads import Workload

Layer = dict[str, Any]

_MAY_PASS = ("error", "crash", "timeout", "out_of_memory")
_NOT_TIMED = ("not_timed", "its result is right, but convtune's kernel failed before its turn")


def failed(workload: Workload, why: str) -> Layer:
    """A layer of which there is nothing to compare. why: one line."""
    spec = workload.spec
    return {
        "name": workload.name,
        "spec": str(spec),
        "count": workload.count,
        "kind": kind_of(spec),
        "run": None,
        "flops": spec.flops,
        "bytes": spec.bytes,
        "bound_us": None,
        "bound_by": None,
        "share": None,
        "ours": None,
        "peers": {},
        "best": None,
        "ratio": None,
        "ratio_converted": None,
        "verdict": None,
        "others": None,
        "rounds_repeated": 0,
        "failure": why,
        "identity": None,
    }


def data(workload: Workload, package: Package, ours: Side, peers: Sequence[Side], identity: Mapping[str, Any]) -> Layer:
    """The layer once its turns are over."""
    found = failed(workload, _failure(ours))
    found["peers"] = {side.name: _peer(side, workload.spec) for side in peers}
    if found["failure"]:
        return found
    (own,) = ours.entries
    found |= {"ours": _ours(own, package), "identity": dict(identity)}
    shares = [share for side in (ours, *peers) for entry in side.entries for share in entry.others]
    found["others"] = max(statistics.fmean(shares), 0.0)
    best, compared = _best(peers, None), None
    if best is not None:
        side, entry = best
        compared = verdict.compare(entry.turns_us, own.turns_us)
        found |= {"best": side.name, "ratio": compared.data(), "verdict": compared.verdict}
    converted = _best(peers, workload.spec.layout)
    if converted is not None and own.us:
        found["ratio_converted"] = (converted[1].us or 0.0) / own.us
    return found


def _failure(ours: Side) -> str:
    if ours.refusal:
        return ours.refusal[1]
    (own,) = ours.entries
    return "" if own.status == "ok" else f"{own.status}: {own.message}"


def _best(peers: Sequence[Side], layout: str | None) -> tuple[Side, Entry] | None:
    """The fastest of the configurations that lasted all rounds; layout: that they are given and give, if it matters."""
    found = [
        (side, entry)
        for side in peers
        for entry in side.entries
        if entry.us is not None and not entry.dropped and layout in (None, entry.configuration.layout)
    ]
    return min(found, key=lambda pair: pair[1].us or 0.0, default=None)


def _ours(own: Entry, package: Package) -> Layer:
    manifest = package.manifest
    return {
        "us": own.us,
        "turns_us": own.turns_us,
        "error": own.error,
        "candidate": dict(manifest.candidate),
        "resolution": {"kind": manifest.resolution.kind, "reason": manifest.resolution.reason},
        "library_sha256": manifest.library_sha256,
    }


def _peer(side: Side, spec: ConvSpec) -> Layer:
    timed = [entry for entry in side.entries if entry.us is not None]
    best = min(timed, key=lambda entry: entry.us or 0.0, default=None)
    given = [entry.us for entry in timed if entry.configuration.layout == spec.layout and entry.us is not None]
    status, message = side.refusal or _status(side.entries)
    return {
        "status": "ok" if best else status,
        "message": "" if best else message,
        "version": ", ".join(side.peer.versions().values()),
        "us": best.us if best else None,
        "configuration": best.configuration.name if best else None,
        "error": best.error if best else None,
        "converted_us": min(given, default=None),
        "configurations": [_entry(entry) for entry in side.entries],
    }


def _status(entries: Sequence[Entry]) -> tuple[str, str]:
    """Of a peer with no time: that of its first configuration."""
    outcomes = [_outcome(entry) for entry in entries] or [("error", "it has no configuration")]
    return _NOT_TIMED if _NOT_TIMED in outcomes else outcomes[0]


def _outcome(entry: Entry) -> tuple[str, str]:
    return _NOT_TIMED if entry.status == "ok" and not entry.turns_us else (entry.status, entry.message)


def _entry(entry: Entry) -> Layer:
    status, message = _outcome(entry)
    return {
        "name": entry.configuration.name,
        "layout": entry.configuration.layout,
        "converts": entry.configuration.converts,
        "status": status,
        "message": message,
        "error": entry.error,
        "us": entry.us,
        "turns_us": entry.turns_us,
    }


def failed_peers(found: Layer) -> list[str]:
    """The peers whose failure need not be their own: a busy machine or a killed process fails them too."""
    return [name for name, peer in found["peers"].items() if peer["status"] in _MAY_PASS]


def waiting(found: Layer) -> bool:
    """Whether some of those failed just once: they are tried once more, in a later run, as the tuner's candidates."""
    return not all(found["peers"][name].get("tried_again") for name in failed_peers(found))


def tried_again(found: Layer, earlier: Layer | None) -> Layer:
    """The layer, each of its peers with whether it failed in the same measurement before, if there was one."""
    before = failed_peers(earlier) if earlier else []
    return found | {"peers": {name: {**peer, "tried_again": name in before} for name, peer in found["peers"].items()}}


def bounded(layer: Layer, peak_gflops: float, read_gbs: float) -> Layer:
    """The layer with its roofline: it takes at least as long as its multiply-adds, and as its bytes from memory."""
    compute_us, memory_us = layer["flops"] / peak_gflops / 1e3, layer["bytes"] / read_gbs / 1e3
    bound_us = max(compute_us, memory_us)
    us = layer["ours"] and layer["ours"]["us"]
    return layer | {
        "bound_us": bound_us,
        "bound_by": "compute" if compute_us >= memory_us else "memory",
        "share": bound_us / us if us else None,
    }
