"""From a scheduled module to a GPU's machine code, its emulation on a CPU, and an estimate of its time."""
