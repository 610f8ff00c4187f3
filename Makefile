# Each target sets up what it needs on a machine with nothing but Python 3.11-3.13 and make.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: demo test check docs clean

demo: $(READY)  ## export the tiny model, rerank in several languages, compare with PyTorch
	$(BIN)/python -m benchmarks.demo

test: $(READY)  ## the whole suite
	$(BIN)/python -m pytest

check: $(READY)  ## what a change has to pass besides the tests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(READY)  ## write again what is generated in README.md and docs/
	$(BIN)/python -m benchmarks.docs

clean:
	rm -rf $(VENV)

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade 'pip>=25.1'
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[cpu,server,export]' --group dev
	touch $@
