# Everything a person or CI runs. `make demo` and `make test` install what they need into .venv first.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
export PIP_DISABLE_PIP_VERSION_CHECK = 1

.PHONY: help demo install test test-long test-gpu check format clean

help:
	@echo "make demo       install, then watch a small model learn (about a minute)"
	@echo "make install    install whippet into $(VENV)"
	@echo "make test       install everything, run the tests"
	@echo "make check      format, lint, types, import directions"
	@echo "make test-long  the long draws (hours)    make test-gpu  needs a CUDA device"

$(VENV)/.core: pyproject.toml constraints.txt
	$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11) and 'whippet needs Python 3.11 or newer')"
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q -c constraints.txt torch
	$(BIN)/python -m pip install -q -c constraints.txt -e .
	@touch $@

$(VENV)/.dev: $(VENV)/.core
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[dev]'
	@touch $@

install: $(VENV)/.core

demo: $(VENV)/.core
	$(BIN)/whippet demo

test: $(VENV)/.dev
	$(BIN)/python -m pytest -n 2 -m "not long and not gpu"

test-long: $(VENV)/.dev
	$(BIN)/python -m pytest -m "long" --timeout 7200

test-gpu:
	$(if $(wildcard $(BIN)/python),$(BIN)/python,$(PYTHON)) -m pytest -m "gpu"

check: $(VENV)/.dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest tests/rules

format: $(VENV)/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis
