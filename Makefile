# Everything a person or CI does here. Needs Python >= 3.11 and make; nothing else.

PYTHON ?= python3
BIN := .venv/bin
TUNING ?= qlora

.PHONY: setup check test test-gpu demo bench clean-demo

setup: .venv/.ready

.venv/.ready: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[worker,embedded,dev]"
	touch $@

check: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/pytest -q tests/test_migrations.py

test: setup
	$(BIN)/pytest

test-gpu: setup
	$(BIN)/pytest -m gpu

demo: setup
	$(BIN)/finetuned demo --tuning $(TUNING)

bench: setup
	$(BIN)/python -m benchmarks.overhead
