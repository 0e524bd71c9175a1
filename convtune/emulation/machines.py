"""The machines that can be emulated: how Unicorn and Capstone call them, their registers, their relocations."""

from __future__ import annotations

import importlib.util
import re
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from convtune.errors import KernelError, TargetError

if TYPE_CHECKING:
    from unicorn import Uc


class Machine(ABC):
    """What is different from one machine to the next.

    elf: its name in an ELF file. name: as platform.machine() prints it. arguments: Unicorn's numbers of the registers
    in which a function finds its arguments. stack, result: of those registers. request, answer: those through which
    guest.c asks the host. interrupt: the number of the interrupt by which it does.
    """

    elf: ClassVar[str]
    name: ClassVar[str]
    interrupt: ClassVar[int]
    arguments: tuple[int, ...]
    stack: int
    result: int
    request: int
    argument: int
    answer: int
    counter: int

    @classmethod
    def lacks(cls, features: frozenset[str]) -> str:
        """A feature that is not emulated; "" where all are."""
        return ""

    @abstractmethod
    def __init__(self, features: frozenset[str] | None) -> None:
        """features: as `of_elf` has them."""

    @abstractmethod
    def new(self) -> Uc:
        """A machine with nothing in its memory, whose vector instructions may be used."""

    @abstractmethod
    def call(self, machine: Uc, returning: int, stack: int) -> None:
        """Makes the function that runs next, with `stack` as its stack's top, return to the address `returning`."""

    @abstractmethod
    def relocated(self, kind: int, base: int, symbol: int, addend: int) -> int | None:
        """What a relocation writes; None where the kind is unknown."""

    @abstractmethod
    def disassembler(self) -> Any:
        """A capstone.Cs with details."""


