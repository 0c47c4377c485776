# make demo   sets up .venv, then runs the main job end to end on this machine (OUTPUT=FOLDER: there)
# make test   sets up .venv, then runs the tests
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
SWIFT := .venv-swift
BIN := $(VENV)/bin
# uv looks for local wheels only where it is told to; pip's own setting serves both.
export UV_FIND_LINKS ?= $(shell $(PYTHON) -m pip config get global.find-links 2>/dev/null)
# Several workers share few cores: one thread each.
export OMP_NUM_THREADS ?= 1
PYTEST := $(BIN)/python -m pytest

.PHONY: demo test test-slow test-exhaustive test-system lint setup constraints clean

demo: setup
	$(BIN)/python examples/demo.py $(if $(OUTPUT),--output "$(OUTPUT)")

test: setup
	$(PYTEST) -m "not slow and not system and not exhaustive"

test-slow: setup
	$(PYTEST) -m "slow and not system"

test-exhaustive: setup
	$(PYTEST) -m exhaustive

# Real SLURM, kubectl and object store; installs them where it may.
test-system: setup $(SWIFT)/.ready
	@if ! command -v slurmctld >/dev/null || ! command -v munged >/dev/null; then \
	  if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	    apt-get update -qq && apt-get install -y -qq --no-install-recommends slurm-wlm munge; \
	  else echo "make test-system: install slurm-wlm and munge first" >&2; exit 1; fi; fi
	@if ! command -v memcached >/dev/null; then \
	  if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	    apt-get update -qq && apt-get install -y -qq --no-install-recommends memcached; \
	  else echo "make test-system: install memcached first" >&2; exit 1; fi; fi
	$(PYTEST) -m system

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

setup: $(VENV)/.ready

$(VENV)/.ready: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	$(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python \
	  --constraint constraints.txt --editable ".[dev,kubernetes,s3]"
	touch $@

# OpenStack Swift, a server of the S3 protocol, in an environment of its own.
$(SWIFT)/.ready: | $(VENV)/.ready
	test -x $(SWIFT)/bin/python || $(PYTHON) -m venv $(SWIFT)
	$(BIN)/uv pip install --quiet --python $(SWIFT)/bin/python swift==2.38.3
	touch $@

# The versions that the tests last passed with.
constraints:
	( echo "# The versions that the tests last passed with: make constraints"; \
	  $(BIN)/uv pip freeze --python $(BIN)/python --exclude-editable | \
	  sed 's/^\(torch==[0-9.]*\)+cpu$$/\1/' | grep -v '^uv==' ) > constraints.new
	mv constraints.new constraints.txt

clean:
	rm -rf demo
