# make demo and make test set themselves up in .venv, once.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# An outsider without a GPU saves gigabytes:  make demo TORCH_INDEX=https://download.pytorch.org/whl/cpu
TORCH_INDEX ?=
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
ifneq ($(wildcard ../shared/data),)
export DUALSTUDENT_DATA ?= $(abspath ../shared/data)
endif

.PHONY: demo test test-slow check setup clean help

help:
	@echo "make demo       copy a digit classifier from its answers; writes runs/demo/report.html"
	@echo "make test       format, lint, types, layers, tests"
	@echo "make test-slow  learning tests and long fault runs"

demo: $(VENV)/.ready
	$(BIN)/dualstudent demo --out runs/demo --overwrite

check: $(VENV)/.ready-dev
	$(BIN)/ruff format --check src tests benchmarks
	$(BIN)/ruff check src tests benchmarks
	$(BIN)/mypy
	$(BIN)/lint-imports

test: check
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m "not slow" $(PYTEST)

test-slow: $(VENV)/.ready-dev
	$(BIN)/python -m pytest -m slow --timeout 3600 $(PYTEST)

$(VENV)/.python:
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(0 if v >= (3, 11) else "Python 3.11 or newer is needed, $(PYTHON) is %d.%d: say make PYTHON=…" % v[:2])'
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/.ready: pyproject.toml constraints.txt | $(VENV)/.python
	@echo "setting up $(VENV) (once) …"
	$(PIP) $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) torch
	$(PIP) -e .
	@touch $@

$(VENV)/.ready-dev: $(VENV)/.ready
	@echo "setting up the test tools (once) …"
	$(PIP) -e '.[dev]'
	@touch $@

setup: $(VENV)/.ready-dev

clean:
	rm -rf $(VENV) runs .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
