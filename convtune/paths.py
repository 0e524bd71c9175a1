"""Where a user's own log and cache are."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from convtune.errors import ConvtuneError


def log_path() -> Path:
    """The user's log: CONVTUNE_LOG, or a file in the user's data directory. It need not exist.

    Raises:
        ConvtuneError: CONVTUNE_LOG names the home of a user that does not exist.
    """
    if named := _named("CONVTUNE_LOG"):
        return named
    import platformdirs

    return platformdirs.user_data_path("convtune", appauthor=False) / "log.jsonl"


def cache_dir() -> Path:
    """The user's cache directory: CONVTUNE_CACHE, or the system's place for one. Made with mode 0700 if missing.

    Raises:
        ConvtuneError: it cannot be made, or others could put code into it: it is not the user's, or they may write.
    """
    path = _named("CONVTUNE_CACHE")
    if path is None:
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


def _named(variable: str) -> Path | None:
    text = os.environ.get(variable)
    if not text:
        return None
    try:
        return Path(text).expanduser()
    except RuntimeError as error:
        raise ConvtuneError(
            f"environment variable {variable} is {text!r}: no such user has a home directory"
        ) from error
