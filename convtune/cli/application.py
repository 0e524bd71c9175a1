"""The `convtune` program: finds the command, and turns what went wrong into one line and an exit code."""

from __future__ import annotations

import errno
import importlib
import os
import shlex
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import click

from convtune import __version__
from convtune.errors import BuildError, ConvtuneError, MeasureError, ScheduleError, VerifyError
from convtune.tvm_alone import import_tvm_alone

COMMANDS = ("tune", "compile", "bench", "verify", "report", "compare", "show", "log", "serve", "doctor")
"""Each is a module of this package with a click command named `command`, imported when it is called."""

DONE, FAILED, BAD_INPUT = 0, 1, 2
INTERRUPTED, READER_GONE, TERMINATED = 130, 141, 143  # as shells report SIGINT, SIGPIPE and SIGTERM
_FAILURES = (BuildError, MeasureError, ScheduleError, VerifyError)
"""What the user's input is not to blame for."""
_UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EBADF)


@dataclass(frozen=True)
class Invocation:
    """What was typed, so that it can be shown and typed again."""

    arguments: tuple[str, ...]

    def __str__(self) -> str:
        return shlex.join(["convtune", *self.arguments])


class TerminatedError(KeyboardInterrupt):
    """SIGTERM, which ends a command as Ctrl-C does: with what was done kept, and no temporary files left."""


def exit_code_of(stop: BaseException | None) -> int:
    """Of a command that a KeyboardInterrupt stopped."""
    return TERMINATED if isinstance(stop, TerminatedError) else INTERRUPTED


class Application(click.Group):
    """The group of all commands. A command returns its exit code; None means DONE."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = importlib.import_module(f"convtune.cli.{cmd_name}").command
        return command

    def invoke(self, ctx: click.Context) -> Any:
        try:
            code = super().invoke(ctx)
            sys.stdout.flush()
        except BrokenPipeError:
            _discard_output()
            return READER_GONE
        return code

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        **extra: Any,
    ) -> Any:
        """Runs the program; leaves with its exit code, unless click is to hand errors on (standalone_mode=False)."""
        arguments = sys.argv[1:] if args is None else list(args)
        extra["obj"] = Invocation(tuple(arguments))
        if not standalone_mode:
            return super().main(arguments, "convtune", complete_var, False, **extra)
        sys.exit(self._exit_code(arguments, complete_var, extra))

    def _exit_code(self, arguments: list[str], complete_var: str | None, extra: dict[str, Any]) -> int:
        try:
            return super().main(arguments, "convtune", complete_var, False, **extra) or DONE
        except click.exceptions.NoArgsIsHelpError as error:
            error.show()
            return BAD_INPUT
        except click.UsageError as error:
            command = error.ctx.command_path if error.ctx else "convtune"
            _complain(f"{error.format_message()} See `{command} --help`.")
            return BAD_INPUT
        except click.ClickException as error:
            _complain(error.format_message())
            return BAD_INPUT
        except click.Abort as stop:
            click.echo("convtune: interrupted", err=True)
            return exit_code_of(stop.__cause__)
        except ConvtuneError as error:
            _complain(str(error))
            return FAILED if isinstance(error, _FAILURES) else BAD_INPUT
        except OSError as error:
            # commands report the files that they name themselves; a stream has no name
            if error.filename is None and error.errno in _UNWRITABLE:
                _discard_output()
                _complain(f"the output cannot be written: {error.strerror}")
            else:
                _complain(str(error))
            return FAILED


def _discard_output() -> None:
    """Gives up standard output: what is still buffered must not fail again when Python ends."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def one_line(text: str) -> str:
    """The text with its line breaks replaced, for messages that quote what a compiler said."""
    return " | ".join(line.strip() for line in text.splitlines() if line.strip())


def _complain(message: str) -> None:
    click.echo(f"convtune: error: {one_line(message)}", err=True)


def main() -> None:
    """The entry point of the `convtune` program."""
    # Python has None for a stream that was closed before it began
    sys.stdout = sys.stdout or Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115
    sys.stderr = sys.stderr or Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # where the locale has no µs, a question mark is better than none
    if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        signal.signal(signal.SIGTERM, _terminate)
    import_tvm_alone()
    application()


def _terminate(number: int, frame: FrameType | None) -> NoReturn:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # once is enough: what follows must not be interrupted
    raise TerminatedError


@click.group(cls=Application)
@click.version_option(__version__, prog_name="convtune", message="%(prog)s %(version)s")
def application() -> None:
    """Tunes and compiles convolutions: fast in seconds, verified before they are timed.

    A WORKLOAD is a network of the zoo (mobilenet_v2) or its layers (mobilenet_v2/dw144_56), a spec such as
    conv,ic=64,oc=64,in=56x56,k=3x3,p=1, a oneDNN benchdnn problem string, or a .onnx, .json or .csv file.

    Results go to standard output, progress to standard error. The exit code is 0 when all was done, 1 when something
    failed to tune or verify, 2 for bad input.
    """
