"""`convtune tune --rpc`: tuning on another machine, which is this one behind TVM's RPC; and what is refused."""

from __future__ import annotations

import json
import platform
import re
import signal
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import cli_process as cli
import fake_gpu
import pytest
import rpc_servers

import convtune
from convtune import targets
from convtune.cuda import toolkit
from convtune.errors import MeasureError, TargetError
from convtune.log import Log
from convtune.measure import rpc_bench
from convtune.remote import Remote, remote_of

TARGET = ("--target", cli.MCPU, "--threads", "2")


@pytest.fixture(scope="module")
def remote(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Remote]:
    directory = tmp_path_factory.mktemp("rpc")
    driver = {"LD_LIBRARY_PATH": str(fake_gpu.driver()), "FAKE_CUDA_ARCH": "80"}
    with rpc_servers.tracker(directory) as remote, rpc_servers.server(remote, directory, **driver):
        yield remote


def rpc(remote: Remote) -> tuple[str, ...]:
    return ("--rpc", remote.address, "--rpc-key", remote.key)


def test_layers_are_tuned_on_the_remote_and_the_log_says_for_which_target(remote: Remote, tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    command = ("tune", cli.TINY, cli.SMALL, *TARGET, "--trials", "3", "--log", log, *rpc(remote))
    summary = cli.printed_json(*command)
    assert summary["origin"] == "measured" and summary["failed"] == 0
    records = Log(log).records()
    assert {r.spec for r in records} == {cli.TINY, cli.SMALL}
    assert {(r.origin, r.status, r.target["model"], r.target["threads"]) for r in records} == {
        ("measured", "ok", cli.MCPU, 2)
    }
    assert all(r.error is not None and r.error < 2e-5 for r in records)
    finals = [r for r in records if r.round == "final"]
    assert {len(r.times_us) for r in finals} == {9} and {r.spec for r in finals} == {cli.TINY, cli.SMALL}
    again = cli.invoke(*command)
    assert again.exit_code == 0 and "all from the log" in again.stderr
    assert Log(log).records() == records


def test_the_function_asks_the_same_tracker(remote: Remote, tmp_path: Path) -> None:
    spec, other = convtune.ConvSpec.parse(cli.TINY), {"rpc": remote.address, "rpc_key": "another"}
    with pytest.raises(TargetError, match="no server with key 'another'; it has some-board"):
        convtune.tune(spec, cli.MCPU, 1, tmp_path / "log", **other)
    with pytest.raises(TargetError, match="is this machine, and kernels are to run on another"):
        convtune.tune(spec, targets.resolve("native"), 1, tmp_path / "log", **other)


GPU = """
import sys
import convtune, fake_gpu
from convtune import targets
from convtune.errors import TargetError
from convtune.measure import rpc_bench
from convtune.remote import Remote
from convtune.space import Candidate
rpc_bench.RpcGpuBench.builder = fake_gpu.FakeBuilder
spec, candidate = convtune.ConvSpec.parse(sys.argv[1]), Candidate("gpu_threads", {})
with rpc_bench.RpcGpuBench(targets.resolve("sm_80", elsewhere=True), Remote.parse(*sys.argv[2:])) as bench:
    (built,) = bench.build(spec, [candidate])
    try:
        outcome = bench.measure(spec, built, 2e-5)
        print(outcome.status, outcome.message, set(outcome.times_us), bench.finals(spec, [built], 3))
    except TargetError as error:
        print("refused:", error)
"""
ON_GPU = "depthwise_separable,ic=3,oc=4,in=5x7,k=3x3,p=1,layout=NHWC,act=relu,bias"


def test_a_gpu_of_the_remote_verifies_and_times_by_its_own_clock(remote: Remote) -> None:
    """By the fake's clock each of the two launches takes 1 ms."""
    _needs_nvcc()
    done = fake_gpu.run(GPU, ON_GPU, remote.address, remote.key)
    assert done.stdout == "ok  {2000.0} [(2000.0, 2000.0, 2000.0)]\n", done.stderr


@pytest.mark.slow
def test_a_remote_without_a_gpu_is_refused(tmp_path: Path) -> None:
    _needs_nvcc()
    with rpc_servers.tracker(tmp_path) as remote, rpc_servers.server(remote, tmp_path):
        done = fake_gpu.run(GPU, ON_GPU, remote.address, remote.key)
    assert done.stdout.startswith("refused: target 'sm_80': this kernel needs an NVIDIA GPU and its driver")


def test_a_machine_of_another_kind_is_refused(remote: Remote, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    foreign = tmp_path / "foreign.so"
    foreign.write_bytes(b"\x7fELF of another machine")
    monkeypatch.setattr(rpc_bench, "build_runner", lambda *_: foreign)
    said = refused(tmp_path, *TARGET, *rpc(remote))
    assert re.match(
        rf"target '{cli.MCPU}': 127\.0\.0\.1:\d+ \({platform.machine()}-\S+\) does not load libraries for", said
    )


def _needs_nvcc() -> None:
    try:
        toolkit.find()
    except TargetError as error:
        pytest.skip(str(error))


@pytest.mark.slow
def test_ctrl_c_keeps_what_was_measured(remote: Remote, tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    command = ["tune", cli.SMALL, *TARGET, "--trials", "500", "--log", str(log), *rpc(remote)]
    with (tmp_path / "output").open("w") as output:
        running = subprocess.Popen([*cli.PROGRAM, *command], stdout=output, stderr=output)
    try:
        rpc_servers.wait_until(lambda: log.exists() and log.read_text().count("\n") >= 2, "a record")
        running.send_signal(signal.SIGINT)
        assert running.wait(30) == 130
    finally:
        running.kill()
        running.wait()
    assert "are in " + str(log) in (tmp_path / "output").read_text()
    assert len([json.loads(line) for line in log.read_text().splitlines()]) >= 2
    bench = cli.invoke(*command[:6], "--trials", "1", "--log", tmp_path / "other", *rpc(remote))
    assert bench.exit_code == 0, bench.stderr  # the server is free again


# ---- what is refused, in seconds and before there is a log ----------------------------------------------


def refused(tmp_path: Path, *arguments: str) -> str:
    """The one line that the program says."""
    start = time.monotonic()
    result = cli.invoke("tune", cli.TINY, "--log", tmp_path / "log", "--trials", "1", *arguments)
    assert (result.exit_code, result.stdout) == (2, ""), result.stderr
    assert time.monotonic() - start < 30, "it must not wait for what is not there"
    assert not (tmp_path / "log").exists()
    said = [line for line in result.stderr.splitlines() if line.startswith("convtune: error: ")]
    assert len(said) == 1, result.stderr
    return said[0].removeprefix("convtune: error: ")


def test_a_key_that_nobody_serves(remote: Remote, tmp_path: Path) -> None:
    said = refused(tmp_path, *TARGET, "--rpc", remote.address, "--rpc-key", "another")
    assert said == f"RPC tracker {remote.address} has no server with key 'another'; it has some-board"


def test_no_tracker(tmp_path: Path) -> None:
    said = refused(tmp_path, *TARGET, "--rpc", f"127.0.0.1:{rpc_servers.free_port()}", "--rpc-key", "k")
    assert said.startswith("no RPC tracker answers at 127.0.0.1:") and said.endswith("Connection refused")


@contextmanager
def listener(answer: bytes) -> Iterator[str]:
    """Something else that listens, and says this to whoever connects."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        served: list[socket.socket] = []

        def serve() -> None:
            connection, _ = server.accept()
            served.append(connection)
            connection.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        yield f"127.0.0.1:{server.getsockname()[1]}"
        thread.join()
        served[0].close()


TRACKER = struct.pack("<i", 0x2F271)


def _framed(text: bytes) -> bytes:
    return struct.pack("<i", len(text)) + text


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (b"", "no answer in 0.5 s"),
        (TRACKER, "no answer in 0.5 s"),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "what answers there is no tracker"),
        (TRACKER + struct.pack("<i", -5), "what answers there is no tracker"),
        (TRACKER + _framed(b"{]"), "what answers there is no tracker"),
        (TRACKER + _framed(b"[0]"), "what answers there is no tracker"),
        (TRACKER + _framed(b"[0, {}]"), "what answers there is no tracker"),
        (TRACKER + _framed(b"[0, 7]"), "what answers there is no tracker"),
        (TRACKER + _framed(b"[-1, 0]"), "what answers there is no tracker"),
    ],
)
def test_what_is_no_tracker(monkeypatch: pytest.MonkeyPatch, answer: bytes, why: str) -> None:
    monkeypatch.setattr(convtune.remote, "_ANSWER_S", 0.5)
    with listener(answer) as address, pytest.raises(TargetError) as refusal:
        Remote.parse(address, "k").check()
    assert str(refusal.value).startswith(f"no RPC tracker answers at {address}: {why}")


def test_a_tracker_that_goes_away_in_between(tmp_path: Path) -> None:
    with pytest.raises(MeasureError, match="does not answer any more: Connection refused"):
        Remote("127.0.0.1", rpc_servers.free_port(), "k").request(1.0)


@pytest.mark.parametrize("address", ["", "nonsense", "host", "host:", ":9190", "host:port", "host:0", "host:65536"])
def test_what_is_no_address(tmp_path: Path, address: str) -> None:
    said = refused(tmp_path, *TARGET, "--rpc", address, "--rpc-key", "k")
    assert said == f"RPC tracker is {address!r}; allowed: HOST:PORT, such as 127.0.0.1:9190"


@pytest.mark.parametrize("address", ["a b:1", "::1:9190", "[::1]", "host:9190:1", "host:٣"])
def test_what_else_is_no_address(address: str) -> None:
    with pytest.raises(TargetError, match="allowed: HOST:PORT"):
        Remote.parse(address, "k")


def test_addresses_and_keys() -> None:
    assert Remote.parse("board.local:9190", "rpi-4") == Remote("board.local", 9190, "rpi-4")
    assert Remote.parse("[::1]:9190", "k") == Remote("::1", 9190, "k")
    assert Remote.parse("[::1]:9190", "k").address == "[::1]:9190"
    for key in ("", "two words", "with:colon"):
        with pytest.raises(TargetError, match="RPC key is"):
            Remote.parse("host:1", key)
    assert remote_of(None, None) is None


def test_one_option_without_the_other(tmp_path: Path) -> None:
    assert "without its servers' key" in refused(tmp_path, *TARGET, "--rpc", "127.0.0.1:9190")
    assert "without the tracker's HOST:PORT" in refused(tmp_path, *TARGET, "--rpc-key", "k")


@pytest.mark.parametrize("name", ["native", "host", "x86", "arm", "cuda", "gpu"])
def test_the_target_must_name_the_other_machine(tmp_path: Path, name: str) -> None:
    said = refused(tmp_path, "--target", name, "--rpc", "127.0.0.1:9190", "--rpc-key", "k")
    assert said == f"target {name!r} does not say which machine is to run the kernels; name its processor"


def test_facts_of_this_machine_are_not_the_remotes() -> None:
    elsewhere = targets.resolve("x86-64-v3", elsewhere=True)
    assert not elsewhere.is_host and elsewhere.model == "x86-64-v3"
    described = targets.resolve('{"mcpu": "x86-64-v3", "model": "a board"}', elsewhere=True)
    assert not described.is_host and described.model == "a board"
