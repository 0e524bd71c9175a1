"""Runs kernels of machines that are not at hand: unicorn emulates them, and what they execute is counted."""
