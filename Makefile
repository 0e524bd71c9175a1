# The tools are in .venv, which is made when a target first needs it.
# PYTHON: which Python to make it with. ARGS: more arguments for the command that a target runs.

PYTHON ?= python3
WORKLOADS ?= mobilenet_v2
TRIALS ?= 32

VENV := .venv
BIN := $(VENV)/bin
# Two at a time however many cores there are: the tests start worker processes of their own, one per core.
PYTEST := $(BIN)/python -m pytest -n 2

.PHONY: help tune test torch arm arm-rpc arm-native check lint types figures clean
.DELETE_ON_ERROR:

help:
	@echo "make tune      set up, then tune $(WORKLOADS) on this machine (WORKLOADS=… TRIALS=… ARGS=…)"
	@echo "make test      set up, then run all tests (ARGS=…)"
	@echo "make torch     add PyTorch, a second opinion that 'make test' then asks (up to 6 GB where it comes with CUDA)"
	@echo "make arm       bring up an emulated ARM machine (250 MB to download, 0.9 GB) and show convtune on it"
	@echo "make check     formatting, lint, types and the fast tests: run it before every commit"
	@echo "make figures   measure the figures of README.md (ARGS='peak' for one of them)"
	@echo "make clean     remove what make has made"

tune: $(VENV)/.run
	$(BIN)/convtune tune $(WORKLOADS) --trials $(TRIALS) $(ARGS)

test: $(VENV)/.test
	$(PYTEST) $(ARGS)

torch: $(VENV)/.torch

# Each waits most of its time: make -j2 arm.
arm: arm-rpc arm-native

arm-rpc arm-native: arm-%: $(VENV)/.test
	$(BIN)/python scripts/arm_proof.py $*

check: lint types
	$(PYTEST) -m "not slow" $(ARGS)

lint: $(VENV)/.dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

# mypy does not know package-dir, by which schedules/ is convtune.schedules: it reads the package as it is installed.
types: $(VENV)/.dev
	rm -rf build/types && mkdir -p build/types/convtune
	cd build/types/convtune && ln -s ../../../convtune/* ../../../schedules ../../../tuned_logs .
	cd build/types && ../../$(BIN)/mypy --config-file ../../pyproject.toml
	$(BIN)/mypy scripts/*.py

figures: $(VENV)/.run
	$(BIN)/python scripts/figures.py $(or $(ARGS),all)

clean:
	rm -rf $(VENV) build convtune.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis

# Each stamp is newer than the pyproject.toml that was installed.
$(VENV)/.run: EXTRA :=
$(VENV)/.test: EXTRA := [test]
$(VENV)/.torch: EXTRA := [torch]
$(VENV)/.dev: EXTRA := [dev]
$(VENV)/.run $(VENV)/.test $(VENV)/.torch $(VENV)/.dev: pyproject.toml | $(BIN)/pip
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.$(EXTRA)'
	@touch $@

$(BIN)/pip:
	@command -v $(PYTHON) >/dev/null || \
		{ echo "There is no $(PYTHON): install Python 3.10 or later, or name one with make PYTHON=…" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
		{ echo "$(PYTHON) is $$($(PYTHON) --version); 3.10 or later is needed: make PYTHON=…" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
		{ echo "$(PYTHON) has no venv or ensurepip: on Debian and Ubuntu, apt install python3-venv" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
