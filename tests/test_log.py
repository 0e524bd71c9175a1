"""The log: nothing that was acknowledged is lost, whatever dies, tears, or writes at the same time."""

from __future__ import annotations

import codecs
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from record_samples import OTHER_SPEC, SPEC, failure, make, target

import convtune.log_file
from convtune import log_tools
from convtune.errors import LogError
from convtune.log import Log
from convtune.record import LONGEST_LINE_BYTES, NewerSchemaError
from convtune.spec import ConvSpec

HERE = Path(__file__).parent


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "log.jsonl"


def seeds(path: Path) -> list[int]:
    return [record.seed for record in Log(path).records()]


def python(code: str, *arguments: object, **options: Any) -> subprocess.Popen[str]:
    """A process that has `make` and `Log` at hand."""
    preamble = (
        f"import sys; sys.path.insert(0, {str(HERE)!r})\nfrom record_samples import *; from convtune.log import *\n"
    )
    command = [sys.executable, "-c", preamble + code, *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, **options)


# Reading and appending


def test_what_is_appended_is_read_in_order_and_by_spec_and_target(path: Path) -> None:
    first, second = make(1.0), make(2.0, spec=OTHER_SPEC)
    third, fourth = failure("timeout"), make(3.0, target=target(fingerprint="f1"))
    log = Log(path)
    log.append([first, second])
    log.append(iter([third, fourth]))
    assert log.records() == Log(path).records() == [first, second, third, fourth]
    assert log.records(spec=SPEC) == log.records(ConvSpec.parse(SPEC)) == [first, third, fourth]
    assert log.records(SPEC, "f1") == log.records(fingerprint="f1") == [fourth]
    assert log.records("pointwise,ic=1,oc=1,in=1,k=1") == []
    assert log.problems == [] and log.torn is None and log.repairs == []


def test_a_log_that_is_not_there_is_empty_and_stays_away(path: Path) -> None:
    log = Log(path)
    log.append([])
    assert log.records() == [] and not path.exists()
    with pytest.raises(LogError, match=r"log .*log\.jsonl does not exist"):
        Log(path, must_exist=True)


