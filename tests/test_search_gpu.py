"""Searches for a GPU: its facts are numbers for the model, and only times of the search's own origin count."""

from __future__ import annotations

import dataclasses

import numpy as np
from synthetic_spaces import RegisterTile, record

from convtune import targets
from convtune.search import Search, nearest
from convtune.search.domain import Domain
from convtune.search.features import Encoder
from convtune.space import Candidate, enumerate_candidates
from convtune.spec import ConvSpec
from convtune.targets import GpuTarget

A100, T4 = targets.resolve("sm_80"), targets.resolve("sm_75")
SPEC = ConvSpec.parse("conv,ic=64,oc=60,in=57x57,k=3x3,p=1")
NEAR = SPEC.replace(in_channels=128)


class Tiles(RegisterTile):
    """Without what asks for a CPU's facts."""

    def knobs(self, spec, target):  # type: ignore[no-untyped-def]
        return {"ow_tile": (1, 2, 4, 8), "oc_tile": (4, 8, 16), "order": ("oc_oh", "oh_oc")}

    def allows(self, spec, target, knobs):  # type: ignore[no-untyped-def]
        return True

    def default(self, spec, target):  # type: ignore[no-untyped-def]
        return {"ow_tile": 2, "oc_tile": 8, "order": "oc_oh"}


TILES = Tiles()
CANDIDATES = list(enumerate_candidates(TILES, SPEC, A100))


def time_us(candidate: Candidate) -> float:
    return 100.0 / int(candidate.knobs["ow_tile"]) + int(candidate.knobs["oc_tile"])


def test_a_gpus_facts_are_columns_and_its_channels_are_counted_once() -> None:
    assert isinstance(A100, GpuTarget)
    encoder = Encoder(SPEC, A100, {TILES.name: Domain(TILES, SPEC, A100)})
    row = dict(zip(encoder.columns, encoder.rows(SPEC, T4.facts(), CANDIDATES[:1])[0].tolist()))
    assert (row["target:sms"], row["target:threads_per_sm"], row["target:dram_gbs"]) == (40, 1024, 320)
    assert row["oc_tile: tiles"] == 8  # of 60 channels in tiles of 8
    assert not [column for column in encoder.columns if "vectors" in column]
    assert np.isnan(row["ow_tile/default"]), "of another GPU"


def test_a_search_by_estimates_learns_from_them_alone() -> None:
    slow = [record(NEAR, A100, c, 1e6 / time_us(c), "ok", origin="measured") for c in CANDIDATES]
    known = [record(NEAR, A100, c, time_us(c), "ok", origin="estimated") for c in CANDIDATES]
    search = Search(SPEC, A100, [TILES], knowledge=[*slow, *known], trials=12, origin="estimated")
    assert search.ask(2)[1] == nearest(SPEC, A100, known, TILES, origin="estimated")
    while picks := search.ask(2):
        for pick in picks:
            search.tell(pick, time_us(pick))
    assert search.best is not None and search.best.rank == min(map(time_us, CANDIDATES))


def test_a_winner_of_another_gpu_is_taken_over_and_of_a_cpu_not() -> None:
    cpu = dataclasses.replace(targets.native(), name="cpu")
    records = [record(NEAR, machine, CANDIDATES[5], 9.0, "ok", origin="estimated") for machine in (T4, cpu)]
    assert nearest(SPEC, A100, records[:1], TILES, origin="estimated") == CANDIDATES[5]
    assert nearest(SPEC, A100, records[1:], TILES, origin="estimated") is None
    assert nearest(SPEC, A100, records, TILES) is None, "nothing was measured"
