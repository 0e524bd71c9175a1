"""The C runtime by itself, driven through ctypes: which tasks run, whose error is told, what memory is given."""

from __future__ import annotations

import ctypes
import itertools
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from runtime_kernels import cache_dir

from convtune.linker import build_runtime, find_compiler


class Env(ctypes.Structure):
    _fields_ = [("sync_handle", ctypes.c_void_p), ("num_task", ctypes.c_int32)]


LAMBDA = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int, ctypes.POINTER(Env), ctypes.c_void_p)


@pytest.fixture(scope="module")
def library() -> Any:
    runtime = ctypes.CDLL(str(build_runtime(find_compiler(), cache_dir()).library))
    runtime.convtune_alloc_workspace.restype = ctypes.c_void_p
    runtime.convtune_alloc_workspace.argtypes = [
        ctypes.c_int,
        ctypes.c_int,
        ctypes.c_uint64,
        ctypes.c_int,
        ctypes.c_int,
    ]
    runtime.convtune_free_workspace.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_void_p]
    runtime.convtune_kernel_error.restype = ctypes.c_char_p
    return runtime


@pytest.fixture(params=[1, 2, 4])
def threads(library: Any, request: pytest.FixtureRequest) -> Iterator[int]:
    before = library.convtune_num_threads()
    library.convtune_set_num_threads(request.param)
    yield request.param
    library.convtune_set_num_threads(before)


def launch(library: Any, task: Callable[[int, int], int], num_task: int = 0) -> int:
    function = LAMBDA(lambda index, env, _: task(index, env.contents.num_task))
    return int(library.convtune_parallel_launch(function, None, num_task))


@pytest.mark.parametrize("num_task", [0, 1, 2, 13, 40000])
def test_each_task_runs_once(library: Any, threads: int, num_task: int) -> None:
    ran: list[tuple[int, int]] = []
    assert launch(library, lambda index, count: ran.append((index, count)) or 0, num_task) == 0
    count = num_task or threads
    assert sorted(ran) == [(index, count) for index in range(count)]


def test_tasks_run_at_the_same_time(library: Any, threads: int) -> None:
    """Each waits for all the others, so that fewer threads than tasks would never end."""
    meeting = threading.Barrier(threads, timeout=60)
    assert launch(library, lambda index, count: meeting.wait() * 0) == 0


def test_sleeping_threads_wake_up(library: Any, threads: int) -> None:
    for _ in range(3):
        time.sleep(0.02)
        test_tasks_run_at_the_same_time(library, threads)


def affinities_of_workers(library: Any) -> list[set[int]]:
    """Where each thread of the pool may run, while all are in a region."""
    meeting = threading.Barrier(library.convtune_num_threads(), timeout=60)
    found: list[set[int]] = []

    def look(index: int, count: int) -> int:
        meeting.wait()
        if threading.get_native_id() != caller:
            found.append(os.sched_getaffinity(0))
        return 0

    caller = threading.get_native_id()
    assert launch(library, look) == 0
    return found


