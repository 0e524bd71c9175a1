"""Records of emulated kernels: a cost and no time, fields that other origins may not have, and what is the default."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from record_samples import failure, make

from convtune.errors import LogError
from convtune.record import Record


def data(**changes: Any) -> dict[str, Any]:
    return {**json.loads(make().line()), **changes}


def parse(value: Any) -> Record:
    return Record.parse(json.dumps(value).encode())


COUNTS = {"vector_arithmetic": 4000, "load": 1200, "other": 0, "l1_bytes": 65536, "l2_bytes": 4096, "l3_bytes": 0}


def emulated(**changes: Any) -> dict[str, Any]:
    record = make(5200.5, origin="emulated", counts=COUNTS)
    return {**json.loads(record.line()), **changes}


def test_an_emulated_kernel_has_a_cost_and_no_time() -> None:
    fields = emulated()
    assert (fields["schema"], fields["times_us"], fields["cost"], fields["counts"]) == (1, [], 5200.5, COUNTS)
    record = parse(fields)
    assert record.rank == record.cost == 5200.5 and math.isnan(record.time_us)
    assert make(7.0).rank == 7.0 and make(7.0, origin="estimated").rank == 7.0
    assert math.isnan(failure(origin="emulated").rank)


def test_a_field_that_is_not_known_is_not_written() -> None:
    assert not {"cost", "counts", "default", "resources"} & data().keys(), "lines of older versions look like this"
    assert json.loads(make(default=False).line())["default"] is False and parse(data()).default is None


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (emulated(cost=None), "cost=None must be a positive, finite number, as the record is emulated and ok"),
        (emulated(cost=0), "cost=0 must be a positive"),
        (emulated(cost="5"), "cost='5' must be a positive"),
        (emulated(cost=10**400), "must be a positive"),
        (emulated(cost=True), "cost=True must be a positive"),
        (emulated(times_us=[3.0]), r"times_us=\(3.0,\) must be empty: an emulated kernel has a cost and no time"),
        (emulated(status="wrong"), "cost=5200.5 in a record of origin emulated with status wrong; only emulated ones"),
        (emulated(counts=[]), r"counts=\[\] must be an object, and only emulated records have one"),
        (emulated(counts={"load": -1}), "counts.load=-1 must be an integer of at least 0"),
        (emulated(counts={"load": 1.5}), "counts.load=1.5 must be an integer"),
        (emulated(counts={"load": True}), "counts.load=True must be an integer"),
        (
            data(cost=3.0),
            "cost=3.0 in a record of origin measured with status ok; only emulated ones that are ok have one",
        ),
        (data(origin="estimated", cost=3.0), "cost=3.0 in a record of origin estimated"),
        (data(counts=COUNTS), "only emulated records have one"),
        (data(default=1), "default=1 must be true or false, or None"),
        (data(default=1.0), "default=1.0 must be true"),
        (data(default="yes"), "default='yes' must be true"),
    ],
)
def test_no_origin_has_what_another_is_compared_by(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(LogError, match=message) as caught:
        parse(fields)
    assert "\n" not in str(caught.value)
