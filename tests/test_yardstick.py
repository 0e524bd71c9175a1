"""Times of machines that are not equally fast, compared by what the default takes on each."""

from __future__ import annotations

import record_samples

from convtune.record import Record
from convtune.space import Candidate
from convtune.yardstick import Yardstick

DEFAULT, OTHER = Candidate("s", {"a": 1}), Candidate("s", {"a": 2})


def measured(candidate: Candidate, time_us: float, device: str | None) -> Record:
    return record_samples.make(time_us, candidate=candidate, device=device)


def test_times_are_those_of_the_first_machine() -> None:
    yardstick = Yardstick(DEFAULT)
    slow = measured(OTHER, 6.0, "b:1")
    yardstick.note(measured(DEFAULT, 4.0, "a:1"))
    assert yardstick.alike(slow) == slow, "nothing is known of that machine"
    yardstick.note(measured(DEFAULT, 8.0, "b:1"))
    assert yardstick.alike(slow).time_us == 3.0
    assert yardstick.alike(measured(DEFAULT, 8.0, "b:1")).time_us == 4.0
    assert yardstick.alike(measured(OTHER, 6.0, "a:1")).time_us == 6.0
    yardstick.note(measured(OTHER, 1.0, "a:1"))
    assert yardstick.alike(slow).time_us == 3.0, "no other candidate tells a machine's speed"


def test_a_record_keeps_its_machine() -> None:
    record = measured(OTHER, 6.0, "b:1")
    assert Record.parse(record.line()).device == "b:1"
    assert (
        Record.parse(measured(OTHER, 6.0, None).line()).device is None and b"device" not in record_samples.make().line()
    )


def test_without_machines_over_rpc_times_are_left_alone() -> None:
    yardstick = Yardstick(DEFAULT)
    for time_us in (4.0, 5.0):
        yardstick.note(measured(DEFAULT, time_us, None))
    record = measured(OTHER, 3.0, None)
    assert yardstick.alike(record) is record
    failure = record_samples.failure("wrong", candidate=OTHER, device="a:1")
    yardstick.note(failure)
    assert yardstick.alike(failure) is failure
