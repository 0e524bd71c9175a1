"""Inline assembly that the emulator knows: TVM's asynchronous copies, and Tensor Cores. All other is refused."""

from __future__ import annotations

import re
from collections.abc import Iterator

from convtune.errors import BuildError

_START = re.compile(r"\b(?:asm|__asm__)\s*(?:volatile|__volatile__)?\s*\(")
_STRING = re.compile(r'"((?:[^"\\]|\\.)*)"')
_COPY = r"cp\.async\.c[ag]\.shared\.global(?:\.L2::\d+B)? \[%0\], \[%1\], %2"
_SUMS = r"\{%0, %1, %2, %3\}"
_MULTIPLY = r"mma\.sync\.aligned\.m16n8k{depth}\.row\.col\.f32\.f16\.f16\.f32 {sums}, {left}, {right}, {sums};"
_ZERO_FILL = r"@!p st\.shared(?:\.v[24])?\.u32 \[%0\], \{%4(?:, %4)*\};"
# By its text, what C++ takes its place; {0}, {1} … are the operands.
_KNOWN = (
    (re.compile(r"cp\.async\.commit_group;"), "emulation::commit_copies()"),
    (re.compile(r"cp\.async\.wait_all;"), "emulation::wait_for_copies(emulation::kNoGroups)"),
    (re.compile(r"cp\.async\.wait_group (?P<left>\d+);"), "emulation::wait_for_copies({left})"),
    (re.compile(rf"{_COPY};"), "emulation::copy_async({0}, {1}, {2}, {2})"),
    (re.compile(rf"{_COPY}, %3;"), "emulation::copy_async({0}, {1}, {2}, {3})"),
    (
        re.compile(rf"\{{ \.reg \.pred p; setp\.eq\.u32 p, %3, 1; @p {_COPY}; {_ZERO_FILL} \}}"),
        "(({3}) == 1 ? emulation::copy_async({0}, {1}, {2}, {2}) : emulation::zero({0}, {2}))",
    ),
    (
        re.compile(_MULTIPLY.format(depth=16, sums=_SUMS, left=r"\{%4, %5, %6, %7\}", right=r"\{%8, %9\}")),
        "emulation::multiply<16>({0}, {1}, {2}, {3}, {{{{{4}, {5}, {6}, {7}}}, {{{8}, {9}}}}})",
    ),
    (
        re.compile(_MULTIPLY.format(depth=8, sums=_SUMS, left=r"\{%4, %5\}", right=r"\{%6\}")),
        "emulation::multiply<8>({0}, {1}, {2}, {3}, {{{{{4}, {5}}}, {{{6}}}}})",
    ),
)


def translate(source: str) -> str:
    """CUDA C with calls of the emulator instead of inline assembly.

    Raises BuildError where it does not know some.
    """
    pieces, done = [], 0
    for start, open_end, end in _statements(source):
        pieces += [source[done:start], _translate(source[open_end : end - 1])]
        done = end
    return "".join([*pieces, source[done:]])


def _statements(source: str) -> Iterator[tuple[int, int, int]]:
    """Of each asm( ): where it starts, where what is between its parentheses starts, and where it ends."""
    for match in _START.finditer(source):
        if source.startswith("#define", source.rfind("\n", 0, match.start()) + 1):
            continue
        yield match.start(), match.end(), _closing(source, match.end())


def _closing(source: str, position: int) -> int:
    """Where the parenthesis that is open at `position` has been closed."""
    depth = 1
    while depth and position < len(source):
        if string := _STRING.match(source, position):
            position = string.end()
            continue
        depth += {"(": 1, ")": -1}.get(source[position], 0)
        position += 1
    return position


def _translate(body: str) -> str:
    template, *operands = _split(body, ":")
    text = " ".join("".join(_STRING.findall(template)).replace("\\n", " ").replace("\\t", " ").split())
    expressions = [_expression(operand) for part in operands[:2] for operand in _split(part, ",") if operand.strip()]
    for pattern, call in _KNOWN:
        if match := pattern.fullmatch(text):
            return call.format(*expressions, **match.groupdict())
    raise BuildError(f"unknown inline assembly: {text[:200]}")


def _split(text: str, separator: str) -> list[str]:
    """The text between the separators that are outside of strings, parentheses and brackets."""
    pieces, depth, position = [""], 0, 0
    while position < len(text):
        string = _STRING.match(text, position)
        token = string[0] if string else text[position]
        position += len(token)
        depth += {"(": 1, ")": -1, "[": 1, "]": -1}.get(token, 0)
        if token == separator and depth == 0:
            pieces.append("")
        else:
            pieces[-1] += token
    return pieces


def _expression(operand: str) -> str:
    """That of `"r"(expression)`."""
    return _STRING.sub("", operand, count=1).strip()
