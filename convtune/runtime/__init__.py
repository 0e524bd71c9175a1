"""Runs compiled convolutions with nothing but NumPy: this folder is also copied into every saved package."""
