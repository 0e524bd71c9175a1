"""What a report says of logs: winners, defaults, failures, time spent, and nothing mixed."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from record_samples import OTHER_SPEC, SPEC, failure, final, gpu, make, target, utc

from convtune import LogError
from convtune.record import Record
from convtune.report import peers
from convtune.report.content import candidates, content
from convtune.report.digest import digest
from convtune.report.roof import Roof, roof_of
from convtune.report.versus import versus
from convtune.space import Candidate
from convtune.spec import ConvSpec
from convtune.workloads import parse


def test_targets_and_origins_are_apart() -> None:
    records = [
        make(5.0),
        make(1.0, target=target("znver5", "f1")),
        make(0.5, target=gpu(), origin="estimated"),
        make(0.7, target=gpu()),
        make(9.0, spec=OTHER_SPEC),
    ]
    sections = digest(records)
    assert [(s.target["fingerprint"], s.origin, len(s.layers)) for s in sections] == [
        ("f0", "measured", 2),
        ("f1", "measured", 1),
        ("g0", "estimated", 1),
        ("g0", "measured", 1),
    ]
    assert [s.layers[0].best_rank for s in sections] == [5.0, 1.0, 0.5, 0.7]


@pytest.mark.parametrize("network", ["mobilenet_v1", "mobilenet_v2"])
def test_layers_are_called_as_in_the_network_that_was_tuned(network: str) -> None:
    """dw32_112_k3s1 is in several; no record says for which of them it was tuned."""
    shared = parse(["mobilenet_v2/dw32_112_k3s1"], "channels_first")
    tuned = parse([network], "channels_first")
    records = [make(5.0, spec=str(workload.spec)) for workload in [*shared, *tuned]]
    (section,) = digest(records)
    layer = section.layers[0]
    assert layer.name == layer.names[0] == f"{network}/dw32_112_k3s1"
    assert {"mobilenet_v1/dw32_112_k3s1", "mobilenet_v2/dw32_112_k3s1"} <= {*layer.names}
    (group,) = versus("a", "b", records, records, "standard").groups
    assert [pair.name for pair in group.pairs] == [layer.name for layer in section.layers]


def test_default_and_winner_come_from_the_newest_finals() -> None:
    records = [
        make(20.0, width=1, utc=utc(1)),
        make(10.0, width=2, utc=utc(2)),
        make(12.0, width=3, utc=utc(3)),
        final(1.0, 4, width=2),
        final(24.0, 5, width=1),
        final(12.0, 5, width=2),
        final(8.0, 5, width=3),
    ]
    layer = digest(records)[0].layers[0]
    assert (layer.default_rank, layer.best_rank, layer.speedup) == (24.0, 8.0, 3.0)
    assert [r.time_us for r in layer.finals] == [24.0, 12.0, 8.0]
    assert len(layer.trials) == 3


def test_a_default_that_the_log_does_not_tell_is_not_made_up() -> None:
    pruned = [make(10.0, width=2), make(12.0, width=3), final(9.0, 5, width=3), final(11.0, 5, width=2)]
    assert digest(pruned)[0].layers[0].default_rank == 9.0  # it leads the finalists, though it was not the fastest
    failed = [failure(width=1), make(10.0, width=2), final(9.0, 5, width=2)]
    assert digest(failed)[0].layers[0].default_rank is None
    assert digest([final(9.0, 5, width=2)])[0].layers[0].default_rank is None
    assert digest([failure(width=1), make(10.0, width=2)])[0].layers[0].default_rank is None


def test_records_that_say_which_is_the_default_are_believed() -> None:
    told = {width: {"width": width, "default": width == 3} for width in (1, 2, 3)}
    searched = [make(20.0 - width, utc=utc(width), **told[width]) for width in (1, 2, 3)]
    (layer,) = digest(searched)[0].layers
    assert layer.default_rank == 17.0, "though it was not tried first"
    (layer,) = digest([*searched, final(9.0, 5, **told[1]), final(14.0, 5, **told[3])])[0].layers
    assert (layer.default_rank, layer.best_rank) == (14.0, 9.0), "of the same turns, though it does not lead them"
    refuted = [*searched, failure("wrong", utc=utc(9), **told[3]), final(9.0, 10, **told[1])]
    assert digest(refuted)[0].layers[0].default_rank is None


def test_of_two_defaults_the_newer_versions_counts() -> None:
    old = [make(30.0, width=1), make(25.0, width=2), final(30.0, 5, width=1), final(25.0, 5, width=2)]
    new = [
        make(20.0, width=3, default=True),
        final(21.0, 9, width=3, default=True),
        final(24.0, 9, width=2, default=False),
    ]
    assert digest(old)[0].layers[0].default_rank == 30.0
    assert digest([*old, *new])[0].layers[0].default_rank == 21.0


def test_a_result_that_is_not_accurate_enough_does_not_win() -> None:
    records = [make(10.0, width=1), make(1.0, width=2, error=5e-4)]
    assert digest(records)[0].layers[0].best_rank == 10.0
    assert digest(records, accuracy="loose")[0].layers[0].best_rank == 1.0


def test_failures_are_counted_by_kind_and_their_messages_by_likeness() -> None:
    records = [
        failure("crash", width=1, message="worker 4711 died"),
        failure("crash", width=2, message="worker 12 died"),
        failure("timeout", width=3, message=""),
        make(3.0, width=4),
    ]
    layer = digest(records)[0].layers[0]
    assert dict(layer.failures) == {"crash": 2, "timeout": 1}
    assert layer.messages == [("crash", "worker 4711 died", 2), ("timeout", "", 1)]
    assert layer.best_rank == 3.0


def test_pauses_between_sessions_are_no_time_spent() -> None:
    day = "2026-01-05T03:00:00.000000Z"
    records = [make(1e6, width=1, utc=utc(0)), make(1e6, width=2, utc=utc(7)), make(1e6, width=3, utc=day)]
    layer = digest(records)[0].layers[0]
    assert layer.clock_s == pytest.approx([1.125, 8.125, 9.25])  # a build of 0.125 s, and a run of 1 s


def test_the_share_is_of_the_roof_that_binds() -> None:
    spec = ConvSpec.parse(SPEC)
    compute, memory = Roof(1.0, 1e6, ""), Roof(1e6, 1.0, "")
    record = make(1e6)
    shares = [digest([record], roofs={"f0": roof})[0].layers[0].share for roof in (compute, memory)]
    assert shares == pytest.approx([2 * spec.macs / 1e9, spec.bytes / 1e9])


def test_a_gpus_roof_is_published_where_its_facts_tell() -> None:
    facts = gpu(fp32_lanes=64, fp16_tensor_lanes=1024)
    roof = roof_of(facts)
    assert roof is not None
    assert roof.gflops == pytest.approx(2e-3 * 108 * 64 * 1410)
    assert roof.memory_gbs == 1555.0
    spec = ConvSpec.parse(SPEC)
    half = roof.least_us(spec.replace(dtype="float16", layout="NHWC"))
    assert half == pytest.approx(max(roof.least_us(spec) / 16, spec.bytes / 2 / 1555e3))
    assert roof_of(gpu()) is None
    assert roof_of(target()) is None  # another machine


def unpacked(records: list[Record]) -> list[tuple[str, dict[str, int | str], float | None]]:
    """What a reader of the page gets of the candidates."""
    data = json.loads(json.dumps(candidates(digest(records)[0].layers[0])))
    found = []
    for space, _, time_us, _, _, _, *values in data["trials"]:
        knobs = data["spaces"][space]["knobs"].items()
        chosen = {name: known[at] for (name, known), at in zip(knobs, values) if at is not None}
        found.append((data["spaces"][space]["name"], chosen, time_us))
    return found


def test_candidates_survive_being_numbered() -> None:
    records = [
        make(3.14159, candidate=Candidate("a", {"tile": 16, "order": "outer"})),
        make(2.0, candidate=Candidate("a", {"tile": 4, "order": "inner"})),
        make(5.0, candidate=Candidate("b", {"rows": 7})),
        failure(candidate=Candidate("a", {"tile": 4, "order": "outer", "later": 1})),
    ]
    assert unpacked(records) == [
        ("a", {"tile": 16, "order": "outer"}, 3.142),
        ("a", {"tile": 4, "order": "inner"}, 2.0),
        ("b", {"rows": 7}, 5.0),
        ("a", {"tile": 4, "order": "outer", "later": 1}, None),
    ]
    tile = candidates(digest(records)[0].layers[0])["spaces"][0]["knobs"]["tile"]
    assert tile == [4, 16]  # in the order of an axis


def test_content_is_json_whatever_the_log_lacks() -> None:
    for records in ([], [failure()], [make()], [final(3.0, 1)]):
        data = content(digest(records), ["a.jsonl"], [])
        assert json.loads(json.dumps(data, allow_nan=False)) == data


BENCH = {
    "schema": "convtune-bench",
    "version": 1,
    "machine": {"fingerprint": "f0"},
    "runs": [{"peak_gflops": {"before": 90.0, "after": 100.0}, "bandwidth_gbs": {"read": 10.0, "triad": 8.0}}],
    "layers": [
        {
            "spec": SPEC,
            "ours": {"us": 4.0},
            "best": "torch",
            "verdict": "win",
            "ratio": {"median": 1.5, "lower": 1.4, "upper": 1.6},
            "peers": {"torch": {"status": "ok", "us": 6.0}, "openvino": {"status": "wrong", "us": 1.0}},
        },
        {"spec": OTHER_SPEC, "ours": None, "best": None, "verdict": None, "ratio": None, "peers": {}},
    ],
}


def test_the_libraries_times_stand_beside_measured_ones_of_the_machine_only(tmp_path: Path) -> None:
    path = tmp_path / "bench.json"
    path.write_text(json.dumps(BENCH), encoding="utf-8")
    bench = peers.read(path)
    assert bench.roof == Roof(100.0, 10.0, "measured by convtune bench in its last run")
    records = [make(5.0), make(1.0, origin="estimated"), make(2.0, target=target("x", "f9")), make(spec=OTHER_SPEC)]
    sections = digest(records, benches=[bench])
    assert [list(section.peers) for section in sections] == [["torch"], [], []]
    found = sections[0].layers[0].peers
    assert found is not None
    assert (dict(found.peers_us), found.ratio, found.verdict) == ({"torch": 6.0}, (1.5, 1.4, 1.6), "win")
    nothing = sections[0].layers[1].peers
    assert nothing is not None
    assert (nothing.ours_us, nothing.ratio, nothing.verdict) == (None, None, "")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[1", "is not JSON"),
        ("[]", "is no file of `convtune bench`"),
        (json.dumps({**BENCH, "version": 2}), "version=2"),
        (json.dumps({**BENCH, "layers": [{}]}), "damaged"),
    ],
)
def test_what_is_no_bench_is_refused(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "bench.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(LogError, match=said):
        peers.read(path)


def test_the_geometric_mean_counts_each_layer_once() -> None:
    records = [
        make(8.0, width=1),
        make(2.0, width=2),
        make(9.0, spec=OTHER_SPEC, width=1),
        make(1.0, spec=OTHER_SPEC, width=2),
    ]
    section = digest(records)[0]
    assert section.speedup == pytest.approx(math.sqrt(4.0 * 9.0))
