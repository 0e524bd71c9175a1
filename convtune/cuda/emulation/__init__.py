"""Runs CUDA C on the CPU, to check it where there is no GPU."""