def test_threads_are_placed_on_cpus_of_their_own_while_that_is_asked_for(library: Any, threads: int) -> None:
    usable = os.sched_getaffinity(0)
    library.convtune_place_threads(1)
    try:
        placed = affinities_of_workers(library)
        assert len(placed) == threads - 1
        if threads <= len(usable):
            assert all(len(cpus) == 1 for cpus in placed)
            assert len(set().union(*placed)) == threads - 1
        else:
            assert placed == [usable] * (threads - 1)
    finally:
        library.convtune_place_threads(0)
    assert affinities_of_workers(library) == [usable] * (threads - 1)


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two CPUs")
def test_a_placed_thread_makes_room_for_the_caller(library: Any) -> None:
    usable, before = os.sched_getaffinity(0), library.convtune_num_threads()
    library.convtune_set_num_threads(2)
    library.convtune_place_threads(1)
    try:
        (first,) = affinities_of_workers(library)
        moved = first
        for _ in range(100):  # the system may move the caller back at any time
            os.sched_setaffinity(0, first)
            os.sched_setaffinity(0, usable)
            (moved,) = affinities_of_workers(library)
            if moved != first:
                break
        assert len(moved) == 1 and moved != first
        os.sched_setaffinity(0, first)
        affinities_of_workers(library)  # one CPU is too few
    finally:
        os.sched_setaffinity(0, usable)
        library.convtune_place_threads(0)
        library.convtune_set_num_threads(before)


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two CPUs")
def test_a_thread_leaves_the_callers_cpu_and_stays_free_to_go_anywhere(library: Any) -> None:
    usable, before = os.sched_getaffinity(0), library.convtune_num_threads()
    library.convtune_set_num_threads(2)
    here, caller = min(usable), threading.get_native_id()
    getcpu = ctypes.CDLL(None).sched_getcpu
    left = 0

    def join_the_caller() -> None:
        os.sched_setaffinity(0, {here})
        os.sched_setaffinity(0, usable)

    def in_worker(look: Callable[[], Any]) -> Any:
        found: list[Any] = []
        meeting = threading.Barrier(2, timeout=60)

        def task(index: int, count: int) -> int:
            meeting.wait()
            if threading.get_native_id() != caller:
                found.append(look())
            return 0

        assert launch(library, task) == 0
        return found[0]

    try:
        os.sched_setaffinity(0, {here})
        in_worker(lambda: os.sched_setaffinity(0, usable))
        for _ in range(20):
            in_worker(join_the_caller)
            time.sleep(0.003)  # it moves at most every 2 ms
            cpu, cpus = in_worker(lambda: (getcpu(), os.sched_getaffinity(0)))
            assert cpus == usable
            left += cpu != here
            time.sleep(0.003)  # it moves at most every 2 ms
    finally:
        os.sched_setaffinity(0, usable)
        library.convtune_set_num_threads(before)
    assert left > 10, left


@pytest.mark.parametrize("on", [0, 1])
def test_one_cpu_is_enough(library: Any, on: int) -> None:
    """There is nowhere to go to, and no mask is changed."""
    usable, before = os.sched_getaffinity(0), library.convtune_num_threads()
    try:
        os.sched_setaffinity(0, {min(usable)})
        library.convtune_set_num_threads(2)
        library.convtune_place_threads(on)
        for _ in range(3):
            assert affinities_of_workers(library) == [{min(usable)}]
    finally:
        os.sched_setaffinity(0, usable)
        library.convtune_place_threads(0)
        library.convtune_set_num_threads(before)


def test_a_region_in_a_region_runs_on_its_own_thread(library: Any, threads: int) -> None:
    seen: list[tuple[int, int]] = []

    def outer(index: int, count: int) -> int:
        here = threading.get_native_id()
        return launch(library, lambda i, n: seen.append((here, threading.get_native_id())) or 0, 5)

    assert launch(library, outer) == 0
    assert len(seen) == 5 * threads
    assert all(outer_thread == inner_thread for outer_thread, inner_thread in seen)


def test_the_error_of_another_thread_is_told(library: Any, threads: int) -> None:
    meeting = threading.Barrier(threads, timeout=60)

    def fail_in_last(index: int, count: int) -> int:
        meeting.wait()
        if index < count - 1:
            return 0
        parts = (ctypes.c_char_p * 3)(b"task ", None, str(index).encode())
        library.convtune_set_error(b"ValueError", parts, 3)
        return -1

    assert launch(library, fail_in_last) == -1
    assert library.convtune_kernel_error() == f"ValueError: task {threads - 1}".encode()
    assert launch(library, lambda index, count: 0) == 0


def test_long_messages_are_cut(library: Any) -> None:
    parts = (ctypes.c_char_p * 2)(b"x" * 900, b"y" * 900)
    library.convtune_set_error(b"E", parts, 2)
    assert library.convtune_kernel_error() == b"E: " + b"x" * 900 + b"y" * 120


