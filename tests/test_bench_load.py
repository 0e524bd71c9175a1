"""What others did to a turn: their CPU time, and the rounds that are taken again because of it."""

from __future__ import annotations

import pytest
from bench_peers import Puppet

from convtune.comparison.rounds import play
from convtune.comparison.side import Entry, Side
from convtune.peers import Configuration
from convtune.peers.process import CpuTimes
from convtune.spec import ConvSpec

SPEC = ConvSpec("conv", in_channels=3, out_channels=5, in_size=(7, 5), kernel=3)


def test_what_is_not_ours_is_the_others() -> None:
    before = CpuTimes(clock=10.0, own=1.0, busy=50.0, cpus=2)
    assert CpuTimes(clock=11.0, own=2.5, busy=52.0, cpus=2).others_since(before) == 0.25
    less = CpuTimes(clock=11.0, own=3.0, busy=51.9, cpus=2).others_since(before)  # a tick too early
    assert less == pytest.approx(-0.05)
    assert before.others_since(before) == 0.0


def test_our_own_work_is_not_others() -> None:
    before = CpuTimes.now()
    while CpuTimes.now().own - before.own < 0.05:
        pass
    after = CpuTimes.now()
    assert after.clock > before.clock
    assert after.busy >= before.busy
    assert after.others_since(before) <= 1.05


class Loaded(Side):
    """A side in this process, in whose turns others had so much of the CPUs."""

    def __init__(self, name: str, shares: list[float]) -> None:
        self.peer, self.refusal, self._shares = Puppet(name, "right"), None, list(shares)
        self.entries = [Entry(Configuration("right", "NCHW", "NCHW"))]
        self.turns = 0

    def turn(self, entry: Entry, seconds: float, spec: ConvSpec) -> None:
        self.turns += 1
        entry.turns_us.append(float(self.turns))
        entry.others.append(self._shares.pop(0) if self._shares else 0.0)


def test_a_disturbed_round_is_taken_again_by_all() -> None:
    ours, other = Loaded("ours", [0.0, 0.3, 0.0]), Loaded("other", [0.0, 0.0, 0.0, 0.19])
    assert play(ours, [other], SPEC, 6, 1e-3) == 1  # the mean counts: 0.15 of the second round, 0.095 of the fourth
    for side in (ours, other):
        assert side.entries[0].turns_us == [1.0, 3.0, 4.0, 5.0, 6.0, 7.0]
        assert len(side.entries[0].others) == 6


def test_a_machine_that_is_never_quiet_is_not_waited_for() -> None:
    ours, other = Loaded("ours", [0.5] * 99), Loaded("other", [0.5] * 99)
    assert play(ours, [other], SPEC, 6, 1e-3) == 6
    assert [side.turns for side in (ours, other)] == [12, 12]
    assert [len(side.entries[0].turns_us) for side in (ours, other)] == [6, 6]
