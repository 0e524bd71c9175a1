"""Several machines that share kernels, with workers that answer as a script says: who gets what when one is lost."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from multiprocessing import Pipe
from types import SimpleNamespace
from typing import Any, ClassVar

import measure_kernels as kernels
import pytest

from convtune.errors import MeasureError, TargetError
from convtune.measure import rpc_machines
from convtune.measure.bench import Built, Limits
from convtune.measure.device import Measurement, Prepare
from convtune.measure.rpc_device import NO_SESSION, SESSION_ENDED, Join
from convtune.measure.rpc_machines import Machines
from convtune.measure.rpc_queue import Gauge, Queue, Task
from convtune.measure.worker import Batch, Reply
from convtune.space import Candidate
from convtune.spec import ConvSpec

OK, LOST, GONE = (
    Reply("ok", Measurement("ok")),
    Reply("error", message=f"{SESSION_ENDED}reset"),
    Reply("error", message=NO_SESSION),
)
DEFAULT, PREPARED = Candidate("s", {"a": 0}), "prepared"


class ScriptedWorker:
    """As `worker.Worker`; its answers are there at once: to joining, its address; to a task, what `answer` says."""

    running = ready = busy = died_idle = False
    deadline = float("inf")
    events: ClassVar[list[tuple[str, ScriptedWorker]]] = []  # of references

    def __init__(self, address: str | Reply, answer: Callable[[str, Any], Reply]) -> None:
        self.address, self.answer = address, answer
        self.joined = 0
        self.connection, self._theirs = Pipe()

    def start(self) -> None:
        self.running = self.ready = True

    def stop(self) -> int:
        self.running = self.ready = self.busy = False
        return 0

    @property
    def waits(self) -> bool:
        return self.busy

    def submit(self, request: Any, _seconds: float, _memory_bytes: int) -> None:
        self.busy = True
        if isinstance(request, Join):
            self.joined += 1
            reply = self.address if isinstance(self.address, Reply) else Reply("ok", self.address)
        elif isinstance(request, Prepare):
            reply = Reply("ok", PREPARED)
            self.events.append(("asked", self))
        else:
            reply = self.answer(str(self.address), request)
        self._theirs.send(reply)

    def receive(self) -> Reply:
        self.busy = False
        reply: Reply = self.connection.recv()
        if reply.value == PREPARED:
            self.events.append(("answered", self))
        return reply


def machines(monkeypatch: pytest.MonkeyPatch, workers: Sequence[ScriptedWorker]) -> Machines:
    monkeypatch.setattr(rpc_machines, "_PAUSE_S", 0.01)
    made = iter(workers)
    remote: Any = SimpleNamespace(servers=lambda: len(workers), key="k")
    all_machines = Machines(remote, lambda: next(made), Limits())  # type: ignore[arg-type, return-value]
    all_machines.look()
    assert len(all_machines) == len(workers)
    return all_machines


def no_builds() -> Batch:
    return Batch([], [], 1.0, 0)


def done(
    all_machines: Machines, tasks: Sequence[Task], gauge: Gauge | None = None, spec: ConvSpec = kernels.SPEC
) -> list[Task]:
    queue = Queue(no_builds(), gauge)
    for task in tasks:
        queue.add(task)
    return [task for task in all_machines.work(spec, queue, no_builds()) if task is not None]


def candidates(count: int, attempts: int = 1) -> list[Task]:
    """Tasks of candidates, the default first. A request is the candidate's number."""
    made = []
    for number in range(count):
        built = Built(Candidate("s", {"a": number}), "ok")
        made.append(Task(lambda _, number=number: number, 1.0, built, attempts))  # type: ignore[misc]
    return made


def numbers(tasks: Sequence[Task]) -> list[tuple[int, str, str]]:
    found = [(int(t.built.candidate.knobs["a"]), t.device, t.reply.status) for t in tasks if t.built]
    return sorted(found)


def once(address: str, request: int, reply: Reply) -> Callable[[str, Any], Reply]:
    """Gives that reply to the first such request there, OK to all others."""
    given: Iterator[Reply] = itertools.chain([reply], itertools.repeat(OK))
    return lambda at, asked: next(given) if (at, asked) == (address, request) else OK


def test_all_machines_measure(monkeypatch: pytest.MonkeyPatch) -> None:
    workers = [ScriptedWorker(address, lambda *_: OK) for address in ("a:1", "b:1", "c:1")]
    found = numbers(done(machines(monkeypatch, workers), candidates(9)))
    assert [number for number, _, _ in found] == list(range(9))
    assert {device for _, device, _ in found} == {"a:1", "b:1", "c:1"}


def test_a_lost_machine_costs_its_candidate_and_comes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    workers = [ScriptedWorker("a:1", once("a:1", 0, LOST)), ScriptedWorker("b:1", lambda *_: OK)]
    tasks = done(machines(monkeypatch, workers), candidates(8))
    found = numbers(tasks)
    assert found[0] == (0, "a:1", "crash") and {status for _, _, status in found[1:]} == {"ok"}
    assert next(t.reply.message for t in tasks if t.reply.status == "crash") == "reset"
    assert workers[0].joined == 2 and [device for _, device, _ in found[1:]].count("a:1") > 0


