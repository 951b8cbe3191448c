# Every target makes the virtual environment it needs by itself; nothing is installed outside of .venv.
VENV := .venv
BIN := $(VENV)/bin
PYTEST := $(BIN)/python -m pytest

.DEFAULT_GOAL := help
.PHONY: help demo test test-all unit lint format bench musts docs clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

# Two stamps: the demo needs only the command line, tests need everything.
$(VENV)/.cli: pyproject.toml tools/make_venv.sh
	@tools/make_venv.sh $(VENV) cli
	@touch $@

$(VENV)/.dev: pyproject.toml tools/make_venv.sh
	@tools/make_venv.sh $(VENV) dev
	@touch $(VENV)/.cli $@

demo: $(VENV)/.cli ## a file from a Linux MPTCP server over two paths, one of which is cut half-way
	@$(BIN)/mptcp demo

test: $(VENV)/.dev ## all tests but the slow ones
	$(PYTEST) -m "not slow"

test-all: $(VENV)/.dev ## all tests: 1 GiB transfers, 10,000 connections, long simulations too
	$(PYTEST)

unit: $(VENV)/.dev ## the quick ones only: no kernel, no namespaces
	$(PYTEST) tests/unit -m "not slow"

lint: $(VENV)/.dev ## ruff (rules and format) and mypy --strict
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.dev ## let ruff put the files into shape
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/.dev ## speed and memory, as a table
	$(BIN)/python -m benchmarks

docs: $(VENV)/.dev ## write the generated pages and tables of docs/ anew
	$(BIN)/python tools/counters_page.py --write
	$(BIN)/python tools/requirements_page.py --write
	$(BIN)/python tools/option_tables.py --write

musts: $(VENV)/.dev ## the MUSTs of an RFC that nothing cites: make musts RFC=path/to/rfc8684.txt
	$(BIN)/python tools/rfc_musts.py $(RFC)

clean: ## remove the virtual environment and all caches
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis build dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
