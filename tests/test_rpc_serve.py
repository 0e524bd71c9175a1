"""`convtune serve`, and tuning on the machines that it serves: what is refused, what is lost, what is left behind."""

from __future__ import annotations

import contextlib
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import cli_process as cli
import measure_kernels as kernels
import psutil
import pytest
import rpc_servers
from faulty_builder import FaultyBuilder

from convtune import server, targets
from convtune.errors import TargetError
from convtune.measure.rpc_bench import RpcCpuBench, RpcLimits
from convtune.record import Record
from convtune.remote import Remote
from convtune.tuner import Tuner

TARGET = targets.resolve(cli.MCPU, threads=1, elsewhere=True)


@contextmanager
def serving(output: Path, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    """`convtune serve` as a user starts it, with what it says in a file. Ended for sure, with all that it started."""
    with output.open("ab") as file:
        started = subprocess.Popen([*cli.PROGRAM, "serve", *arguments], stdin=subprocess.DEVNULL, stderr=file)
    try:
        yield started
    finally:
        left = descendants(started)
        started.kill()
        started.wait()
        for process in left:  # which end by themselves, as a test below says
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()


def descendants(started: subprocess.Popen[bytes]) -> list[psutil.Process]:
    try:
        found: list[psutil.Process] = psutil.Process(started.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []
    return found


def are_gone(processes: list[psutil.Process]) -> bool:
    return not any(p.is_running() and p.status() != psutil.STATUS_ZOMBIE for p in processes)


@contextmanager
def two_servers(directory: Path) -> Iterator[tuple[Remote, dict[str, subprocess.Popen[bytes]]]]:
    """A tracker, and servers by their addresses; what they say is in files that are named by their ports."""
    with ExitStack() as stack:
        remote, servers = stack.enter_context(rpc_servers.tracker(directory)), {}
        for _ in range(2):
            port = str(rpc_servers.free_port())
            options = ("--tracker", remote.address, "--key", remote.key, "--port", port)
            servers[f"127.0.0.1:{port}"] = stack.enter_context(serving(directory / f"{port}.txt", *options))
        rpc_servers.wait_until(lambda: registered(remote) == 2, "both servers")
        yield remote, servers


def registered(remote: Remote) -> int:
    try:
        return remote.servers()
    except TargetError:
        return 0


class Killer(threading.Thread):
    """Kills the first server whose kernel has run for three seconds: none does of those that come to an end."""

    def __init__(self, servers: dict[str, subprocess.Popen[bytes]]) -> None:
        super().__init__(daemon=True)
        self._servers, self.killed = servers, ""

    def run(self) -> None:
        while not self.killed:
            time.sleep(0.1)
            for address, started in self._servers.items():
                with contextlib.suppress(psutil.NoSuchProcess):
                    self._look_at(address, psutil.Process(started.pid))

    def _look_at(self, address: str, supervisor: psutil.Process) -> None:
        for server_process in supervisor.children():
            kernels_of_sessions = [kernel for session in server_process.children() for kernel in session.children()]
            late = any(time.time() - kernel.create_time() > 3 for kernel in kernels_of_sessions)
            if late and not self.killed:  # both endless loops may be late in the same turn
                server_process.kill()
                self.killed = address


def test_two_machines_of_which_one_is_lost_and_comes_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel that crashes, one that hangs, and one whose server is killed cost no more than themselves."""
    monkeypatch.setattr(RpcCpuBench, "builder", FaultyBuilder)
    monkeypatch.setattr(RpcCpuBench, "usual_limits", RpcLimits(device_s=6.0))
    with two_servers(tmp_path) as (remote, servers), Tuner(TARGET, tmp_path / "log", remote=remote) as tuner:
        killer = Killer(servers)
        killer.start()
        result = tuner.tune(kernels.WHOLE_LINES, 9)
        assert (result.best is not None, result.problem, result.trials) == (True, "", 9)
        _check(tuner.log.records(kernels.WHOLE_LINES), set(servers), killer.killed)

        lost = servers.pop(killer.killed)
        said = (tmp_path / f"{killer.killed.rpartition(':')[2]}.txt").read_text()
        assert "convtune: the server ended (SIGKILL); it is started again in 1 s\n" in said
        rpc_servers.wait_until(lambda: registered(remote) == 2, "the server that was killed")
        (other,) = servers.values()
        _ends(other, signal.SIGTERM)
        assert tuner.tune(kernels.SPEC, 4).best is not None
        assert {r.device for r in tuner.log.records(kernels.SPEC)} == {killer.killed}
        _ends(lost, signal.SIGKILL)


def _check(records: list[Record], devices: set[str], killed: str) -> None:
    search, finals = ([r for r in records if r.round == name] for name in ("search", "final"))
    assert len({r.candidate.key for r in search}) == 9
    assert sorted((r.status, r.message) for r in search if r.status not in ("ok", "crash")) == [
        ("timeout", "while running: no answer in 6 s")
    ]
    crashed, vanished = sorted((r for r in search if r.status == "crash"), key=lambda r: len(r.message))
    assert crashed.message == "while running: SIGSEGV"
    assert vanished.message.startswith("while running: the RPC session ended: ") and vanished.device == killed
    for device in devices:
        assert next(r for r in search if r.device == device).default, "each machine measures the default first"
    assert all(r.error is not None and r.error < 2e-5 for r in records if r.status == "ok")
    assert len({r.device for r in finals}) == 1 and any(r.default for r in finals)


def _ends(started: subprocess.Popen[bytes], number: signal.Signals) -> None:
    """With all processes that it has, of which there are some."""
    processes = descendants(started)
    assert processes
    started.send_signal(number)
    assert started.wait(30) == (-number if number == signal.SIGKILL else 0)
    rpc_servers.wait_until(lambda: are_gone(processes), "the end of all processes")


def test_a_tracker_of_its_own_that_is_lost(tmp_path: Path) -> None:
    remote = Remote("127.0.0.1", rpc_servers.free_port(), "k")
    with serving(tmp_path / "said", "--tracker", remote.address, "--key", "k", "--with-tracker") as started:
        rpc_servers.wait_until(lambda: registered(remote) == 1, "the server")
        (tracker,) = (p for p in descendants(started) if "tracker" in p.cmdline())
        tracker.kill()
        rpc_servers.wait_until(lambda: not tracker.is_running() and registered(remote) == 1, "both again")
        _ends(started, signal.SIGINT)
    said = (tmp_path / "said").read_text()
    assert "convtune: the tracker ended (SIGKILL)" in said and said.endswith("convtune: ended by SIGINT\n")
    assert "warning" not in said and "Traceback" not in said


# ---- what is refused ------------------------------------------------------------------------------------


def refused(*arguments: str) -> str:
    result = cli.invoke("serve", *arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    (line,) = result.stderr.splitlines()
    assert line.startswith("convtune: error: ")
    return line.removeprefix("convtune: error: ")


def test_what_is_refused() -> None:
    free = f"127.0.0.1:{rpc_servers.free_port()}"
    assert refused("--tracker", free, "--key", "k") == f"no RPC tracker answers at {free}: Connection refused"
    assert refused("--tracker", "nonsense", "--key", "k").endswith("allowed: HOST:PORT, such as 127.0.0.1:9190")
    assert refused("--tracker", free, "--key", "a:b").startswith("RPC key is 'a:b'; allowed: ")
    assert refused("--tracker", free).startswith("Missing option '--key'")
    assert refused("--tracker", free, "--key", "k", "--port", "0").startswith("Invalid value for '--port'")
    unreachable = refused("--tracker", "192.0.2.1:9190", "--key", "k")
    assert unreachable.startswith("the server would listen at 127.0.0.1, which tracker 192.0.2.1:9190 and its clients")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        common = ("--key", "k", "--with-tracker", "--tracker")
        in_use = f"cannot listen at {address}: Address already in use"
        assert refused(*common, address) == in_use
        assert refused(*common, free, "--port", address.rpartition(":")[2]) == in_use
    elsewhere = refused(*common, free, "--host", "192.0.2.1", "--port", "9999")
    assert elsewhere == "cannot listen at 192.0.2.1:9999: Cannot assign requested address"


def test_whoever_listens_at_a_network_is_warned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bound to the loopback: a test opens nothing to the network."""
    monkeypatch.setattr(server, "is_loopback", lambda _: False)
    monkeypatch.setattr(server, "_supervise", lambda *_: None)
    said: list[str] = []
    remote = Remote("127.0.0.1", rpc_servers.free_port(), "k")
    server.serve(remote, "127.0.0.1", server.PORTS, True, said.append)
    assert [line.partition(" listens at ")[0] for line in said[:2]] == ["warning: the tracker", "warning: the server"]
    assert all("asks nobody who they are" in line for line in said[:2])


@pytest.mark.parametrize(("host", "loopback"), [("127.0.0.1", True), ("::1", True), ("0.0.0.0", False), ("::", False)])
def test_loopback(host: str, loopback: bool) -> None:
    assert server.is_loopback(host) == loopback
