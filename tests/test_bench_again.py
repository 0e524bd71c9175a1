"""What a comparison says of peers that failed, when it tries them again, and what it refuses. Nothing is timed."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from bench_peers import Puppet
from cli_process import TINY, invoke

import convtune.peers
from convtune import probe
from convtune.comparison import Comparison
from convtune.comparison.comparison import Entrants
from convtune.comparison.layer import _peer, failed
from convtune.comparison.result_file import _difference
from convtune.comparison.side import Entry, Side
from convtune.peers import Configuration, Peer, known
from convtune.spec import ConvSpec

NAMES = ("torch", "onnxruntime", "openvino")


class Script:
    """What the peers do: each layer that is measured takes the next statuses, by peer."""

    def __init__(self, *runs: dict[str, str]) -> None:
        self.runs = list(runs)

    def measure(self, _: Comparison, workload: Any, entrants: Any) -> dict[str, Any]:
        peers = {
            name: {"status": status, "message": "", "us": 9.0 if status == "ok" else None, "converted_us": None}
            for name, status in self.runs.pop(0).items()
        }
        ours = {"us": 5.0, "turns_us": [5.0], "error": 0.0}
        return failed(workload, "") | {"ours": ours, "peers": peers, "identity": {"kernel": "the same"}}


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Script:
    played = Script()
    peers = {name: Puppet(name, "right") for name in ("one", "two")}
    monkeypatch.setattr(convtune.peers, "known", lambda: peers)
    monkeypatch.setattr(probe, "fma_peak_gflops", lambda _: 1.0)
    monkeypatch.setattr(probe, "bandwidth_gbs", lambda _: probe.Bandwidth(1.0, 1.0))
    monkeypatch.setattr(Comparison, "entrants", lambda *_: Entrants(ours=True, packages={}, refusals={}))  # type: ignore[arg-type]
    monkeypatch.setattr(Comparison, "identity", lambda *_: {"kernel": "the same"})
    monkeypatch.setattr(Comparison, "measure", lambda *arguments: played.measure(*arguments))
    return played


@pytest.mark.parametrize("status", ["error", "timeout", "crash", "out_of_memory"])
def test_a_failure_that_may_pass_is_tried_once_more(status: str, script: Script, tmp_path: Path) -> None:
    path = tmp_path / "bench.json"

    def runs(*options: str) -> str:
        return invoke("bench", TINY, "-o", path, *options).stderr

    script.runs = [{"one": status, "two": "ok"}, {"one": status, "two": "ok"}]
    assert "from the file" not in runs() + runs()
    assert runs().endswith("from the file; one failed twice, --again tries once more\n")
    script.runs = [{"one": "ok", "two": status}, {"one": "ok", "two": "ok"}]
    assert "from the file" not in runs("--again") + runs()  # the other one failed for the first time
    assert runs().endswith("from the file\n")
    assert script.runs == []


@pytest.mark.parametrize("status", ["ok", "wrong", "unsupported"])
def test_what_is_the_peers_own_is_not_tried_again(status: str, script: Script, tmp_path: Path) -> None:
    script.runs = [{"one": status, "two": "ok"}]
    path = tmp_path / "bench.json"
    invoke("bench", TINY, "-o", path)
    data = json.loads(path.read_text())
    for peer in data["layers"][0]["peers"].values():
        del peer["tried_again"]  # as files have it that were written before there was such a thing
    path.write_text(json.dumps(data))
    assert invoke("bench", TINY, "-o", path).stderr.endswith("from the file\n")


def test_a_peer_that_had_no_turn_is_not_ok(tmp_path: Path) -> None:
    """Both configurations are right, and our kernel died before either was timed."""
    spec = ConvSpec.parse(TINY)
    side = Side(Puppet("peer", "right"), 1, tmp_path)
    crashed = Entry(Configuration("crashed", "NCHW", "NCHW"), status="crash", message="SIGABRT")
    side.entries = [crashed, Entry(Configuration("right", "NHWC", "NHWC"))]
    found = _peer(side, spec)
    assert (found["status"], found["us"]) == ("not_timed", None)
    assert [entry["status"] for entry in found["configurations"]] == ["crash", "not_timed"]
    side.entries[1].turns_us.append(7.0)
    assert (_peer(side, spec)["status"], _peer(side, spec)["us"]) == ("ok", 7.0)


def test_the_difference_of_two_machines_is_told_in_facts() -> None:
    ours = {"model": "M", "threads": 1, "fingerprint": "a"}
    assert _difference({**ours, "threads": 2, "fingerprint": "b"}, ours) == "threads 2, here 1"
    assert _difference({**ours, "fingerprint": "b"}, ours) == "fingerprint 'b', here 'a'"


def test_a_library_comes_with_the_extra_that_pins_its_version(monkeypatch: pytest.MonkeyPatch) -> None:
    libraries = [peer for peer in known().values() if not peer.engine]
    text = (Path(__file__).parents[1] / "pyproject.toml").read_text()
    pinned = re.findall(r'"([\w-]+)==', text)
    assert {peer.name: peer.distributions[0] in pinned for peer in libraries} == dict.fromkeys(NAMES, True)
    monkeypatch.setattr(Peer, "versions", lambda _: {})
    for peer in libraries:
        monkeypatch.setattr(convtune.peers, "known", lambda peer=peer: {peer.name: peer})
        line = invoke("bench", TINY, "--against", peer.name).stderr
        assert line.endswith(f"peer {peer.name!r} is not installed; to get it: pip install 'convtune[peers]'\n")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("bench", TINY, "--turn", "nan"), "nan is not a finite number"),
        (("bench", TINY, "--turn", "inf"), "inf is not in the range"),
        (("bench", TINY, "--turn", "10001"), "10001.0 is not in the range 0<x<=10000"),
        (("bench", TINY, "-o", Path(__file__)), "it is not the JSON that `convtune bench` writes (Extra data: "),
        (("bench", TINY, "--against", ""), "unknown peer ''; known: "),
        (("bench", TINY, "--against", "one,,two"), "unknown peer ''; known: "),
        (("bench", "conv,ic=100000,oc=100000,in=9999x9999,k=3"), "has more than 2147483647 elements"),
        (("log", "export", "my.jsonl", "--winners", "--max-error", "nan"), "nan is not a finite number"),
        (("log", "export", "my.jsonl", "--winners", "--max-error", "inf"), "inf is not a finite number"),
    ],
)
@pytest.mark.usefixtures("script")
def test_options_that_cannot_be(arguments: tuple[str | Path, ...], said: str) -> None:
    result = invoke(*arguments)
    assert result.exit_code == 2, result.output
    (line,) = result.stderr.splitlines()
    assert said in line
