# `make demo` and `make test` are all a newcomer needs; both set up .venv when it is not there yet.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.set-up
HOME_FOLDER ?= .intarsia
SOURCES := clients/intarsia_client aggregators/intarsia_aggregators continual/intarsia_continual platform/intarsia_platform
PROJECTS := clients/pyproject.toml aggregators/pyproject.toml continual/pyproject.toml platform/pyproject.toml

.DEFAULT_GOAL := help
.PHONY: help setup demo test lint format bench clean

help:
	@echo "make demo   the embedded default: eight departments, one federation, a report"
	@echo "make test   the tests"
	@echo "make lint   ruff, mypy and the import rules"
	@echo "make bench  the benchmarks, each printing JSON"
	@echo "make setup  only the environment in $(VENV)"

$(STAMP): constraints.txt requirements-dev.txt $(PROJECTS)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "python: $$($(PYTHON) --version); use 3.11 or later, for example make PYTHON=python3.11" >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)
	# torch first and alone: an index may hold a CPU build of exactly this version.
	$(BIN)/python -m pip install --quiet --disable-pip-version-check torch==2.13.0
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt \
		-e "clients[train,parquet]" -e aggregators -e continual -e "platform[replicas,postgresql]" -r requirements-dev.txt
	touch $(STAMP)

setup: $(STAMP)

demo: $(STAMP)
	$(BIN)/intarsia --home $(HOME_FOLDER) demo

test: $(STAMP)
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(STAMP)
	$(BIN)/python tests/benchmarks/grids.py
	$(BIN)/python tests/benchmarks/private_step.py
	$(BIN)/python tests/benchmarks/aggregation/growth.py
	$(BIN)/python tests/benchmarks/aggregation/run.py
	$(BIN)/python tests/benchmarks/serving/multi_adapter.py
	$(BIN)/python tests/benchmarks/serving/generation.py
	$(BIN)/python tests/benchmarks/serving/prefix.py
	$(BIN)/python tests/benchmarks/serving/gateway.py
	$(BIN)/python tests/benchmarks/demo.py

clean:
	rm -rf $(VENV) $(HOME_FOLDER)
