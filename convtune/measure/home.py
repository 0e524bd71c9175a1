"""The temporary directory of a bench, which the next bench removes if this one is killed."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
import weakref
from pathlib import Path

PREFIX = "convtune-bench-"
_UNLOCKED_PREFIX = "convtune-new-"


class Home:
    """A new directory, only its owner's, locked as long as this process lives.

    A lock, unlike a process number in the name, cannot be mistaken: it goes with the process, however it ends, numbers
    are used again, and containers that share a directory have numbers of their own.
    """

    def __init__(self, parent: Path | None = None) -> None:
        """parent: where it goes; None: the system's place. What dead processes left there is removed."""
        place = Path(tempfile.gettempdir() if parent is None else parent).absolute()
        remove_leftovers(place)
        unlocked = Path(tempfile.mkdtemp(prefix=_UNLOCKED_PREFIX, dir=place))
        self._lock = _open(unlocked)
        _try_to_lock(self._lock)  # where it fails, it fails for others too, who then leave the directory alone
        # renamed only now: under its new name nobody must see it unlocked
        self.path = unlocked.rename(place / unlocked.name.replace(_UNLOCKED_PREFIX, PREFIX, 1))
        self._remove = weakref.finalize(self, _remove, self.path, self._lock, os.getpid())

    def close(self) -> None:
        """Removes the directory. May be called twice; happens by itself when the program ends."""
        self._remove()


def remove_leftovers(parent: Path) -> None:
    """Removes the directories of benches whose processes are gone: the user's own, and nobody holds their lock."""
    for path in parent.glob(f"{PREFIX}*"):
        try:
            descriptor = _open(path)
        except OSError:  # no directory, another user's, or gone by now: not ours to remove
            continue
        try:
            if os.fstat(descriptor).st_uid == os.geteuid() and _try_to_lock(descriptor):
                shutil.rmtree(path, ignore_errors=True)  # what stays is for the next bench
        finally:
            os.close(descriptor)


def _open(path: Path) -> int:
    return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)


def _try_to_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:  # held, or the file system, such as some network ones, has no locks
        return False
    return True


def _remove(path: Path, lock: int, owner: int) -> None:
    if os.getpid() == owner:  # a forked child is not the bench
        shutil.rmtree(path)
    os.close(lock)
