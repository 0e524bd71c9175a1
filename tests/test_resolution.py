"""The order in which a candidate is chosen, and that the reason is told."""

from __future__ import annotations

import dataclasses
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from convtune.schedules.dense_direct import dense_direct

from convtune import resolution, space, targets
from convtune.log import Log, LogStack, ShippedLog
from convtune.record import Record, traced
from convtune.search import Search
from convtune.space import Candidate
from convtune.spec import ConvSpec

NATIVE = targets.resolve("native")
SPEC = ConvSpec.parse("conv,ic=16,oc=32,in=28x28,k=3x3,s=3,layout=NHWC")  # by default of dense_direct on every target
LIMIT = 2e-5


def _candidates(spec: ConvSpec) -> list[Candidate]:
    return list(space.enumerate_candidates(space.get("dense_direct"), spec, NATIVE))


def _above_the_default(spec: ConvSpec) -> dict[Candidate, float]:
    """Estimates, in that of the default."""
    cycles = {candidate: dense_direct.estimate(spec, NATIVE, candidate.knobs) for candidate in _candidates(spec)}
    return {candidate: each / cycles[space.default_candidate(spec, NATIVE)] for candidate, each in cycles.items()}


def _record(
    spec: ConvSpec, candidate: Candidate, rank: float, target: targets.Target = NATIVE, origin: str = "measured"
) -> Record:
    emulated = origin == "emulated"
    return Record(
        spec=str(spec),
        target=target.facts(),
        candidate=candidate,
        origin=origin,
        status="ok",
        times_us=() if emulated else (rank,),
        cost=rank if emulated else None,
        error=1e-7,
        seed=0,
    )


def _choices(
    tmp_path: Path, records: list[Record], explicit: Candidate | None = None, target: targets.Target = NATIVE
) -> list[resolution.Choice]:
    log = Log(tmp_path / "log")
    log.append(records)
    return list(resolution.choices(SPEC, target, LogStack([log]), LIMIT, explicit))


def test_an_empty_log_gives_the_default(tmp_path: Path) -> None:
    (choice,) = _choices(tmp_path, [])
    assert (choice.kind, choice.candidate) == ("default", space.default_candidate(SPEC, NATIVE))
    said = f"no winner of this spec, or of one near it, in {tmp_path / 'log'}; `convtune tune` finds one"
    assert choice.reason == said


def test_a_named_candidate_is_the_only_choice(tmp_path: Path) -> None:
    wanted = _candidates(SPEC)[5]
    (choice,) = _choices(tmp_path, [_record(SPEC, _candidates(SPEC)[1], 10.0)], wanted)
    assert (choice.kind, choice.candidate) == ("explicit", wanted)


def test_the_log_of_this_machine_comes_first_then_its_family_then_the_default(tmp_path: Path) -> None:
    other = dataclasses.replace(NATIVE, model="Another Processor", threads=NATIVE.threads + 1)
    mine, slow, theirs = _candidates(SPEC)[3:6]
    records = [_record(SPEC, mine, 10.0), _record(SPEC, slow, 20.0), _record(SPEC, theirs, 1.0, other)]
    choices = _choices(tmp_path, records)
    assert [(c.kind, c.candidate) for c in choices[:2]] == [("log", mine), ("log", theirs)]
    assert "10 µs on this machine" in choices[0].reason and "Another Processor" in choices[1].reason
    assert choices[-1].kind == "default"


