"""Where the text of a report goes, and in which format: the options -o and --format, and what they mean."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path

import click

from convtune.cli import options
from convtune.cli.options import F
from convtune.errors import LogError

_ENDINGS = {".html": "html", ".htm": "html", ".txt": "text", ".md": "markdown", ".csv": "csv", ".json": "json"}


def file_and_format(formats: Sequence[str]) -> Callable[[F], F]:
    """The options -o and --format."""
    where = click.option(
        "-o", "--output", type=options.PLACE, metavar="FILE", help="Where it goes; its ending tells the format."
    )
    how = click.option(
        "--format", "form", type=click.Choice(formats), help="Otherwise by FILE's ending, and text without one."
    )
    return lambda command: where(how(command))


def format_of(form: str | None, as_json: bool, output: Path | None, allowed: Sequence[str]) -> str:
    """The format asked for, by --json or by name, or that of the file's ending.

    Raises:
        UsageError: that is none of the allowed, or two are asked for.
        MissingPackageError: it needs a package that is not installed.
    """
    if as_json and form not in (None, "json"):
        raise click.UsageError(f"--json is --format json, and --format {form} is given.")
    form = "json" if as_json else form
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
