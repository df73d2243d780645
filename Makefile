# `make demo` and `make test` set up everything that they need in .venv; nothing else is touched.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.DELETE_ON_ERROR:
.PHONY: demo test test-slow test-faults test-gpu test-notebook test-browser lint format clean

demo: $(INSTALLED)
	$(BIN)/samplernn demo

test: lint
	$(BIN)/python -m pytest

# Long tests.
test-slow: $(INSTALLED)
	$(BIN)/python -m pytest -m slow

# Kills, signals, full disks and the like, many times over; `make test` has a few of each. About ten minutes.
test-faults: $(INSTALLED)
	$(BIN)/python -m pytest tests/faults --all-faults

# Tests that need a CUDA device.
test-gpu: $(INSTALLED)
	$(BIN)/python -m pytest -m gpu

# Executes docs/quickstart.ipynb: about two minutes. Jupyter's kernel is installed for this alone.
test-notebook: $(VENV)/.notebook
	$(BIN)/python -m pytest tests/test_notebook.py -m notebook

$(VENV)/.notebook: $(INSTALLED)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[notebook]"
	@touch $@

# Reports as a browser shows them; needs Chromium or Chrome on the machine (apt-get install chromium).
test-browser: $(INSTALLED)
	$(BIN)/python -m pytest -m browser

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(INSTALLED)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The install takes about two minutes, most of it torch; it is done again when pyproject.toml changes.
$(INSTALLED): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "samplernn needs Python 3.10 or newer; try make PYTHON=python3.12")'
	@echo "installing into $(VENV): about two minutes, most of it torch"
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[dev]"
	@touch $@

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
