# make run: the quickstart.  make test: the tests.  PYTHON chooses the interpreter (3.11 or newer).
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
export OMP_WAIT_POLICY = PASSIVE

.PHONY: docs defences-table methods-table run test test-slow test-deploy lint types bench install install-dev clean

# The core alone, for running; everything (Flower, the hub, linters) for testing.
$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q --upgrade pip
	$(BIN)/pip install -q -c constraints.txt torch
	$(BIN)/pip install -q -c constraints.txt -e .
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(BIN)/pip install -q -c constraints.txt -e '.[dev,flower,hub,privacy]'
	touch $@

install: $(VENV)/.installed

install-dev: $(VENV)/.installed-dev

run: install
	$(BIN)/hyperfed quickstart

test: install-dev
	$(BIN)/python -m pytest

test-slow: install-dev
	$(BIN)/python -m pytest -m slow

# A federation with TLS on loopback: clients and server are killed, clients lie. Under ten minutes.
test-deploy: install-dev
	$(BIN)/python -m pytest -m slow tests/test_deploy.py -k survives

lint: install-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: install-dev
	$(BIN)/mypy

methods-table: install-dev
	$(BIN)/python docs/methods_on_digits.py

defences-table: install-dev
	$(BIN)/python docs/defences_on_digits.py

docs: install-dev
	$(BIN)/python docs/generate.py

bench: install-dev
	$(BIN)/python -m benchmarks

clean:
	rm -rf $(VENV) build dist
