"""Says of which kind a machine's instructions are."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

_ARM_BRANCH = re.compile(r"b(\..+|l|r|lr)?$|ret|cbn?z|tbn?z")
_ARM_SHUFFLE = re.compile(
    r"dup|zip|uzp|trn|ext$|tb[lx]|ins|rev|fmov|[us]mov|splice|sel$|compact|insr|clast|last|[us]unpk"
)
_ARM_SET = re.compile(r"movi|mvni|movprfx|ptrue|pfalse|while|cnt[bhwd]|rdvl|ptest|pn")
_ARM_VECTOR = re.compile(r"[vz]\d+$")
_ARM_ELEMENT = re.compile(r"[qdshb]\d+$")
_X86_SHUFFLE = re.compile(
    r"shuf|unpck|punpck|pshuf|palignr|p?blend|pinsr|pextr|insertps|extractps|mov(lh|hl|l|h)p|mov[dq]$|movs[lh]dup|movddup"
)
_X86_MOVE = re.compile(r"mov(a|u)p[sd]|movdq[au]|movs[sd]$|lddqu")
_X86_VECTOR = re.compile(r"[xyz]mm\d+$")
_X86_ELEMENT = re.compile(r".*s[sd]$|cvt.*(si|ss|sd)")
_X86_NO_ACCESS = re.compile(r"lea|nop|prefetch")
_BRANCH_GROUPS = frozenset({"jump", "call", "ret"})


@dataclass(frozen=True)
class Block:
    """A basic block's instructions: all of them, and by kind, as `counts.Counts` has them."""

    instructions: int
    by_kind: Mapping[str, int]


def decode(disassembler: Any, code: bytes, address: int) -> Block:
    """What the instructions of a block are. disassembler: a capstone.Cs with details.

    Raises:
        KernelError: there are bytes that are no instruction.
    """
    kinds_of = _kinds(disassembler)
    by_kind: Counter[str] = Counter()
    instructions = size = 0
    for instruction in disassembler.disasm(code, address):
        instructions += 1
        size += instruction.size
        by_kind.update(kinds_of(instruction))
    assert size == len(code), f"{len(code)} bytes ran at {address:#x}, of which {size} are known instructions"
    return Block(instructions, by_kind)


def _kinds(disassembler: Any) -> Callable[[Any], Iterable[str]]:
    import capstone

    return _of_arm if disassembler.arch == capstone.CS_ARCH_ARM64 else _of_x86


def _of_arm(instruction: Any) -> Iterable[str]:
    from capstone.arm64 import ARM64_OP_REG

    name = instruction.mnemonic
    if _ARM_BRANCH.match(name):
        return ("branch",)
    if name.startswith("ld"):
        return ("load",)
    if name.startswith("st"):
        return ("store",)
    registers = [operand for operand in instruction.operands if operand.type == ARM64_OP_REG]
    names = [instruction.reg_name(operand.reg) for operand in registers]
    wide = any(_ARM_VECTOR.match(register) for register in names)
    if (not wide and not any(_ARM_ELEMENT.match(register) for register in names)) or _ARM_SET.match(name):
        return ("other",)
    if name == "mov":  # of a whole register, which is renaming, or of an element
        whole = all(operand.vector_index < 0 for operand in registers) and len({register[0] for register in names}) == 1
        return ("other",) if whole else ("shuffle",)
    if _ARM_SHUFFLE.match(name):
        return ("shuffle",)
    return ("vector_arithmetic",) if _ARM_VECTOR.match(names[0]) else ("scalar_arithmetic",)


def _of_x86(instruction: Any) -> Iterable[str]:
    from capstone import CS_AC_READ, CS_AC_WRITE
    from capstone.x86 import X86_OP_MEM, X86_OP_REG

    name = instruction.mnemonic
    if _X86_NO_ACCESS.match(name):
        return ("other",)
    if _BRANCH_GROUPS.intersection(map(instruction.group_name, instruction.groups)):
        return ("branch",)
    operands = instruction.operands
    names = [instruction.reg_name(operand.reg) for operand in operands if operand.type == X86_OP_REG]
    vector = any(_X86_VECTOR.match(register) for register in names)
    accesses = 0
    for place, operand in enumerate(operands):
        if operand.type == X86_OP_MEM:
            # Capstone 5 takes `movups [rdi], xmm0` for a load
            accesses |= (CS_AC_READ if place else CS_AC_WRITE) if vector else operand.access
    kinds = [
        *(["load"] if accesses & CS_AC_READ or name == "pop" else []),
        *(["store"] if accesses & CS_AC_WRITE or name == "push" else []),
    ]
    if not vector:
        return kinds or ("other",)
    if _X86_MOVE.match(name):  # an element from register to register is merged into the vector
        return kinds or (("shuffle",) if _X86_ELEMENT.match(name) else ("other",))
    if _X86_SHUFFLE.match(name):
        return (*kinds, "shuffle") if not re.match(r"mov[dq]$", name) or not kinds else kinds
    if "xor" in name and len(names) == 2 and names[0] == names[1]:
        return ("other",)  # sets it to zero, which takes no unit
    return (*kinds, "scalar_arithmetic" if _X86_ELEMENT.match(name) else "vector_arithmetic")
