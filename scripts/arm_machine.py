"""Brings up a 64-bit ARM Linux machine without a board: QEMU's user mode, Debian's Python and gcc for arm64, convtune.

    python scripts/arm_machine.py up
    python scripts/arm_machine.py run convtune doctor
    python scripts/arm_machine.py run convtune serve --tracker 127.0.0.1:9190 --key arm
    python scripts/arm_machine.py run python3 -m pytest -q tests/test_spec.py

It needs neither root nor binfmt_misc: programs that start others find wrappers that call QEMU. Downloads come from
where this system's apt and pip have theirs, and nothing of the system is changed: all is in --home. `up` may be cut
short at any time, and `run` does first what is left of it. `scripts/arm_proof.py` shows convtune on such a machine.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib.metadata
import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import click

REPOSITORY = Path(__file__).resolve().parent.parent
HOME = REPOSITORY / "build" / "arm"
QEMU = "qemu-aarch64-static"
CPU = "max,sve-default-vector-length=32"
"""All that QEMU knows, with SVE's vectors as long as a Neoverse V1's. Its maker's number is 0, which is nobody's."""

DEBIAN = ("python3:arm64", "libstdc++6:arm64", "gcc:arm64", "libc6-dev:arm64")
FOR_TESTS = ("pytest>=8.2", "pytest-timeout>=2.3", "hypothesis>=6.100")
PLATFORMS = ("manylinux_2_28_aarch64", "manylinux_2_17_aarch64", "manylinux2014_aarch64")
_KEY = ".made-of"


@dataclass(frozen=True)
class Machine:
    """The machine in the directory `home`, an absolute path."""

    home: Path

    @property
    def root(self) -> Path:
        """Debian's files for arm64. QEMU shows them to its programs in place of this system's."""
        return self.home / "root"

    @property
    def python(self) -> Path:
        """A virtual environment whose programs are wrappers."""
        return self.home / "python"

    @property
    def version(self) -> str:
        """Of its Python, such as 3.11."""
        (library,) = self.root.glob("usr/lib/python3.[0-9]*")
        return library.name.removeprefix("python")

    @property
    def packages(self) -> Path:
        """Python packages, convtune's among them."""
        return self.home / "packages"

    @property
    def emulator(self) -> str:
        """The command that runs a program for ARM; QEMU is this system's where it has one."""
        return f"{shutil.which(QEMU) or self.root / 'usr/bin' / QEMU} -cpu {CPU} -L {self.root}"

    def environment(self) -> dict[str, str]:
        """Of its programs: nothing of this system's, whose settings for Python, BLAS and the linker are for x86."""
        kept = [name for name in ("TERM", "TMPDIR", "CONVTUNE_NUM_THREADS") if name in os.environ]
        own = {"PATH": f"{self.python}/bin:/usr/bin:/bin", "HOME": f"{self.home}/user", "LANG": "C.UTF-8"}
        return {name: os.environ[name] for name in kept} | own

    def command(self, words: Sequence[str]) -> list[str]:
        """The words, with the first as a path: of the machine's program, or of this system's if it has none."""
        found = shutil.which(words[0], path=self.environment()["PATH"])
        if not found:
            raise click.ClickException(f"the machine in {self.home} has no program {words[0]!r}")
        return [found, *words[1:]]

    def up(self) -> None:
        """Makes what is missing."""
        if " " in str(self.home):
            raise click.ClickException(f"--home is {str(self.home)!r}; allowed: a path without spaces")
        (self.home / "user").mkdir(parents=True, exist_ok=True)
        with (self.home / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            self._make_all()

    def _make_all(self) -> None:
        wanted = [*DEBIAN, *([] if shutil.which(QEMU) else [f"qemu-user-static:{_architecture()}"])]
        archives = self.home / "archives"
        _make(archives, wanted, lambda place: _download(wanted, self.home / "apt", place))
        _make(self.root, [_key(archives)], lambda place: _unpack(archives, place))
        needed = [*_requirements(), *FOR_TESTS]
        _make(self.packages, [_key(self.root), *needed], lambda place: _install(needed, self.version, place))
        made_of = [_key(self.root), str(self.home), self.emulator, Path(__file__).read_text()]
        _make(self.python, made_of, self._wrap)
        _copy_convtune(self.packages)

    def _wrap(self, place: Path) -> None:
        """Programs that call others find these wrappers: the kernel here starts no ARM program."""
        (cc1,) = self.root.glob("usr/lib/gcc/aarch64-linux-gnu/*/cc1")
        gnu = f"{self.root}/usr/bin/aarch64-linux-gnu-"
        commands = {
            "bin/python3": f'-0 "$0" {self.root}/usr/bin/python{self.version}',  # its name tells it its packages
            "bin/cc": f"{gnu}gcc-{cc1.parent.name} -B {self.python}/parts-of-cc/",
            "bin/objdump": f"{gnu}objdump",
            "parts-of-cc/cc1": str(cc1),
            "parts-of-cc/collect2": str(cc1.with_name("collect2")),
            "parts-of-cc/as": f"{gnu}as",
            "parts-of-cc/ld": f"{gnu}ld",
        }
        programs = place / "bin"
        for directory in (programs, place / "parts-of-cc"):
            directory.mkdir()
        for name, command in commands.items():
            _write_program(place / name, f'#!/bin/sh\nexec {self.emulator} {command} "$@"\n')
        (programs / "python").symlink_to("python3")
        (programs / "gcc").symlink_to("cc")
        main = "import sys\nfrom convtune.cli import main\nsys.exit(main())\n"
        _write_program(programs / "convtune", f"#!{self.python}/bin/python3\n{main}")
        (place / "pyvenv.cfg").write_text(f"home = {self.root}/usr/bin\nversion = {self.version}\n")
        library = place / f"lib/python{self.version}"
        library.mkdir(parents=True)
        (library / "site-packages").symlink_to(self.packages)
        (self.root / "proc").mkdir(exist_ok=True)
        (self.root / "proc/cpuinfo").write_text(_cpuinfo(os.cpu_count() or 1))


def _cpuinfo(cpus: int) -> str:
    """/proc/cpuinfo with the maker and part of QEMU's `max`; QEMU before 8.2 shows its programs this system's."""
    return "".join(
        f"processor\t: {cpu}\nCPU implementer\t: 0x00\nCPU architecture: 8\nCPU variant\t: 0x0\n"
        "CPU part\t: 0x051\nCPU revision\t: 0\n\n"
        for cpu in range(cpus)
    )


def _make(place: Path, made_of: Sequence[str], fill: Callable[[Path], None]) -> None:
    """Fills the directory `place`, unless it is there whole and made of the same."""
    key = hashlib.sha256("\n".join(made_of).encode()).hexdigest()
    if _key(place) == key:
        return
    start, part = time.monotonic(), place.with_name(f"{place.name}.part")
    for old in (part, place):
        shutil.rmtree(old, ignore_errors=True)
    part.mkdir()
    fill(part)
    (part / _KEY).write_text(key)
    part.rename(place)
    size = sum(path.lstat().st_size for path in place.rglob("*") if path.is_file() and not path.is_symlink())
    click.echo(f"{place}: {size / 1e6:.0f} MB, made in {time.monotonic() - start:.0f} s", err=True)


def _key(place: Path) -> str:
    """What a directory was made of; empty where it is not whole."""
    path = place / _KEY
    return path.read_text() if path.exists() else ""


def _architecture() -> str:
    return _output(["dpkg", "--print-architecture"]).strip()


def _download(packages: Sequence[str], state: Path, archives: Path) -> None:
    """The .deb files of the packages and of all that they need, as of a system on which nothing is installed."""
    for directory in (state / "lists/partial", archives / "partial"):
        directory.mkdir(parents=True, exist_ok=True)
    (state / "status").touch()
    options = {
        "APT::Architectures": f"{_architecture()},arm64",
        "APT::Sandbox::User": "",  # whoever runs this: another user may have no access to the directory
        "Acquire::Languages": "none",
        "Dir::State": state,
        "Dir::State::lists": state / "lists",
        "Dir::State::status": state / "status",
        "Dir::Cache": state,
        "Dir::Cache::archives": archives,
    }
    command = [
        "apt-get",
        "--quiet",
        "--yes",
        *(word for item in options.items() for word in ("-o", "{}={}".format(*item))),
    ]
    _output([*command, "update"])
    _output([*command, "install", "--download-only", "--no-install-recommends", *packages])
    shutil.rmtree(archives / "partial")


def _unpack(archives: Path, root: Path) -> None:
    (root / "usr/lib").mkdir(parents=True)
    (root / "lib").symlink_to("usr/lib")  # as on every Debian; which of the two a package names differs
    for archive in sorted(archives.glob("*.deb")):
        tar = ["tar", "--extract", "--directory", str(root), "--keep-directory-symlink", "--no-same-owner"]
        wanted = [f"./usr/bin/{QEMU}"] if archive.name.startswith("qemu-user") else ["--exclude=./usr/share/*"]
        with subprocess.Popen(["dpkg-deb", "--fsys-tarfile", str(archive)], stdout=subprocess.PIPE) as files:
            _output([*tar, *wanted], stdin=files.stdout)
        if files.returncode:
            raise click.ClickException(f"{archive} is damaged: remove {archives}, then again")


def _installed() -> importlib.metadata.Distribution:
    """convtune as it is installed here."""
    found = list(importlib.metadata.distributions(name="convtune", path=[sysconfig.get_path("purelib")]))
    if not found:
        raise click.ClickException(f"convtune is not installed for {sys.executable}; `make arm` does that first")
    return found[0]


def _requirements() -> list[str]:
    """What pyproject.toml says that convtune needs."""
    return [line for line in _installed().requires or () if "extra ==" not in line]


def _install(requirements: Sequence[str], version: str, packages: Path) -> None:
    """The wheels for the machine, unpacked."""
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-compile"]
    command += ["--only-binary=:all:", f"--python-version={version}", *(f"--platform={name}" for name in PLATFORMS)]
    _output([*command, "--target", str(packages), *requirements])


def _copy_convtune(packages: Path) -> None:
    """The installation here; the files of an editable one lead to its working tree."""
    for file in _installed().files or ():
        if ".." not in file.parts and file.suffix != ".pyc":
            (packages / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file.locate(), packages / file)


def _write_program(path: Path, text: str) -> None:
    path.write_text(text)
    path.chmod(0o755)


def _output(
    command: Sequence[str], environment: Mapping[str, str] | None = None, stdin: IO[bytes] | None = None
) -> str:
    """What the command prints; an error is the last line that it says."""
    try:
        done = subprocess.run(
            command, stdin=stdin or subprocess.DEVNULL, capture_output=True, text=True, env=environment, check=False
        )
    except FileNotFoundError as error:
        raise click.ClickException(f"there is no {command[0]}; this needs Debian, or a system made of it") from error
    if done.returncode:
        said = (done.stderr.strip() or done.stdout.strip() or "it said nothing").splitlines()
        errors = [line for line in said if line.startswith(("E: ", "ERROR: "))] or said[-1:]
        raise click.ClickException(f"{shlex.join(command[:4])} … failed: {errors[0]}")
    return done.stdout


@click.group(help=__doc__)
@click.option(
    "--home",
    type=click.Path(file_okay=False, path_type=Path),
    default=HOME,
    show_default="build/arm",
    help="Where the machine is: 0.9 GB.",
)
@click.pass_context
def main(context: click.Context, home: Path) -> None:
    context.obj = Machine(home.absolute())


@main.command()
@click.pass_obj
def up(machine: Machine) -> None:
    """Make the machine, or what is missing of it."""
    machine.up()


@main.command(context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@click.argument("words", nargs=-1, required=True, metavar="COMMAND...", type=click.UNPROCESSED)
@click.pass_obj
def run(machine: Machine, words: tuple[str, ...]) -> None:
    """Run one of its programs, such as convtune, python3 or cc, in this directory."""
    machine.up()
    command = machine.command(words)
    os.execve(command[0], command, machine.environment())


if __name__ == "__main__":
    main()
