"""Layers of logs: what convtune ships, and the user's own over it."""

from __future__ import annotations

from pathlib import Path

import pytest
from record_samples import OTHER_SPEC, SPEC, failure, make, target

from convtune.compiler import open_logs
from convtune.errors import LogError
from convtune.log import Log, LogStack, ShippedLog
from convtune.spec import ConvSpec


def ship(root: Path, target_name: str, variant: str, *lines: bytes) -> None:
    (root / target_name).mkdir(parents=True, exist_ok=True)
    (root / target_name / f"{variant}.jsonl").write_bytes(b"".join(lines))


def test_a_shipped_log_is_read_by_variant(tmp_path: Path) -> None:
    a, b, c = make(1.0), make(2.0, target=target("other", "f1")), make(3.0, spec=OTHER_SPEC)
    ship(tmp_path, "native", "conv", a.line())
    ship(tmp_path, "other", "conv", b.line())
    ship(tmp_path, "native", "depthwise", c.line(), b"bad\n")
    (tmp_path / "__init__.py").touch()
    shipped = ShippedLog(tmp_path)
    assert shipped.records(SPEC) == [a, b] and shipped.records(SPEC, "f1") == [b] and shipped.problems == []
    assert shipped.records("grouped,ic=2,oc=2,in=1,k=1,g=2") == []
    assert shipped.records() == [a, b, c] and shipped.records(fingerprint="f0") == [a, c]
    assert [str(p) for p in shipped.problems] == [
        f"{tmp_path / 'native' / 'depthwise.jsonl'} line 2: not JSON: Expecting value: line 1 column 1 (char 0)"
    ]


def test_what_convtune_ships_has_no_bad_line_and_is_where_it_belongs() -> None:
    shipped = ShippedLog()
    records = shipped.records()
    assert shipped.problems == []
    for record in records:
        assert record in shipped.records(record.spec, record.fingerprint)
        assert record.status == "ok" and record.error is not None


def test_the_users_own_winner_comes_before_a_faster_shipped_one(tmp_path: Path) -> None:
    ship(tmp_path / "shipped", "native", "conv", make(1.0, width=8).line())
    path = tmp_path / "log.jsonl"
    user, shipped = Log(path), ShippedLog(tmp_path / "shipped")
    stack = LogStack([user, shipped])
    assert stack.winner(SPEC, "f0", max_error=2e-5) == (make(1.0, width=8), shipped)
    user.append([make(1.5, error=1e-3), failure()])
    assert stack.winner(SPEC, "f0", max_error=2e-5) == (make(1.0, width=8), shipped)
    user.append([make(2.0)])
    assert stack.winner(ConvSpec.parse(SPEC), "f0", max_error=2e-5) == (make(2.0), user)
    assert stack.winner(SPEC, "f0", max_error=1e-9) is None
    assert stack.winner(SPEC, "elsewhere", max_error=None) is None
    assert stack.winner(SPEC, "f0", max_error=None, origin="emulated") is None
    assert stack.records(SPEC) == [make(1.5, error=1e-3), failure(), make(2.0), make(1.0, width=8)]
    with path.open("ab") as file:
        file.write(b"bad\n")
    stack.records()
    assert [p.source for p in stack.problems] == [str(path)]


def test_a_named_log_takes_the_place_of_the_users_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And is over the shipped one as that is: what it lacks is no slower than without it."""
    own, named = tmp_path / "own.jsonl", tmp_path / "named.jsonl"
    monkeypatch.setenv("CONVTUNE_LOG", str(own))
    Log(named).append([make(1.0)])
    assert [layer.name for layer in open_logs(None).layers] == [str(own), "shipped log"]
    assert [layer.name for layer in open_logs(named).layers] == [str(named), "shipped log"]
    with pytest.raises(LogError, match="does not exist"):
        open_logs(own)
