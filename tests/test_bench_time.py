"""The estimate of how long the rest of a comparison takes."""

from __future__ import annotations

from convtune.cli.bench_time import TimeLeft


def test_a_layer_takes_what_those_of_as_much_work_took() -> None:
    left = TimeLeft([10, 11, 12, 1000, 1100, 1200, 11, 1050])
    for flops, seconds in [(10, 9.0), (1000, 5.0), (11, 1.0), (1100, 6.0), (12, 2.0), (1200, 7.0)]:
        left.measured(flops, seconds)
    # of 9, 1 and 2 s, and of 5, 6 and 7 s: what is left are 11, once more, and 1050
    assert left.seconds == 2.0 + 6.0


def test_two_layers_are_too_few_to_tell() -> None:
    left = TimeLeft([5, 6, 7, 8])
    for flops in (5, 6):
        left.measured(flops, 1.0)
        assert left.seconds is None
    left.measured(7, 3.0)
    assert left.seconds == 1.0


def test_nothing_is_left_of_nothing() -> None:
    left = TimeLeft([5, 5, 5])
    for _ in range(4):  # one more than was expected
        left.measured(5, 1.0)
    assert left.seconds is None


def test_what_the_file_has_waits_as_far_as_such_layers_were_measured_again() -> None:
    left = TimeLeft([7] * 4, in_file=[7] * 8)
    for _ in range(3):
        left.measured(7, 2.0)
    assert left.seconds == (1 + 8) * 2.0, "of the file's layers none was looked at: any may have to be measured"
    for _ in range(2):
        left.kept(7)
    assert left.seconds == 2.0, "all that were looked at are as they would be now"
    left.measured(7, 2.0, in_file=True)
    left.kept(7)
    assert left.seconds == (1 + 4 / 4) * 2.0, "one in four was measured again, and four are left"
    left.measured(7, 2.0)
    for _ in range(4):
        left.kept(7)
    assert left.seconds is None
