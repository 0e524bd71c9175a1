"""Keeps every test away from the log and the cache of the user who runs them, and finds nvcc for those that need it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from convtune.cuda import toolkit
from convtune.cuda.toolkit import Toolkit
from convtune.errors import TargetError


@pytest.fixture(scope="session", autouse=True)
def _no_files_of_the_user(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """One cache for the session, so that what is compiled once for it stays; tests of caches take their own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CONVTUNE_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("CONVTUNE_LOG", str(tmp_path_factory.mktemp("data") / "log.jsonl"))
        for name in ("CONVTUNE_CC", "CONVTUNE_NUM_THREADS"):
            patch.delenv(name, raising=False)
        yield


@pytest.fixture
def nvcc() -> Toolkit:
    """This machine's; the test is skipped where there is none."""
    try:
        return toolkit.find()
    except TargetError as error:
        pytest.skip(str(error))