def test_a_session_that_ended_before_costs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    workers = [ScriptedWorker("a:1", once("a:1", 0, GONE))]
    assert numbers(done(machines(monkeypatch, workers), candidates(2))) == [(0, "a:1", "ok"), (1, "a:1", "ok")]
    assert workers[0].joined == 2


@pytest.mark.parametrize("loss", [LOST, Reply("ok", Measurement("crash", suspect=True))])
def test_what_others_depend_on_goes_to_another_machine(monkeypatch: pytest.MonkeyPatch, loss: Reply) -> None:
    workers = [ScriptedWorker("a:1", lambda *_: loss), ScriptedWorker("b:1", lambda *_: OK)]
    both = machines(monkeypatch, workers)
    (task,) = done(both, candidates(1, attempts=9))
    assert (task.device, task.reply) == ("b:1", OK)
    (task,) = done(machines(monkeypatch, [ScriptedWorker("a:1", lambda *_: loss)]), candidates(1, attempts=3))
    assert task.reply.status == ("crash" if loss is LOST else "ok")


def test_no_machine_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    none = Reply("error", message="MeasureError: no server with key 'k' was free for 60 s")
    with pytest.raises(MeasureError, match=r"^no server with key 'k' was free for 60 s$"):
        done(machines(monkeypatch, [ScriptedWorker(none, lambda *_: OK) for _ in range(2)]), candidates(3))
    silent = Reply("crash", message="SIGALRM")
    with pytest.raises(MeasureError, match=r"^no RPC session with a server of key 'k': they take it, and are silent$"):
        done(machines(monkeypatch, [ScriptedWorker(silent, lambda *_: OK)]), candidates(3))
    one = [ScriptedWorker(none, lambda *_: OK), ScriptedWorker("b:1", lambda *_: OK)]
    assert {device for _, device, _ in numbers(done(machines(monkeypatch, one), candidates(3)))} == {"b:1"}


def test_a_machine_of_another_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    other = Reply("error", message="TargetError: a:1 (aarch64-linux-gnu) does not load libraries for the target")
    with pytest.raises(TargetError, match=r"^a:1 \(aarch64-linux-gnu\) does not load"):
        done(machines(monkeypatch, [ScriptedWorker(other, lambda *_: OK)]), candidates(3))


def test_one_machine_at_a_time_makes_a_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    """The others find it on the disk, where there is the last spec's alone."""
    workers = [ScriptedWorker(address, lambda *_: OK) for address in ("a:1", "b:1", "c:1")]
    all_machines = machines(monkeypatch, workers)
    for spec in (kernels.SPEC, kernels.WHOLE_LINES, kernels.SPEC):
        ScriptedWorker.events.clear()
        done(all_machines, candidates(9), spec=spec)
        (asked, first), (answered, second), *others = ScriptedWorker.events
        assert (asked, answered) == ("asked", "answered") and first is second and len(others) == 4


# ---- gauging --------------------------------------------------------------------------------------------


def gauged(machines: int) -> Gauge:
    (yardstick,) = candidates(1)
    return Gauge(kernels.SPEC, DEFAULT, machines, lambda: yardstick)


def test_every_machine_measures_the_yardstick_first(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[str, int]] = []

    def answer(address: str, request: int) -> Reply:
        seen.append((address, request))
        return OK

    both = machines(monkeypatch, [ScriptedWorker(address, answer) for address in ("a:1", "b:1")])
    gauge = gauged(2)
    done(both, candidates(6)[::-1], gauge)  # it comes last
    assert [next(number for at, number in seen if at == address) for address in ("a:1", "b:1")] == [0, 0]
    assert sorted(number for _, number in seen) == [0, 0, 1, 2, 3, 4, 5]
    done(both, candidates(4)[1:], gauge)
    assert sorted(number for _, number in seen[7:]) == [1, 2, 3], "they are known"


def test_one_machine_needs_no_yardstick(monkeypatch: pytest.MonkeyPatch) -> None:
    one = machines(monkeypatch, [ScriptedWorker("a:1", lambda *_: OK)])
    assert [number for number, _, _ in numbers(done(one, candidates(4)[1:], gauged(1)))] == [1, 2, 3]
    assert gauged(1).candidates([Candidate("s", {"a": 1})]) == [Candidate("s", {"a": 1})]


def test_the_yardstick_is_waited_for_until_it_is_built() -> None:
    yardstick, other = candidates(2)
    assert yardstick.built is not None and other.built is not None
    gauge = Gauge(kernels.SPEC, DEFAULT, 2)
    assert gauge.candidates([other.built.candidate]) == [DEFAULT, other.built.candidate]
    queue = Queue(no_builds(), gauge)
    queue.arrived(other.built.candidate, lambda: other, asked=True)
    assert queue.next("a:1") is None and queue.open
    queue.arrived(DEFAULT, lambda: yardstick, asked=False)
    assert queue.next("a:1") is yardstick and queue.next("a:1") is other and not queue.open
    broken = Queue(no_builds(), Gauge(kernels.SPEC, DEFAULT, 2))
    broken.arrived(other.built.candidate, lambda: other, asked=True)
    broken.arrived(DEFAULT, None, asked=False)
    assert broken.next("a:1") is other, "where it does not build, nothing is known, and the search goes on"
