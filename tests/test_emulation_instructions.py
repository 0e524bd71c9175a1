"""Of which kind an instruction is, for those that kernels have, by their encodings in the manuals."""

from __future__ import annotations

import pytest

from convtune.emulation import machines
from convtune.emulation.counts import KINDS
from convtune.emulation.instructions import decode

ARM = {
    "fmla v0.4s, v1.4s, v2.s[0]": (0x4F821020, "vector_arithmetic"),
    "fadd v0.4s, v1.4s, v2.4s": (0x4E22D420, "vector_arithmetic"),
    "fmadd s0, s1, s2, s3": (0x1F020C20, "scalar_arithmetic"),
    "fcmp s0, s1": (0x1E212000, "scalar_arithmetic"),
    "ldr q0, [x0]": (0x3DC00000, "load"),
    "ld1r {v0.4s}, [x0]": (0x4D40C800, "load"),
    "ldp x29, x30, [sp], #16": (0xA8C17BFD, "load"),
    "str q0, [x0]": (0x3D800000, "store"),
    "stp x29, x30, [sp, #-16]!": (0xA9BF7BFD, "store"),
    "dup v0.4s, w0": (0x4E040C00, "shuffle"),
    "zip1 v0.4s, v1.4s, v2.4s": (0x4E823820, "shuffle"),
    "mov v0.s[1], v1.s[0]": (0x6E0C0420, "shuffle"),
    "fmov w0, s0": (0x1E260000, "shuffle"),
    "mov v0.16b, v1.16b": (0x4EA11C20, "other"),
    "movi v0.2d, #0": (0x6F00E400, "other"),
    "add x0, x0, #1": (0x91000400, "other"),
    "nop": (0xD503201F, "other"),
    "b .": (0x14000000, "branch"),
    "cbz x0, .": (0xB4000000, "branch"),
    "ret": (0xD65F03C0, "branch"),
    "bl .": (0x94000000, "branch"),
    "bic x0, x0, x1": (0x8A210000, "other"),
    "fmla z0.s, p0/m, z1.s, z2.s": (0x65A20020, "vector_arithmetic"),
    "ld1w {z0.s}, p0/z, [x0]": (0xA540A000, "load"),
    "st1w {z0.s}, p0, [x0]": (0xE540E000, "store"),
    "movprfx z0, z1": (0x0420BC20, "other"),
    "ptrue p0.s": (0x2598E3E0, "other"),
}
X86 = {
    "mulps xmm0, xmm1": ("0f59c1", ("vector_arithmetic",)),
    "mulps xmm0, [rdi]": ("0f5907", ("load", "vector_arithmetic")),
    "addss xmm0, xmm1": ("f30f58c1", ("scalar_arithmetic",)),
    "movups xmm0, [rdi]": ("0f1007", ("load",)),
    "movups [rdi], xmm0": ("0f1107", ("store",)),
    "movss xmm0, [rdi]": ("f30f1007", ("load",)),
    "movaps xmm0, xmm1": ("0f28c1", ("other",)),
    "shufps xmm0, xmm0, 0": ("0fc6c000", ("shuffle",)),
    "xorps xmm0, xmm0": ("0f57c0", ("other",)),
    "xorps xmm0, xmm1": ("0f57c1", ("vector_arithmetic",)),
    "movd xmm0, eax": ("660f6ec0", ("shuffle",)),
    "add dword [rdi], 1": ("830701", ("load", "store")),
    "mov rax, [rdi]": ("488b07", ("load",)),
    "lea rax, [rdi + 8]": ("488d4708", ("other",)),
    "nop dword [rax]": ("0f1f00", ("other",)),
    "push rax": ("50", ("store",)),
    "pop rax": ("58", ("load",)),
    "jmp .": ("ebfe", ("branch",)),
    "call .": ("e8fbffffff", ("branch",)),
    "ret": ("c3", ("branch",)),
}


@pytest.mark.parametrize("text", ARM)
def test_arm(text: str) -> None:
    code, kind = ARM[text]
    block = decode(machines.of_elf("EM_AARCH64", None).disassembler(), code.to_bytes(4, "little"), 0x1000)
    assert (block.instructions, dict(block.by_kind)) == (1, {kind: 1})
    assert kind in KINDS


@pytest.mark.parametrize("text", X86)
def test_x86(text: str) -> None:
    code, kinds = X86[text]
    block = decode(machines.of_elf("EM_X86_64", None).disassembler(), bytes.fromhex(code), 0x1000)
    # calls and returns are branches, whatever they do to the stack
    assert (block.instructions, {kind for kind, count in block.by_kind.items() if count}) == (1, set(kinds))


def test_a_block_is_the_sum_of_its_instructions() -> None:
    code = bytes.fromhex("0f5907 0f1107 4883c704 ebf4")
    block = decode(machines.of_elf("EM_X86_64", None).disassembler(), code, 0)
    assert block.instructions == 4
    assert dict(block.by_kind) == {"load": 1, "vector_arithmetic": 1, "store": 1, "other": 1, "branch": 1}
