"""Names of the files in a package."""

MANIFEST_NAME = "manifest.json"

RUNTIME_NAME = "libconvtune_runtime.so.1"
"""Also its SONAME, by which the dynamic loader sees that another kernel has brought it already. A change to what
runtime.c exports needs a new number."""
