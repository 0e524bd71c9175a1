"""Digest: what a log's records come to, layer by layer, apart for each target and each origin."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from typing import Any

from convtune import accuracy as accuracies
from convtune.ranks import MEASURED, as_cost, as_time, has_times
from convtune.record import Record, standing, winner
from convtune.report.names import names_among
from convtune.report.peers import Bench, Peers
from convtune.report.roof import Roof
from convtune.spec import ConvSpec

LONGEST_PAUSE_S = 600.0
"""Between two records; more than that was not spent on tuning."""
_LONGEST_MESSAGE = 300


@dataclass(frozen=True)
class LayerDigest:
    """One spec on one target, with records of one origin.

    names: in the zoo, the likeliest first. records: all of them, in the order of the log. limit: the largest error
    allowed of the winner.
    """

    spec: ConvSpec
    names: Sequence[str]
    records: Sequence[Record]
    limit: float
    roof: Roof | None = None
    peers: Peers | None = None

    @property
    def name(self) -> str:
        return self.names[0]

    @cached_property
    def trials(self) -> Sequence[Record]:
        """One record of each candidate tried: that of the search; of finalists whose search a log lacks, theirs."""
        finals = {r.candidate.key: r for r in self.records if r.round == "final"}
        return [*self._searched, *(r for key, r in finals.items() if key not in self._search_ranks)]

    @cached_property
    def numbers(self) -> Mapping[str, int]:
        """The place of each candidate among the trials, by its key; the first of several."""
        return {key: n for n, key in reversed(list(enumerate(self._keys)))}

    @cached_property
    def _keys(self) -> Sequence[str]:
        return [*self._search_keys, *(r.candidate.key for r in self.trials[len(self._searched) :])]

    @cached_property
    def _searched(self) -> Sequence[Record]:
        return [r for r in self.records if r.round == "search"]

    @cached_property
    def _search_keys(self) -> Sequence[str]:
        return [r.candidate.key for r in self._searched]

    @cached_property
    def _search_ranks(self) -> Mapping[str, float]:
        """Of each candidate of the search; infinite where it failed."""
        ranks = (r.rank if r.status == "ok" else math.inf for r in self._searched)
        return dict(zip(self._search_keys, ranks))

    @property
    def origin(self) -> str:
        return self.records[0].origin

    @cached_property
    def best(self) -> Record | None:
        """The winner."""
        return winner(self.records, max_error=self.limit, origin=self.origin)

    @cached_property
    def finals(self) -> Sequence[Record]:
        """The newest finalists, measured in turn with each other; the default first, where it is right."""
        finals = [r for r in standing(self.records) if r.round == "final"]
        newest = max((r.batch for r in finals), default="")
        return [r for r in finals if r.batch == newest]

    @cached_property
    def default(self) -> Record | None:
        """The default schedule, measured in turn with the winner where it was; None where it failed or is not known.

        The newest one: it may be another in each version of convtune. A log that was pruned may have lost it.
        """
        newest = self.finals or self._searched
        if all(r.default is None for r in newest):
            return self._first_tried
        searched = [r for r in standing(self.records) if r.round == "search"]
        return next((r for r in (*self.finals, *reversed(searched)) if r.default), None)

    @property
    def _first_tried(self) -> Record | None:
        """What an old log, which does not name the default, has as one; None where it does not tell.

        It is tried first, and is the first of the finalists unless it failed.
        """
        if not self._searched:
            return None
        tried = self._searched[0]
        if not self.finals:
            return next((r for r in standing(self.records) if r is tried), None)
        first = self.finals[0]
        own, *others = (self._search_ranks.get(r.candidate.key, math.inf) for r in self.finals)
        overtaken = own < math.inf and min(others, default=math.inf) < own
        return first if first.candidate == tried.candidate or overtaken else None

    @property
    def default_rank(self) -> float | None:
        return self.default.rank if self.default else None

    @property
    def best_rank(self) -> float | None:
        return self.best.rank if self.best else None

    @property
    def best_us(self) -> float | None:
        """None where the origin has no times."""
        return as_time(self.best_rank, self.origin)

    @property
    def speedup(self) -> float | None:
        return self.default_rank / self.best_rank if self.default_rank and self.best_rank else None

    def ranks(self) -> dict[str, float | None]:
        """Those of the default and the winner as times and as costs; what they are not is None."""
        ranks = {"default": self.default_rank, "best": self.best_rank}
        times = {f"{name}_us": as_time(rank, self.origin) for name, rank in ranks.items()}
        return times | {f"{name}_cost": as_cost(rank, self.origin) for name, rank in ranks.items()}

    @property
    def gflops(self) -> float | None:
        return self.spec.flops / self.best_us / 1e3 if self.best_us else None

    @property
    def share(self) -> float | None:
        """Of the roofline: the time that the roof allows over the time taken."""
        return self.roof.least_us(self.spec) / self.best_us if self.roof and self.best_us else None

    @cached_property
    def failures(self) -> Mapping[str, int]:
        """Number of records by status, but ok."""
        return Counter(r.status for r in self.trials if r.status != "ok")

    @cached_property
    def messages(self) -> Sequence[tuple[str, str, int]]:
        """Status, message on one line, and how often; the most frequent first. Numbers in it are those of the first."""
        kinds: dict[tuple[str, str], list[str]] = {}
        for r in self.trials:
            if r.status != "ok":
                kinds.setdefault((r.status, re.sub(r"\d+", "0", r.message[:_LONGEST_MESSAGE])), []).append(r.message)
        ranked = sorted(kinds.items(), key=lambda item: -len(item[1]))
        return [
            (status, " | ".join(texts[0].splitlines())[:_LONGEST_MESSAGE], len(texts)) for (status, _), texts in ranked
        ]

    @cached_property
    def clock_s(self) -> Sequence[float]:
        """Of each trial: seconds of tuning until it had been tried, long pauses left out."""
        return clock(self.trials)


def clock(records: Sequence[Record]) -> list[float]:
    """Seconds of work until each of the records was written; what the first one took is its build alone."""
    found, now, before = list[float](), 0.0, math.nan
    for record in records:
        at = seconds(record.utc)
        gap = at - before
        own = (record.build_s or 0.0) + sum(record.times_us) / 1e6
        now += gap if 0 <= gap <= LONGEST_PAUSE_S else own
        before = at
        found.append(now)
    return found


def seconds(utc: str) -> float:
    """Since 1970."""
    return datetime.fromisoformat(f"{utc.removesuffix('Z')}+00:00").timestamp()  # Python 3.10 reads no Z


@dataclass(frozen=True)
class Section:
    """What was tuned on one target, with records of one origin: these compare with each other, and with no others."""

    target: Mapping[str, Any]
    origin: str
    layers: Sequence[LayerDigest]
    records: Sequence[Record]
    roof: Roof | None = None

    @property
    def trials(self) -> int:
        return sum(len(layer.trials) for layer in self.layers)

    @cached_property
    def failures(self) -> Mapping[str, int]:
        """Number of trials by status, but ok."""
        return sum((Counter(layer.failures) for layer in self.layers), Counter[str]())

    @cached_property
    def elapsed_s(self) -> float:
        """Seconds of tuning, long pauses left out."""
        ordered = sorted(self.records, key=lambda r: r.utc)
        return clock(ordered)[-1] if ordered else 0.0

    @property
    def speedup(self) -> float | None:
        """Geometric mean over the layers that have one, each once."""
        known = [math.log(layer.speedup) for layer in self.layers if layer.speedup]
        return math.exp(sum(known) / len(known)) if known else None

    @property
    def peers(self) -> Sequence[str]:
        """The libraries that some layer has a time of."""
        return sorted({name for layer in self.layers if layer.peers for name in layer.peers.peers_us})

    @cached_property
    def versions(self) -> Sequence[str]:
        return sorted({f"convtune {r.versions['convtune']}, TVM {r.versions['tvm']}" for r in self.records})


def digest(
    records: Iterable[Record],
    *,
    accuracy: str = "standard",
    roofs: Mapping[str, Roof] | None = None,
    benches: Iterable[Bench] = (),
) -> list[Section]:
    """A section for each target and origin, in the order in which the records come.

    roofs: by fingerprint; none for a section without times. benches: of the same machines; their times are measured,
    so no other origin's section has them.
    """
    grouped: dict[tuple[str, str], dict[str, list[Record]]] = {}
    for record in records:
        grouped.setdefault((record.fingerprint, record.origin), {}).setdefault(record.spec, []).append(record)
    benched = {(bench.fingerprint, spec): peers for bench in benches for spec, peers in bench.layers.items()}
    specs = {spec: ConvSpec.parse(spec) for by_spec in grouped.values() for spec in by_spec}
    names = names_among(specs.values())
    sections = []
    for (fingerprint, origin), by_spec in grouped.items():
        roof = (roofs or {}).get(fingerprint) if has_times(origin) else None
        known = {spec: benched.get((fingerprint, spec)) if origin == MEASURED else None for spec in by_spec}
        layers = [
            LayerDigest(
                specs[spec], names[str(specs[spec])], found, accuracies.limit(specs[spec], accuracy), roof, known[spec]
            )
            for spec, found in by_spec.items()
        ]
        every = [record for found in by_spec.values() for record in found]
        sections.append(Section(every[-1].target, origin, layers, every, roof))
    return sections
