"""Instructions counted in listings whose counts were made by hand, and in one of a real kernel."""

from __future__ import annotations

import pytest

from convtune.assembly import KINDS, MULTIPLY_ADD, innermost_loops, listing

X86 = """
	.text
	.globl	main
kernel:
.Lfunc_begin0:
	pushq	%rbx                            # 8-byte Spill
	vxorps	%xmm0, %xmm0, %xmm0
	vmovups	%zmm0, 64(%rsp)                 # 64-byte Spill
.LBB0_1:
	vmovups	(%rsi,%rax,4), %zmm1
.LBB0_2:
	vbroadcastss	(%rdi), %zmm2
	vfmadd231ps	%zmm2, %zmm1, %zmm3
	vfmadd231ps	64(%rsp), %zmm1, %zmm31
	vpermps	%ymm4, %ymm5, %ymm6
	addq	$4, %rdi
	cmpq	%rdi, %rdx
	jne	.LBB0_2
	vfmadd231ps	(%rdi){1to16}, %zmm1, %zmm3
	vmovups	%zmm3, (%rdx)
	jne	.LBB0_1
	vzeroupper
	callq	memset@PLT
	jmp	.LBB0_9
.LBB0_9:
	retq
"""

AARCH64 = """
kernel:
	stp	x29, x30, [sp, #-16]!           // 16-byte Folded Spill
	str	q0, [sp, #32]
.LBB0_2:
	ldr	q1, [x0], #16
	ldp	q2, q3, [x1]
	dup	v4.4s, w3
	fmla	v5.4s, v1.4s, v2.s[1]
	fmla	v6.4s, v1.4s, v3.4s
	fadd	v7.4s, v7.4s, v6.4s
	zip1	v8.4s, v1.4s, v2.4s
	subs	x2, x2, #1
	b.ne	.LBB0_2
	str	q5, [x4]
	bl	memset
	ret
"""


SVE = """
kernel:
	ptrue	p0.s, vl8
	cntb	x8
.LBB0_2:
	ldr	s20, [x24, #256]
	ld1w	{ z21.s }, p0/z, [x23, x11, lsl #2]
	ld1rw	{ z22.s }, p0/z, [x24, #16]
	subs	x25, x25, #1
	mov	z20.s, s20
	fmla	z7.s, p0/m, z20.s, z21.s
	fmad	z6.s, p0/m, z22.s, z21.s
	fnmls	z5.s, p0/m, z22.s, z21.s
	mov	v1.s[2], v2.s[0]
	mov	z3.s, z4.s[1]
	mov	v9.16b, v8.16b
	ld2	{ v10.4s, v11.4s }, [x1]
	ldr	z12, [sp, #1, mul vl]
	fmadd	s1, s2, s3, s4
	b.ne	.LBB0_2
	st1w	{ z7.s }, p0, [x6, x22, lsl #2]
	str	z7, [sp, #2, mul vl]
	br	x3
"""


def counts(kinds: object) -> dict[str, int]:
    assert isinstance(kinds, dict)
    return {kind: count for kind, count in kinds.items() if count}


def test_x86() -> None:
    found = listing(X86)
    assert counts(dict(found.kernel.kinds)) == {
        MULTIPLY_ADD: 3,
        "other vector arithmetic": 1,
        "vector load": 1,
        "vector store": 2,
        "broadcast": 1,
        "shuffle": 1,
        "scalar": 4,
        "branch": 4,
        "call": 1,
    }
    assert found.kernel.vector_registers == 8
    assert (found.kernel.stack_stores, found.kernel.stack_loads) == (1, 1)
    assert found.loop is not None
    assert found.loop.instructions == 7  # the inner one alone
    assert (found.loop.kinds[MULTIPLY_ADD], found.loop.stack_stores, found.loop.stack_loads) == (2, 0, 1)


def test_the_loops_without_another_in_them_and_where_they_are() -> None:
    ((where, mix),) = innermost_loops(X86)
    assert (where, mix.kinds[MULTIPLY_ADD]) == (range(4, 11), 2)  # from the broadcast to its jump
    assert innermost_loops("f:\n\tretq\n") == []


def test_aarch64() -> None:
    found = listing(AARCH64)
    assert counts(dict(found.kernel.kinds)) == {
        MULTIPLY_ADD: 2,
        "other vector arithmetic": 1,
        "vector load": 2,
        "vector store": 2,
        "broadcast": 1,
        "shuffle": 1,
        "scalar": 2,
        "branch": 2,
        "call": 1,
    }
    assert (found.kernel.vector_registers, found.kernel.stack_stores, found.kernel.stack_loads) == (9, 1, 0)
    assert found.loop is not None
    assert found.loop.instructions == 9


def test_sve_and_moves() -> None:
    found = listing(SVE)
    assert found.loop is not None
    assert counts(dict(found.loop.kinds)) == {
        MULTIPLY_ADD: 3,
        "vector load": 3,
        "broadcast": 3,
        "shuffle": 1,
        "other vector arithmetic": 1,  # a copy of a register
        "scalar": 3,  # the loads and the sums of single numbers, too
        "branch": 1,
    }
    assert (found.loop.stack_stores, found.loop.stack_loads) == (0, 1)
    assert (found.kernel.stack_stores, found.kernel.stack_loads) == (1, 1)
    assert found.kernel.kinds["branch"] == 2


@pytest.mark.parametrize("text", ["", "kernel:\n", "kernel:\n\tretq\n"])
def test_a_kernel_without_a_loop_has_none(text: str) -> None:
    found = listing(text)
    assert found.loop is None
    assert found.data()["loop"] is None
    assert set(found.data()["kernel"]["kinds"]) == set(KINDS)
