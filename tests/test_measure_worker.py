"""Whatever a request does to its worker, it becomes a reply, and the next request is served."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import measure_services as services
import pytest

from convtune.errors import MeasureError
from convtune.measure.worker import Pool

TIMEOUT_S = 20  # for what answers at once; a machine may be busy
SHORT_S = 1  # for what never answers
MEMORY_BYTES = 256 << 20


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pool]:
    with Pool(services.Puppet, ("hello",), 1, tmp_path_factory.mktemp("pool")) as pool:
        yield pool


def test_a_worker_serves_many_requests_with_what_it_was_made_with(pool: Pool) -> None:
    assert pool.call(("greet",), TIMEOUT_S, MEMORY_BYTES).value == "hello"
    assert pool.call({"any": [1, None]}, TIMEOUT_S, MEMORY_BYTES).value == {"any": [1, None]}
    assert pool.call(("pid",), TIMEOUT_S, MEMORY_BYTES) == pool.call(("pid",), TIMEOUT_S, MEMORY_BYTES)


@pytest.mark.parametrize(
    ("action", "timeout_s", "status", "message"),
    [
        ("raises", TIMEOUT_S, "error", "ValueError: the reason"),
        ("abort", TIMEOUT_S, "crash", "SIGABRT; last output: about to abort"),
        ("segfault", TIMEOUT_S, "crash", "SIGSEGV"),
        ("exit", TIMEOUT_S, "crash", "exited with code 3"),
        ("hang", SHORT_S, "timeout", "no answer in 1 s"),
        ("eat", TIMEOUT_S, "out_of_memory", "out of memory"),
        ("bad_alloc", TIMEOUT_S, "out_of_memory", "RuntimeError: std::bad_alloc"),
        ("killed", TIMEOUT_S, "out_of_memory", "SIGKILL"),
    ],
)
def test_a_failure_is_a_reply_and_the_next_request_is_served(
    pool: Pool, action: str, timeout_s: float, status: str, message: str
) -> None:
    reply = pool.call((action,), timeout_s, MEMORY_BYTES)
    assert (reply.status, reply.message, reply.value) == (status, message, None)
    assert pool.call("next", TIMEOUT_S, MEMORY_BYTES).value == "next"


@pytest.mark.parametrize("how", ["exit", "raise"])
def test_a_full_directory_is_named(how: str, tmp_path: Path) -> None:
    with Pool(services.Puppet, ("hello",), 1, tmp_path) as pool:
        reply = pool.call(("full", how), TIMEOUT_S, MEMORY_BYTES)
        assert list(tmp_path.iterdir()) == [], "what the worker says has no place in a directory that is full"
    assert reply.message.endswith(f"No space left on device; temporary files are in {tmp_path} (see TMPDIR)")
    assert "\n" not in reply.message and reply.message.count("No space left") == 1


def test_waiting_shows_signs_of_life(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    signs: list[float] = []
    monkeypatch.setattr("convtune.measure.worker.WAITING_S", SHORT_S / 4)
    monkeypatch.setattr(pool, "on_wait", lambda: signs.append(time.monotonic()))
    assert pool.call(("hang",), SHORT_S, MEMORY_BYTES).status == "timeout"
    assert len(signs) >= 2


def test_what_is_raised_while_waiting_ends_the_request(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("convtune.measure.worker.WAITING_S", 0.05)
    with monkeypatch.context() as patched:
        patched.setattr(pool, "on_wait", stop)
        with pytest.raises(KeyboardInterrupt):
            pool.call(("hang",), TIMEOUT_S, MEMORY_BYTES)
    assert pool.call("next", TIMEOUT_S, MEMORY_BYTES).value == "next"


def test_each_request_has_its_own_memory(pool: Pool) -> None:
    for memory_bytes, status in [(64 << 20, "out_of_memory"), (256 << 20, "ok"), (64 << 20, "out_of_memory")]:
        assert pool.call(("hold", 128 << 20), TIMEOUT_S, memory_bytes).status == status
    before = pool.call(("pid",), TIMEOUT_S, 64 << 20)
    assert pool.call(("hold", 128 << 20), TIMEOUT_S, 256 << 20).value == 128 << 20
    assert pool.call(("pid",), TIMEOUT_S, 64 << 20) == before


def test_an_old_message_is_not_part_of_a_later_crash(pool: Pool) -> None:
    pool.call(("abort",), TIMEOUT_S, MEMORY_BYTES)
    assert pool.call(("exit",), TIMEOUT_S, MEMORY_BYTES).message == "exited with code 3"


def test_a_worker_that_dies_between_requests_is_nobodys_crash(pool: Pool) -> None:
    before = pool.call(("pid",), TIMEOUT_S, MEMORY_BYTES).value
    assert pool.call(("die_later",), TIMEOUT_S, MEMORY_BYTES).value == "soon"
    wait_until(lambda: has_ended(before))
    assert pool.call(("pid",), TIMEOUT_S, MEMORY_BYTES).value != before


def test_a_timeout_ends_what_the_worker_started(pool: Pool) -> None:
    child = pool.call(("child",), TIMEOUT_S, MEMORY_BYTES).value
    assert not has_ended(child)
    pool.call(("hang",), SHORT_S, MEMORY_BYTES)
    wait_until(lambda: has_ended(child))


def test_ctrl_c_does_not_reach_workers(pool: Pool) -> None:
    assert pool.call(("interrupt",), TIMEOUT_S, MEMORY_BYTES).value == "survived"
    assert os.getpgid(pool.call(("pid",), TIMEOUT_S, MEMORY_BYTES).value) != os.getpgrp()


def test_replies_keep_the_order_of_requests_and_one_crash_spoils_no_other(tmp_path: Path) -> None:
    requests: list[Any] = [("slow", 0.3), 1, ("abort",), 2, ("exit",), ("slow", 0.1), 3]
    with Pool(services.Puppet, ("",), 3, tmp_path) as pool:
        replies = pool.map(requests, TIMEOUT_S, MEMORY_BYTES)
    assert [reply.status for reply in replies] == ["ok", "ok", "crash", "ok", "crash", "ok", "ok"]
    assert [reply.value for reply in replies] == [0.3, 1, None, 2, None, 0.1, 3]


def test_requests_run_at_the_same_time(tmp_path: Path) -> None:
    names = ("left", "right")
    with Pool(services.Puppet, ("",), 2, tmp_path) as pool:
        requests = [("meet", tmp_path, name, other) for name, other in zip(names, reversed(names))]
        replies = pool.map(requests, TIMEOUT_S, MEMORY_BYTES)
        assert [reply.value for reply in replies] == ["right", "left"]
        assert pool.map([], TIMEOUT_S, MEMORY_BYTES) == []


def test_an_interrupted_map_leaves_no_late_reply(pool: Pool) -> None:
    pool.call(1, TIMEOUT_S, MEMORY_BYTES)
    interrupt = threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT))
    interrupt.start()
    with pytest.raises(KeyboardInterrupt):
        pool.call(("slow", 1.0), TIMEOUT_S, MEMORY_BYTES)
    interrupt.join()
    assert pool.call("next", TIMEOUT_S, MEMORY_BYTES).value == "next"


@pytest.mark.parametrize(
    ("service", "reason"),
    [(services.Stillborn, "RuntimeError: no such device"), (services.DiesAtBirth, "exited with code 7")],
)
def test_a_worker_that_cannot_start_is_an_error_not_a_loop(tmp_path: Path, service: Any, reason: str) -> None:
    with Pool(service, (), 2, tmp_path) as pool, pytest.raises(MeasureError, match=reason):
        pool.call(1, TIMEOUT_S, MEMORY_BYTES)


def test_stop_ends_all_and_leaves_no_file(tmp_path: Path) -> None:
    with Pool(services.Puppet, ("",), 2, tmp_path) as pool:
        pool.start()
        pids = [reply.value for reply in pool.map([("pid",)] * 4, TIMEOUT_S, MEMORY_BYTES)]
    assert all(has_ended(pid) for pid in pids)
    assert list(tmp_path.iterdir()) == []


ORPHANS = """
import sys, measure_services as services
from pathlib import Path
from convtune.measure.worker import Pool
with Pool(services.Puppet, ("",), 2, Path(sys.argv[1])) as pool:
    print(*{reply.value for reply in pool.map([("pid",), ("child",)], 60, 1 << 28)}, flush=True)
    pool.map([("hang",)] * 2, 60, 1 << 28)
"""


def test_killing_the_parent_leaves_no_orphan(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", ORPHANS, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as parent:
        assert parent.stdout is not None
        pids = list(map(int, parent.stdout.readline().split()))
        time.sleep(0.2)  # until both hang
        assert len(pids) == 2
        assert not any(has_ended(pid) for pid in pids)
        parent.kill()
    wait_until(lambda: all(has_ended(pid) for pid in pids))


def has_ended(pid: int) -> bool:
    """Whether the process is gone, or dead and not yet reaped by its parent."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + TIMEOUT_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)
