# Every target sets up what it needs: a virtual environment in .venv with the versions of constraints.txt.
# Another interpreter: make test PYTHON=python3.12

.DEFAULT_GOAL := help
.PHONY: help env demo test lint bench explore notebooks pocket clean

SUITABLE := import sys; sys.exit(not (3, 10) <= sys.version_info[:2] < (3, 14))
PYTHON ?= $(shell for python in python3 python3.13 python3.12 python3.11 python3.10; do \
	$$python -c '$(SUITABLE)' 2>/dev/null && echo $$python && break; done)

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/installed
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
DEMO := runs/pocket-retrieval
TARGET ?=

help:
	@echo 'make demo      find the retrieval heads of the bundled model, check them causally, export the mask'
	@echo 'make test      lint, types and the test suite'
	@echo 'make lint      lint and types only'
	@echo 'make bench     measure speed and memory (make bench TARGET=tracing for one subject)'
	@echo 'make explore   the explorer in the browser'
	@echo 'make notebooks ten questions, answered on the bundled model, in JupyterLab'
	@echo 'make pocket    train the bundled model again (up to 100 minutes on two cores; resumes)'
	@echo 'make clean     remove the environment, caches and the demo run'

env: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@test -n '$(PYTHON)' || { echo 'Python 3.10 to 3.13 is needed, and none was found: make … PYTHON=/path/to/python3'; exit 1; }
	@$(PYTHON) -c '$(SUITABLE)' || { echo 'Python 3.10 to 3.13 is needed; $(PYTHON) is another: make … PYTHON=/path/to/python3'; exit 1; }
	@echo 'Installing into $(VENV) (a few minutes the first time) …'
	@test -x $(BIN)/pip || $(PYTHON) -m venv $(VENV)
	@$(INSTALL) -e '.[dev]'
	@touch $@

demo: $(STAMP)
	@rm -rf $(DEMO) $(DEMO).journal.jsonl
	@$(BIN)/interp heads score pocket --lengths 256,512,1024 --needles 4 --causal --out $(DEMO)

test: lint
	$(BIN)/python -m pytest -q -n 2

lint: $(STAMP)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

bench: $(STAMP)
	$(BIN)/python -m pytest -q -s -m bench tests/benchmarks$(if $(TARGET),/test_$(TARGET).py)

explore: $(STAMP)
	@$(BIN)/interp explore

notebooks: $(STAMP)
	@$(INSTALL) -e '.[notebooks]'
	@$(BIN)/jupyter lab notebooks

pocket: $(STAMP)
	$(BIN)/python -m interp.pocket.train --out data/pocket
	$(BIN)/python -m interp.pocket.card data/pocket

clean:
	rm -rf $(VENV) $(DEMO) $(DEMO).journal.jsonl build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -prune -exec rm -rf {} +
