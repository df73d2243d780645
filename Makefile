# `make demo` and `make test` set up everything that they need in .venv; nothing else is touched.
# Python 3.10 to 3.14: the first of these that is there and fits.
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11 python3.14 python3.10; do \
	$$p -c 'import sys; sys.exit(not (3, 10) <= sys.version_info < (3, 15))' 2>/dev/null && echo $$p && break; done)
# Another environment, from other requirements, beside the first:
#   make test VENV=.venv-other REQUIREMENTS='torch==2.14.1 torchaudio==2.11.1 .[dev]'
VENV ?= .venv
REQUIREMENTS ?= --requirement requirements.txt
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.DELETE_ON_ERROR:
.PHONY: demo test test-slow test-all test-faults test-gpu test-notebook test-browser test-newest test-lowest try lock lint format clean

demo: $(INSTALLED)
	$(BIN)/samplernn demo

# Two processes at a time: each test counts on one thread.
test: lint
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile

# Do the ranges in pyproject.toml still hold with the newest releases, and with the oldest? Tests and ten steps of the demo, in
# environments of their own. docs/versions.md records the results.
test-newest:
	rm -rf .venv-newest
	$(MAKE) try VENV=.venv-newest REQUIREMENTS='--upgrade .[dev]'

test-lowest: $(VENV)/.uv
	rm -rf .venv-lowest
	$(BIN)/uv pip compile --quiet --no-header --extra dev --resolution lowest-direct pyproject.toml --output-file $(VENV)/lowest.txt
	$(MAKE) try VENV=.venv-lowest REQUIREMENTS='--requirement $(VENV)/lowest.txt'

try: $(INSTALLED)
	$(BIN)/python -m pip freeze --exclude-editable
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile
	$(BIN)/samplernn demo --steps 10 --out $(VENV)/demo-output

# Exact versions for every system and Python, from the ranges in pyproject.toml.
lock: $(VENV)/.uv
	printf '# Exact versions of all that `make demo`, `make test` and CI install. `make lock` writes this file from pyproject.toml.\n' > $(VENV)/lock.txt
	$(BIN)/uv pip compile --upgrade --quiet --universal --python-version 3.10 --extra dev --no-header --no-annotate pyproject.toml >> $(VENV)/lock.txt
	mv $(VENV)/lock.txt requirements.txt

$(VENV)/.uv: $(INSTALLED)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	@touch $@

# Long tests, and rows of parameters that `make test` leaves out.
test-slow: $(INSTALLED)
	$(BIN)/python -m pytest -m slow --numprocesses 2 --dist loadfile

# `make test`, the long tests and all faults: about 45 minutes.
test-all: lint
	$(BIN)/python -m pytest -m 'not gpu and not notebook and not browser' --all-faults --numprocesses 2 --dist loadfile

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

# About two minutes, most of it torch; done again when the versions change.
$(INSTALLED): pyproject.toml requirements.txt
	@test -n "$(PYTHON)" || { echo "samplernn needs Python 3.10 to 3.14; try make PYTHON=/path/to/python3.12"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 10) <= sys.version_info < (3, 15) and "samplernn needs Python 3.10 to 3.14; try make PYTHON=python3.12")'
	@echo "installing into $(VENV): about two minutes, most of it torch"
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(REQUIREMENTS)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@

clean:
	rm -rf .venv .venv-newest .venv-lowest build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
