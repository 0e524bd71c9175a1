"""The runtime's errors, which a saved package carries with it."""

from __future__ import annotations


class ConvtuneError(Exception):
    """Base of every error that convtune raises on purpose. `str(error)` is one line."""


class KernelError(ConvtuneError, RuntimeError):
    """A compiled kernel cannot be loaded, cannot take these arguments, or failed while it ran."""


class UnfitCpuError(KernelError):
    """A kernel is for another machine, or needs what this CPU lacks."""


class NoGpuError(KernelError):
    """A GPU's kernel was called where there is no GPU, or none that can be used."""