def test_a_machine_with_other_vectors_is_no_relative(tmp_path: Path) -> None:
    narrower = dataclasses.replace(NATIVE, model="Narrow", vector_bytes=NATIVE.vector_bytes // 2)
    choices = _choices(tmp_path, [_record(SPEC, _candidates(SPEC)[3], 10.0, narrower)])
    assert "log" not in [c.kind for c in choices]


def test_the_nearest_spec_lends_its_knobs(tmp_path: Path) -> None:
    near = SPEC.replace(in_channels=32)
    lent = _candidates(near)[4]
    choices = _choices(tmp_path, [_record(near, lent, 10.0)])
    assert [c.kind for c in choices] == ["transfer", "default"]
    assert str(near) in choices[0].reason
    assert space.contains(space.get("dense_direct"), SPEC, NATIVE, choices[0].candidate.knobs)


@pytest.mark.parametrize(("default_us", "kinds"), [(10.01, ["default"]), (20.0, ["transfer", "default"])])
def test_knobs_are_lent_only_where_they_gained_much(tmp_path: Path, default_us: float, kinds: list[str]) -> None:
    """By estimates some per cent above the default's, for both specs; a log corrects ten elevenths of that at most."""
    near = SPEC.replace(in_channels=32)
    default = space.default_candidate(near, NATIVE)
    above, above_here = _above_the_default(near), _above_the_default(SPEC)
    lent = min(
        (c for c in above if 1.03 < above[c] <= above_here.get(c, 0.0) <= 1.05 * above[c]), key=above.__getitem__
    )
    times = {lent: 10.0, default: default_us}
    final = {"round": "final", "batch": "2026-11-22T12:00:00.000000Z"}
    records = [dataclasses.replace(_record(near, candidate, us), **final) for candidate, us in times.items()]
    choices = _choices(tmp_path, records)
    assert [c.kind for c in choices] == kinds
    if kinds == ["default"]:
        assert choices[0].reason == "the default is the fastest by estimates that near specs in the log correct"


def test_knobs_that_the_space_no_longer_has_are_not_built(tmp_path: Path) -> None:
    gone = Candidate("dense_direct", {**_candidates(SPEC)[0].knobs, "ow_tile": 999})
    unknown = Candidate("no_such_space", {"a": 1})
    choices = _choices(tmp_path, [_record(SPEC, gone, 1.0), _record(SPEC, unknown, 0.5)])
    assert gone not in [c.candidate for c in choices] and unknown not in [c.candidate for c in choices]


def test_what_is_used_instead_of_a_winner_that_is_gone_says_so(tmp_path: Path) -> None:
    other = dataclasses.replace(NATIVE, model="Another Processor")
    near = SPEC.replace(in_channels=32)
    unknown = Candidate("no_such_space", {"a": 1})
    lent, theirs = _candidates(near)[4], _candidates(SPEC)[3]
    alone = _choices(tmp_path / "alone", [_record(SPEC, unknown, 0.5)])
    choices = [
        *_choices(tmp_path / "relative", [_record(SPEC, unknown, 0.5), _record(SPEC, theirs, 1.0, other)])[:1],
        *_choices(tmp_path / "near", [_record(SPEC, unknown, 0.5), _record(near, lent, 1.0)]),
    ]
    note = f"the log's winner no_such_space(a=1), 0.5 µs on {NATIVE.model}, is not in this version's spaces"
    assert [(c.kind, c.reason) for c in alone] == [("default", note)]
    assert [c.kind for c in choices] == ["log", "transfer", "default"]
    assert choices[0].reason == f"1 µs on Another Processor, of this family; {note}"
    assert all(c.reason.endswith(note) for c in choices)


def test_a_relative_that_is_gone_does_not_touch_the_reason_of_what_comes_before_it(tmp_path: Path) -> None:
    other = dataclasses.replace(NATIVE, model="Another Processor")
    unknown = Candidate("no_such_space", {"a": 1})
    choices = _choices(tmp_path, [_record(SPEC, _candidates(SPEC)[3], 1.0), _record(SPEC, unknown, 0.5, other)])
    assert choices[0].kind == "log" and "not in this version" not in choices[0].reason
    assert "0.5 µs on Another Processor, is not in this version's spaces" in choices[-1].reason


def test_the_same_spec_on_an_unlike_machine_is_not_called_another_spec(tmp_path: Path) -> None:
    narrower = dataclasses.replace(NATIVE, model="Narrow", vector_bytes=NATIVE.vector_bytes // 2)
    choice = _choices(tmp_path, [_record(SPEC, _candidates(SPEC)[3], 10.0, narrower)])[0]
    assert (choice.kind, choice.reason) == ("transfer", "the knobs that won on this spec on Narrow")


def test_what_is_not_accurate_enough_is_not_chosen(tmp_path: Path) -> None:
    record = dataclasses.replace(_record(SPEC, _candidates(SPEC)[3], 1.0), error=1e-4)
    assert "log" not in [c.kind for c in _choices(tmp_path, [record])]


# ---- GPUs --------------------------------------------------------------------------------------------

A100 = targets.resolve("sm_80")


def _gpu_candidates(count: int) -> list[Candidate]:
    """Different candidates, whatever the spaces for GPUs are; MetaSchedule's are always on offer."""
    return [traced([["step", number]]) for number in range(count)]


def test_a_measured_winner_of_a_gpu_comes_before_an_estimated_one_however_slow(tmp_path: Path) -> None:
    measured, estimated = _gpu_candidates(2)
    records = [_record(SPEC, estimated, 1.0, A100, "estimated"), _record(SPEC, measured, 99.0, A100)]
    choices = _choices(tmp_path, records, target=A100)
    assert [c.candidate for c in choices[:2]] == [measured, estimated]
    # it is not here
    assert choices[0].reason.startswith(f"99 µs on {A100.model}, in ")
    assert choices[1].reason.startswith(f"estimated 1 µs for {A100.model}, in ")
    here = dataclasses.replace(A100, is_host=True)
    local = _choices(tmp_path / "here", records, target=here)
    assert local[0].reason.startswith("99 µs on this machine, in ")
    assert local[1].reason.startswith("estimated 1 µs for this machine, in ")


def test_an_emulated_cost_of_a_gpu_chooses_nothing(tmp_path: Path) -> None:
    choices = _choices(tmp_path, [_record(SPEC, _gpu_candidates(1)[0], 1.0, A100, "emulated")], target=A100)
    assert [c.kind for c in choices] == ["default"]


def test_estimated_times_choose_nothing_for_a_cpu(tmp_path: Path) -> None:
    choices = _choices(tmp_path, [_record(SPEC, _candidates(SPEC)[3], 1.0, origin="estimated")])
    assert [c.kind for c in choices] == ["default"]


def test_what_suits_an_older_gpu_suits_a_newer_one_the_nearest_first(tmp_path: Path) -> None:
    turing, other, hopper, cpu = _gpu_candidates(4)
    records = [
        _record(SPEC, turing, 1.0, targets.resolve("sm_75"), "estimated"),
        _record(SPEC, other, 9.0, targets.resolve("nvidia/nvidia-a30"), "estimated"),
        _record(SPEC, hopper, 1.0, targets.resolve("sm_90"), "estimated"),
        _record(SPEC, cpu, 1.0),
    ]
    choices = _choices(tmp_path, records, target=A100)
    assert [(c.kind, c.candidate) for c in choices[:-1]] == [("log", other), ("log", turing)]
    assert "NVIDIA A30" in choices[0].reason


def test_the_nearest_spec_lends_its_knobs_to_a_gpu(tmp_path: Path) -> None:
    near = SPEC.replace(in_channels=32)
    (owner, *_) = space.accepting(near, A100)
    lent = Candidate(owner.name, dict(owner.default(near, A100)))
    choices = _choices(tmp_path, [_record(near, lent, 10.0, A100, "estimated")], target=A100)
    assert [c.kind for c in choices] == ["transfer", "default"]
    assert f"won, as estimated, on {near}" in choices[0].reason


def test_no_space_looks_for_its_default_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    """It may look at every candidate, and a layer's tuning asks by itself, for what `compile` takes, and in the search.

    The spec is one that no other test has, since what was found is remembered.
    """
    spec, looked, default = SPEC.replace(in_channels=18), Counter[object](), space.Estimating.default

    def counted(self: space.Estimating[Any], *about: Any) -> space.Knobs:
        looked[(self, *about)] += 1
        return default(self, *about)

    monkeypatch.setattr(space.Estimating, "default", counted)
    found = space.default_candidate(spec, NATIVE, LIMIT)
    choices = list(resolution.choices(spec, NATIVE, LogStack([ShippedLog()]), LIMIT))
    search = Search(spec, NATIVE, space.accepting(spec, NATIVE, LIMIT), trials=4)
    assert found in search.ask(4) and found in [choice.candidate for choice in choices]
    assert set(looked.values()) == {1}
