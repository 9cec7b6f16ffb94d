# Every target does the set-up it needs. `make demo` and `make test` work from a bare clone.
PYTHON ?= python3
BIN := .venv/bin
PIP_FLAGS := --quiet --disable-pip-version-check -c constraints.txt

.PHONY: help setup demo test lint docs check slow clean

help:            ## list the targets
	@grep -hE '^[a-z]+: .*##' $(MAKEFILE_LIST) | sed -E 's/: .*## /\t/' | expand -t 10

setup: .venv/.dev  ## create .venv and install the pinned packages

.venv/.train: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "binseg needs Python 3.11 or newer: make setup PYTHON=python3.12"; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install $(PIP_FLAGS) pip
	$(BIN)/python -m pip install $(PIP_FLAGS) -e '.[train]'
	touch $@

.venv/.dev: .venv/.train
	$(BIN)/python -m pip install $(PIP_FLAGS) --group dev -e '.[all]'
	touch $@

demo: .venv/.train ## train, evaluate and predict on images that binseg draws itself
	@rm -rf runs/demo  # of an earlier demo: it comes out the same
	$(BIN)/binseg demo --out runs/demo

# Two processes, a core each: more threads would wait for each other most of the time.
test slow: export OMP_NUM_THREADS = 1

test: .venv/.dev   ## the quick tests
	$(BIN)/python -m pytest -n 2

slow: .venv/.dev   ## the tests that take minutes
	$(BIN)/python -m pytest -n 2 -m slow

lint: .venv/.dev   ## style, complexity, types, import layers, prose and the size of everything
	$(BIN)/ruff check . && $(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/proselint check --config docs/proselint.json *.md docs/*.md docs/*/*.md
	$(BIN)/python -m pytest -q tests/test_house.py

docs: .venv/.dev   ## the documentation, without warnings, and its notebook run
	$(BIN)/python docs/generate.py --check
	$(BIN)/python -m pytest -q -m slow tests/test_tutorial.py
	$(BIN)/sphinx-build -n -W --keep-going -q docs docs/_build/html

check: lint test docs  ## everything that must hold before a change lands

clean:           ## remove what was built here (not runs/)
	rm -rf .venv dist docs/_build .mypy_cache .pytest_cache .ruff_cache .import_linter_cache
