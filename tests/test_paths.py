"""Where the user's files are: what the environment names, and what it cannot name."""

from __future__ import annotations

from pathlib import Path

import pytest

from convtune.errors import ConvtuneError
from convtune.paths import cache_dir, log_path


@pytest.mark.parametrize(("variable", "find"), [("CONVTUNE_CACHE", cache_dir), ("CONVTUNE_LOG", log_path)])
def test_the_home_of_nobody_is_a_clear_error(monkeypatch: pytest.MonkeyPatch, variable: str, find: object) -> None:
    assert callable(find)
    monkeypatch.setenv(variable, "~no_such_user/x")
    with pytest.raises(ConvtuneError, match=f"{variable} is '~no_such_user/x': no such user"):
        find()


def test_a_tilde_is_the_users_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("CONVTUNE_CACHE", "~/cache")
    monkeypatch.setenv("CONVTUNE_LOG", "~/log.jsonl")
    assert cache_dir() == tmp_path / "cache"
    assert log_path() == tmp_path / "log.jsonl"
