# Two commands for a newcomer: `make demo` and `make test`; `make help` lists all. Everything runs in .venv, made on
# first use.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
export OMP_NUM_THREADS ?= 1
export TOKENIZERS_PARALLELISM := false
export HF_HUB_OFFLINE ?= 1
# Bytecode is kept, the tests' too: they are collected in half the time.
export PYTHONDONTWRITEBYTECODE :=

PYTEST := $(BIN)/pytest --numprocesses 2 --dist loadfile

TABLES := table3 table4-5 table7 figure2 recipe

.PHONY: help demo real tables tables-quick check lint words unit test test-rest test-slow test-busy bench docs clean

help:  ## list the commands
	@sed -n 's/^\([a-z-]*\):.*##  *\(.*\)/\1\t\2/p' $(MAKEFILE_LIST) | expand -t 14

demo: $(STAMP)  ## the whole method on synthetic twins: prints the table, leaves report.html
	$(BIN)/medfed run studies/demo.toml --report report.html

real: $(STAMP)  ## the same on real extracts: make real DATA_ROOT=/path/to/data
	$(BIN)/medfed run studies/fedkim-real.toml --data-root $(DATA_ROOT) --report report-real.html

tables: $(STAMP)  ## the paper's tables and figure on synthetic twins, five seeds: hours; stopped, it goes on
	for name in $(TABLES); do $(BIN)/medfed run studies/$$name.toml || exit 1; done

tables-quick: $(STAMP)  ## the quick form of each: all cells, one seed, less than ten minutes a table on two cores
	for name in $(TABLES); do $(BIN)/medfed run studies/$$name.toml --quick || exit 1; done

check: $(STAMP)  ## in a minute: lint, types, import contract, words, and the unit tests (no LLM, no process)
	$(MAKE) --jobs 3 --output-sync=target lint words unit

lint: $(STAMP)  ## ruff, the import contract, mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/mypy

words:  ## the words and the sentence length of pages, docstrings, messages and names
	$(PYTHON) tools/check_words.py

unit: $(STAMP)  ## tests/unit alone
	$(PYTEST) tests/unit -m "not slow"

test: check test-rest  ## in twelve minutes on two cores: `check`, then all tests that are not slow; what CI runs

test-rest: $(STAMP)
	$(PYTEST) --ignore tests/unit -m "not slow"

test-slow: $(STAMP)  ## the long runs: every study, kill and resume at each phase
	$(PYTEST) -m slow

test-busy: $(STAMP)  ## all tests that are not slow while a busy loop holds every core: none may mind
	$(BIN)/python tests/support/busy.py $(PYTEST) -m "not slow"

bench: $(STAMP)  ## the benchmark table: ratios, interleaved in one process; a quarter of an hour on one core
	$(BIN)/python -m benchmarks.run

docs: $(STAMP)  ## regenerate the pages that are made from code
	$(BIN)/python docs/generate.py

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "medfed needs Python 3.11 or newer; try: make PYTHON=python3.11")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt torch
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch $(STAMP)

clean:
	rm -rf $(VENV) runs build dist report.html
