# make demo      open the demo
# make test      run the tests, except the long ones
# make test-all  run the long ones too: durability, coverage of intervals, training
# make lint      check style and types
# Each creates .venv on its first run and installs nothing on later ones.

PYTHON ?= $(shell for python in python3.12 python3.11 python3 python3.13 python3.14 python; do \
	$$python -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' \
	2>/dev/null && echo $$python && break; done)
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check

# The tests of the pages often wait for a browser or a server: one process more than cores.
WORKERS ?= $(shell echo $$(( $$(getconf _NPROCESSORS_ONLN) + 1 )))
# Tests start many processes, and without bytecode each would compile all code anew.
export PYTHONDONTWRITEBYTECODE =
PYTEST := $(BIN)/python -m pytest --numprocesses $(WORKERS) --maxprocesses 4 --dist worksteal

.PHONY: demo test test-slow test-all lint clean
.DEFAULT_GOAL := demo

demo: $(VENV)/.demo
	$(BIN)/python app.py $(ARGS)

test: $(VENV)/.test
	$(PYTEST) -m "not slow" $(ARGS)

test-slow: $(VENV)/.test
	$(PYTEST) -m slow $(ARGS)

test-all: test test-slow

lint: $(VENV)/.test
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

clean:
	rm -rf $(VENV)

$(VENV)/.venv:
	@test -n "$(PYTHON)" || { echo "No Python 3.11 or newer with its venv module was found. \
	Install one (on Debian: python3 and python3-venv), or name it: make PYTHON=..."; exit 1; }
	$(PYTHON) -m venv --clear $(VENV)
	@touch $@

$(VENV)/.demo: requirements.txt $(VENV)/.venv
	@echo "Installing the demo into $(VENV). Once only; torch is large, so this takes minutes."
	$(PIP) install --requirement requirements.txt
	@touch $@

$(VENV)/.test: pyproject.toml tests/support/chromium.py $(VENV)/.demo
	@echo "Installing the test tools."
	$(PIP) install --quiet --upgrade "pip>=25.1"
	$(PIP) install --group dev
	$(BIN)/python tests/support/chromium.py
	@touch $@
