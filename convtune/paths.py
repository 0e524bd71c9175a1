"""Where a user's own log and cache are."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from convtune.errors import ConvtuneError


def log_path() -> Path:
    """The user's log: CONVTUNE_LOG, or a file in the user's data directory. It need not exist."""
    named = os.environ.get("CONVTUNE_LOG")
    if named:
        return Path(named).expanduser()
    import platformdirs

    return platformdirs.user_data_path("convtune", appauthor=False) / "log.jsonl"


def cache_dir() -> Path:
    """The user's cache directory: CONVTUNE_CACHE, or the system's place for one. Made with mode 0700 if missing.

    Raises:
        ConvtuneError: it cannot be made, or others could put code into it: it is not the user's, or they may write.
    """
    named = os.environ.get("CONVTUNE_CACHE")
    if named:
        path = Path(named).expanduser()
    else:
        import platformdirs

        path = platformdirs.user_cache_path("convtune", appauthor=False)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.mkdir(mode=0o700, exist_ok=True)
        status = path.stat()
    except OSError as problem:
        raise ConvtuneError(f"cache directory {path} cannot be made: {problem.strerror}") from None
    if status.st_uid != os.geteuid():
        raise ConvtuneError(f"cache directory {path} belongs to user {status.st_uid}; it must be yours: name another")
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        mode = f"{stat.S_IMODE(status.st_mode):04o}"
        raise ConvtuneError(f"cache directory {path} has mode {mode}, so others may write to it; it must be 0700")
    return path