class Arm64(Machine):
    """AArch64 with NEON. One that has no more is Unicorn's A72; others have all that it knows, and SVE if asked for."""

    elf = "EM_AARCH64"
    name = "aarch64"
    interrupt = 2  # EXCP_SWI of QEMU

    def __init__(self, features: frozenset[str] | None) -> None:
        from unicorn import arm64_const as registers

        self._plain = features is not None and features <= {"fp", "asimd"}
        self._sve_bits = 0
        if features is None or "sve" in features:
            lengths = [int(name[3:]) for name in features or () if re.fullmatch(r"sve\d{3,}", name)]
            self._sve_bits = max(lengths, default=128)
        self.arguments = tuple(getattr(registers, f"UC_ARM64_REG_X{index}") for index in range(8))
        self.stack, self.result = registers.UC_ARM64_REG_SP, registers.UC_ARM64_REG_X0
        self.request, self.argument = registers.UC_ARM64_REG_X8, registers.UC_ARM64_REG_X0
        self.answer, self.counter = registers.UC_ARM64_REG_X0, registers.UC_ARM64_REG_PC
        self._link = registers.UC_ARM64_REG_LR

    def new(self) -> Uc:
        from unicorn import UC_ARCH_ARM64, UC_MODE_ARM, Uc, arm64_const

        model = arm64_const.UC_CPU_ARM64_A72 if self._plain else arm64_const.UC_CPU_ARM64_MAX
        machine = Uc(UC_ARCH_ARM64, UC_MODE_ARM, model)
        machine.reg_write(arm64_const.UC_ARM64_REG_CPACR_EL1, 3 << 20 | (3 << 16 if self._sve_bits else 0))  # FPEN, ZEN
        if self._sve_bits:
            # after CPACR_EL1, which takes effect with them
            machine.reg_write(arm64_const.UC_ARM64_REG_CP_REG, (1, 1, 3, 6, 2, 1 << 8))  # CPTR_EL3.EZ
            for level in (0, 4, 6):  # ZCR_EL1, 2 and 3, of which the least is the vectors' length
                machine.reg_write(arm64_const.UC_ARM64_REG_CP_REG, (1, 2, 3, level, 0, self._sve_bits // 128 - 1))
        return machine

    def call(self, machine: Uc, returning: int, stack: int) -> None:
        machine.reg_write(self.stack, stack)
        machine.reg_write(self._link, returning)

    def relocated(self, kind: int, base: int, symbol: int, addend: int) -> int | None:
        # R_AARCH64_ABS64, _GLOB_DAT, _JUMP_SLOT, _RELATIVE
        return {257: symbol + addend, 1025: symbol + addend, 1026: symbol + addend, 1027: base + addend}.get(kind)

    def disassembler(self) -> Any:
        import capstone

        found = capstone.Cs(capstone.CS_ARCH_ARM64, capstone.CS_MODE_ARM)
        found.detail = True
        return found


class X86(Machine):
    """x86-64 with SSE4; Unicorn knows no AVX."""

    elf = "EM_X86_64"
    name = "x86_64"
    interrupt = 0x80

    @classmethod
    def lacks(cls, features: frozenset[str]) -> str:
        return min((name for name in features if name.startswith(("avx", "fma", "f16c"))), default="")

    def __init__(self, features: frozenset[str] | None) -> None:
        from unicorn import x86_const as registers

        names = ("RDI", "RSI", "RDX", "RCX", "R8", "R9")
        self.arguments = tuple(getattr(registers, f"UC_X86_REG_{name}") for name in names)
        self.stack, self.result = registers.UC_X86_REG_RSP, registers.UC_X86_REG_RAX
        self.request, self.argument = registers.UC_X86_REG_RAX, registers.UC_X86_REG_RDI
        self.answer, self.counter = registers.UC_X86_REG_RAX, registers.UC_X86_REG_RIP

    def new(self) -> Uc:
        from unicorn import UC_ARCH_X86, UC_MODE_64, Uc

        return Uc(UC_ARCH_X86, UC_MODE_64)

    def call(self, machine: Uc, returning: int, stack: int) -> None:
        machine.mem_write(stack - 8, returning.to_bytes(8, "little"))
        machine.reg_write(self.stack, stack - 8)

    def relocated(self, kind: int, base: int, symbol: int, addend: int) -> int | None:
        # R_X86_64_64, _GLOB_DAT, _JUMP_SLOT, _RELATIVE
        return {1: symbol + addend, 6: symbol, 7: symbol, 8: base + addend}.get(kind)

    def disassembler(self) -> Any:
        import capstone

        found = capstone.Cs(capstone.CS_ARCH_X86, capstone.CS_MODE_64)
        found.detail = True
        return found


_KINDS: Mapping[str, type[Machine]] = {kind.elf: kind for kind in (Arm64, X86)}


def known() -> tuple[str, ...]:
    """The machines that can be emulated, as platform.machine() prints them."""
    return tuple(kind.name for kind in _KINDS.values())


def name_of(elf: str) -> str:
    """A machine's name in ELF files, such as "EM_AARCH64", as platform.machine() has it, if that is emulated."""
    return _KINDS[elf].name if elf in _KINDS else elf


def check(machine: str, features: Collection[str]) -> None:
    """Raises TargetError where a machine of that name and with those features cannot be emulated here, and says why."""
    for package in ("unicorn", "capstone", "elftools"):
        if importlib.util.find_spec(package) is None:
            raise TargetError(
                f"emulating {machine} needs the package {package}, which is not installed; "
                "`pip install 'convtune[arm]'` brings it"
            )
    kind = next((kind for kind in _KINDS.values() if kind.name == machine), None)
    if kind is None:
        raise TargetError(f"machine {machine!r} cannot be emulated; what can is {', '.join(known())}")
    if lacks := kind.lacks(frozenset(features)):
        raise TargetError(f"kernels that need {lacks} cannot be emulated: Unicorn does not have it")


def of_elf(elf: str, features: Collection[str] | None) -> Machine:
    """The machine of that name in ELF files.

    features: as in /proc/cpuinfo, of the processor, with such as "sve256" where SVE has longer vectors than NEON; None:
    all that can be emulated.

    Raises:
        KernelError: it cannot be emulated.
    """
    if elf not in _KINDS:
        raise KernelError(f"machine {elf} cannot be emulated; what can is {', '.join(known())}")
    kind = _KINDS[elf]
    if lacks := kind.lacks(frozenset(features or ())):
        raise KernelError(f"kernels that need {lacks} cannot be emulated: Unicorn does not have it")
    return kind(None if features is None else frozenset(features))
