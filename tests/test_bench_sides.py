"""Contenders of the comparison: what they compute, how they may fail, and that the others go on regardless."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
from bench_peers import Environment, NeverStarts, Puppet

from convtune.comparison.asking import at_once
from convtune.comparison.rounds import drop_hopeless, play
from convtune.comparison.side import Entry, Side
from convtune.measure.bench import Limits
from convtune.peers import Configuration, Peer
from convtune.peers.process import Expected, Job
from convtune.reference import random_operands
from convtune.spec import ConvSpec

LOOSE = 1e-3
SPEC = ConvSpec("conv", in_channels=3, out_channels=5, in_size=(7, 5), kernel=3, padding=1, layout="NCHW", batch=2)
LAST = SPEC.replace(layout="NHWC")
PATIENT, HASTY = Limits(), Limits(device_s=3.0, reference_s=3.0)


@pytest.fixture
def sides(tmp_path: Path) -> Iterator[list[Side]]:
    opened: list[Side] = []
    yield opened
    for side in opened:
        side.close()


def prepared(
    sides: list[Side],
    peer: Peer,
    tmp_path: Path,
    spec: ConvSpec = SPEC,
    *,
    threads: int = 1,
    limits: Limits = PATIENT,
) -> Side:
    reference = tmp_path / "reference.npy"
    np.save(reference, random_operands(spec, 1).reference(spec))
    side = Side(peer, threads, tmp_path, limits)
    sides.append(side)
    side.prepare(Job(spec, 1, reference), LOOSE)
    return side


def statuses(side: Side) -> dict[str, str]:
    return {entry.configuration.name: entry.status for entry in side.entries}


def test_a_right_result_has_an_error_and_a_time(sides: list[Side], tmp_path: Path) -> None:
    side = prepared(sides, Puppet("puppet", "right"), tmp_path)
    (entry,) = side.entries
    assert (entry.status, entry.error, side.refusal) == ("ok", 0.0, None)
    assert entry.us is None  # before the first turn


def test_results_in_another_layout_are_compared_in_the_specs(sides: list[Side], tmp_path: Path) -> None:
    side = prepared(sides, Puppet("puppet", "right"), tmp_path, LAST)
    assert statuses(side) == {"right": "ok", "right + conversion": "ok"}
    assert [entry.configuration.layout for entry in side.entries] == ["NCHW", "NHWC"]
    assert [entry.error for entry in side.entries] == [0.0, 0.0]


@pytest.mark.parametrize(
    ("method", "status", "said"),
    [
        ("wrong", "wrong", "its error is 1.0e-02, allowed 1e-03"),
        ("not finite", "wrong", "its result is not finite"),
        ("misshapen", "error", "its result has shape (2, 5, 7, 4); the spec's is (2, 5, 7, 5)"),
        ("raises", "error", "ValueError: the reason"),
        ("unsupported", "unsupported", "not this one"),
        ("crashes", "crash", "SIGABRT"),
    ],
)
def test_a_configuration_that_fails_leaves_the_others(
    method: str, status: str, said: str, sides: list[Side], tmp_path: Path
) -> None:
    side = prepared(sides, Puppet("puppet", "right", method, "slow"), tmp_path)
    assert statuses(side) == {"right": "ok", method: status, "slow": "ok"}
    assert said in side.entries[1].message
    for entry in side.playing:  # both are there, though the process may have ended in between
        side.turn(entry, 1e-3, SPEC)
    assert [len(entry.turns_us) for entry in side.entries] == [1, 0, 1]


def test_one_that_hangs_is_ended(sides: list[Side], tmp_path: Path) -> None:
    side = prepared(sides, Puppet("puppet", "hangs", "right"), tmp_path, limits=HASTY)
    assert statuses(side) == {"hangs": "timeout", "right": "ok"}
    assert "no answer in" in side.entries[0].message


@pytest.mark.parametrize("shape", [(1,), (1, 300, 257, 2), (70001, 3), (3, 1, 70001), (2, 66000)])
def test_the_error_is_that_of_the_whole_result(shape: tuple[int, ...], tmp_path: Path) -> None:
    """Large ones are compared in parts; both are checked with one difference, in any place and order of the array."""
    generator = np.random.default_rng(5)
    expected = generator.standard_normal(shape)
    np.save(tmp_path / "reference.npy", expected)
    compared = Expected(tmp_path / "reference.npy")
    for place in (0, expected.size - 1, int(generator.integers(expected.size))):
        y = expected.astype(np.float32)
        y.flat[place] += 7.0
        error = float(np.abs(y - expected).max() / np.abs(expected).max())
        assert compared.error(y) == compared.error(np.asfortranarray(y)) == error
        y.flat[place] = np.nan
        assert compared.error(y) is None
    with pytest.raises(ValueError, match="its result has shape"):
        compared.error(np.zeros((*shape, 1)))


def test_a_peer_without_the_operator_is_refused(sides: list[Side], tmp_path: Path) -> None:
    side = prepared(sides, Puppet("puppet", "no operator"), tmp_path)
    assert side.refusal == ("unsupported", "it has no such operator")
    assert side.entries == side.playing == []


def test_one_that_does_not_start_is_not_tried_again(sides: list[Side], tmp_path: Path) -> None:
    side = prepared(sides, NeverStarts("broken", "right"), tmp_path)
    assert side.refusal is not None
    assert side.refusal[0] == "error"
    assert "its library is broken" in side.refusal[1]
    (tmp_path / "reference.npy").unlink()  # it would be missing to another try
    side.prepare(Job(SPEC, 1, tmp_path / "reference.npy"), LOOSE)
    assert side.refusal[0] == "error"


def test_sides_prepare_at_once_whatever_happens_to_one(tmp_path: Path) -> None:
    np.save(tmp_path / "reference.npy", random_operands(SPEC, 1).reference(SPEC))
    peers = [
        Puppet("one", "meets", "right"),
        Puppet("two", "crashes", "meets"),
        NeverStarts("broken", "right"),
        Puppet("missing", "no operator"),
    ]
    with ExitStack() as closing:
        sides = [Side(peer, 1, tmp_path) for peer in peers]
        for side in sides:
            closing.callback(side.close)
        at_once([side.preparing(Job(SPEC, 1, tmp_path / "reference.npy"), LOOSE) for side in sides])
        found = [statuses(side) for side in sides]
        assert found == [{"meets": "ok", "right": "ok"}, {"crashes": "crash", "meets": "ok"}, {}, {}]
        assert [side.refusal and side.refusal[0] for side in sides] == [None, None, "error", "unsupported"]


def test_the_haswell_setting_is_gone_and_threads_are_the_targets(
    sides: list[Side], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENBLAS_CORETYPE", "Haswell")
    side = prepared(sides, Environment("puppet", "right"), tmp_path, threads=3)
    assert (side.refusal, statuses(side)) == (None, {"right": "ok"})


def test_peers_are_known_without_their_libraries() -> None:
    script = "import sys, convtune.peers.process, convtune.peers as p; p.known()"
    libraries = "{'numpy', 'tvm', 'torch', 'onnx', 'onnxruntime', 'openvino'}"
    command = [sys.executable, "-c", f"{script}; print(*({libraries} & set(sys.modules)))"]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "\n"


def test_every_side_takes_its_turns(sides: list[Side], tmp_path: Path) -> None:
    ours = prepared(sides, Puppet("ours", "right"), tmp_path)
    other = prepared(sides, Puppet("other", "right", "slow"), tmp_path)
    play(ours, [other], SPEC, 6, 1e-3)
    assert [len(entry.turns_us) for entry in ours.entries] == [6]
    fast, slow = other.entries
    assert len(fast.turns_us) == 6
    assert (slow.dropped, len(slow.turns_us)) == (True, 3)  # forty times as slow
    assert slow.us is not None
    assert all(us >= 2e4 for us in slow.turns_us)
    assert all(us >= 5e2 for us in fast.turns_us)


def test_one_that_dies_in_its_turn_leaves_the_rest_playing(sides: list[Side], tmp_path: Path) -> None:
    ours = prepared(sides, Puppet("ours", "right"), tmp_path)
    other = prepared(sides, Puppet("other", "right"), tmp_path)
    dying = prepared(sides, Puppet("dying", "dies late", "right"), tmp_path)
    play(ours, [dying, other], SPEC, 8, 2e-3)
    assert [len(side.entries[0].turns_us) for side in (ours, other)] == [8, 8]
    assert statuses(dying) == {"dies late": "crash", "right": "crash"}
    assert dying.entries[1].message.startswith(f"a turn of dies late ended its process: {dying.entries[0].message}")
    assert [entry.us for entry in dying.entries] == [None, None]


def test_the_rounds_end_where_ours_dies(sides: list[Side], tmp_path: Path) -> None:
    ours = prepared(sides, Puppet("ours", "dies late"), tmp_path)
    other = prepared(sides, Puppet("other", "right"), tmp_path)
    play(ours, [other], SPEC, 30, 2e-3)
    assert statuses(ours) == {"dies late": "crash"}
    assert len(other.entries[0].turns_us) == len(ours.entries[0].turns_us) < 30


def entry(layout: str, *turns_us: float) -> Entry:
    return Entry(Configuration("method", layout, "NCHW"), turns_us=list(turns_us))


def test_only_what_cannot_be_best_is_dropped() -> None:
    best, near, hopeless = entry("NCHW", 9, 10, 9), entry("NCHW", 14.9, 20, 30), entry("NCHW", 15.1, 16, 17)
    converted, worse = entry("NHWC", 40, 41, 42), entry("NHWC", 70, 70, 70)
    drop_hopeless([best, near, hopeless, converted, worse], "NHWC")
    dropped = [each.dropped for each in (best, near, hopeless, converted, worse)]
    assert dropped == [False, False, True, False, True]  # the best in the spec's layout stays


def test_a_slow_one_in_another_layout_is_dropped_for_one_in_the_specs() -> None:
    given, other = entry("NHWC", 10, 10, 10), entry("NCHW", 20, 20, 20)
    drop_hopeless([given, other], "NHWC")
    assert (given.dropped, other.dropped) == (False, True)
