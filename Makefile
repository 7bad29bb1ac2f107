# Every target sets up what it needs: a .venv, the install, then the work. A second run reinstalls nothing
# unless pyproject.toml or constraints.txt changed.
#
# The install takes torch from your default package index; on Linux that build brings CUDA along. For a smaller,
# CPU-only build see "Get started" on pytorch.org, make .venv and install torch in it first: it is then kept.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SETTINGS := pyproject.toml constraints.txt
# Two test workers with one thread each: two threads in each of two processes are 2.7 times slower on two cores.
TEST_ENV := OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE HF_HUB_OFFLINE=1
PYTEST := $(TEST_ENV) $(BIN)/python -m pytest -n 2

.PHONY: help quickstart test test-all lint format install clean

help:
	@echo "make quickstart   raw text to a chat model in minutes (into runs/quickstart)"
	@echo "make test         lint, type check, and every test but the slow ones"
	@echo "make test-all     the same with the slow ones"
	@echo "make lint         ruff and mypy;  make format: ruff rewrites;  make clean: remove caches and .venv"

quickstart: $(VENV)/installed
	$(BIN)/sprout quickstart

test: lint
	$(PYTEST) -m "not slow"

test-all: lint
	$(PYTEST)

lint: $(VENV)/installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/installed-test
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

install: $(VENV)/installed

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/installed: $(SETTINGS) | $(BIN)/python
	$(BIN)/python -m pip install -c constraints.txt -e .
	@touch $@

$(VENV)/installed-test: $(SETTINGS) | $(BIN)/python
	$(BIN)/python -m pip install -c constraints.txt -e ".[test]"
	@touch $@ $(VENV)/installed

clean:
	rm -rf $(VENV) build dist .pytest_cache .ruff_cache .mypy_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
