"""Kernels on another machine, which is this one behind TVM's RPC: each becomes an outcome, and the server lives on."""

from __future__ import annotations

import contextlib
import itertools
import threading
from collections.abc import Iterator
from pathlib import Path

import measure_kernels as kernels
import psutil
import pytest
import rpc_servers
from cli_process import MCPU

from convtune.errors import MeasureError
from convtune.measure import Built, rpc_machines
from convtune.measure.builder import Library
from convtune.measure.rpc_bench import RpcCpuBench, RpcLimits
from convtune.remote import Remote
from convtune.space import Candidate
from convtune.spec import ConvSpec
from convtune.targets import resolve

LIMIT = 2e-5
LIMITS = RpcLimits(device_s=3.0, memory_bytes=512 << 20)
TARGET = resolve(MCPU, threads=2, elsewhere=True)
numbers = itertools.count()


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("rpc")


@pytest.fixture(scope="module")
def tracker(directory: Path) -> Iterator[Remote]:
    """One without servers."""
    with rpc_servers.tracker(directory) as remote:
        yield remote


@pytest.fixture(scope="module")
def remote(directory: Path) -> Iterator[Remote]:
    """One that lives on, whatever a test does."""
    with rpc_servers.tracker(directory) as remote, rpc_servers.server(remote, directory):
        yield remote


def built(tmp_path: Path, fault: str) -> Built:
    library = kernels.library(tmp_path / f"{next(numbers)}", fault)
    return Built(Candidate("c", {"fault": fault}), "ok", library=Library(library, kernels.PACK, 0.1, 1))


OUTCOMES = {
    "null pointer": ("crash", "while running: SIGSEGV"),
    "abort": ("crash", "while running: SIGABRT"),
    "endless loop": ("timeout", "while running: no answer in 3 s"),
    "failure": ("error", "while running: kernel failed with status -1"),
    "too large a workspace": ("out_of_memory", "no 8589934592 bytes of scratch memory"),
    "no end of memory": ("crash", "while running: SIGSEGV"),
    "one element too many": ("wrong", "wrote outside y: 1 element after its end"),
    "one element too early": ("wrong", "wrote outside y: 1 element before its start"),
    "far too many": ("crash", "while running: SIGSEGV"),
    "last element missing": ("wrong", "left output unwritten, or read it first: 1 of 15 elements, first y[0, 4, 2]"),
    "slightly wrong": ("wrong", "allowed 2e-05; 1 of 15 elements, first y[0, 1, 1] ="),
    "reads before x": ("wrong", "read outside an array: error nan"),
    "reads after weight": ("wrong", "read outside an array: error nan"),
    "reads after x for nothing": ("crash", "while running: SIGSEGV"),
    "takes y at multiples of 8": ("crash", "while running: SIGABRT"),
    "changes x": ("wrong", "changed its input x: first x[0, 1, 1]"),
    "writes before weight": ("wrong", "wrote outside weight: 2 elements before its start"),
    "adds to y": ("wrong", "left output unwritten, or read it first: 15 of 15 elements, first y[0, 0, 0]"),
    "reads scratch": ("wrong", "read scratch memory that it had not written: error nan"),
    "swallows scratch": ("wrong", "gives another result when run again: 1 of 15 elements, first y[0, 0, 2] ="),
    "changes in time": ("wrong", "gives another result when run often: 1 of 15 elements, first y[0, 0, 2] ="),
}