def test_missing_directories_are_made(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "log.jsonl"
    Log(path).append([make()])
    assert len(Log(str(path)).records()) == 1


def test_others_appends_are_seen_and_only_they_are_read(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mine, other = Log(path), Log(path)
    mine.append([make(seed=i) for i in range(50)])
    assert len(mine.records()) == 50
    read: list[int] = []
    original = convtune.log_file._parse
    monkeypatch.setattr("convtune.log_file._parse", lambda text, length: read.append(length) or original(text, length))
    assert len(mine.records()) == 50 and read == []
    other.append([make(seed=50), make(seed=51)])
    assert [r.seed for r in mine.records()] == [*range(52)] and len(read) == 2


@pytest.mark.parametrize("keep_inode", [False, True])
def test_a_replaced_file_is_read_anew(path: Path, keep_inode: bool) -> None:
    log = Log(path)
    log.append([make(seed=1), make(seed=2)])
    assert len(log.records()) == 2
    text = make(seed=33).line() + make(seed=4).line() + make(seed=5).line() + b"bad\n"
    if keep_inode:
        path.write_bytes(text)
    else:
        (path.parent / "new").write_bytes(text)
        (path.parent / "new").replace(path)
    assert [record.seed for record in log.records()] == [33, 4, 5] and [p.line for p in log.problems] == [4]
    path.unlink()
    assert log.records() == [] and log.problems == []


def test_a_replaced_file_that_ends_the_same_is_read_anew(path: Path) -> None:
    log = Log(path)
    log.append([make(seed=1), make(seed=2)])
    assert [record.seed for record in log.records()] == [1, 2]
    (path.parent / "new").write_bytes(make(seed=3).line() + make(seed=2).line())
    (path.parent / "new").replace(path)
    assert [record.seed for record in log.records()] == [3, 2]


# Lines that are no records


def test_bad_lines_are_reported_with_their_numbers_and_the_rest_is_read(path: Path) -> None:
    good = [make(seed=i).line() for i in range(4)]
    overlong = b'"' + b"x" * (2 * LONGEST_LINE_BYTES) + b'"\n'
    path.write_bytes(good[0] + b"\xff\x00\n" + good[1] + b"\n  \n{}\n" + overlong + good[2])
    log = Log(path)
    assert [record.seed for record in log.records()] == [0, 1, 2]
    assert [(p.line, p.reason.split(":")[0]) for p in log.problems] == [
        (2, "not UTF-8"),
        (6, "schema=None is not a schema number; this convtune reads up to 1"),
        (7, f"longer than {LONGEST_LINE_BYTES} bytes"),
    ]
    assert str(log.problems[1]).startswith(f"{path} line 6: schema=None")
    before = path.read_bytes()
    log.append([make(seed=3)])
    assert path.read_bytes() == before + good[3] and len(log.records()) == 4 and len(log.problems) == 3


def test_byte_order_marks_are_passed_over(path: Path, tmp_path: Path) -> None:
    """At the start, and within where such files were joined; what the tools write has none."""
    first, second = (codecs.BOM_UTF8 + make(seed=i).line() for i in range(2))
    path.write_bytes(first + second + make(seed=0).line() + codecs.BOM_UTF8)
    log = Log(path)
    assert [record.seed for record in log.records()] == [0, 1, 0] and log.problems == []
    log_tools.merge([path], tmp_path / "merged.jsonl")
    assert (tmp_path / "merged.jsonl").read_bytes() == make(seed=0).line() + make(seed=1).line()
    assert (
        log_tools.export(path, "jsonl").text.encode() == make(seed=0).line() + make(seed=1).line() + make(seed=0).line()
    )
    path.write_bytes(first.removesuffix(b"\n"))
    Log(path).append([make(seed=2)])
    assert path.read_bytes() == first + make(seed=2).line()


@pytest.mark.parametrize("garbage", [os.urandom(5000).replace(b"\n", b""), b"\0" * 4096, b"{" * 100])
def test_garbage_without_a_line_end_is_moved_aside(path: Path, garbage: bytes) -> None:
    path.write_bytes(garbage)
    log = Log(path)
    assert log.records() == [] and log.torn and log.torn.line == 1 and log.problems == []
    log.append([make()])
    assert log.records() == [make()] and log.torn is None
    assert path.with_name("log.jsonl.torn").read_bytes() == garbage + b"\n"


def test_an_empty_file_is_an_empty_log(path: Path) -> None:
    path.touch()
    assert Log(path, must_exist=True).records() == []
    Log(path).append([make()])
    assert path.read_bytes() == make().line()


def test_crlf_lines_are_records(path: Path) -> None:
    path.write_bytes(b"".join(make(seed=i).line().replace(b"\n", b"\r\n") for i in range(3)))
    log = Log(path)
    log.append([make(seed=3)])
    assert [record.seed for record in log.records()] == [0, 1, 2, 3] and not log.problems and not log.repairs


def test_a_newer_schema_is_an_error_with_its_line_every_time(path: Path) -> None:
    path.write_bytes(make().line() + b'{"schema":2,"spec":[]}\n' + make().line())
    log = Log(path)
    for _ in range(2):
        with pytest.raises(
            NewerSchemaError, match=r"log\.jsonl line 2: written by a newer convtune, schema 2; this one reads up to 1"
        ):
            log.records()


# A torn last line


def test_a_last_line_torn_anywhere_is_repaired_and_nothing_is_lost(tmp_path: Path) -> None:
    whole, last, new = make(seed=1).line(), make(seed=2).line(), make(seed=3)
    for cut in range(1, len(last)):
        path = tmp_path / f"{cut}.jsonl"
        path.write_bytes(whole + last[:cut])
        log = Log(path)
        before = [record.seed for record in log.records()]
        log.append([new])
        side = path.with_name(path.name + ".torn")
        assert len(log.repairs) == 1 and str(path) in log.repairs[0] and not log.problems
        if cut == len(last) - 1:  # only the newline is missing
            assert before == [1, 2] and path.read_bytes() == whole + last + new.line() and not side.exists()
            assert [record.seed for record in log.records()] == [1, 2, 3]
        else:
            assert before == [1] and path.read_bytes() == whole + new.line() and side.read_bytes() == last[:cut] + b"\n"
            assert [record.seed for record in log.records()] == seeds(path) == [1, 3]


def test_line_numbers_stay_right_after_a_missing_newline(path: Path) -> None:
    path.write_bytes(make(seed=1).line() + make(seed=2).line()[:-1])
    log = Log(path)
    assert len(log.records()) == 2
    log.append([make(seed=3)])
    with path.open("ab") as file:
        file.write(b"bad\n")
    assert len(log.records()) == 3 and [p.line for p in log.problems] == [4]


def test_several_torn_lines_gather_in_one_file(path: Path) -> None:
    for i in range(3):
        with path.open("ab") as file:
            file.write(b"torn %d" % i)
        Log(path).append([make(seed=i)])
    assert seeds(path) == [0, 1, 2]
    assert path.with_name("log.jsonl.torn").read_bytes() == b"torn 0\ntorn 1\ntorn 2\n"


def test_a_torn_end_longer_than_any_block_is_moved_whole(path: Path) -> None:
    tail = b"x" * 200_001
    path.write_bytes(make().line() + tail)
    Log(path).append([make()])
    assert path.read_bytes() == 2 * make().line()
    assert path.with_name("log.jsonl.torn").read_bytes() == tail + b"\n"


# Processes that die, and processes at the same time


def test_kill_9_loses_at_most_the_record_in_flight(path: Path) -> None:
    writer = """
log, seed = Log(sys.argv[1]), int(sys.argv[2])
while True:
    log.append([make(seed=seed, message="m" * 3000)])
    print(seed, flush=True)
    seed += 1
"""
    start = 0
    for run in range(8):
        with python(writer, path, start) as process:
            assert process.stdout
            acknowledged = [int(process.stdout.readline())]
            time.sleep(0.003 * run)
            process.send_signal(signal.SIGKILL)
            acknowledged += [
                int(line) for line in process.stdout.read().splitlines(keepends=True) if line.endswith("\n")
            ]
        found = [seed for seed in seeds(path) if seed >= start]
        assert found in (acknowledged, [*acknowledged, acknowledged[-1] + 1])
        start = found[-1] + 1
    log = Log(path)
    log.append([make(seed=start)])
    assert [record.seed for record in log.records()] == [*range(start + 1)] and not log.problems


def test_processes_append_at_the_same_time_while_another_reads(path: Path) -> None:
    writer = """
log = Log(sys.argv[1])
for i in range(60):
    log.append([make(seed=1000 * int(sys.argv[2]) + 2 * i + j, message="m" * (97 * i)) for j in range(2)])
"""
    processes = [python(writer, path, i) for i in range(4)]
    reader = Log(path)
    while any(process.poll() is None for process in processes):
        reader.records()
        assert not reader.problems and reader.torn is None
    for process in processes:
        assert process.communicate() and process.returncode == 0
    found = [record.seed for record in reader.records()]
    for i in range(4):
        assert [seed for seed in found if seed // 1000 == i] == [1000 * i + k for k in range(120)]
    # both records of a batch are neighbours
    assert all(b == a + 1 for a, b in zip(found[::2], found[1::2]))


def test_a_writer_that_waited_while_the_file_was_replaced_writes_into_the_new_one(path: Path) -> None:
    Log(path).append([make(seed=1)])
    with convtune.log_file.locked(path):
        process = python("Log(sys.argv[1]).append([make(seed=2)]); print('done')", path)
        time.sleep(0.5)
        assert process.poll() is None
        convtune.log_file.replace_file(path, [make(seed=3).line()])
    assert process.communicate()[0] == "done\n"
    assert seeds(path) == [3, 2]


def test_a_forked_child_does_not_keep_the_lock(path: Path) -> None:
    holder = """
from convtune.log_file import locked
import os, time
with locked(Path(sys.argv[1])):
    child = os.fork()
    if child == 0:
        os.close(1)
        time.sleep(60)
        os._exit(0)
print(child)
"""
    with python(holder, path) as process:
        child = int(process.communicate(timeout=20)[0])
    try:
        with python("Log(sys.argv[1]).append([make()]); print('done')", path) as process:
            assert process.communicate(timeout=20)[0] == "done\n"
    finally:
        os.kill(child, signal.SIGKILL)


# Files that cannot be logs


@pytest.mark.parametrize("path", ["", None, 3, b""])
def test_what_is_no_path_is_no_log(path: Any) -> None:
    with pytest.raises(LogError, match=f"log is {path!r}; it must be the path of a file"):
        Log(path)


def test_a_directory_is_no_log(tmp_path: Path) -> None:
    with pytest.raises(LogError, match=f"^log {tmp_path} is a directory; it must be a file$"):
        Log(tmp_path)


def test_what_becomes_a_directory_later_is_no_log(path: Path) -> None:
    log = Log(path)
    path.mkdir()
    for use in (log.records, lambda: log.append([make()])):
        with pytest.raises(LogError, match="is a directory"):
            use()


@pytest.mark.parametrize("exists", [True, False])
def test_a_symbolic_link_is_no_log(tmp_path: Path, exists: bool) -> None:
    link, file = tmp_path / "link", tmp_path / "file.jsonl"
    link.symlink_to(file)
    if exists:
        file.write_bytes(make().line())
    with pytest.raises(LogError, match=f"log {link} is a symbolic link; name the file itself, {file}"):
        Log(link)


def test_a_pipe_is_no_log_and_nothing_waits_for_it(path: Path) -> None:
    os.mkfifo(path)
    with pytest.raises(LogError, match="is a device, pipe or socket; it must be a file"):
        Log(path)


@pytest.mark.parametrize("place", ["file/log.jsonl", "file/deep/log.jsonl"])
def test_a_file_where_a_directory_should_be_is_named(tmp_path: Path, place: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(LogError, match=f"log {tmp_path / place}: Not a directory"):
        Log(tmp_path / place).append([make()])


def test_a_directory_that_cannot_be_made_is_named() -> None:
    with pytest.raises(LogError, match=r"log /proc/convtune/log\.jsonl: .* \(/proc/convtune\)"):
        Log("/proc/convtune/log.jsonl").append([make()])


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read and write everything")
@pytest.mark.parametrize("mode", [0o000, 0o444])
def test_a_file_without_permission_is_named(path: Path, mode: int) -> None:
    path.write_bytes(make().line())
    path.chmod(mode)
    with pytest.raises(LogError, match=f"log {path}: Permission denied"):
        Log(path).append([make()])
    if mode == 0:
        with pytest.raises(LogError, match=f"log {path}: Permission denied"):
            Log(path).records()


def test_a_full_disk_leaves_the_log_as_it_was(path: Path) -> None:
    # the system takes the first bytes of the second write and then refuses, as a full disk does
    code = """
import resource
log = Log(sys.argv[1])
log.append([make(seed=1)])
size = log.path.stat().st_size
resource.setrlimit(resource.RLIMIT_FSIZE, (size + 100, size + 100))
try:
    log.append([make(seed=2), make(seed=3)])
except LogError as error:
    print(error)
"""
    with python(code, path) as process:
        assert process.communicate()[0] == f"log {path}: File too large\n"
    assert path.read_bytes() == make(seed=1).line()
