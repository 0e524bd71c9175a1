"""Records: every field is checked, lines are read as data only, and the winner is the one the rule names."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from record_samples import OTHER_SPEC, SPEC, failure, final, gpu, make, target, utc

from convtune.errors import LogError
from convtune.record import (
    LONGEST_LINE_BYTES,
    ORIGINS,
    STATUSES,
    NewerSchemaError,
    Record,
    trace,
    traced,
    utc_now,
    winner,
)
from convtune.spec import ConvSpec
from convtune.targets import CpuTarget


def data(**changes: Any) -> dict[str, Any]:
    return {**json.loads(make().line()), **changes}


def parse(value: Any) -> Record:
    return Record.parse(json.dumps(value).encode())


def test_the_line_is_this_json() -> None:
    line = make(times_us=(3.0, 1.0, 2.5), message="a\nb").line()
    assert line.endswith(b"}\n") and line.count(b"\n") == 1
    assert json.loads(line) == {
        "schema": 1,
        "spec": SPEC,
        "target": target(),
        "candidate": {"space": "dense_direct", "knobs": {"width": 4, "order": "outer"}},
        "origin": "measured",
        "status": "ok",
        "times_us": [3.0, 1.0, 2.5],
        "message": "a\nb",
        "error": 1e-7,
        "build_s": 0.125,
        "round": "search",
        "batch": "",
        "versions": {"convtune": "0.1.0", "tvm": "0.27.0"},
        "seed": 7,
        "utc": "2026-01-02T03:00:00.000000Z",
    }


positive = st.floats(min_value=1e-300, allow_nan=False, allow_infinity=False)


@given(
    times=st.lists(positive, min_size=1, max_size=4),
    status=st.sampled_from(STATUSES),
    origin=st.sampled_from(ORIGINS),
    message=st.text() | st.just("\udc80 from a broken stderr"),
    error=st.none() | st.just(0.0) | positive,
    knobs=st.dictionaries(st.text(), st.integers() | st.text(), max_size=3),
    seed=st.integers(),
    default=st.none() | st.booleans(),
)
def test_a_record_is_read_back_equal(times: list[float], knobs: dict[str, Any], **fields: Any) -> None:
    from convtune.space import Candidate

    if fields["origin"] == "emulated":
        fields |= {"cost": times[0] if fields["status"] == "ok" else None, "counts": {"load": 3, "l1_bytes": 2**40}}
    else:
        fields["times_us"] = tuple(times)
    record = make(None, candidate=Candidate("a", knobs), **fields)
    again = Record.parse(record.line())
    assert again == record and again.candidate.key == record.candidate.key


def test_a_targets_facts_are_accepted() -> None:
    native = CpuTarget(
        name="t", family="x86", model="m", mcpu="znver5", triple="x86_64-linux-gnu", features=(), machine="x86_64",
        required_features=(), vector_bytes=64, vector_registers=32, threads=2, l1d_bytes=1, l2_bytes=1, l3_bytes=1,
        is_host=False,
    )  # fmt: skip
    assert Record.parse(make(target=native.facts()).line()).fingerprint == native.fingerprint


RESOURCES = {"registers": 64, "spill_stores_bytes": 0, "spill_loads_bytes": 0, "stack_bytes": 8, "shared_bytes": 4096}


def test_a_gpu_has_other_facts_and_its_kernels_have_resources() -> None:
    record = make(
        target=gpu(), resources={"main_kernel": RESOURCES, "main_kernel_1": {**RESOURCES, "constant_bytes": 4}}
    )
    again = Record.parse(record.line())
    assert again == record and again.resources is not None
    assert again.resources["main_kernel_1"]["constant_bytes"] == 4
    assert "resources" not in json.loads(make(target=gpu()).line())


def test_versions_and_time_are_filled_in() -> None:
    made = Record(spec=SPEC, target=target(), candidate=make().candidate, origin="measured", status="crash", seed=0)
    assert made.versions["convtune"] == "0.1.0" and made.versions["tvm"].startswith("0.")
    assert utc(0) < made.utc <= utc_now()


@pytest.mark.parametrize(("times", "median"), [((5.0,), 5.0), ((9.0, 1.0, 2.0), 2.0), ((1.0, 2.0, 4.0, 100.0), 3.0)])
def test_time_is_the_median(times: tuple[float, ...], median: float) -> None:
    assert make(times_us=times).time_us == median


def test_no_times_no_median() -> None:
    assert math.isnan(failure().time_us)


def test_a_trace_is_kept_as_json_and_tells_candidates_apart() -> None:
    steps = [[["SplitFactor", {"decision": [1, 2.5, None]}]], ["x", True]]
    record = make(candidate=traced(steps))
    assert json.loads(record.line())["candidate"] == {"space": "metaschedule", "trace": steps}
    again = Record.parse(record.line())
    assert trace(again.candidate) == steps and again == record
    assert traced(steps).key == record.candidate.key != traced(steps[:1]).key


@pytest.mark.parametrize(
    "extra",
    [{"power_w": 3}, {"target": {**target(), "sve_bytes": 16}}, {"versions": data()["versions"] | {"llvm": "22"}}],
)
def test_unknown_fields_of_this_schema_are_ignored(extra: dict[str, Any]) -> None:
    assert parse(data(**extra)).candidate == make().candidate


def test_a_spec_not_in_canonical_form_is_found_under_its_canonical_one() -> None:
    assert parse(data(spec="conv,k=3x3,oc=64,ic=64,in=56x56,p=1x1,n=1")).spec == str(ConvSpec.parse(SPEC)) == SPEC


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("schema", None, "schema=None is not a schema number; this convtune reads up to 1"),
        ("schema", "1", "schema='1' is not"),
        ("schema", True, "schema=True is not"),
        ("schema", 0, "schema=0 is not"),
        ("spec", 3, "spec=3 is not a string"),
        ("spec", "conv,ic=64", "spec: malformed spec at character 11: oc, in, k missing"),
        ("spec", "comv,ic=64,oc=64,in=56x56,k=3x3", "spec: unknown variant 'comv'; near it: conv"),
        ("target", [], r"target=\[\] is not an object"),
        ("target", {**target(), "fingerprint": ""}, "target.fingerprint='' must be a string, and not empty"),
        ("target", {**target(), "mcpu": None}, "target.mcpu=None must be a string"),
        ("target", {**target(), "threads": 0}, "target.threads=0 must be an integer of at least 1"),
        ("target", {**target(), "vector_bytes": 64.0}, "target.vector_bytes=64.0 must be an integer"),
        ("target", {**target(), "family": "cuda"}, "target.arch=None must be a string"),
        ("target", gpu(sms=0), "target.sms=0 must be an integer of at least 1"),
        ("resources", [], r"resources=\[\] is not an object"),
        ("resources", {"k": 64}, "resources of 'k'=64 is not an object"),
        ("resources", {"k": {"registers": 64}}, "resources of 'k': spill_stores_bytes=None must be an integer of at"),
        ("resources", {"k": {**RESOURCES, "stack_bytes": -8}}, "resources of 'k': stack_bytes=-8 must be an integer"),
        ("resources", {"k": {**RESOURCES, "constant_bytes": "4"}}, "resources of 'k': constant_bytes='4' must be"),
        ("candidate", "dense", "candidate='dense' has no space"),
        ("candidate", {"knobs": {}}, "has no space"),
        ("candidate", {"space": "", "knobs": {}}, "must be a candidate whose space has a name"),
        ("candidate", {"space": "dense"}, "has no knobs"),
        ("candidate", {"space": "dense", "knobs": {"a": 1.5}}, "knob 'a'=1.5 must be an integer or a string"),
        ("candidate", {"space": "dense", "knobs": {"a": True}}, "knob 'a'=True must be"),
        ("candidate", {"space": "metaschedule", "knobs": {}}, "has no trace"),
        ("origin", "guessed", "origin='guessed' is not allowed; one of measured, emulated, estimated is"),
        ("status", "fine", "status='fine' is not allowed; one of ok, wrong, build_error"),
        ("status", ["ok"], "status="),
        ("round", "middle", "round='middle' is not allowed; one of search, final is"),
        ("round", "final", "batch='' is no time such as 2026-01-31T23:59:59.000000Z"),
        ("batch", utc(1), "in round 'search'; only finalists have one"),
        ("times_us", 3.0, "times_us=3.0 is not a list of numbers"),
        ("times_us", [], "times_us is empty; a record whose status is ok has at least one time"),
        ("times_us", [1.0, 0], "must be a tuple of positive, finite numbers"),
        ("times_us", [-1.0], "must be a tuple of positive"),
        ("times_us", ["1"], "must be a tuple of positive"),
        ("times_us", [True], "must be a tuple of positive"),
        ("times_us", [10**400], "must be a tuple of positive"),
        ("error", -1e-9, "error=-1e-09 must be a finite number of at least 0, or None"),
        ("error", "0", "error='0' must be"),
        ("build_s", -1, "build_s=-1 must be"),
        ("message", None, "message=None is not a string"),
        ("seed", None, "seed=None is not an integer"),
        ("seed", 1.0, "seed=1.0 is not an integer"),
        ("versions", {"tvm": "1"}, "versions={'tvm': '1'} must name convtune and tvm"),
        ("versions", {"tvm": "1", "convtune": 2}, "versions.convtune=2 is not a string"),
        ("utc", 12, "utc=12 is no time such as"),
        ("utc", "2026-01-02T03:00:00Z", "is no time such as"),
        ("utc", "2026-13-02T03:00:00.000000Z", "is no time such as"),
    ],
)  # fmt: skip
def test_a_bad_field_is_named_with_its_value(field: str, value: Any, message: str) -> None:
    with pytest.raises(LogError, match=message) as caught:
        parse(data(**{field: value}))
    assert "\n" not in str(caught.value) and not isinstance(caught.value, NewerSchemaError)


@pytest.mark.parametrize(
    "field", ["spec", "target", "candidate", "origin", "status", "times_us", "versions", "seed", "utc"]
)
def test_a_missing_field_is_named(field: str) -> None:
    fields = data()
    del fields[field]
    with pytest.raises(LogError, match=f"missing {field}$"):
        parse(fields)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"", "not JSON"),
        (b"\x7fELF\x02\x01", "not JSON"),
        (b"\xff\xfe{}", "not UTF-8: byte 1 is 0xff"),
        (b"\0" * 64, "not JSON"),
        (b"[1, 2]", r"not a JSON object: \[1, 2\]"),
        (b'{"schema": 1, "times_us": [NaN]}', "not JSON: NaN is not a finite number"),
        (b'{"schema": 1, "times_us": [-Infinity]}', "not JSON: -Infinity is not a finite number"),
        (b'{"schema": 1, "later": 1e999}', "not JSON: 1e999 is not a finite number"),
        (b'{"schema": 1, "later": ' + b"9" * 5000 + b"}", "not JSON: Exceeds the limit"),
        (b"[" * 200_000, "nested too deeply"),
        (b'{"schema": 1, "a": "' + b"a" * LONGEST_LINE_BYTES + b'"}', f"longer than {LONGEST_LINE_BYTES} bytes"),
        (b"__import__('os').abort()", "not JSON"),
        (b"\x80\x04\x95cposix\nabort\n(tR.", "not UTF-8"),
    ],
    ids=range(13),
)  # fmt: skip
def test_a_line_that_is_no_json_object_is_refused(line: bytes, message: str) -> None:
    with pytest.raises(LogError, match=message):
        Record.parse(line)


def test_a_newer_schema_is_its_own_error_whatever_else_is_in_it() -> None:
    with pytest.raises(NewerSchemaError, match=r"^written by a newer convtune, schema 2; this one reads up to 1$"):
        Record.parse(b'{"schema": 2}')


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"error": math.nan}, "error=nan must be a finite number"),
        ({"error": math.inf}, "error=inf must be"),
        ({"times_us": (math.nan,)}, r"times_us=\(nan,\) must be"),
        ({"times_us": [1.0]}, "must be a tuple"),
        ({"spec": SPEC + ",s=1"}, "is not canonical; it must be"),
        ({"candidate": None}, "candidate=None must be a candidate"),
        ({"status": "wrong", "round": "final"}, "batch='' is no time"),
    ],
)
def test_what_could_not_be_read_again_is_not_made(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(LogError, match=message):
        make(**changes)


def test_what_json_cannot_hold_is_not_written() -> None:
    with pytest.raises(LogError, match=f"a record of {SPEC} cannot be written as JSON"):
        make(target={**target(), "later": {1, 2}}).line()
    with pytest.raises(LogError, match="cannot be written as JSON"):
        make(target={**target(), "later": math.nan}).line()
    with pytest.raises(LogError, match=f"at most {LONGEST_LINE_BYTES} are allowed"):
        make(message="a" * LONGEST_LINE_BYTES).line()


def test_reading_records_needs_no_tvm_and_no_numpy() -> None:
    code = (
        "import sys; from convtune.log import Log, LogStack, ShippedLog; import convtune.log_tools, convtune.paths\n"
        f"from convtune.record import Record; Record.parse({make().line()!r}).line()\n"
        "print(sorted({'tvm', 'numpy'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


# The rule of the winner


def test_the_fastest_of_the_search_wins_by_its_median() -> None:
    slow, fast = make(times_us=(1.0, 9.0, 9.0), width=1), make(times_us=(5.0, 5.0, 100.0), width=2)
    assert winner([slow, fast, failure(width=3)], max_error=None) is fast


def test_nothing_wins_where_nothing_is_ok() -> None:
    assert winner([], max_error=None) is None
    assert winner([failure(status) for status in STATUSES if status != "ok"], max_error=None) is None


def test_a_wrong_result_never_wins_however_fast() -> None:
    assert winner([make(0.1, status="wrong", error=0.5), ok := make(9.0)], max_error=None) is ok


def test_a_candidate_that_a_later_record_calls_wrong_does_not_win() -> None:
    right, fast = make(9.0, width=1), make(1.0, width=2, error=1e-7, utc=utc(1))
    wrong = failure("wrong", width=2, utc=utc(2))
    assert winner([fast, right, wrong], max_error=None) is right
    assert winner([wrong, fast, right], max_error=None) is right, "the order of the lines is not that of time"
    again = make(2.0, width=2, error=1e-7, utc=utc(3))
    assert winner([fast, right, wrong, again], max_error=None) is again


def test_what_is_wrong_for_a_lower_limit_still_wins_for_a_higher_one() -> None:
    ok = make(1.0, error=3e-6, utc=utc(1))
    assert winner([ok, failure("wrong", error=3e-6, utc=utc(2))], max_error=2e-5) is ok
    assert winner([ok, failure("wrong", error=3e-4, utc=utc(2))], max_error=2e-5) is None


@pytest.mark.parametrize(("limit", "expected"), [(None, 1.0), (1e-3, 2.0), (2e-5, 3.0), (1e-6, 4.0), (1e-8, None)])
def test_only_what_is_accurate_enough_wins(limit: float | None, expected: float | None) -> None:
    records = [make(1.0, error=None), make(2.0, error=1e-3), make(3.0, error=2e-5), make(4.0, error=1e-7)]
    found = winner(records, max_error=limit)
    assert (found and found.time_us) == expected


def test_origins_are_never_compared() -> None:
    records = [make(5.0), make(1.0, origin="estimated"), make(2.0, origin="emulated"), make(3.0, origin="emulated")]
    assert winner(records, max_error=None) is records[0]
    assert winner(records, max_error=None, origin="emulated") is records[2]


def test_finals_come_before_a_faster_search_and_the_newest_batch_before_a_faster_one() -> None:
    old = [final(2.0, 10, width=1), final(2.5, 10, width=2)]
    new = [final(4.0, 20, width=1), final(3.0, 20, width=2)]
    # neither the order in the log nor the times of writing matter: logs are merged, batches interleave
    for records in ([*old, *new, make(1.0)], [make(1.0), new[1], old[1], new[0], old[0]]):
        assert winner(records, max_error=None) is new[1]


def test_a_batch_with_nothing_usable_gives_way_to_the_one_before() -> None:
    records = [make(1.0), final(2.0, 10), final(1.5, 20, error=1e-3), failure(round="final", batch=utc(30))]
    assert winner(records, max_error=2e-5) is records[1]
    assert winner(records, max_error=None) is records[2]


def test_a_tie_goes_to_the_first() -> None:
    assert winner(records := [make(2.0, width=1), make(2.0, width=2)], max_error=None) is records[0]


def test_specs_and_targets_are_never_compared() -> None:
    for other in (make(1.0, spec=OTHER_SPEC), make(1.0, target=target(fingerprint="f1"))):
        with pytest.raises(AssertionError, match="do not compare"):
            winner([make(2.0), other], max_error=None)