def test_faulty_kernels_are_named_and_cost_neither_the_session_nor_the_next_one(
    remote: Remote, directory: Path, tmp_path: Path
) -> None:
    earlier = _sessions(directory)
    with RpcCpuBench(TARGET, remote, tmp_path, LIMITS) as bench:
        _measures(bench, tmp_path)
        for fault, (status, message) in OUTCOMES.items():
            outcome = bench.measure(kernels.SPEC, built(tmp_path, fault), LIMIT)
            assert (outcome.status, outcome.times_us, outcome.build_s) == (status, (), 0.1), (fault, outcome.message)
            assert message in outcome.message and "\n" not in outcome.message, fault
        _measures(bench, tmp_path)
        assert _sessions(directory) == earlier + 1
        finalists = [built(tmp_path, "none") for _ in range(3)]
        times = bench.finals(kernels.SPEC, finalists, rounds=8)
        assert [len(own) for own in times] == [8, 8, 8] and all(time > 0 for own in times for time in own)
        with pytest.raises(MeasureError, match=r"failed \(error\): MeasureError: crash: SIGABRT"):
            bench.finals(kernels.SPEC, [finalists[0], built(tmp_path, "abort")])
        _measures(bench, tmp_path)


def _sessions(directory: Path) -> int:
    return (directory / "server.txt").read_text().count("connected from")


def _measures(bench: RpcCpuBench, tmp_path: Path) -> None:
    """That a right kernel has its error and times."""
    outcome = bench.measure(kernels.SPEC, built(tmp_path, "none"), LIMIT)
    assert (outcome.status, outcome.message) == ("ok", "")
    assert outcome.error is not None and 0 < outcome.error < 1e-6
    assert 3 <= len(outcome.times_us) <= 25 and all(time > 0 for time in outcome.times_us)


class Impatient(RpcLimits):
    """The client gives up before a kernel's own time is over."""

    def device(self, spec: ConvSpec) -> float:
        return 0.5


def test_a_client_that_is_killed_leaves_the_server_to_the_next_one(
    remote: Remote, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """TVM's server alone would serve nobody any more."""
    with RpcCpuBench(TARGET, remote, tmp_path, LIMITS) as bench:
        for _ in range(2):
            _measures(bench, tmp_path)
            monkeypatch.setattr(bench, "limits", Impatient())
            outcome = bench.measure(kernels.SPEC, built(tmp_path, "endless loop"), LIMIT)
            assert (outcome.status, outcome.message) == ("timeout", "while running: no answer in 0.5 s")
            monkeypatch.setattr(bench, "limits", LIMITS)
        _measures(bench, tmp_path)


@pytest.mark.slow
def test_a_server_that_vanishes_costs_its_candidate_alone(
    tracker: Remote, directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with contextlib.ExitStack() as servers:
        first = servers.enter_context(rpc_servers.server(tracker, directory))
        bench = servers.enter_context(RpcCpuBench(TARGET, tracker, tmp_path, LIMITS))
        _measures(bench, tmp_path)
        rpc_servers.kill(first)  # between two candidates
        second = servers.enter_context(rpc_servers.server(tracker, directory))
        _measures(bench, tmp_path)
        threading.Timer(0.5, rpc_servers.kill, [second]).start()
        outcome = bench.measure(kernels.SPEC, built(tmp_path, "endless loop"), LIMIT)
        assert outcome.status == "crash" and "while running: the RPC session ended" in outcome.message
        monkeypatch.setattr(rpc_machines, "FREE_S", 1.0)
        with pytest.raises(MeasureError, match=r"no server with key 'some-board' was free for 1 s"):
            bench.measure(kernels.SPEC, built(tmp_path, "none"), LIMIT)
        servers.enter_context(rpc_servers.server(tracker, directory))
        _measures(bench, tmp_path)


@pytest.mark.slow
def test_a_server_whose_session_died_is_given_up(
    tracker: Remote, directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """TVM's server then lives on, still known to the tracker, and serves nobody."""
    with (
        rpc_servers.server(tracker, directory) as server,
        RpcCpuBench(TARGET, tracker, tmp_path, LIMITS) as bench,
    ):
        _measures(bench, tmp_path)
        listener = psutil.Process(server.pid).children()[0]
        for session in listener.children():
            session.kill()
        monkeypatch.setattr(rpc_machines, "FREE_S", 1.0)
        with pytest.raises(MeasureError, match="they are in use, or dead"):
            bench.measure(kernels.SPEC, built(tmp_path, "none"), LIMIT)
        with rpc_servers.server(tracker, directory):
            _measures(bench, tmp_path)
