"""Peers: the libraries' times of a layer, from what `convtune bench` wrote."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from convtune.comparison.result_file import SCHEMA, VERSION
from convtune.errors import LogError
from convtune.report.roof import Roof


@dataclass(frozen=True)
class Peers:
    """A layer beside the libraries, measured in turn in one run.

    ours_us: convtune's median in that run. peers_us: by library, of those whose result is right. best: the fastest.
    ratio: its time over ours, as median and bounds; None where there is nothing to compare. verdict: win, loss or
    no_difference, "" where there is none.
    """

    ours_us: float | None
    peers_us: Mapping[str, float]
    best: str
    ratio: tuple[float, float, float] | None
    verdict: str

    def data(self) -> dict[str, Any]:
        """For a report's content."""
        ratio = dict(zip(("median", "lower", "upper"), self.ratio)) if self.ratio else None
        return {
            "ours_us": self.ours_us,
            "peers_us": dict(self.peers_us),
            "best": self.best or None,
            "ratio": ratio,
            "verdict": self.verdict or None,
        }


@dataclass(frozen=True)
class Bench:
    """A file of `convtune bench`: one machine's, by spec."""

    fingerprint: str
    layers: Mapping[str, Peers]
    roof: Roof | None


def read(path: Path) -> Bench:
    """The file's content; what this version does not know in it is ignored.

    Raises:
        LogError: it is missing, no such file, or written by a newer convtune.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise LogError(f"bench {path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise LogError(f"bench {path} is not JSON: {error}") from None
    if not isinstance(data, dict) or data.get("schema") != SCHEMA:
        raise LogError(f"bench {path} is no file of `convtune bench`: its schema must be {SCHEMA!r}")
    if data.get("version") != VERSION:
        raise LogError(f"bench {path}: version={data.get('version')!r}; this convtune reads {VERSION}")
    try:
        layers = {str(layer["spec"]): _peers(layer) for layer in data["layers"]}
        return Bench(str(data["machine"]["fingerprint"]), layers, _roof(data["runs"]))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise LogError(f"bench {path} is damaged: {type(error).__name__}: {error}") from error


def _peers(layer: Mapping[str, Any]) -> Peers:
    ours, ratio = layer.get("ours"), layer.get("ratio")
    times = {str(name): peer["us"] for name, peer in layer["peers"].items() if peer["status"] == "ok"}
    bounds = (float(ratio["median"]), float(ratio["lower"]), float(ratio["upper"])) if ratio else None
    return Peers(
        ours_us=float(ours["us"]) if ours and ours["us"] is not None else None,
        peers_us={name: float(time_us) for name, time_us in times.items() if time_us is not None},
        best=str(layer.get("best") or ""),
        ratio=bounds,
        verdict=str(layer.get("verdict") or ""),
    )


def _roof(runs: list[Mapping[str, Any]]) -> Roof | None:
    """Of the last run."""
    if not runs or not runs[-1].get("peak_gflops") or not runs[-1].get("bandwidth_gbs"):
        return None
    peak, bandwidth = runs[-1]["peak_gflops"], runs[-1]["bandwidth_gbs"]
    known = [float(value) for value in (peak.get("before"), peak.get("after")) if value]
    if not known or not bandwidth.get("read"):
        return None
    return Roof(max(known), float(bandwidth["read"]), "measured by convtune bench in its last run")
