"""Has an emulated machine call functions: C ones, which its Python binding cannot, and Python ones without leaks."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from unicorn import Uc

_INTERRUPT = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_uint32, ctypes.c_void_p)
_INVALID = ctypes.CFUNCTYPE(
    ctypes.c_bool,
    ctypes.c_void_p,
    ctypes.c_int,
    ctypes.c_uint64,
    ctypes.c_int,
    ctypes.c_int64,
    ctypes.c_void_p,
)


def add(machine: Uc, kind: int, function: int, data: int = 0) -> None:
    """Adds a C function, by its address, as a hook of a kind, one of unicorn's UC_HOOK constants.

    data: its last argument, an address as well.
    """
    from unicorn import UcError
    from unicorn.unicorn_py3.unicorn import uclib

    status = uclib.uc_hook_add(machine._uch, ctypes.byref(ctypes.c_size_t()), kind, function, data or None, 1, 0)
    if status:
        raise UcError(status)


def stop_function() -> int:
    """The address of uc_emu_stop."""
    from unicorn.unicorn_py3.unicorn import uclib

    return address_of(uclib.uc_emu_stop)


def address_of(function: Any) -> int:
    """The address of a ctypes function. ctypes.cast would keep it alive until the garbage collector comes."""
    address = ctypes.c_void_p.from_buffer(function).value
    assert address is not None
    return address


class Hooks:
    """Python functions that a machine calls.

    interrupted: called with an interrupt's number. invalid: with the access (unicorn's UC_MEM constants), the address
    and the size of one that memory does not allow; then the machine stops. problem: what the first of them raised since
    it was last None, whereupon the machine was stopped.

    The binding's own functions are kept alive, with the machine, until the garbage collector comes.
    """

    def __init__(
        self, machine: Uc, interrupted: Callable[[int], None], invalid: Callable[[int, int, int], None]
    ) -> None:
        from unicorn import UC_HOOK_INTR, UC_HOOK_MEM_INVALID

        self.problem: BaseException | None = None
        self._stop: Callable[[], Any] = machine.emu_stop

        def on_interrupt(_machine: int, number: int, _data: int) -> None:
            self._guarded(interrupted, number)

        def on_invalid(_machine: int, access: int, address: int, size: int, _value: int, _data: int) -> bool:
            self._guarded(invalid, access, address, size)
            return False

        self._functions: list[Any] = [_INTERRUPT(on_interrupt), _INVALID(on_invalid)]
        for kind, function in zip((UC_HOOK_INTR, UC_HOOK_MEM_INVALID), self._functions):
            add(machine, kind, address_of(function))

    def _guarded(self, function: Callable[..., None], *arguments: int) -> None:
        # an exception cannot pass through the machine's C code
        try:
            function(*arguments)
        except BaseException as problem:
            self.problem = self.problem or problem
            self._stop()

    def close(self) -> None:
        """Forgets the functions. The machine must not run again."""
        self._functions.clear()
