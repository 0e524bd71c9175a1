"""Shows convtune on an emulated ARM machine: tuned from here over RPC, and run on the machine itself.

    python scripts/arm_proof.py rpc         # one layer of each variant, with the server killed in the middle
    python scripts/arm_proof.py native      # doctor, tune, compile, import, verify
    python scripts/arm_proof.py             # one after the other

Emulated seconds mean nothing, so targets are given as JSON with MODEL for the processor: their records are of a machine
that is no chip. Logs stay in the machine's directory.
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import click
import psutil
from arm_machine import HOME, Machine

from convtune import variants
from convtune.errors import TargetError
from convtune.log import Log
from convtune.record import Record
from convtune.remote import Remote
from convtune.spec import ConvSpec

Process = subprocess.Popen[bytes]

KEY = "emulated-arm"
MODEL = "QEMU's user mode, no chip"
TRIALS = 3
LARGEST_ERROR = 2e-5
LAYERS: Mapping[str, Sequence[str]] = {
    "cortex-a72": (
        "conv,ic=5,oc=9,in=7x11,k=3x3,p=1",
        "pointwise,ic=19,oc=24,in=5x7,k=1x1,layout=NHWC,act=relu6,bias",
        "dilated,ic=6,oc=7,in=9x8,k=3x3,p=2,d=2",
    ),
    "neoverse-n1": (
        "depthwise,ic=17,oc=17,in=11x7,k=3x3,p=1,layout=NHWC",
        "transposed,ic=6,oc=5,in=5x6,k=3x3,s=2,p=1,op=1",
        "deformable,ic=4,oc=6,in=7x6,k=3x3,p=1,modulated",
    ),
    "neoverse-v1": (
        "grouped,ic=8,oc=12,in=7x7,k=3x3,p=1,g=4,layout=NHWC",
        "shuffled_grouped,ic=8,oc=8,in=6x5,k=3x3,p=1,g=2",
        "depthwise_separable,ic=6,oc=9,in=8x7,k=3x3,p=1,layout=NHWC",
    ),
    "armv8.2-a": (
        "spatially_separable,ic=5,oc=6,in=9x7,k=3x3,p=1,mid=4",
        "flattened,ic=7,oc=8,in=6x9,k=3x3,p=1",
    ),
}
"""One of each variant, by the processor that kernels are compiled for."""

NATIVE = "depthwise,ic=5,oc=5,in=11,k=3"
"""LLVM takes 1 to 3 s for its kernels there; measure.Limits leaves 20 s."""
COMPARE = """
import numpy, sys
from kernel import conv
generator = numpy.random.default_rng(0)
x, weight = generator.standard_normal((1, 5, 11), "f"), generator.standard_normal((5, 1, 3), "f")
windows = numpy.lib.stride_tricks.sliding_window_view(x.astype("d"), 3, axis=2)
wanted = numpy.einsum("nxwk,xk->nxw", windows, weight[:, 0].astype("d"))
error = abs(conv(x, weight) - wanted).max() / abs(wanted).max()
print(f"imported: error {error:.1e}; TVM is loaded: {'tvm' in sys.modules}")
sys.exit(not error < 1e-6 or "tvm" in sys.modules)
"""


class ProofError(click.ClickException):
    """What convtune did not do."""


# ---- over RPC ------------------------------------------------------------------------------------------


def over_rpc(machine: Machine, directory: Path) -> None:
    """Tunes LAYERS through a tracker here on a server there, which is killed once."""
    log = directory / "rpc.jsonl"
    with _tracker(directory) as remote, _server(machine, remote, directory) as server:
        _wait(lambda: _answers(remote), 120, "the server on the machine")
        for number, (mcpu, layers) in enumerate(LAYERS.items()):
            tune = _tune(mcpu, layers, remote, log)
            with _timed(f"tune, {mcpu}"), _process(tune, directory / f"{mcpu}.txt", os.environ) as tuning:
                if number == 1:
                    _kill_server(server, log, tuning)
                tuning.wait()
            _check_exit(tuning, f"tune for {mcpu}", directory / f"{mcpu}.txt")
    for line in outcome(_records(log)):
        click.echo(line)
    said = (directory / "server.txt").read_text()
    _check("started again" in said, f"the server that was killed did not come back; it said: {said}")


def _tune(mcpu: str, layers: Sequence[str], remote: Remote, log: Path) -> list[str]:
    target = json.dumps({"mcpu": mcpu, "model": MODEL, "threads": 2})
    command = [sys.executable, "-m", "convtune.cli", "tune", *layers, "--target", target, "--trials", str(TRIALS)]
    return [*command, "--log", str(log), "--rpc", remote.address, "--rpc-key", remote.key]


def outcome(records: Sequence[Record]) -> Iterator[str]:
    """A line for each variant, and for each candidate that failed.

    Raises:
        ProofError: a variant has no verified record, a result was wrong, or a record claims to be of a chip.
    """
    winners = {ConvSpec.parse(r.spec).variant: r for r in records if r.status == "ok" and r.round == "final"}
    for name in variants.known():
        _check(name in winners, f"{name} was not tuned")
        winner = winners[name]
        _check(winner.error is not None and winner.error <= LARGEST_ERROR, f"{name}: error {winner.error}")
        yield f"{name:20} {winner.target['mcpu']:12} {winner.candidate.space:22} error {winner.error:.1e}"
    for record in records:
        _check(record.target["model"] == MODEL, f"{record.spec} has a record of {record.target['model']}")
        _check(record.status != "wrong", f"{record.spec}: {record.candidate.key} is wrong: {record.message}")
        if record.status != "ok":
            yield f"lost: {record.spec}, {record.candidate.key}: {record.status}: {record.message}"


def _records(log: Path) -> Sequence[Record]:
    return Log(log).records()


def _answers(remote: Remote) -> bool:
    try:
        remote.check()
    except TargetError:
        return False
    return True


def _kill_server(supervisor: Process, log: Path, tuning: Process) -> None:
    """Kills it after the first record that `tuning` writes, so that it is busy with the second."""
    before = len(_records(log))
    _wait(lambda: len(_records(log)) > before or tuning.poll() is not None, 120, "a record")
    (server,) = psutil.Process(supervisor.pid).children()
    server.kill()


@contextlib.contextmanager
def _tracker(directory: Path) -> Iterator[Remote]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    arguments = ["--host", "127.0.0.1", "--port", str(port), "--port-end", str(port + 1)]
    command = [sys.executable, "-m", "tvm.exec.rpc_tracker", *arguments]
    with _process(command, directory / "tracker.txt", os.environ):
        remote = Remote("127.0.0.1", port, KEY)
        _wait(lambda: _has_tracker(remote), 60, "the tracker")
        yield remote


def _has_tracker(remote: Remote) -> bool:
    try:
        return remote.servers() >= 0
    except TargetError:
        return False


@contextlib.contextmanager
def _server(machine: Machine, remote: Remote, directory: Path) -> Iterator[Process]:
    command = machine.command(["convtune", "serve", "--tracker", remote.address, "--key", remote.key])
    with _process(command, directory / "server.txt", machine.environment()) as server:
        yield server
        server.send_signal(signal.SIGINT)
        server.wait(60)


# ---- on the machine itself -----------------------------------------------------------------------------


def natively(machine: Machine, directory: Path) -> None:
    """Tunes, compiles, imports and verifies a layer on the machine, with its compiler."""
    log = directory / "native.jsonl"
    for words in (
        ["convtune", "doctor"],
        ["convtune", "tune", NATIVE, "--target", "native", "--trials", "2", "--log", str(log)],
        ["convtune", "compile", NATIVE, "--target", "native", "--log", str(log), "-o", "kernel"],
        ["python3", "-c", COMPARE],
        ["convtune", "verify", "kernel"],
    ):
        said = shlex.join(word for word in words if "\n" not in word)
        output = directory / f"{len(list(directory.iterdir()))}.txt"
        with _timed(said), _process(machine.command(words), output, machine.environment(), directory) as running:
            running.wait()
        _check_exit(running, f"{said}, on the machine,", output)
        if words[-1] == COMPARE:
            click.echo(output.read_text(), nl=False)
    final = [record for record in _records(log) if record.status == "ok" and record.round == "final"]
    _check(bool(final), f"{log} has no winner")
    _check(all(record.target["family"] == "arm" for record in final), f"{log} is of {final[0].target}")


# ---- both ----------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _process(
    command: Sequence[str], output: Path, environment: Mapping[str, str], directory: Path | None = None
) -> Iterator[Process]:
    """A program in a group of its own, which is ended with it."""
    with output.open("wb") as file:
        started = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            cwd=directory,
            env=environment,
            start_new_session=True,
        )
    try:
        yield started
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(started.pid, signal.SIGKILL)
        started.wait()


@contextlib.contextmanager
def _timed(what: str) -> Iterator[None]:
    started = time.monotonic()
    yield
    click.echo(f"{what}: {time.monotonic() - started:.0f} s", err=True)


def _check_exit(process: Process, what: str, output: Path) -> None:
    end = "\n".join(output.read_text(errors="replace").splitlines()[-20:])
    _check(process.returncode == 0, f"{what} ended with {process.returncode}; its last lines:\n{end}")


def _check(condition: bool, otherwise: str) -> None:
    if not condition:
        raise ProofError(otherwise)


def _wait(condition: Callable[[], bool], seconds: float, what: str) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        _check(time.monotonic() < deadline, f"{what}: not in {seconds:g} s")
        time.sleep(0.2)


PARTS: Mapping[str, Callable[[Machine, Path], None]] = {"rpc": over_rpc, "native": natively}


@click.command(help=__doc__)
@click.argument("parts", nargs=-1, type=click.Choice([*PARTS]), metavar="[rpc] [native]")
@click.option("--home", type=click.Path(path_type=Path), default=HOME, show_default="build/arm")
def main(parts: Sequence[str], home: Path) -> None:
    machine = Machine(home.absolute())
    machine.up()
    for part in parts or PARTS:
        directory = machine.home / "proof" / part
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir(parents=True)
        PARTS[part](machine, directory)


if __name__ == "__main__":
    main()
