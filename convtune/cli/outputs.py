"""Where the text of a report goes, and in which format."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path

import click

from convtune.errors import LogError

_ENDINGS = {".html": "html", ".htm": "html", ".txt": "text", ".md": "markdown", ".csv": "csv", ".json": "json"}


def as_json(form: str | None) -> str:
    """The format that --json is; raises UsageError where another is asked for too."""
    if form not in (None, "json"):
        raise click.UsageError(f"--json is --format json, and --format {form} is given.")
    return "json"


def format_of(form: str | None, output: Path | None, allowed: Sequence[str]) -> str:
    """The format asked for, or that of the file's ending.

    Raises:
        UsageError: that is none of the allowed.
        MissingPackageError: it needs a package that is not installed.
    """
    known = {ending: named for ending, named in _ENDINGS.items() if named in allowed}
    if form is None and output is not None:
        form = known.get(output.suffix.lower())
        if form is None:
            endings = ", ".join(known)
            raise click.UsageError(
                f"-o {output}: its ending tells no format; it must be one of {endings}, or give --format."
            )
    form = form or "text"
    if form == "html" and output is None:
        raise click.UsageError("--format html needs -o FILE.")
    if form == "html":
        from convtune.report.page import check_packages

        check_packages()
    return form


def spare(inputs: Iterable[Path], output: Path | None) -> None:
    """Raises LogError where the output would replace an input, or what is no file, such as /dev/null."""
    if output is None or not output.exists():
        return
    if not output.is_file():
        what = "a directory" if output.is_dir() else "a device, pipe or socket"
        raise LogError(f"-o {output} is {what}; it must be a file")
    for path in inputs:
        if path.exists() and output.samefile(path):
            raise LogError(f"-o {output} would overwrite {path}, which is read; it must be another file")


def write(text: str, output: Path | None) -> None:
    """Prints the text, or writes the file whole or not at all, and says where it is.

    Raises:
        LogError: the file cannot be written.
    """
    if output is None:
        click.echo(text, nl=not text.endswith("\n"))
        return
    unfinished = output.with_name(f".{output.name}.unfinished")
    try:
        unfinished.write_text(text, encoding="utf-8")
        unfinished.replace(output)
    except OSError as error:
        with suppress(OSError):  # it may not have been made
            unfinished.unlink()
        raise LogError(f"report {output} cannot be written: {error.strerror}") from error
    click.echo(f"convtune: wrote {output}", err=True)
