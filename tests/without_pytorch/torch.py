"""As if PyTorch were not installed, for processes that import TVM with this directory on their path."""

raise ModuleNotFoundError("left out, as its import takes longer than TVM's own", name="torch")
