"""Keeps every test away from the log and the cache of the user who runs them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest


@pytest.fixture(scope="session", autouse=True)
def _no_files_of_the_user(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """One cache for the session, so that what is compiled once for it stays; tests of caches take their own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CONVTUNE_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("CONVTUNE_LOG", str(tmp_path_factory.mktemp("data") / "log.jsonl"))
        for name in ("CONVTUNE_CC", "CONVTUNE_NUM_THREADS"):
            patch.delenv(name, raising=False)
        yield