def alloc(library: Any, size: int) -> int:
    return int(library.convtune_alloc_workspace(1, 0, size, 2, 32) or 0)


def free(library: Any, address: int) -> None:
    assert library.convtune_free_workspace(1, 0, address) == 0


def in_new_thread(function: Callable[[], None]) -> None:
    """A fresh thread has no blocks yet."""
    failures: list[BaseException] = []

    def run() -> None:
        try:
            function()
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if failures:
        raise failures[0]


def test_workspaces_are_aligned_apart_and_used_again(library: Any) -> None:
    def use() -> None:
        sizes = [1, 63, 64, 65, 100_000, 0, 3_000_000]
        first = [alloc(library, size) for size in sizes]
        for address, size in zip(first, sizes):
            assert address and address % 64 == 0
            ctypes.memset(address, 0xA5, size)
        spans = sorted((address, address + size) for address, size in zip(first, sizes))
        assert all(end <= start for (_, end), (start, _) in itertools.pairwise(spans))
        for address in (first[4], first[0], first[6], *first[1:4], first[5]):  # any order
            free(library, address)
        again = [alloc(library, size) for size in sizes]
        assert set(again) == set(first)
        for address in again:
            free(library, address)

    in_new_thread(use)


def test_workspaces_are_filled_where_that_is_asked_for(library: Any) -> None:
    def use() -> None:
        first = alloc(library, 1000)
        ctypes.memset(first, 0x11, 1000)
        free(library, first)
        for size in (10, 1000, 5000):  # of a block that is used again, and of a new one
            for byte in (0xFF, 0x7F):
                library.convtune_fill_workspace(byte)
                address = alloc(library, size)
                assert ctypes.string_at(address, size) == bytes([byte]) * size
                free(library, address)
        library.convtune_fill_workspace(-1)
        again = alloc(library, 5000)
        assert ctypes.string_at(again, 5000) == b"\x7f" * 5000
        free(library, again)

    try:
        in_new_thread(use)
    finally:
        library.convtune_fill_workspace(-1)


def test_a_small_workspace_in_a_large_block_is_filled_just_a_little_beyond_its_end(library: Any) -> None:
    """Else each small one of a kernel fills whatever a kernel before has left: minutes, where that was 300 MB."""

    def use() -> None:
        large = alloc(library, 1 << 20)
        ctypes.memset(large, 0x11, 1 << 20)
        free(library, large)
        library.convtune_fill_workspace(0xFF)
        small = alloc(library, 100)
        assert small == large
        assert ctypes.string_at(small, 200) == b"\xff" * 200
        assert ctypes.string_at(small + 65536, (1 << 20) - 65536) == b"\x11" * ((1 << 20) - 65536)
        free(library, small)

    try:
        in_new_thread(use)
    finally:
        library.convtune_fill_workspace(-1)


def test_growing_workspaces_do_not_pile_up(library: Any) -> None:
    def resident_kb() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * 4

    def use() -> None:
        before = resident_kb()
        for size in range(1_000_000, 41_000_000, 1_000_000):
            address = alloc(library, size)
            ctypes.memset(address, 1, size)
            free(library, address)
        assert resident_kb() - before < 120_000  # all of them together: 820 MB

    in_new_thread(use)


def test_workspaces_of_a_failed_kernel_can_be_released(library: Any) -> None:
    def use() -> None:
        lost = alloc(library, 5000)
        library.convtune_release_workspace()
        assert alloc(library, 5000) == lost
        library.convtune_release_workspace()

    in_new_thread(use)


def test_no_memory_is_an_error_and_not_a_crash(library: Any) -> None:
    for size in (2**62, 2**64 - 1, 2**64 - 64):
        assert alloc(library, size) == 0
        assert library.convtune_kernel_error() == f"MemoryError: no {size} bytes of scratch memory".encode()
