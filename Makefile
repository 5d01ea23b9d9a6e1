# Two commands for a newcomer: `make demo` and `make test`. Everything runs in .venv, made on first use.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
export OMP_NUM_THREADS ?= 1
export TOKENIZERS_PARALLELISM := false
export HF_HUB_OFFLINE ?= 1

TABLES := table3 table4-5 table7 figure2 recipe

.PHONY: demo real tables tables-quick test lint words test-slow bench docs clean

demo: $(STAMP)  ## the whole method on synthetic twins: prints the table, leaves report.html
	$(BIN)/medfed run studies/demo.toml --report report.html

real: $(STAMP)  ## the same on real extracts: make real DATA_ROOT=/path/to/data
	$(BIN)/medfed run studies/fedkim-real.toml --data-root $(DATA_ROOT) --report report-real.html

tables: $(STAMP)  ## the paper's tables and figure on synthetic twins, five seeds: hours; stopped, it goes on
	for name in $(TABLES); do $(BIN)/medfed run studies/$$name.toml || exit 1; done

tables-quick: $(STAMP)  ## the quick form of each: all cells, one seed, less than ten minutes a table on two cores
	for name in $(TABLES); do $(BIN)/medfed run studies/$$name.toml --quick || exit 1; done

test: lint  ## lint, types, import contract, tests
	$(BIN)/pytest -n 2 --dist loadfile -m "not slow"

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/mypy

words:  ## the words and the sentence length of pages, docstrings, messages and names
	$(PYTHON) tools/check_words.py

test-slow: $(STAMP)  ## the long runs: every study, kill and resume at each phase
	$(BIN)/pytest -n 2 --dist loadfile -m slow

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
