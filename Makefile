# Everything a person or CI does here. Needs Python >= 3.11.4 and make; nothing else.

PYTHON ?= python3
BIN := .venv/bin
TUNING ?= qlora
N ?= 200

.PHONY: setup check types contracts test test-all faults chaos test-gpu examples
.PHONY: demo bench bench-api bench-data bench-queue clean-demo

setup: .venv/.ready

# Python compiles what it imports; pip would compile all of some 20,000 files.
.venv/.ready: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --no-compile -c constraints.txt -e ".[worker,embedded,otel,dev]"
	touch $@

check: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(MAKE) --no-print-directory -j 2 types contracts

types: setup
	$(BIN)/mypy

contracts: setup
	$(BIN)/lint-imports
	$(BIN)/pytest -q tests/test_migrations.py

# Two at a time, each with servers of its own; a file stays with one of them.
test: setup
	$(BIN)/pytest -n 2 --dist loadfile -m "not clients and not long"

# With what installs more than `make setup` does, the stock clients in their versions, and with what takes longer.
test-all: setup
	$(BIN)/pytest --schema-examples 8

# The table of faults: who dies, who lies, and what came of it. A wrong clock needs libfaketime, and a compiler for it.
faults: setup
	-$(BIN)/pip install --quiet --disable-pip-version-check libfaketime
	$(BIN)/python -m pytest -n 2 --dist loadfile -p tests.fault_table -m fault

# N random kills of a running service while jobs come and run, for half an hour and more; SEED=… has the same ones again.
chaos: setup
	$(BIN)/python -m tests.chaos --kills $(N) $(if $(SEED),--seed $(SEED))

test-gpu: setup
	$(BIN)/pytest -m gpu

# Records the examples at /docs anew, from a server started for it.
examples: setup
	$(BIN)/python -m tests.record_examples

demo: setup
	$(BIN)/finetuned demo --tuning $(TUNING)

bench: setup
	$(BIN)/python -m benchmarks.overhead

bench-data: setup
	$(BIN)/python -m benchmarks.data

bench-api: setup
	$(BIN)/python -m benchmarks.api --train

bench-queue: setup
	$(BIN)/python -m benchmarks.queue

# What Dockerfile and docker-compose.yml do, for machines without Docker: the images' steps install into VENV, and the
# services' commands come from there with BIN=$(VENV)/bin. tests/test_deployment.py holds the three files together.
VENV := build/venv
HOST := 127.0.0.1
PORT := 8000
SLOT := 0
INSTALL = $(VENV)/bin/pip install --disable-pip-version-check -c constraints.txt

.PHONY: install-api install-worker install-gpu install-code
.PHONY: run-migrate run-api run-worker run-prepare run-sweeper health-api health-worker

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

install-api: $(VENV)/bin/python
	$(INSTALL) ".[s3,otel]"

install-worker: $(VENV)/bin/python
	$(INSTALL) ".[worker,s3,otel]"

# After install-worker: flash-attn is compiled against the torch that is there, by the nvcc that is there.
install-gpu:
	$(INSTALL) setuptools wheel ninja
	$(INSTALL) --no-build-isolation ".[gpu]"

# The code alone, once what it depends on is there; of an earlier build, setuptools would install deleted modules too.
install-code:
	rm -rf build/lib
	$(INSTALL) --no-deps .

run-migrate:
	$(BIN)/finetuned migrate

run-api:
	$(BIN)/finetuned api --host $(HOST) --port $(PORT)

run-worker:
	$(BIN)/finetuned worker --slot $(SLOT)

run-prepare:
	$(BIN)/finetuned worker --queue prepare

run-sweeper:
	$(BIN)/finetuned sweeper

health-api:
	$(BIN)/python -c "import httpx; httpx.get('http://127.0.0.1:$(PORT)/readyz', timeout=8, trust_env=False).raise_for_status()"

# Whether a slot of this host was heard within the last 30 s.
health-worker:
	$(BIN)/python -c "import socket; from app.db import new_session; from app.work.service import workers; exit(not any(alive and worker.host == socket.gethostname() for worker, _, alive in workers(new_session())))"
