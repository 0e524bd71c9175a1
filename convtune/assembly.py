"""Assembly: what a kernel's instructions are, and how many vector registers it holds, from LLVM's listing."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

KINDS = (
    "multiply-add",
    "other vector arithmetic",
    "vector load",
    "vector store",
    "broadcast",
    "shuffle",
    "scalar",
    "branch",
    "call",
)
MULTIPLY_ADD = KINDS[0]
_LABEL = re.compile(r"(\.L[\w$.]+|[A-Za-z_][\w$.]*):")
_INSTRUCTION = re.compile(r"\s+([a-z][a-z0-9._]*)\s*(.*)")
_OPERANDS = re.compile(r",\s*(?![^(\[{]*[)\]}])")
_VECTOR = re.compile(r"%[xyz]mm(\d+)|(?<![\w.])[vqz](\d+)(?=[.,}\s]|$)")

# x86's mnemonics begin with v where they are of vectors; those of aarch64 are told by their registers
_MULTIPLY_ADDS = re.compile(r"vfn?m(add|sub)|fn?ml[as]$|fn?m(ad|sb)$")
_SHUFFLES = re.compile(
    r"vperm|vshuf|vunpck|vinsert|vextract|valign|vp?blend|vpermt|vmovs[hl]dup|ext$|zip|uzp|trn|tb[lx]$|rev|splice|ins$"
)
_BROADCASTS = re.compile(r"vp?broadcast|vmovddup|dup$|ld1r")
_BRANCHES = re.compile(r"j[a-z]+$|br?$|b\.|cbn?z|tbn?z|ret")
_CALLS = re.compile(r"call|bl$|blr$")
_MOVES = re.compile(r"v?mov(up|ap|dq|ntp)|ldn?[rp]|ldur|ld[1-4]|stn?[rp]|stur|st[1-4]")
_LANE = re.compile(r"[vz]\d+\.[bhsd]\[\d+\]$")
_SCALAR = re.compile(r"[wxbhsd]\d+$")


@dataclass(frozen=True)
class Mix:
    """Instructions by kind; `vector_registers` that occur in them; vectors put on the stack, and taken from it."""

    instructions: int
    kinds: Mapping[str, int]
    vector_registers: int
    stack_stores: int
    stack_loads: int

    def data(self) -> dict[str, Any]:
        return {**asdict(self), "kinds": {kind: self.kinds.get(kind, 0) for kind in KINDS}}


@dataclass(frozen=True)
class Listing:
    """A kernel's instructions, and those of its busiest innermost loop; None where no loop multiplies and adds."""

    kernel: Mix
    loop: Mix | None

    def data(self) -> dict[str, Any]:
        return {"kernel": self.kernel.data(), "loop": self.loop.data() if self.loop else None}


@dataclass(frozen=True)
class _Instruction:
    name: str
    operands: tuple[str, ...]

    @property
    def is_vector(self) -> bool:
        return any(_VECTOR.search(operand) for operand in self.operands)

    @property
    def memory(self) -> str:
        """The operand in memory; "" where there is none."""
        return next((o for o in self.operands if "(" in o or ("[" in o and not _VECTOR.match(o))), "")

    @property
    def stores(self) -> bool:
        """Whether its operand in memory is what it writes: x86's last, and aarch64's by name."""
        return bool(self.memory) and (
            self.name.startswith("st") or (self.operands[-1] == self.memory and self.name[0] == "v")
        )

    @property
    def kind(self) -> str:
        for kind, pattern in (("call", _CALLS), ("branch", _BRANCHES)):
            if pattern.match(self.name):
                return kind
        if not self.is_vector:
            return "scalar"
        for kind, pattern in ((MULTIPLY_ADD, _MULTIPLY_ADDS), ("broadcast", _BROADCASTS), ("shuffle", _SHUFFLES)):
            if pattern.match(self.name):
                return kind
        if self.memory and _MOVES.match(self.name):
            return "vector store" if self.stores else "vector load"
        return self._moved or "other vector arithmetic"

    @property
    def _moved(self) -> str:
        """What aarch64's `mov` does that puts a lane into a vector, or one element into all lanes; "" otherwise."""
        if self.name != "mov":
            return ""
        target, source = self.operands[0], self.operands[-1]  # between them SVE has a predicate
        if _LANE.match(target):
            return "shuffle"
        return "broadcast" if _SCALAR.match(source) or _LANE.match(source) else ""


def listing(text: str) -> Listing:
    """What LLVM's assembly of a kernel holds, in x86's AT&T syntax or aarch64's."""
    instructions, labels = _parse(text)
    loops = [instructions[start:end] for start, end in _innermost(instructions, labels)]
    busiest = max(loops, key=_multiply_adds, default=[])
    return Listing(_mix(instructions), _mix(busiest) if _multiply_adds(busiest) else None)


def innermost_loops(text: str) -> list[tuple[range, Mix]]:
    """The loops that have no other in them: of which instructions of an assembly, counted from 0, and their mix."""
    instructions, labels = _parse(text)
    return [(range(start, end), _mix(instructions[start:end])) for start, end in _innermost(instructions, labels)]


def _parse(text: str) -> tuple[list[_Instruction], dict[str, int]]:
    """The instructions in order, and before which of them each label stands."""
    instructions, labels = list[_Instruction](), dict[str, int]()
    for line in text.splitlines():
        code = re.split(r"\s*(?:#+\s|//)", line, maxsplit=1)[0].rstrip()  # and #16 is a number of aarch64's
        if match := _LABEL.match(code):
            labels[match[1]] = len(instructions)
        elif match := _INSTRUCTION.fullmatch(code):
            instructions.append(_Instruction(match[1], tuple(o.strip() for o in _OPERANDS.split(match[2]) if o)))
    return instructions, labels


def _innermost(instructions: Sequence[_Instruction], labels: Mapping[str, int]) -> Iterator[tuple[int, int]]:
    """From which to before which instruction each loop goes that has no other in it."""
    jumps = ((n, i.operands[-1]) for n, i in enumerate(instructions) if i.kind == "branch" and i.operands)
    spans = {(labels[label], n + 1) for n, label in jumps if labels.get(label, n + 1) <= n}
    for start, end in sorted(spans):
        if not any((s, e) != (start, end) and start <= s and e <= end for s, e in spans):
            yield start, end


def _multiply_adds(instructions: Sequence[_Instruction]) -> int:
    return sum(instruction.kind == MULTIPLY_ADD for instruction in instructions)


def _mix(instructions: Sequence[_Instruction]) -> Mix:
    registers = {n for i in instructions for o in i.operands for pair in _VECTOR.findall(o) for n in pair if n}
    on_stack = [i for i in instructions if i.is_vector and re.search(r"%rsp|%rbp|\[(sp|x29)\b", i.memory)]
    stores = sum(i.stores for i in on_stack)
    kinds = Counter(instruction.kind for instruction in instructions)
    return Mix(len(instructions), kinds, len(registers), stores, len(on_stack) - stores)
